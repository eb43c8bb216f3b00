#!/usr/bin/env bash
# Training under Slurm: sbatch deploy/slurm.sh CONFIG [key=value ...]     from the repository's root, on a shared disk.
# Adapt: nodes, devices (gres), time, DEVICES. The time limit may be far shorter than the training: the job is put back
# into the queue and goes on from its latest checkpoint.
#SBATCH --job-name=ecenet
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gres=gpu:8
#SBATCH --cpus-per-task=64
#SBATCH --time=24:00:00
#SBATCH --signal=B:USR1@400
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=output/slurm_%j.log
set -uo pipefail
: "${1:?usage: sbatch $0 CONFIG [key=value ...]}"
export DEVICES=${DEVICES:-8}
export NNODES=$SLURM_JOB_NUM_NODES MASTER_PORT=${MASTER_PORT:-8118} RETRIES=${RETRIES:-0}
MASTER_ADDR=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
export MASTER_ADDR

# One launcher a machine. It gets the signals itself: exec leaves no shell in between.
srun --kill-on-bad-exit=0 bash -c \
  'NODE_RANK=$SLURM_NODEID exec bash scripts/run_distribute_train.sh "$1" "$DEVICES" "${@:2}"' train "$@" &
step=$!

# Both go on to the launchers, which let the workers save. USR1 comes 400 s before the time limit; TERM is of scancel or
# of a preemption, and whether the job comes back then is Slurm's business.
time_is_up=0
trap 'signalled=1; time_is_up=1; kill -s USR1 "$step"' USR1
trap 'signalled=1; kill -s TERM "$step"' TERM
while :; do
  signalled=0
  wait "$step"
  code=$?
  [ "$signalled" -eq 1 ] || break # a signal ends `wait`, not the step
done

# srun gives the highest code of its tasks: 85 is stopped and its steps saved, 2 wrong usage, 3 numbers gone bad, 1 a failure.
echo "training ended with code $code"
if [ "$code" -eq 85 ] && [ "$time_is_up" -eq 1 ]; then
  scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
