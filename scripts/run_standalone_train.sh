#!/usr/bin/env bash
# Trains on one device: bash scripts/run_standalone_train.sh CONFIG [key=value ...]
set -euo pipefail
cd "$(dirname "$0")/.."
config=${1:?usage: $0 CONFIG [key=value ...]}
shift
source scripts/environment.sh
use_environment requirements.txt
exec python train.py --config "$config" "$@"
