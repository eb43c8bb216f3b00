"""Runs of an ablation as processes: followed line by line, stopped cleanly, one table at a time in a folder."""

import fcntl
import os
import platform
import shutil
import signal
import subprocess
import sys
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime, timezone
from pathlib import Path

import mindspore as ms

LAST_LINES = 15  # that are returned
GRACE = 60.0  # seconds for a process to end after an interrupt, which reaches training between steps


@contextmanager
def locked(folder: Path) -> Iterator[int]:
    """Holds the lock of a folder and gives its file descriptor, which keeps it locked in every process that has it.

    Raises FileExistsError where another process holds it.
    """
    with (folder / "lock").open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise FileExistsError(
                f"{folder} is in use by another ablate.py, or by a run that a killed one has left behind; wait for "
                "its end, or set another --output"
            ) from error
        yield file.fileno()


@contextmanager
def stop_signals() -> Iterator[None]:
    """Within it SIGINT, SIGTERM and, unless ignored as by nohup, SIGHUP raise KeyboardInterrupt(number)."""

    def stop(number: int, _) -> None:
        raise KeyboardInterrupt(number)

    numbers = [signal.SIGINT, signal.SIGTERM]
    numbers += [] if signal.getsignal(signal.SIGHUP) == signal.SIG_IGN else [signal.SIGHUP]
    before = {number: signal.signal(number, stop) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def follow(
    command: Sequence[str], log: Path, environment: Mapping[str, str], lock: int, grace: float = GRACE
) -> tuple[int, list[str]]:
    """Runs a command whose output goes to the console and to the end of a log; returns exit code and last lines.

    lock: descriptor that the process holds as long as it lives. A KeyboardInterrupt is passed on to the process alone,
    which has `grace` seconds to end before it is killed with all that it started, and then raised.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    tail = deque(maxlen=LAST_LINES)
    with log.open("a", encoding="utf-8") as file, subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, encoding="utf-8",
        errors="replace", env=environment, pass_fds=(lock,), start_new_session=True,
    ) as process:  # fmt: skip
        try:
            for line in process.stdout:
                file.write(line)
                file.flush()
                print(line, end="", flush=True)
                tail.append(line.rstrip())
            process.wait()
        finally:
            if process.returncode is None:
                file.write(stop(process, grace))
    return process.returncode, [line for line in tail if line]


def stop(process: subprocess.Popen, grace: float) -> str:
    """Interrupts a process, kills its session after `grace` seconds or another interrupt; returns its last output."""
    print(f"stopping, which takes up to {grace:.0f} s", file=sys.stderr)
    process.send_signal(signal.SIGINT)
    try:
        return process.communicate(timeout=grace)[0] or ""  # reading on, or it might wait for room in the pipe
    except (subprocess.TimeoutExpired, KeyboardInterrupt):
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        return "killed\n"


def describe_exit(code: int, lines: Sequence[str]) -> str:
    """Exit code of a failed process and its last lines, as text."""
    if code >= 0:
        return "\n".join([f"exit code {code}", *lines])
    hint = ", which the system sends when memory runs out" if code == -signal.SIGKILL else ""
    return "\n".join([f"ended by {signal.Signals(-code).name}{hint}", *lines])


def describe_machine(root: Path) -> dict:
    """Commit of the sources (-dirty: with changes), versions, machine and time: what a result depends on, too."""
    commit = None
    if shutil.which("git"):
        command = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
        commit = subprocess.run(command, capture_output=True, text=True).stdout.strip() or None
    return {
        "commit": commit, "python": platform.python_version(), "mindspore": ms.__version__,
        "machine": platform.machine(), "cores": os.cpu_count(),
        "started": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }  # fmt: skip
