"""One row: inputs made once, contenders compared on them, then timed by turns.

Seconds, bytes and multiply-accumulates throughout.
"""

import shutil
import statistics
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path

import numpy as np

from benchmarks.workers.driving import Process, WorkerError
from src.log import get_console, progress

OURS = "mindspore"
# Contender -> worker module and its arguments.
CONTENDERS = {
    OURS: ("mindspore_worker", ()),
    "eager": ("torch_worker", ("eager",)),
    "compile": ("torch_worker", ("compile",)),
    "bfloat16": ("torch_worker", ("bfloat16",)),
}
MAY_FAIL = ("compile",)  # it needs a compiler on the machine; then its column says so
INEXACT = ("bfloat16",)  # differences are reported, not bounded
TOLERANCE = 1e-4  # of float32 outputs, absolute, scaled by max(1, max |x|)
# Others: share of pixels labelled otherwise; gradient norm, in which the rounding of every layer adds up.
TOLERANCES = {"labels": 1e-3, "norm": 1e-3}
WARM_UP = 2  # rounds that are not counted
RATE = 1e-7  # learning rate: the work of a step, with weights that hardly move
STEP_FORWARDS = 3  # a training step counts as three forwards: one, and two products for each of its products going back


class DisagreementError(RuntimeError):
    """Contenders do not compute the same."""


def measure_row(row: dict, contenders: Sequence[str], rounds: int, title: str) -> dict:
    """The report of one row (see rows.describe): per contender seconds of every round, memory, differences; ratios.

    Raises DisagreementError where outputs of float32 contenders differ, WorkerError where a worker fails, except one of
    MAY_FAIL, whose entry is then {"error": message}.
    """
    folder = Path(tempfile.mkdtemp(prefix="side_by_side_"))
    failed: dict[str, dict] = {}
    try:
        with Process("mindspore_worker", (), folder / "maker.log") as maker:
            gmacs = maker.ask("make", row=row, folder=str(folder))["gmacs"]
        with ExitStack() as stack:
            processes, reports = {}, {}
            for name in contenders:
                process = stack.enter_context(Process(*CONTENDERS[name], folder / f"{name}.log"))
                try:
                    reports[name] = start(process, row, folder, name)
                    processes[name] = process
                except WorkerError as error:
                    if name not in MAY_FAIL:
                        raise
                    get_console().print(f"{name} left out: {error}")
                    failed[name] = {"error": str(error)}
            differences = compare(folder, tuple(processes))
            seconds, memory, peak = take_turns(processes, rounds, title)
    finally:
        shutil.rmtree(folder)
    for name, report in reports.items():
        report |= {"seconds": seconds[name], "median": statistics.median(seconds[name]), "memory": memory[name],
                   "differences": differences[name]}  # fmt: skip
    return summarise(row, gmacs, reports | failed, peak)


def start(process: Process, row: dict, folder: Path, name: str) -> dict:
    """Builds a contender and makes its first call, whose outputs go to <name>.npz; returns times and versions."""
    get_console().print(f"{name}: building, first call")
    built = process.ask("build", row=row, folder=str(folder))
    first = process.ask("step", rate=0.0)["seconds"]
    process.ask("save", file=str(folder / f"{name}.npz"))
    return {"build_seconds": built["seconds"], "first_seconds": first, "versions": built["versions"]}


def compare(folder: Path, names: Sequence[str]) -> dict[str, dict[str, float]]:
    """Largest differences of every contender's outputs from those of the first that has them, the reference before all.

    Raises DisagreementError that lists everything out of bounds.
    """
    base: dict[str, np.ndarray] = {}
    result: dict[str, dict[str, float]] = {}
    problems = []
    for name in ("reference", *names):
        file = folder / f"{name}.npz"
        if name == "reference" and not file.exists():
            continue
        with np.load(file) as outputs:
            values = {key: outputs[key] for key in outputs.files}
        result[name] = {key: difference(key, value, base[key]) for key, value in values.items() if key in base}
        base = {**values, **base}
        bounds = {key: TOLERANCES.get(key, TOLERANCE) for key in result[name]}
        problems += [
            f"{name}: {key} differs by {found:.2g} (allowed: {bounds[key]:g})"
            for key, found in result[name].items()
            if name not in INEXACT and not found <= bounds[key]
        ]
    if problems:
        listing = "\n  ".join(problems)
        raise DisagreementError(f"the contenders do not compute the same, so nothing was timed:\n  {listing}")
    return result


def difference(key: str, value: np.ndarray, base: np.ndarray) -> float:
    """Largest difference, scaled by max(1, max |base|); of labels the share of pixels that differ."""
    if value.shape != base.shape:
        raise DisagreementError(f"{key} has shape {value.shape} here and {base.shape} there")
    if key == "labels":
        return float((value != base).mean())
    return float(np.abs(value - base).max() / max(1.0, np.abs(base).max()))


def take_turns(processes: Mapping[str, Process], rounds: int, title: str) -> tuple[dict, dict, float]:
    """One call of each contender a round, beginning with another one each time; matrix products after every round.

    Returns seconds of the counted rounds and memory after the warm-up, by contender, and the peak: the most
    multiply-accumulates a second that a float32 product of either framework reached in this run.
    """
    names, peak = list(processes), 0.0
    seconds: dict[str, list[float]] = {name: [] for name in names}
    memory = {}
    multipliers = [name for name in names if name == OURS] + [name for name in names if name != OURS][:1]
    with progress(WARM_UP + rounds, title) as advance:
        for i in range(WARM_UP + rounds):
            first = i % len(names)
            for name in names[first:] + names[:first]:
                taken = processes[name].ask("step", rate=RATE)["seconds"]
                if i >= WARM_UP:
                    seconds[name].append(taken)
                else:
                    memory[name] = processes[name].ask("memory")
            if i >= WARM_UP:
                peak = max(peak, *(processes[name].ask("product")["macs_per_s"] for name in multipliers))
            advance()
    return seconds, memory, peak


def summarise(row: dict, gmacs: dict[str, float], reports: dict[str, dict], peak: float) -> dict:
    """Ratios ours / other by round, floor of a call and everybody's share of the peak."""
    forwards = row["batch"] * (STEP_FORWARDS if row["mode"] == "train" else 1)
    floor = 1e9 * sum(gmacs.values()) * forwards / peak
    ratios = {}
    for name, report in reports.items():
        if "median" not in report:
            continue
        report["peak_share"] = floor / report["median"]
        if name != OURS and OURS in reports:
            pairs = zip(reports[OURS]["seconds"], report["seconds"], strict=True)
            values = [ours / other for ours, other in pairs]
            ratios[name] = {"median": statistics.median(values), "min": min(values), "max": max(values)}
    keys = ("title", "mode", "size", "classes", "batch", "max_classes")
    return {
        **{key: row[key] for key in keys}, "gmacs": gmacs, "gmacs_per_call": sum(gmacs.values()) * forwards,
        "peak_gflops": 2.0 * peak / 1e9, "floor_seconds": floor, "contenders": reports, "ratios": ratios,
    }  # fmt: skip
