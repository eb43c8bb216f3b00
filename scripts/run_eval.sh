#!/usr/bin/env bash
# Evaluates: bash scripts/run_eval.sh CONFIG CHECKPOINT|FILE.mindir [key=value ...]
set -euo pipefail
cd "$(dirname "$0")/.."
config=${1:?usage: $0 CONFIG CHECKPOINT|FILE.mindir [key=value ...]}
source_path=${2:?usage: $0 CONFIG CHECKPOINT|FILE.mindir [key=value ...]}
shift 2
source scripts/environment.sh
use_environment requirements.txt
flag=--checkpoint
[[ $source_path == *.mindir ]] && flag=--model
exec python eval.py --config "$config" "$flag" "$source_path" "$@"
