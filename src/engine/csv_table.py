"""Records of one kind as a CSV file: one row a record, nested values in columns of their own."""

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from src.log import replace_file

END = "\n"


def flatten(record: Mapping[str, Any], names: Sequence[str]) -> dict[str, Any]:
    """Nested values by dotted keys: {"terms": {"ce": 1}} -> {"terms.ce": 1}; {"iou": [0.5]} -> {"iou.NAME": 0.5}.

    names: of the entries of lists. None stays None.
    """
    flat: dict[str, Any] = {}
    for key, value in record.items():
        if isinstance(value, list):
            value = dict(zip(names, value, strict=True))
        flat |= {f"{key}.{k}": v for k, v in flatten(value, names).items()} if isinstance(value, dict) else {key: value}
    return flat


class CsvTable:
    """A CSV file that grows by a row a record; an empty cell is a value that there was not.

    It says nothing that the records do not, so it is written anew from them when a run goes on: rows that are taken
    back, a half row that a killed process left and a missing file need no care of their own.
    """

    def __init__(self, path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
        """rows: all up to now, flat."""
        self.path, self.columns = path, []
        self._replace(rows)

    def write(self, row: Mapping[str, Any]) -> None:
        """Adds a row. One with a new column, as of a later version, widens the rows before it."""
        if set(row) - set(self.columns):
            self._replace([*self._read(), row])
            return
        try:
            with self.path.open("a", encoding="utf-8", newline="") as file:
                csv.DictWriter(file, self.columns, lineterminator=END).writerow(row)
        except OSError as error:  # of a full disk: without the name
            raise OSError(error.errno, error.strerror, str(self.path)) from error

    def _read(self) -> list[dict[str, Any]]:
        if not self.columns:
            return []
        with self.path.open(encoding="utf-8", newline="") as file:
            return list(csv.DictReader(file))

    def _replace(self, rows: Iterable[Mapping[str, Any]]) -> None:
        self.columns = list(dict.fromkeys(column for row in rows for column in row))
        if not self.columns:
            self.path.unlink(missing_ok=True)
            return
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, self.columns, lineterminator=END)
        writer.writeheader()
        writer.writerows(rows)
        replace_file(self.path, text.getvalue())
