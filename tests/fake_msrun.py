"""Stands in for mindspore.parallel.cluster.run --join=False: starts scheduler and workers as it does, and ends."""

import argparse
import os
import subprocess
from pathlib import Path


def main() -> None:
    """Reads msrun's options; FAKE_MSRUN_EXIT=n in the environment makes it fail before it starts anything."""
    parser = argparse.ArgumentParser()
    for name in ("worker_num", "local_worker_num", "node_rank", "master_port", "cluster_time_out"):
        parser.add_argument(f"--{name}", type=int, required=True)
    for name in ("master_addr", "log_dir", "join", "script"):
        parser.add_argument(name if name == "script" else f"--{name}")
    parser.add_argument("rest", nargs=argparse.REMAINDER)
    options = parser.parse_args()
    assert options.join == "False"
    if code := int(os.environ.get("FAKE_MSRUN_EXIT", "0")):
        print("ValueError: no such thing")
        raise SystemExit(code)
    command = ["python", options.script, *options.rest]
    folder, first = Path(options.log_dir), options.node_rank * options.local_worker_num
    if options.node_rank == 0:
        start(command, folder / "scheduler.log", "MS_SCHED", 0, os.getpgrp())
    for rank in range(first, first + options.local_worker_num):
        start(command, folder / f"worker_{rank}.log", "MS_WORKER", rank, 0)


def start(command: list[str], log: Path, role: str, rank: int, group: int) -> None:
    """Starts one process; group 0: a session of its own."""
    environ = {**os.environ, "MS_ROLE": role, "RANK_ID": str(rank)}
    with log.open("w") as file:
        subprocess.Popen(command, env=environ, stdout=file, stderr=subprocess.STDOUT, start_new_session=group == 0)


if __name__ == "__main__":
    main()
