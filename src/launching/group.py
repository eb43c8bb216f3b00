"""One start of all processes of this machine through msrun, watched until the last of them has ended.

msrun's own waiting (--join=True) kills the others with SIGKILL when one ends, turns every exit code into 1, ends with 0
at SIGINT and leaves its workers behind at SIGTERM (docs/platform.md). So it only starts them here.
"""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from src.constants import DIVERGED, INTERRUPTED, MISUSE, RESUME
from src.launching.checks import Cluster
from src.launching.diagnosis import report_failure
from src.launching.processes import kill_group, poll, read_identity, send
from src.launching.stopping import StopRequest

SCHEDULER = "scheduler"
TICK = 0.05  # seconds between two looks at the processes


@dataclass(frozen=True)
class Limits:
    """Seconds until SIGKILL: after the first failure, after a stop, of a scheduler without workers; for starting."""

    failure: float = 20.0
    stop: float = 300.0
    scheduler: float = 5.0
    start: float = 120.0


class Group:
    """Process ids by name (scheduler, worker_RANK), and the exit codes of those that have ended."""

    def __init__(self, folder: Path, pids: dict[str, int]) -> None:
        self.folder, self.pids = folder, pids
        self.codes: dict[str, int] = {}

    def log(self, name: str) -> Path:
        return self.folder / f"{name}.log"

    def running(self) -> list[str]:
        """The workers that have not ended."""
        return [name for name in self.pids if name not in self.codes and name != SCHEDULER]

    def look(self) -> list[str]:
        """Takes the exit codes of processes that have ended since the last look; returns their names."""
        ended = []
        for name, pid in self.pids.items():
            if name not in self.codes and (code := poll(pid)) is not None:
                self.codes[name] = code
                ended.append(name)
                if name != SCHEDULER:
                    kill_group(pid)  # what it had started itself
        return ended

    def signal(self, number: int) -> None:
        """Sends a signal to the workers: to them alone, since what they started must last until they have saved."""
        for name in self.running():
            send(self.pids[name], number)

    def kill(self) -> None:
        """Ends the workers at once."""
        for name in self.running():
            kill_group(self.pids[name])

    def end_scheduler(self, seconds: float) -> None:
        """Gives the scheduler some time to notice that the workers are gone; a heartbeat of it takes far longer."""
        until = time.monotonic() + seconds
        while SCHEDULER in self.pids and SCHEDULER not in self.codes:
            if time.monotonic() > until:
                send(self.pids[SCHEDULER], signal.SIGKILL)
            self.look()
            time.sleep(TICK)


class Echo:
    """Copies what is appended to a file to this process's standard output."""

    def __init__(self, file: Path | None) -> None:
        self.file, self.place = file, 0

    def __call__(self) -> None:
        if self.file and self.file.is_file():
            with self.file.open("rb") as file:
                file.seek(self.place)
                new = file.read()
            self.place += len(new)
            if new:
                sys.stdout.buffer.write(new)
                sys.stdout.buffer.flush()


def new_folder(logs: Path, node: int) -> Path:
    """Makes the folder of the next start on a machine, logs/start_NNN_node_N."""
    numbers = [int(path.name.split("_")[1]) for path in logs.glob(f"start_*_node_{node}")]
    folder = logs / f"start_{max(numbers, default=0) + 1:03d}_node_{node}"
    folder.mkdir(parents=True)
    return folder


def start_group(cluster: Cluster, folder: Path, command: list[str], limits: Limits) -> Group:
    """Starts the processes of this machine; each writes its output to folder/NAME.log.

    command: script and arguments. Raises RuntimeError where not all of them come up; those that did are ended.
    """
    starter = Path(__file__).resolve().parents[2] / "scripts" / "start_worker.py"
    arguments = [
        sys.executable, "-m", "mindspore.parallel.cluster.run",
        f"--worker_num={cluster.world_size}", f"--local_worker_num={cluster.devices}", f"--node_rank={cluster.node}",
        f"--master_addr={cluster.address}", f"--master_port={cluster.port}", f"--cluster_time_out={cluster.timeout}",
        f"--log_dir={folder}", "--join=False", str(starter), str(folder), *command,
    ]  # fmt: skip
    # msrun starts `python` from PATH
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    environ = {**os.environ, "PATH": path, "PYTHONUNBUFFERED": "1"}  # the last lines of a crash reach the log
    with (folder / "msrun.log").open("wb") as log:
        msrun = subprocess.Popen(arguments, stdout=log, stderr=log, env=environ, start_new_session=True)
        code = msrun.wait()
    names = [f"worker_{rank}" for rank in cluster.ranks] + ([SCHEDULER] if cluster.node == 0 else [])
    until = time.monotonic() + (limits.start if code == 0 else TICK)
    while not all((folder / f"{name}.pid").is_file() for name in names) and time.monotonic() < until:
        time.sleep(TICK)
    files = {name: folder / f"{name}.pid" for name in names}
    group = Group(folder, {name: read_identity(file).pid for name, file in files.items() if file.is_file()})
    missing = [name for name in names if name not in group.pids]
    if missing:
        group.kill()
        group.end_scheduler(0.0)
        report = report_failure("msrun", code, folder / "msrun.log")
        raise RuntimeError(f"{', '.join(missing)} did not start\n{report}")
    return group


def watch(group: Group, stop: StopRequest, limits: Limits, echo: Callable[[], None], say: Callable[[str], None]) -> int:
    """Waits until all workers have ended and returns the exit code of the whole, as train.py has them.

    The first that fails is reported with `say`; the others get SIGTERM and, limits.failure later, SIGKILL. A stop is
    passed on to the workers, which have limits.stop to save.
    """
    first, deadline, killed = None, None, []
    while group.running():
        ended = group.look()
        echo()
        for number in stop.take():
            group.signal(number)
            deadline = deadline or time.monotonic() + limits.stop
        bad = [name for name in ended if is_failure(group.codes[name], stop, name)]
        if bad and not first:
            first = bad[0]
            say(report_failure(first, group.codes[first], group.log(first)))
            group.signal(signal.SIGTERM)
            deadline = time.monotonic() + limits.failure
        if RESUME in group.codes.values():  # all stop at the same step, but rank 0 still writes
            deadline = deadline or time.monotonic() + limits.stop
        if deadline and not killed and time.monotonic() > deadline:
            killed = group.running()
            group.kill()
        time.sleep(TICK)
    echo()
    group.end_scheduler(limits.scheduler)
    if killed:
        say(f"{', '.join(killed)} did not end in time and had to be killed")
    return judge(group, first, killed, stop)


def is_failure(code: int, stop: StopRequest, name: str) -> bool:
    """Whether a process that ended with this code is to blame for the end of the run."""
    if name == SCHEDULER:
        return code != 0
    if stop.requested and (code == INTERRUPTED or -code in stop.received):
        return False
    return code not in (0, RESUME)


def judge(group: Group, first: str | None, killed: list[str], stop: StopRequest) -> int:
    """The one code that stands for those of all processes."""
    codes = [code for name, code in group.codes.items() if name != SCHEDULER]
    if first:
        return group.codes[first] if group.codes[first] in (MISUSE, DIVERGED) else 1
    if killed:
        return 1
    if INTERRUPTED in codes:
        return INTERRUPTED
    return RESUME if stop.requested and any(codes) or RESUME in codes else 0
