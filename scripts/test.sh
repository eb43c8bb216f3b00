#!/usr/bin/env bash
# Lint and tests, in an environment of its own: bash scripts/test.sh [--slow] [--faults] [pytest arguments]
set -euo pipefail
cd "$(dirname "$0")/.."
# shellcheck source=scripts/environment.sh
source scripts/environment.sh
use_environment requirements-dev.txt
ruff check .
python -m pytest "$@"
