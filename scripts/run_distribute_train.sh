#!/usr/bin/env bash
# Trains on several devices, through msrun: bash scripts/run_distribute_train.sh CONFIG [DEVICES] [key=value ...]
# DEVICES: processes on this machine; may be left out where the GPUs or Ascend devices of the machine can be counted.
# Environment: RETRIES=n; NNODES, NODE_RANK, MASTER_ADDR, MASTER_PORT for several machines; --help tells all of it.
# Output of each rank: OUTPUT_DIR/NAME/logs/start_NNN_node_N/worker_RANK.log. Exit codes: --help.
set -euo pipefail
cd "$(dirname "$0")/.."
: "${1:?usage: $0 CONFIG [DEVICES] [key=value ...]}"
# shellcheck source=scripts/environment.sh
source scripts/environment.sh
use_environment requirements.txt
exec python tools/launch.py "$@"
