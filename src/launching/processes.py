"""Processes that outlive whoever started them: how they are told apart, found again and ended. Linux only."""

import ctypes
import json
import os
import signal
from dataclasses import asdict, dataclass
from pathlib import Path

PR_SET_CHILD_SUBREAPER = 36  # linux/prctl.h
START_FIELD = 19  # of /proc/PID/stat behind the name: clock ticks from boot to the process's start
BOOT = Path("/proc/sys/kernel/random/boot_id")


@dataclass(frozen=True)
class Identity:
    """A process that no other one, of any time or machine, is equal to: its number, ticks from boot to start, boot."""

    pid: int
    start: int
    boot: str


def identify(pid: int) -> Identity | None:
    """The identity of a process; None where it has ended, zombies included."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return None
    fields = text[text.rindex(")") + 1 :].split()
    if fields[0] in "ZX":
        return None
    return Identity(pid, int(fields[START_FIELD]), BOOT.read_text(encoding="ascii").strip())


def note_identity(file: Path, pid: int) -> None:
    """Writes the identity of a process into a file, which is complete from the moment it exists."""
    draft = file.with_suffix(".new")
    draft.write_text(json.dumps(asdict(identify(pid))), encoding="utf-8")
    os.replace(draft, file)


def read_identity(file: Path) -> Identity:
    """What `note_identity` wrote. Raises ValueError for any other content."""
    try:
        return Identity(**json.loads(file.read_text(encoding="utf-8")))
    except (ValueError, TypeError) as error:
        raise ValueError(f"{file} names no process ({error}); delete it") from error


def alive(noted: Identity) -> bool:
    """Whether the process lives on this machine; its number alone would do for another one, too."""
    return identify(noted.pid) == noted


def adopt_orphans() -> None:
    """Makes this process the parent of descendants whose own parent ends: so it can wait for them.

    msrun either waits for its workers and hides their exit codes, or ends at once and leaves them.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0):
        raise OSError(ctypes.get_errno(), "this process cannot adopt orphans (prctl)")


def poll(pid: int) -> int | None:
    """Exit code of a child, minus the signal's number for one that was killed; None while it runs."""
    done, status = os.waitpid(pid, os.WNOHANG)
    return os.waitstatus_to_exitcode(status) if done else None


def send(pid: int, number: int) -> None:
    """Sends a signal to a process, if it is still there."""
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return


def kill_group(leader: int) -> None:
    """Ends a process and what it started, at once; also what is left of its group once it has ended itself."""
    try:
        os.killpg(leader, signal.SIGKILL)
    except ProcessLookupError:
        return
