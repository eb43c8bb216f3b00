# Sourced by the scripts: makes .venv with the packages of a requirements file, once for each content of it.
# Usage: use_environment REQUIREMENTS_FILE       PYTHON (default python3) is what .venv is made with.

use_environment() {
  local requirements=$1 python=${PYTHON:-python3} stamp
  "$python" - <<'CHECK' || return 2
import sys
if not (3, 10) <= sys.version_info[:2] <= (3, 12) or not sys.platform.startswith("linux"):
    sys.exit(f"needs Python 3.10 to 3.12 on Linux; this is {sys.version.split()[0]} on {sys.platform}: set PYTHON=python3.11")
CHECK
  stamp=.venv/.installed-$(cat requirements*.txt | sha256sum | cut -c1-16)-$(basename "$requirements" .txt)
  if [ ! -f "$stamp" ]; then
    echo "installing $requirements into .venv"
    [ -x .venv/bin/python ] || "$python" -m venv .venv
    .venv/bin/python -m pip install --disable-pip-version-check -r "$requirements"
    touch "$stamp"
  fi
  export PATH="$PWD/.venv/bin:$PATH"
}
