"""Running the launcher on programs that stand in for msrun and train.py, so that a start takes no MindSpore."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from tests.commands import ROOT
from tests.tiny import write_config

FAKES = ROOT / "tests"


@dataclass(frozen=True)
class Job:
    """A configuration in a folder of its own, and how to start it."""

    root: Path

    @property
    def logs(self) -> Path:
        return self.root / "runs" / "tiny" / "logs"

    def start(self, plan: dict, *arguments: str, program: tuple[str, ...] = (), **environ) -> subprocess.Popen:
        """Starts the launcher with a plan for fake_train.py; program: what to run in place of tools/launch.py."""
        program = program or (sys.executable, str(ROOT / "tools" / "launch.py"))
        given = {
            **{key: value for key, value in os.environ.items() if key not in ("RETRIES", "PORT")},
            "FAKE_PLAN": json.dumps(plan), "FAKE_FOLDER": str(self.root), "PYTHONPATH": str(self.root / "fakes"),
            "MASTER_PORT": str(free_port()), **environ,
        }  # fmt: skip
        command = [*program, "--script", str(FAKES / "fake_train.py"), str(self.root / "tiny.yaml"), *arguments]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        return subprocess.Popen(command, cwd=ROOT, env=given, **pipes)

    def run(self, plan: dict, *arguments: str, **options) -> tuple[int, str, str]:
        """Exit code, standard output and standard error of a start."""
        return end(self.start(plan, *arguments, **options))

    def await_files(self, *names: str) -> None:
        """Waits until files exist in the folder."""
        until = time.monotonic() + 20
        while not all((self.root / name).exists() for name in names):
            assert time.monotonic() < until, names
            time.sleep(0.02)


def end(process: subprocess.Popen) -> tuple[int, str, str]:
    """Waits for a launcher; its exit code, standard output and standard error."""
    try:
        out, err = process.communicate(timeout=50)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGKILL)
        raise
    assert "Traceback" not in err, err
    return process.returncode, out, err


def make_job(root: Path) -> Job:
    """A job in a new folder, with a package that stands in for msrun."""
    package = root / "fakes" / "mindspore" / "parallel" / "cluster"
    package.mkdir(parents=True)
    shutil.copy(FAKES / "fake_msrun.py", package / "run.py")
    for folder in (package, package.parent, package.parent.parent):
        (folder / "__init__.py").touch()
    write_config(root)
    return Job(root)


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def lives(pid: int) -> bool:
    """Whether a process exists and is no zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False
