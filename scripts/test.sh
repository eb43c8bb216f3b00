#!/usr/bin/env bash
# Lint and tests, in an environment of its own: bash scripts/test.sh [--slow] [--faults] [pytest arguments]
# TEST_PROCESSES (default 2) test files run at once, each process with up to 5 GB of memory.
set -euo pipefail
cd "$(dirname "$0")/.."
# shellcheck source=scripts/environment.sh
source scripts/environment.sh
use_environment requirements-dev.txt
ruff check .
# A file stays in one process: its tests share compiled networks and finished runs. Long ones come first (tests/conftest.py).
python -m pytest --numprocesses "${TEST_PROCESSES:-2}" --dist loadfile --no-loadscope-reorder "$@"
