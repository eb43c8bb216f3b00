"""The files that a run is followed by: metrics.jsonl, the same as CSV and for TensorBoard; the samples left out."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from src.engine import event_file
from src.engine.csv_table import CsvTable, flatten
from src.log import MetricsLog, get_console, plain, read_metrics

METRICS, BAD_SAMPLES, EVENTS = "metrics.jsonl", "bad_samples.jsonl", "tensorboard"
TABLES = {"train": "metrics.csv", "eval": "metrics_eval.csv"}  # by kind of record


class Logs:
    """What rank 0 writes line by line. metrics.jsonl is the truth; the others say the same for other readers.

    Args:
        run: folder of the run.
        first_step: step that the run goes on from; later records are dropped, since they will be made again.
        evaluated: whether the evaluation of that step is kept, too.
        classes: names, for the columns of their scores.
    """

    def __init__(self, run: Path, first_step: int, evaluated: bool, classes: Sequence[str]) -> None:
        self.run, self.classes = run, classes
        self.metrics = MetricsLog(run / METRICS)
        self.metrics.truncate_after(first_step, evaluated)
        records = read_metrics(run / METRICS) if (run / METRICS).is_file() else []
        records = [record for record in records if record.get("kind") in TABLES]  # not others' own lines
        self.tables = {
            kind: CsvTable(run / name, [self._row(record) for record in records if record["kind"] == kind])
            for kind, name in TABLES.items()
        }
        self.events = None
        if event_file.wanted():
            # TensorBoard forgets whole steps: what it must keep of the first one is written once more.
            kept = first_step + evaluated
            self.events = event_file.EventFile(run / EVENTS, kept)
            for record in records:
                if record["step"] >= kept:
                    self._tell_tensorboard(record)

    def write(self, record: dict[str, Any]) -> None:
        """Adds a record with `kind`, train or eval, and `step`."""
        record = plain(record)
        self.metrics.write(record)
        self.tables[record["kind"]].write(self._row(record))
        if self.events:
            self._tell_tensorboard(record)

    def _row(self, record: dict[str, Any]) -> dict[str, Any]:
        return flatten({key: value for key, value in record.items() if key != "kind"}, self.classes)

    def _tell_tensorboard(self, record: dict[str, Any]) -> None:
        """Values that are numbers; it has no gaps for others."""
        row = {key: value for key, value in self._row(record).items() if key != "step" and value is not None}
        self.events.write(record["step"], {f"{record['kind']}/{key}": value for key, value in row.items()})

    def tell_bad_samples(self, bad: Any) -> None:
        """Names the bad samples that were found since the last call, on the console and in a file."""
        for entry in bad.take_new():
            get_console().print(f"left out: {entry['name']}: {entry['reason']}", markup=False, soft_wrap=True)
            MetricsLog(self.run / BAD_SAMPLES).write(entry)


def known_bad_samples(run: Path) -> list[str]:
    """Names of the samples that a run has left out before it was interrupted."""
    file = run / BAD_SAMPLES
    return [record["name"] for record in read_metrics(file)] if file.is_file() else []
