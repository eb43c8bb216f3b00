"""The report of tools/benchmark.py as a table for people."""

from collections.abc import Iterator

from rich.table import Table

STAGE_HEADINGS = ("stage", "an image", "share", "images/s")
HEADINGS = ("measure", "median", "min", "max", "iqr", "share")
ONCE = {"first_step": "first step (compiles)", "first_call": "first call (compiles)"}
SPREADS = {"step": "training step", "batch": "training batch", "image": "image"}
PARTS = {"step": "on one batch, by turns"}
SPEEDS = {
    "images_per_s": "images/s", "train_images_per_s": "training images/s", "eval_images_per_s": "evaluation images/s",
}  # fmt: skip


def create_tables(report: dict) -> list[Table]:
    """The table of a report, after that of its stages where it has any."""
    return [*([create_stage_table(report)] if "stages" in report else []), create_table(report)]


def create_stage_table(report: dict) -> Table:
    """A row per stage of reading: its time for an image in one process, its share, and what all workers could do."""
    table = Table(title=f"stages of reading, each by itself in {report['workers']} processes", title_justify="left")
    for heading in STAGE_HEADINGS:
        table.add_column(heading, justify="left" if heading == "stage" else "right", no_wrap=True)
    for name, stage in report["stages"].items():
        table.add_row(name, format_time(stage["seconds"]), f"{stage['share']:.1%}", f"{stage['images_per_s']:.0f}")
    table.add_section()
    seconds = sum(stage["seconds"] for stage in report["stages"].values())
    table.add_row("all: predicted", format_time(seconds), "100.0%", f"{report['predicted_images_per_s']:.1f}")
    if "decoding_images_per_s" in report:
        table.add_row("decoding alone, OpenCV", "", "", f"{report['decoding_images_per_s']:.1f}")
    return table


def create_table(report: dict) -> Table:
    """Table of a report: what was timed, its parts, the single numbers, and the notes below."""
    machine, size = report["machine"], " x ".join(map(str, report["size"]))
    place = f"{machine['device']}, {machine['cores']} cores, load {machine['load']:.1f} before"
    table = Table(title=f"{report['config']}: {report['mode']}, {size} pixels; {place}", title_justify="left")
    for heading in HEADINGS:
        table.add_column(heading, justify="left" if heading == "measure" else "right", no_wrap=True)
    for row in (*timed_rows(report), *part_rows(report)):
        table.add_row(*row)
    table.add_section()
    for row in number_rows(report):
        table.add_row(*row)
    table.caption, table.caption_justify = "\n".join(report["notes"]), "left"
    return table


def timed_rows(report: dict) -> Iterator[tuple[str, ...]]:
    """What ran once, and what ran often."""
    for name, text in ONCE.items():
        if name in report:
            yield text, format_time(report[name])
    for name, text in SPREADS.items():
        if name in report:
            yield text, *format_spread(report[name])


def part_rows(report: dict) -> Iterator[tuple[str, ...]]:
    """The parts, and the whole once more where it was timed with them on other data."""
    for name, part in report.get("parts", {}).items():
        if name == "image":
            continue
        spread = format_spread(part) if "median" in part else ("", "", "", "")
        yield f"  {PARTS.get(name, name)}", *spread, f"{part['share']:.0%}"


def number_rows(report: dict) -> Iterator[tuple[str, ...]]:
    """Single numbers of a report, and what varied between its rounds."""
    for name, text in SPEEDS.items():
        if name in report:
            yield text, f"{report[name]:.2f}"
    if "share_of_predicted" in report:
        share = report["share_of_predicted"]
        yield "share of the predicted rate", *(f"{share[name]:.1%}" for name in ("median", "min", "max"))
    if "processor" in report:
        busy = report["processor"]
        yield "processor an image: stages", format_time(busy["stages"])
        yield "processor an image: pipeline", format_time(busy["pipeline"])
        yield "share of the stages in it", f"{busy['share']:.1%}"
    if report["mode"] == "train":
        yield "waiting for data", "none read" if report["waiting"] is None else f"{report['waiting']:.1%}"
    yield "memory peak, whole process", f"{report['peak_memory'] / 2**20:.0f} MiB"
    if "gmacs" in report:
        yield "backbone, GMAC/image", format_gmacs(report["gmacs"]["backbone"])
        yield "head, GMAC/image", format_gmacs(report["gmacs"]["head"])
        yield "GFLOP/s reached", f"{report['achieved_gflops']:.1f}"
        yield "GFLOP/s of matrix products", f"{report['peak_gflops']:.1f}"
        yield "share of that peak", f"{report['peak_share']:.1%}"


def format_spread(spread: dict[str, float]) -> tuple[str, str, str, str]:
    """Median, min, max and iqr, each with its unit."""
    return tuple(format_time(spread[name]) for name in ("median", "min", "max", "iqr"))


def format_time(seconds: float) -> str:
    """Seconds, or milliseconds below one, with three figures: seven characters leave room on narrow screens."""
    if seconds >= 1.0:
        return f"{seconds:.2f} s"
    milliseconds = seconds * 1e3
    return f"{milliseconds:.{2 if milliseconds < 10 else 1 if milliseconds < 100 else 0}f} ms"


def format_gmacs(gmacs: float) -> str:
    """Three figures, and one decimal from a hundred on."""
    return f"{gmacs:.1f}" if gmacs >= 100.0 else f"{gmacs:.3g}"
