"""Starts a training run, watches it, and starts it again where that helps.

Several processes: python tools/launch.py CONFIG [DEVICES] [key=value ...]
One process:       python tools/launch.py --standalone CONFIG [key=value ...]
"""

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from src import cli  # noqa: E402
from src.config import load_config  # noqa: E402
from src.constants import RESUME  # noqa: E402
from src.launching import checks  # noqa: E402
from src.launching.diagnosis import describe_exit  # noqa: E402
from src.launching.group import Echo, Limits, new_folder, start_group, watch  # noqa: E402
from src.launching.processes import adopt_orphans  # noqa: E402
from src.launching.stopping import StopRequest, run_with_retries  # noqa: E402

TRAIN = Path(__file__).resolve().parents[1] / "train.py"
PAUSE = 5.0  # seconds before a start that follows a failure
PAUSE_OF_MANY = 60.0  # with several machines: by then all of them have noticed the failure
EPILOG = """environment:
  RETRIES=n        starts again, up to n times, after exit code 85 or a crash; not after wrong usage (2) or numbers
                   gone bad (3), nor after a stop that this program itself was asked for
  NNODES=n         machines; start this on each of them, with the same CONFIG, DEVICES and key=value
  NODE_RANK=i      number of this machine, from 0
  MASTER_ADDR=a    address of machine 0
  MASTER_PORT=p    port there, default 8118
  CLUSTER_TIMEOUT=s  seconds that the first machine waits for the last, default 600

exit codes: 0 done; 85 stopped by a signal, its steps saved, the same command goes on; 2 wrong usage; 3 numbers gone
bad; 130 interrupted twice; 1 a process failed. SIGTERM, SIGINT and SIGUSR1 are passed on
to the processes, which save and end.
"""


def main(arguments: list[str] | None = None) -> None:
    """Reads the command line, runs, exits with the run's code."""
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--standalone", action="store_true", help="one process, without msrun")
    parser.add_argument("--script", default=str(TRAIN), metavar="FILE", help="what to run (default train.py)")
    parser.add_argument("config", metavar="CONFIG", help="YAML configuration of the run")
    parser.add_argument("rest", nargs="*", metavar="[DEVICES] key=value", help="processes on this machine; settings")
    options = parser.parse_intermixed_args(arguments)
    given, overrides = split_devices(options.rest)
    config = load_config(options.config, overrides)  # a misspelt key is told once, not by every process
    command = [options.script, "--config", options.config, *overrides]
    retries, stop = checks.read_number(os.environ, "RETRIES", 0, 0, 10**6), StopRequest()
    if options.standalone:
        if given is not None:
            raise ValueError(f"DEVICES {given} is for several processes: scripts/run_distribute_train.sh")
        stop.listen()
        sys.exit(run_with_retries(lambda: run_alone(command, stop), retries, stop, PAUSE, say))
    cluster = checks.read_cluster(os.environ, checks.count_devices(config.device.target, given))
    checks.check_address(cluster)
    logs = Path(config.output_dir) / config.name / "logs"
    try:
        logs.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise PermissionError(f"cannot make the folder {logs}: {error.strerror}; set output_dir") from error
    with checks.only_launcher(logs, cluster.node):
        checks.check_left_over(logs)
        stop.listen()
        adopt_orphans()
        pause = PAUSE if cluster.nodes == 1 else PAUSE_OF_MANY
        sys.exit(run_with_retries(attempt_group(cluster, logs, command, stop), retries, stop, pause, say))


def split_devices(rest: list[str]) -> tuple[int | None, list[str]]:
    """The number of devices, if the first word is one, and the settings."""
    if rest and rest[0].isdigit():
        return int(rest[0]), rest[1:]
    return None, rest


def attempt_group(cluster: checks.Cluster, logs: Path, command: list[str], stop: StopRequest) -> Callable[[], int]:
    """A function that starts the processes of this machine once and returns how they ended."""

    def attempt() -> int:
        checks.check_port(cluster)
        folder, limits = new_folder(logs, cluster.node), Limits()
        say(f"ranks {cluster.ranks[0]} to {cluster.ranks[-1]} of {cluster.world_size}; their output is in {folder}")
        try:
            group = start_group(cluster, folder, command, limits)
        except RuntimeError as error:
            say(str(error))
            return 1
        return watch(group, stop, limits, Echo(group.log("worker_0") if cluster.node == 0 else None), say)

    return attempt


def run_alone(command: list[str], stop: StopRequest) -> int:
    """Runs one process to its end, passing signals on; returns its exit code, 85 where a signal ended it as asked."""
    # A session of its own: a Ctrl-C in the terminal would reach it twice, and two mean `at once`.
    process = subprocess.Popen([sys.executable, *command], start_new_session=True)
    while process.poll() is None:
        for number in stop.take():
            process.send_signal(number)
        time.sleep(0.05)
    code = process.returncode
    if code < 0:
        say(f"the process {describe_exit(code)}")
        return RESUME if -code in stop.received else 1
    return code


def say(text: str) -> None:
    """Prints on standard error, where it does not mix with the output of rank 0."""
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    cli.run(main)
