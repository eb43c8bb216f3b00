"""Rows of an ablation and their runs as one table: facts for machines, Markdown for people."""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, median, stdev

from src.engine.ablation import Row

NOT_RUN, UNFINISHED, RUNNING, FAILED, DONE = "not run", "unfinished", "running", "failed", "done"
SPREADS = {1: "spread", 2: "max - min"}  # by number of seeds
DEVIATION = "std"  # of the sample, for more seeds
TABLE = "table.json"


@dataclass(frozen=True)
class Report:
    """All that is known of a table and its runs.

    facts: by name of the row, such as `parameters`; runs: records by name of the run, with `state` and, once done,
    `result`, which change while runs go on, also those of earlier tables in the folder; about: facts of the whole.
    """

    folder: Path
    rows: Sequence[Row]
    seeds: Sequence[int]
    facts: Mapping[str, dict]
    runs: Mapping[str, dict]
    about: Mapping[str, object]

    def save(self) -> None:
        """Writes table.json and table.md, each in one move."""
        rows = tabulate(self)
        shown = {run["name"] for row in rows for run in row["runs"]}
        others = [run for name, run in self.runs.items() if name not in shown]
        facts = {**self.about, "seeds": list(self.seeds), "rows": rows, "other_runs": others}
        replace(self.folder / TABLE, json.dumps(facts, indent=1) + "\n")
        replace(self.folder / "table.md", to_markdown(rows, self.seeds))

    def markdown(self) -> str:
        """The table for people."""
        return to_markdown(tabulate(self), self.seeds)


def replace(file: Path, text: str) -> None:
    """Writes a file so that it is at no time half written."""
    draft = file.with_name(f"{file.name}.new")
    draft.write_text(text, encoding="utf-8")
    os.replace(draft, file)


def read_records(folder: Path) -> dict[str, dict]:
    """Records of runs by name, from the table that an earlier start has left in a folder; {} where there is none."""
    file = folder / TABLE
    if not file.is_file():
        return {}
    try:
        table = json.loads(file.read_text(encoding="utf-8"))
        runs = [*(run for row in table["rows"] for run in row["runs"]), *table["other_runs"]]
        return {run["name"]: run for run in runs}
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{file} is no table of this tool ({error!r}); move it away") from error


def run_name(row: Row, seed: int) -> str:
    """Name of the run of a row and a seed."""
    return f"{row.name}--seed{seed}"


def tabulate(report: Report) -> list[dict]:
    """The rows as JSON values: what they are, means and spreads over the seeds, and their runs."""
    by_row = {row.name: [report.runs[run_name(row, seed)] for seed in report.seeds] for row in report.rows}
    return [
        {
            "label": row.label, "name": row.name, "config": row.file, "changes": list(row.changes),
            "overrides": list(row.overrides), "compared_with": row.base, "same": row.same, **report.facts[row.name],
            "summary": summarise(by_row[row.name], by_row.get(row.base, [])),
            "runs": by_row[row.name],
        }
        for row in report.rows
    ]  # fmt: skip


def summarise(runs: Sequence[dict], base: Sequence[dict]) -> dict:
    """Means over the runs of a row that are done, spread of their mIoU, and difference to the row `base`.

    The runs of both rows come in the order of the seeds; only seeds that both have done make the difference. What
    cannot be said is None.
    """
    done = [run["result"] for run in runs if run["state"] == DONE]
    miou = known(done, "miou")
    pairs = [
        (run["result"]["miou"], other["result"]["miou"])
        for run, other in zip(runs, base, strict=False)
        if run["state"] == other["state"] == DONE and None not in (run["result"]["miou"], other["result"]["miou"])
    ]
    return {
        "runs_done": len(done),
        "miou": mean(miou) if miou else None,
        "spread": spread(miou, len(runs)),
        "spread_kind": SPREADS.get(len(runs), DEVIATION),
        "boundary_f": mean(known(done, "boundary_f")) if known(done, "boundary_f") else None,
        "seconds_per_step": median(known(done, "seconds_per_step")) if known(done, "seconds_per_step") else None,
        "waiting": mean(known(done, "waiting")) if known(done, "waiting") else None,
        "difference": mean(ours - theirs for ours, theirs in pairs) if pairs else None,
        "difference_seeds": len(pairs),
    }


def known(results: Sequence[dict], key: str) -> list[float]:
    """The values of a key that are not None."""
    return [result[key] for result in results if result[key] is not None]


def spread(values: Sequence[float], planned: int) -> float | None:
    """max - min where two runs are planned, for more the standard deviation of the sample; None below two values."""
    if len(values) < 2:
        return None
    return max(values) - min(values) if planned == 2 else stdev(values)


def to_markdown(table: list, seeds: Sequence[int]) -> str:
    """The table of `tabulate` as Markdown, with the notes that it needs."""
    spread_kind = SPREADS.get(len(seeds), DEVIATION)
    headings = [
        "row", "parameters", "GMACs", "s/step", *[f"mIoU, seed {seed}" for seed in seeds], "mean", spread_kind,
        "boundary F", "mean against base",
    ]  # fmt: skip
    lines = [headings, ["---", *["---:"] * (len(headings) - 1)], *map(cells, table)]
    text = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    return "\n".join([text, "", *notes(table, len(seeds)), ""])


def cells(row: dict) -> list[str]:
    """One line of the table."""
    summary = row["summary"]
    difference = "" if summary["difference"] is None else f"{summary['difference']:+.4f}"
    return [
        row["label"].replace("|", "\\|"), f"{row['parameters']:,}", f"{row['gmacs']:.3g}",
        number(summary["seconds_per_step"], ".3g"), *map(run_cell, row["runs"]), number(summary["miou"]),
        number(summary["spread"]), number(summary["boundary_f"]), difference,
    ]  # fmt: skip


def run_cell(run: dict) -> str:
    """mIoU of a run that is done, else how far it came."""
    if run["state"] == DONE:
        return number(run["result"]["miou"]) or "none"
    return f"{run['state']}, step {run['step']}" if run["step"] else run["state"]


def number(value: float | None, form: str = ".4f") -> str:
    """A value, or nothing for one that does not exist."""
    return "" if value is None else format(value, form)


def notes(table: list, seeds: int) -> list[str]:
    """What a reader has to know about the numbers."""
    labels = {row["name"]: row["label"] for row in table}
    kinds = {1: "A spread needs two seeds.", 2: "Spread: largest minus smallest mIoU of the two seeds."}
    texts = [
        "mIoU and boundary F are those of the last checkpoint, not of the best one.",
        kinds.get(seeds, f"Spread: standard deviation of the sample of {seeds} seeds."),
        "Parameters: trained ones. GMACs: one image of data.crop_size, forward. s/step: median over the log of a run, "
        "then over the runs.",
    ]
    bases = {row["compared_with"] for row in table} - {None}
    if len(bases) == 1:
        texts.append(f"Base: {labels[bases.pop()]}; differences are over the seeds that both rows have done.")
    elif bases:
        pairs = [f"{row['label']} against {labels[row['compared_with']]}" for row in table if row["compared_with"]]
        texts.append(f"Differences are over the seeds that both rows have done: {'; '.join(pairs)}.")
    texts += [f"Equal to {row['label']} and not run again: {', '.join(row['same'])}." for row in table if row["same"]]
    failed = [run for row in table for run in row["runs"] if run["state"] == FAILED]
    texts += [f"Failed: {run['name']}: {brief(run['error'])}; see {run['log']}." for run in failed]
    return [f"- {text}" for text in texts]


def brief(error: str) -> str:
    """First and last line of an error."""
    lines = error.splitlines()
    return lines[0] if len(lines) == 1 else f"{lines[0]}, {lines[-1]}"
