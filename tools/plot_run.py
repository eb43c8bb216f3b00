"""Draws the training curves of one or more runs, over each other: loss, mIoU, loss terms, learning rate over the steps.

Prints where each run stands, too.
"""

import argparse
import math
import sys
from pathlib import Path

import matplotlib

matplotlib.use("Agg")  # a file is drawn, no window opened

import matplotlib.pyplot as plt  # noqa: E402
import numpy as np  # noqa: E402
from matplotlib.axes import Axes  # noqa: E402
from matplotlib.lines import Line2D  # noqa: E402
from matplotlib.ticker import EngFormatter, MaxNLocator  # noqa: E402
from rich.table import Table  # noqa: E402
from rich.text import Text  # noqa: E402

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # so that the script runs from any folder

from src.log import get_console, read_metrics  # noqa: E402

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")  # Okabe-Ito, for every eye
DASHES = ("-", "--", ":", "-.")
SMOOTHING = 0.015  # half the smoothing window, as a share of a curve's records
ENDINGS = (".png", ".svg")
KINDS = ("train", "eval")  # of records
DRAWN = ("loss", "lr", "miou", "images_per_s", "waiting")
Curve = tuple[np.ndarray, np.ndarray]  # steps (N,), values (N,)


def main(arguments: list[str] | None = None) -> int:
    """Command line; returns the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, epilog="Exit code: 0 when the picture is written, 2 for wrong arguments or unusable files."
    )
    parser.add_argument("runs", metavar="RUN", nargs="+", type=Path, help="folder of a run, holding metrics.jsonl")
    parser.add_argument(
        "--output",
        metavar="FILE",
        type=Path,
        help="picture to write; its ending sets the format, .png or .svg (default: curves.png in the first RUN)",
    )
    options = parser.parse_args(arguments)
    output = options.output or options.runs[0] / "curves.png"
    if output.suffix not in ENDINGS:
        parser.error(f"argument --output: {output} does not end in {' or '.join(ENDINGS)}; name the picture's file")
    try:
        runs = {name: load_run(path) for name, path in zip(run_names(options.runs), options.runs, strict=True)}
        output.parent.mkdir(parents=True, exist_ok=True)
        draw(runs, output)
    except (OSError, ValueError) as error:
        parser.error(str(error))
    get_console().print(summary(runs))
    print(output)
    return 0


def run_names(paths: list[Path]) -> list[str]:
    """Names for the legend: the folders' own, or the whole paths where these would be equal."""
    names = [path.resolve().name for path in paths]
    if len(set(names)) == len(names):
        return names
    if len(set(paths)) < len(paths):
        raise ValueError("the same RUN is given twice; name each run once")
    return [str(path) for path in paths]


def load_run(path: Path) -> list[dict]:
    """The records of a run; raises FileNotFoundError or ValueError saying what is missing."""
    if not path.is_dir():
        raise FileNotFoundError(f"there is no run folder {path}; give the folder that train.py wrote, output/<name>")
    records = read_metrics(path / "metrics.jsonl")
    if not records:
        raise ValueError(f"{path / 'metrics.jsonl'} holds no record yet; wait until train.py has logged a step")
    for number, record in enumerate(records, 1):
        if record.get("kind") in KINDS:
            refuse_others(record, f"{path / 'metrics.jsonl'}:{number}")
    return records


def refuse_others(record: dict, place: str) -> None:
    """Raises ValueError for a record whose curves cannot be drawn."""
    terms = record.get("terms", {})
    if not isinstance(record.get("step"), int) or not isinstance(terms, dict):
        raise ValueError(f"{place}: no whole number `step`, or `terms` that is no object; delete this line")
    values = {key: record.get(key) for key in DRAWN} | terms
    for key, value in values.items():
        if not isinstance(value, int | float | None):
            raise ValueError(f"{place}: {key} is {value!r}, wanted a number or null; delete this line")


def curve(records: list[dict], kind: str, *keys: str) -> Curve:
    """Steps and values of records[...][keys[0]][keys[1]]... of one kind; null becomes NaN, which is drawn as a gap."""
    steps, values = [], []
    for record in records:
        value = record if record.get("kind") == kind else None
        for key in keys:
            value = value.get(key, math.nan) if isinstance(value, dict) else math.nan
        if record.get("kind") == kind:
            steps.append(record["step"])
            values.append(math.nan if value is None else value)
    return np.array(steps, float), np.array(values, float)


def summary(runs: dict[str, list[dict]]) -> Table:
    """Where each run stands: last step, its loss, last and best mIoU; speed and waiting for data, medians."""
    table = Table()
    for heading in ("run", "step", "loss", "mIoU", "best mIoU", "images/s", "waiting"):
        table.add_column(heading, justify="left" if heading == "run" else "right", overflow="fold")
    for name, records in runs.items():
        loss, speed, waiting = (known(curve(records, "train", key))[1] for key in ("loss", "images_per_s", "waiting"))
        steps, miou = known(curve(records, "eval", "miou"))
        best = f"{miou.max():.4f} at {steps[miou.argmax()]:.0f}" if len(miou) else "-"
        step = max((record["step"] for record in records if record.get("kind") in KINDS), default="-")
        table.add_row(
            Text(name), str(step), last(loss, ".3f"), last(miou, ".4f"), best, middle(speed, ".3g"),
            middle(waiting, ".1%"),
        )  # fmt: skip
    return table


def last(values: np.ndarray, form: str) -> str:
    """The last value as text."""
    return format(values[-1], form) if len(values) else "-"


def middle(values: np.ndarray, form: str) -> str:
    """The median as text."""
    return format(np.median(values), form) if len(values) else "-"


def known(points: Curve) -> Curve:
    """A curve without its gaps."""
    there = np.isfinite(points[1])
    return points[0][there], points[1][there]


def smooth(values: np.ndarray) -> np.ndarray:
    """Mean over a centred window, shorter at both ends; NaN values are left out of it and stay NaN."""
    window = np.ones(2 * int(SMOOTHING * len(values)) + 1)
    known = np.isfinite(values)
    half = len(window) // 2
    sums, counts = (
        np.convolve(part, window)[half : half + len(values)] for part in (np.where(known, values, 0.0), 1.0 * known)
    )
    return np.divide(sums, counts, out=np.full(len(values), math.nan), where=known)


def draw(runs: dict[str, list[dict]], output: Path) -> None:
    """Writes the picture: four panels, one colour a run."""
    plt.rcParams.update({"font.size": 10, "axes.titlesize": 11, "axes.titleweight": "bold"})
    figure, axes = plt.subplots(2, 2, figsize=(12, 7.5), layout="constrained")
    colours = [COLOURS[number % len(COLOURS)] for number in range(len(runs))]
    for number, (name, records) in enumerate(runs.items()):
        draw_loss(axes[0, 0], curve(records, "train", "loss"), colours[number])
        draw_miou(axes[0, 1], curve(records, "eval", "miou"), colours[number], f"{name}: " if len(runs) > 1 else "")
        width = 1.5 * (len(runs) - number)  # equal schedules hide each other: the first is the widest
        axes[1, 1].plot(*curve(records, "train", "lr"), color=colours[number], linewidth=width)
    draw_terms(axes[1, 0], list(runs.values()), colours)
    titles = ("training loss", "validation mIoU", "loss terms (weighted)", "learning rate")
    for panel, title in zip(axes.flat, titles, strict=True):
        finish_panel(panel, title)
    axes[1, 1].ticklabel_format(axis="y", style="sci", scilimits=(-2, 3))
    handles = [Line2D([], [], color=colour, linewidth=3) for colour in colours]
    figure.legend(handles, list(runs), loc="outside upper center", ncols=min(len(runs), 4), frameon=False)
    figure.savefig(output, dpi=120)
    plt.close(figure)


def draw_loss(panel: Axes, loss: Curve, colour: str) -> None:
    """Every logged value pale, their smoothed course strong."""
    steps, values = loss
    if len(steps):
        panel.plot(steps, values, color=colour, alpha=0.25, linewidth=0.8)
        panel.plot(steps, smooth(values), color=colour, linewidth=1.8)


def draw_miou(panel: Axes, miou: Curve, colour: str, prefix: str) -> None:
    """Line with a dot at each evaluation; the best one has a ring and is written into the panel's legend."""
    steps, values = miou
    if not np.isfinite(values).any():
        return
    best = int(np.nanargmax(values))
    label = f"{prefix}best {values[best]:.3f} at step {steps[best]:.0f}"
    panel.plot(steps, values, color=colour, marker="o", markersize=3, label=label)
    panel.plot(steps[best], values[best], color=colour, marker="o", markersize=9, fillstyle="none")
    panel.legend(frameon=False)


def draw_terms(panel: Axes, runs: list[list[dict]], colours: list[str]) -> None:
    """The smoothed course of each term: a colour a term for a single run, else a colour a run and a dash a term."""
    names = sorted({term for records in runs for record in records for term in record.get("terms", {})})
    single = len(runs) == 1
    handles = []
    for number, term in enumerate(names):
        style = "-" if single else DASHES[number % len(DASHES)]
        shade = COLOURS[number % len(COLOURS)]
        handles.append(Line2D([], [], color=shade if single else "grey", linestyle=style))
        for records, colour in zip(runs, colours, strict=True):
            steps, values = curve(records, "train", "terms", term)
            if np.isfinite(values).any():
                panel.plot(steps, smooth(values), color=shade if single else colour, linestyle=style)
    if names:
        panel.legend(handles, names, frameon=False)


def finish_panel(panel: Axes, title: str) -> None:
    """Title, axis and grid; a panel without data says so."""
    panel.set_title(title, loc="left")
    panel.set_xlabel("step")
    panel.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=7))
    panel.xaxis.set_major_formatter(EngFormatter(sep=""))
    panel.grid(alpha=0.25)
    panel.spines[["top", "right"]].set_visible(False)
    if not any(len(line.get_xdata()) for line in panel.lines):
        panel.text(0.5, 0.5, "nothing logged yet", transform=panel.transAxes, ha="center", color="grey")


if __name__ == "__main__":
    sys.exit(main())
