#!/usr/bin/env bash
# Trains on several devices of one machine: bash scripts/run_distribute_train.sh CONFIG [DEVICES=8] [key=value ...]
# Logs of the ranks: output/msrun/worker_*.log; PORT (default 8118) must be free.
set -euo pipefail
cd "$(dirname "$0")/.."
config=${1:?usage: $0 CONFIG [DEVICES] [key=value ...]}
shift
devices=8
if [[ ${1:-} =~ ^[0-9]+$ ]]; then
  devices=$1
  shift
fi
source scripts/environment.sh
use_environment requirements.txt
exec msrun --worker_num="$devices" --local_worker_num="$devices" --master_port="${PORT:-8118}" \
  --log_dir=output/msrun --join=True train.py --config "$config" "$@"
