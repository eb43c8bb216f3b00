"""Writes the tables of docs/performance.md, between their markers, and docs/growth.png from the results files.

Run from the repository root: python -m benchmarks.report
"""

import argparse
import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path

from matplotlib.figure import Figure

from benchmarks.results_file import RESULTS, read_results
from benchmarks.start_up import PHASES
from benchmarks.workers.session import CONTENDERS, OURS
from src import cli

PAGE, FIGURE = Path("docs/performance.md"), Path("docs/growth.png")
MARKERS = "<!-- {name}: begin -->", "<!-- {name}: end -->"
NAMES = {OURS: "ours", "eager": "PyTorch eager", "compile": "torch.compile", "bfloat16": "PyTorch bfloat16"}
TYPES = 14  # operator types in the table
PRODUCTS = ("MatMul", "BatchMatMul", "Conv2D", "Conv2DBackpropFilter", "Conv2DBackpropInput")
PARTS = ("backbone", "head", "loss", "optimiser", "unnamed")
AXES = {"tokens": "tokens", "batch": "images a batch", "classes": "classes"}


def main(arguments: list[str] | None = None) -> None:
    """Reads the results, rewrites the sections that have some, draws the figure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", default=str(RESULTS), metavar="DIR", help=f"results files (default {RESULTS})")
    parser.add_argument("--page", default=str(PAGE), metavar="FILE", help=f"page to rewrite (default {PAGE})")
    parser.add_argument("--figure", default=str(FIGURE), metavar="FILE", help=f"plot of growth (default {FIGURE})")
    options = parser.parse_args(arguments)
    page, folder = Path(options.page), Path(options.results)
    text = page.read_text(encoding="utf-8")
    files = {name: read_results(folder / f"{name.replace(' ', '_')}.json") for name in SECTIONS}
    if not any(files.values()):
        raise FileNotFoundError(f"{folder}: no results; the benchmarks write them into {RESULTS} unless told otherwise")
    for name, write in SECTIONS.items():
        if files[name]:
            text = replace_section(text, name, write(files[name]), page)
    page.write_text(text, encoding="utf-8")
    if files["growth"]:
        draw_growth(files["growth"]).savefig(options.figure, dpi=120)


def replace_section(text: str, name: str, section: str, page: Path) -> str:
    """The text with what stands between the markers of `name` replaced; raises ValueError where one is missing."""
    begin, end = (marker.format(name=name) for marker in MARKERS)
    if text.count(begin) != 1 or text.count(end) != 1 or text.index(begin) > text.index(end):
        raise ValueError(f"{page}: needs the lines {begin} and {end}, once each and in this order")
    before, rest = text.split(begin)
    return f"{before}{begin}\n{section}\n{end}{rest.split(end)[1]}"


def table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Markdown table."""
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def run_lines(results: dict) -> str:
    """On what, when and by which commands the entries were measured."""
    runs = {entry["run"]["date"]: entry["run"] for entry in results.values()}
    lines = [
        f"- {run['processor']}, {run['cores']} cores, load {run['load_before']:.1f} before, {date}: `{run['command']}`"
        for date, run in sorted(runs.items())
    ]
    reports = [report for entry in results.values() for report in entry.get("contenders", {}).values()]
    versions = {f"{name} {version}" for report in reports for name, version in report.get("versions", {}).items()}
    return "\n".join(lines + ([f"- {', '.join(sorted(versions))}"] if versions else []))


def side_by_side(results: dict) -> str:
    """Times and ratios of every row; then shares of the peak and memory."""
    times = table(
        ["row", "calls", *[f"{NAMES[name]}, s" for name in CONTENDERS],
         *[f"ours / {NAMES[name]}" for name in CONTENDERS if name != OURS]],
        ([entry["title"], calls(entry), *[seconds(entry, name) for name in CONTENDERS],
          *[ratio(entry, name) for name in CONTENDERS if name != OURS]] for entry in results.values()),
    )  # fmt: skip
    shares = table(
        ["row", "GMAC a call", "peak, GFLOP/s", "floor, s", *[f"{NAMES[name]}: share of peak" for name in CONTENDERS],
         *[f"{NAMES[name]}, MiB" for name in CONTENDERS], "memory, ours / eager"],
        ([entry["title"], f"{entry['gmacs_per_call']:.1f}", f"{entry['peak_gflops']:.0f}",
          f"{entry['floor_seconds']:.3f}", *[share(entry, name) for name in CONTENDERS],
          *[memory(entry, name) for name in CONTENDERS], memory_ratio(entry)] for entry in results.values()),
    )  # fmt: skip
    failures = [
        f"- {NAMES[name]}, {entry['title']}: {report['error']}"
        for entry in results.values() for name, report in entry["contenders"].items() if "error" in report
    ]  # fmt: skip
    return "\n\n".join([times, shares, *(["\n".join(failures)] if failures else []), run_lines(results)])


def measured(entry: dict, name: str) -> dict | None:
    """A contender's report, or None where it did not take part or failed."""
    report = entry["contenders"].get(name)
    return report if report and "error" not in report else None


def calls(entry: dict) -> str:
    return str(max(len(report.get("seconds", ())) for report in entry["contenders"].values()))


def seconds(entry: dict, name: str) -> str:
    report = measured(entry, name)
    return f"{report['median']:.3f}" if report else missing(entry, name)


def missing(entry: dict, name: str) -> str:
    return "failed, see below" if name in entry["contenders"] else "-"


def ratio(entry: dict, name: str) -> str:
    value = entry["ratios"].get(name)
    return f"**{value['median']:.2f}** ({value['min']:.2f} to {value['max']:.2f})" if value else missing(entry, name)


def share(entry: dict, name: str) -> str:
    report = measured(entry, name)
    return f"{report['peak_share']:.0%}" if report else missing(entry, name)


def memory(entry: dict, name: str) -> str:
    report = measured(entry, name)
    if not report:
        return missing(entry, name)
    return f"{report['memory']['growth'] / 2**20:.0f} ({report['memory']['peak'] / 2**20:.0f})"


def memory_ratio(entry: dict) -> str:
    ours, eager = measured(entry, OURS), measured(entry, "eager")
    return f"{ours['memory']['growth'] / eager['memory']['growth']:.2f}" if ours and eager else "-"


def operators(results: dict) -> str:
    """Shares of products and parts, then milliseconds of the operator types that take most of a step."""
    rows = []
    for entry in results.values():
        products = sum(entry["types"].get(name, 0.0) for name in PRODUCTS)
        parts = [f"{entry['parts'].get(part, 0.0) / entry['total']:.1%}" for part in PARTS]
        rows.append([entry["title"], f"{entry['total']:.0f}", f"{products / entry['total']:.1%}", *parts])
    sections = [table(["row", "ms", "products and convolutions", *PARTS], rows)]
    for entry in results.values():
        largest = list(entry["types"].items())[:TYPES]
        rows = [[name, f"{ms:.0f}", f"{ms / entry['total']:.1%}"] for name, ms in largest]
        rest = entry["total"] - sum(ms for _, ms in largest)
        rows += [["all others", f"{rest:.0f}", f"{rest / entry['total']:.1%}"]]
        sections.append(f"{entry['title']}:\n\n" + table(["operator", "ms", "share"], rows))
    return "\n\n".join([*sections, run_lines(results)])


def start_up(results: dict) -> str:
    """Medians of every phase."""
    rows = [
        [entry["title"], kind, str(len(starts)),
         *[f"{statistics.median(start[phase] for start in starts):.1f}" for phase in PHASES]]
        for entry in results.values() for kind, starts in entry["starts"].items()
    ]  # fmt: skip
    heads = ["row", "start", "starts", *[f"{phase.replace('_', ' ')}, s" for phase in PHASES]]
    return table(heads, rows) + "\n\n" + run_lines(results)


def growth_series(results: dict) -> dict[tuple[str, str], dict[str, list[float]]]:
    """(series, mode) -> values, and operations and seconds of every contender relative to the smallest value."""
    found: dict[tuple[str, str], list[dict]] = {}
    for entry in results.values():
        found.setdefault((entry["series"], entry["mode"]), []).append(entry)
    series = {}
    for key, entries in found.items():
        entries = sorted(entries, key=lambda entry: entry["value"])
        lines = {"operations": [entry["gmacs_per_call"] for entry in entries]}
        for name in entries[0]["contenders"]:
            lines[NAMES[name]] = [entry["contenders"][name]["median"] for entry in entries]
        relative = {name: [value / values[0] for value in values] for name, values in lines.items()}
        series[key] = {"value": [entry["value"] for entry in entries], **relative}
    return series


def growth_table(results: dict) -> str:
    """Growth from the first to the last point of each series, and how ours compares at every point."""
    rows = []
    for (name, mode), lines in growth_series(results).items():
        values = lines.pop("value")
        entries = [each for value in values for each in results.values()
                   if (each["series"], each["mode"], each["value"]) == (name, mode, value)]  # fmt: skip
        compared = ", ".join(ratio(entry, "eager").split("*")[2] for entry in entries)
        growth = [f"{line[-1]:.2f}" for line in lines.values()]
        rows.append([name, mode, f"{values[0]} to {values[-1]}", *growth, compared, memory_ratio(entries[-1])])
        heads = ["series", "mode", "from, to", *[f"{line}, times" for line in lines]]
    heads += ["ours / PyTorch eager at each point", "memory, ours / eager, at the last"]
    return table(heads, rows) + "\n\n![growth](growth.png)\n\n" + run_lines(results)


def draw_growth(results: dict) -> Figure:
    """Every series on logarithmic axes, relative to its first point; forward above, training below."""
    series = growth_series(results)
    columns = [name for name in AXES if any(key[0] == name for key in series)]
    modes = ("forward", "train")
    figure = Figure(figsize=(4 * len(columns), 7), layout="constrained")
    axes = figure.subplots(len(modes), len(columns), squeeze=False)
    for i, mode in enumerate(modes):
        for j, column in enumerate(columns):
            plot, lines = axes[i][j], dict(series.get((column, mode), {"value": []}))
            values = lines.pop("value")
            for name, line in lines.items():
                plot.plot(values, line, "k--" if name == "operations" else "o-", label=name)
            plot.set(xscale="log", yscale="log", xlabel=AXES[column], ylabel="times the first point", title=mode)
            plot.set_xticks(values, map(str, values), minor=False)
            plot.minorticks_off()
            plot.legend()
    return figure


def scaling(results: dict) -> str:
    """Speeds by number of processes, efficiency of the most, and their share of time in all-reduce."""
    counts = sorted({count for entry in results.values() for count in entry["processes"]}, key=int)
    rows = [
        [entry["title"], *[f"{entry['processes'][count]['images_per_s']:.3f}" for count in counts],
         f"{entry['efficiency']:.2f}", f"{entry['all_reduce_share']:.0%}"]
        for entry in results.values()
    ]  # fmt: skip
    speeds = [f"{count} process{'es' if count != '1' else ''}, images/s" for count in counts]
    return table(["row", *speeds, "efficiency", "all-reduce"], rows) + "\n\n" + run_lines(results)


SECTIONS = {
    "side by side": side_by_side, "operators": operators, "start up": start_up, "growth": growth_table,
    "scaling": scaling,
}  # fmt: skip


if __name__ == "__main__":
    cli.run(main)
