"""The checks of the machine in several processes at once, so that their all-reduce is a real one."""

import json
import socket
import tempfile
from pathlib import Path

from src.doctor.finding import ERROR, Finding
from src.launching.checks import Cluster
from src.launching.group import Echo, Limits, start_group, watch
from src.launching.processes import adopt_orphans
from src.launching.stopping import StopRequest

SECONDS = 120  # until all processes must have met
TOOL = Path(__file__).resolve().parents[2] / "tools" / "doctor.py"


def examine_group(chosen: list[str], devices: int) -> tuple[list[Finding], dict]:
    """Starts `doctor.py env` in `devices` processes under msrun; the findings of all ranks, the facts of rank 0.

    chosen: arguments that say what is meant, --config with settings and --device, so that each process knows it all.
    """
    adopt_orphans()
    said: list[str] = []
    with tempfile.TemporaryDirectory(prefix="doctor_") as name:
        folder = Path(name)
        command = [str(TOOL), "env", *chosen, "--json", str(folder / "rank.json")]
        try:
            group = start_group(Cluster(devices, port=free_port(), timeout=SECONDS), folder, command, Limits())
        except RuntimeError as error:
            return [Finding("all_reduce_failed", ERROR, str(error))], {}
        try:
            watch(group, StopRequest(), Limits(), Echo(None), said.append)
        finally:  # a Ctrl-C does not reach them, they have sessions of their own
            group.kill()
            group.end_scheduler(0.0)
        reports = {rank: folder / f"rank_{rank}.json" for rank in range(devices)}
        missing = [rank for rank, file in reports.items() if not file.is_file()]
        if missing:
            text = f"ranks {', '.join(map(str, missing))} of {devices} did not get through: {' '.join(said)}"
            return [Finding("all_reduce_failed", ERROR, text)], {}
        read = [json.loads(file.read_text(encoding="utf-8")) for file in reports.values()]
    findings = [Finding(**{**entry, "where": tuple(entry["where"])}) for report in read for entry in report["findings"]]
    return list(dict.fromkeys(findings)), read[0]["facts"]


def free_port() -> int:
    """A port that nothing listens on at the moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
