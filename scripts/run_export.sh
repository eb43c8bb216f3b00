#!/usr/bin/env bash
# Exports to MindIR: bash scripts/run_export.sh CONFIG CHECKPOINT FILE.mindir [--kind labels|logits] [key=value ...]
set -euo pipefail
cd "$(dirname "$0")/.."
config=${1:?usage: $0 CONFIG CHECKPOINT FILE.mindir [--kind labels|logits] [key=value ...]}
checkpoint=${2:?usage: $0 CONFIG CHECKPOINT FILE.mindir [--kind labels|logits] [key=value ...]}
output=${3:?usage: $0 CONFIG CHECKPOINT FILE.mindir [--kind labels|logits] [key=value ...]}
shift 3
source scripts/environment.sh
use_environment requirements.txt
exec python export.py --config "$config" --checkpoint "$checkpoint" --output "$output" "$@"
