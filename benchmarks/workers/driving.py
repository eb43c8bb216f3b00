"""The outside of a worker process: starts it, asks it, stops it from working between its turns."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
LOG_TAIL = 2000  # characters of a dead worker's log in the message
# torch.compile: one compiling process, the worker itself, so that nothing works beside the contender whose turn it is.
ENVIRONMENT = {"TORCHINDUCTOR_COMPILE_THREADS": "1"}


class WorkerError(RuntimeError):
    """A worker answered with an error; `trace` is its traceback."""

    def __init__(self, message: str, trace: str = "") -> None:
        super().__init__(message)
        self.trace = trace


class Process:
    """One worker process: `ask` sends a request and waits; between requests the process is stopped (SIGSTOP).

    Use it as a context: leaving ends the process.

    Args:
        module: name below benchmarks.workers.
        arguments: of its command line.
        log: file for all that it prints.
    """

    def __init__(self, module: str, arguments: tuple[str, ...], log: Path) -> None:
        self.name, self.log = f"{module} {' '.join(arguments)}".strip(), log
        with log.open("a", encoding="utf-8") as stderr:
            self.process = subprocess.Popen(
                [sys.executable, "-m", f"benchmarks.workers.{module}", *arguments], cwd=ROOT, text=True,
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=stderr, env={**os.environ, **ENVIRONMENT},
            )  # fmt: skip

    def __enter__(self) -> "Process":
        return self

    def __exit__(self, *_) -> None:
        self.process.send_signal(signal.SIGCONT)
        self.process.stdin.close()
        try:
            self.process.wait(30)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.process.stdout.close()

    def ask(self, do: str, **arguments) -> dict:
        """The worker's answer; raises WorkerError for an error in it, and where it died."""
        self.process.send_signal(signal.SIGCONT)
        try:
            self.process.stdin.write(json.dumps({"do": do, **arguments}) + "\n")
            self.process.stdin.flush()
            line = self.process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            code = self.process.wait()
            text = self.log.read_text(encoding="utf-8", errors="replace")[-LOG_TAIL:]
            raise WorkerError(f"{self.name} ended with code {code} when asked to {do!r}; the end of its log:\n{text}")
        self.process.send_signal(signal.SIGSTOP)
        os.waitid(os.P_PID, self.process.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)  # until it does stand still
        reply = json.loads(line)
        if "error" in reply:
            raise WorkerError(f"{self.name}: {reply['error']}", reply["trace"])
        return reply
