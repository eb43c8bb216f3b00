"""From the log of a process that failed to what its reader wants: the last lines, and the next step to take."""

import re
import signal
from pathlib import Path

LAST_LINES = 20
READ_BYTES = 1 << 20  # of the end of a log, for the search for known errors
ERROR_LINES = (
    r"^(?:\w+\.)*\w*(?:Error|Exception): .+|^error: .+",
    r"^\[(?:ERROR|CRITICAL)\] .+",
)  # the first that is found

# Pattern, what it means, what to do. The first that fits counts: codes before words, causes before consequences.
KNOWN = (
    (
        r"EJ0001",
        "HCCL EJ0001: the device's communication process could not start, mostly because one of an earlier run lives",
        "wait 10 s; if it comes back, end what `npu-smi info` shows on the devices, then start again",
    ),
    (
        r"EI0006",
        "HCCL EI0006: a rank waited in vain for another one's connection",
        "look for an earlier error in the other ranks' logs; then check the network between the machines "
        "(`hccn_tool -i 0 -ping -g address ...`, equal TLS settings: `hccn_tool -i 0 -tls -g`); where ranks are only "
        "slow to start, set HCCL_CONNECT_TIMEOUT=600 for all of them",
    ),
    (
        r"EI0002",
        "HCCL EI0002: a collective waited in vain for another rank",
        "look for an earlier error in the other ranks' logs; if there is none, set HCCL_EXEC_TIMEOUT higher",
    ),
    (
        r"(?i)out of memory|memory not enough|bad_alloc|cannot allocate memory|allocate (?:device )?memory fail",
        "out of memory",
        "lower train.batch_size and raise train.accumulate by the same factor, which keeps the step, or lower "
        "data.crop_size, under another name=...; or lower data.workers and go on",
    ),
    (
        r"(?i)nccl[^\n]*unhandled system error",
        "NCCL: a system call of it failed, mostly shared memory or the network interface",
        "start again with NCCL_DEBUG=WARN, which names the call; in a container give /dev/shm 1 GB or more "
        "(docker --shm-size, Kubernetes: an emptyDir of medium Memory); with several interfaces set NCCL_SOCKET_IFNAME",
    ),
    (
        r"(?i)nccl[^\n]*tim(?:e|ed)[ -]?out",
        "NCCL: a collective waited in vain for another rank",
        "look for an earlier error in the other ranks' logs; if there is none, start again with NCCL_DEBUG=INFO and "
        "check NCCL_SOCKET_IFNAME and the firewall between the machines",
    ),
    (
        r"RunRing\w+\][^\n]*failed|AllReduceCPUKernelMod launch failed",
        "a collective on CPU waited 30 s in vain for another rank",
        "look for an earlier error in the other ranks' logs; if there is none, check the network between the machines",
    ),
    (
        r"total number of timed out node",
        "the scheduler has not heard of a process for 30 s",
        "look for an earlier error in the logs of the ranks that it names; if there is none, check the network",
    ),
    (
        r"(?i)address already in use|errno: 98",
        "the port is in use",
        "choose another one with MASTER_PORT=... (the same on all machines), or end what `ss -ltnp` shows on it",
    ),
    (
        r"(?i)no space left on device|errno 28",
        "the disk is full",
        "free space where output_dir lies, or move it: output_dir=...",
    ),
)  # fmt: skip
KILLED = {
    signal.SIGKILL: (
        "killed by SIGKILL, as the kernel does when memory runs out",
        "`dmesg | grep -i oom` tells; lower data.workers, or train.batch_size under another name=..., or raise the "
        "container's limit",
    ),
    signal.SIGBUS: (
        "killed by SIGBUS, mostly because /dev/shm is full",
        "give it more: docker --shm-size, Kubernetes: an emptyDir of medium Memory",
    ),
}


def read_end(log: Path, size: int = READ_BYTES) -> str:
    """The last `size` bytes of a log as text; empty where there is no log."""
    if not log.is_file():
        return ""
    with log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - size))
        return file.read().decode("utf-8", errors="replace")


def last_lines(log: Path, count: int = LAST_LINES) -> list[str]:
    """The last lines of a log that are not blank."""
    return [line.rstrip() for line in read_end(log).splitlines() if line.strip()][-count:]


def error_line(log: Path) -> str | None:
    """The line that says what went wrong, which tracebacks and MindSpore's own stacks may have pushed far up."""
    text = read_end(log)
    for pattern in ERROR_LINES:
        if found := re.findall(pattern, text, re.MULTILINE):
            return found[-1]
    return None


def next_step(log: Path, code: int) -> str | None:
    """Meaning of a failure and what to do about it; None where neither log nor exit code say."""
    text = read_end(log)
    for pattern, meaning, advice in KNOWN:
        if re.search(pattern, text):
            return f"{meaning}. Next: {advice}"
    if -code in KILLED:
        meaning, advice = KILLED[signal.Signals(-code)]
        return f"{meaning}. Next: {advice}"
    return None


def describe_exit(code: int) -> str:
    """`ended with code 1`, or `was killed by SIGKILL`."""
    return f"ended with code {code}" if code >= 0 else f"was killed by {signal.Signals(-code).name}"


def report_failure(name: str, code: int, log: Path) -> str:
    """What the launcher prints of the process that failed first."""
    lines = [f"    {line}" for line in last_lines(log)] or ["    (nothing)"]
    error, advice = error_line(log), next_step(log, code)
    parts = [f"{name} failed first: it {describe_exit(code)}. The end of {log}:", *lines]
    return "\n".join(parts + ([f"It says: {error}"] if error else []) + ([advice] if advice else []))
