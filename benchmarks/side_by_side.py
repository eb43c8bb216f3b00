"""Our networks and their PyTorch twins, by turns in one run: time, ratio, share of the machine's peak, memory.

Each contender is a process of its own and stands still while another one works. Before anything is timed, all compute
one step or inference on the same weights, noise and batch, and must agree. Each row's result is written as soon as it
is there, in place of an older one of that row.

Run from the repository root: python -m benchmarks.side_by_side [--rows NAME ...] [--contenders NAME ...]
"""

import argparse
from pathlib import Path

from benchmarks.results_file import RESULTS, add_result, describe_run
from benchmarks.workers.rows import ROWS, SMALL_ROWS, describe
from benchmarks.workers.session import CONTENDERS, OURS, measure_row
from src import cli
from src.log import get_console


def main(arguments: list[str] | None = None) -> None:
    """Reads the command line, measures row after row, writes the file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    known = [*ROWS, *SMALL_ROWS]
    parser.add_argument(
        "--rows", nargs="+", choices=known, default=list(ROWS), metavar="ROW",
        help=f"{', '.join(ROWS)} (default: all of these); for functional checks: {', '.join(SMALL_ROWS)}",
    )  # fmt: skip
    parser.add_argument(
        "--contenders", nargs="+", choices=list(CONTENDERS), default=list(CONTENDERS), metavar="NAME",
        help=f"who takes part (default: {' '.join(CONTENDERS)}); all are in memory at once, unless --pairs",
    )  # fmt: skip
    parser.add_argument(
        "--pairs", action="store_true",
        help="ours with one PyTorch contender after another, where memory has no room for all at once",
    )  # fmt: skip
    parser.add_argument("--rounds", type=int, default=7, metavar="N", help="timed calls of each (default 7)")
    parser.add_argument("--out", default=str(RESULTS / "side_by_side.json"), metavar="FILE", help="results, JSON")
    options = parser.parse_args(arguments)
    if options.rounds < 1:
        parser.error(f"--rounds {options.rounds}: at least 1")
    file = cli.writable(options.out)
    run = describe_run("benchmarks.side_by_side")
    for name in options.rows:
        row = describe((ROWS | SMALL_ROWS)[name])
        contenders = list(dict.fromkeys(options.contenders))
        result = (measure_pairs if options.pairs else measure_row)(row, contenders, options.rounds, name)
        add_result(Path(file), name, {"run": run, **result})
        for line in lines(name, result):
            get_console().print(line)


def measure_pairs(row: dict, contenders: list[str], rounds: int, title: str) -> dict:
    """As measure_row, in a session of two for every PyTorch contender; ours and the peak are those of the first."""
    others = [name for name in contenders if name != OURS]
    if not others or OURS not in contenders:
        raise ValueError(f"--pairs needs {OURS} and at least one other among --contenders, got {', '.join(contenders)}")
    result = measure_row(row, (OURS, others[0]), rounds, title)
    for other in others[1:]:
        pair = measure_row(row, (OURS, other), rounds, title)
        result["contenders"][other] = pair["contenders"][other]
        result["ratios"] |= pair["ratios"]
    return result


def lines(name: str, result: dict) -> list[str]:
    """The row in words: seconds and share of the peak of each contender, ratio to ours."""
    found = [f"{name}: {result['title']}; floor {result['floor_seconds']:.3f} s at {result['peak_gflops']:.0f} GFLOP/s"]
    for contender, report in result["contenders"].items():
        if "error" in report:
            found.append(f"  {contender}: {report['error']}")
            continue
        ratio = result["ratios"].get(contender)
        text = f"  ours / this {ratio['median']:.2f} ({ratio['min']:.2f} to {ratio['max']:.2f})" if ratio else ""
        found.append(
            f"  {contender}: {report['median']:.3f} s, {report['peak_share']:.0%} of the peak, "
            f"{report['memory']['growth'] / 2**20:.0f} MiB{text}"
        )
    return found


if __name__ == "__main__":
    cli.run(main)
