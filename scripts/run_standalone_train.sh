#!/usr/bin/env bash
# Trains on one device: bash scripts/run_standalone_train.sh CONFIG [key=value ...]
# RETRIES=n in the environment starts again, up to n times, after exit code 85 or a crash. Exit codes: train.py --help.
set -euo pipefail
cd "$(dirname "$0")/.."
: "${1:?usage: $0 CONFIG [key=value ...]}"
# shellcheck source=scripts/environment.sh
source scripts/environment.sh
use_environment requirements.txt
exec python tools/launch.py --standalone "$@"
