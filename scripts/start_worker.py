"""What msrun starts for every process: notes the process id, then becomes the real program in the same process.

python scripts/start_worker.py FOLDER SCRIPT [ARGUMENTS ...]     Only src/launching/group.py calls it.
"""

import os
import signal
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from src.launching.processes import note_identity  # noqa: E402
from src.launching.stopping import SIGNALS  # noqa: E402


def main() -> None:
    """Reads the role that msrun has put into the environment."""
    folder, *command = sys.argv[1:]
    name = f"worker_{os.environ['RANK_ID']}"
    if os.environ["MS_ROLE"] == "MS_SCHED":
        name = "scheduler"
        for number in SIGNALS:  # a stop that reaches every process of a job must not take it from under the workers
            signal.signal(number, signal.SIG_IGN)
    note_identity(Path(folder) / f"{name}.pid", os.getpid())
    os.execv(sys.executable, [sys.executable, *command])


if __name__ == "__main__":
    main()
