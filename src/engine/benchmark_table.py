"""The report of tools/benchmark.py as a table for people."""

from collections.abc import Iterator

from rich.table import Table

HEADINGS = ("measure", "median", "min", "max", "iqr", "share")
ONCE = {"first_step": "first step (compiles)", "first_call": "first call (compiles)"}
SPREADS = {"step": "training step", "batch": "training batch", "image": "image"}
PARTS = {"step": "on one batch, by turns"}
SPEEDS = {
    "images_per_s": "images/s", "train_images_per_s": "training images/s", "eval_images_per_s": "evaluation images/s",
}  # fmt: skip


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


def number_rows(report: dict) -> Iterator[tuple[str, str]]:
    """Single numbers of a report."""
    for name, text in SPEEDS.items():
        if name in report:
            yield text, f"{report[name]:.2f}"
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
