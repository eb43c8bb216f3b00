"""What a run tells: the console of rank 0, progress with speed and remaining time, and the file metrics.jsonl."""

import json
import math
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from time import monotonic
from typing import Any

import numpy as np
from rich.console import Console, RenderableType
from rich.progress import BarColumn, Progress, ProgressColumn, TextColumn
from rich.text import Text

FIRST_LINE = 5.0  # seconds until a job is worth a line in a log
LINE_EVERY = 10.0  # seconds between further lines


@cache
def get_console() -> Console:
    """The console of this process, on standard output. Bars and messages share it, or they would overwrite another."""
    return Console(highlight=False)


def silence_other_ranks(rank: int) -> None:
    """Lets only rank 0 write to the console."""
    get_console().quiet = rank != 0


class Meter:
    """Count, speed and remaining time of a job of `total` steps, `done` of which were made before it started."""

    def __init__(self, total: int, done: int = 0) -> None:
        self.total = total
        self.done = done
        self.text = ""
        self.start = monotonic()
        self.first = (self.start, done)
        self.fresh = True

    def advance(self, count: int, text: str | None) -> None:
        self.done += count
        self.text = self.text if text is None else text
        if self.fresh:  # the first step compiles and opens files, and would spoil the speed
            self.first = (monotonic(), self.done)
            self.fresh = False

    @property
    def percent(self) -> float:
        return 100 * self.done / self.total if self.total else 100.0

    @property
    def speed(self) -> float | None:
        """Steps per second since the end of the first advance; None until there is something to measure."""
        seconds, steps = monotonic() - self.first[0], self.done - self.first[1]
        return steps / seconds if steps > 0 and seconds > 0 else None

    def tail(self, finished: bool = False) -> str:
        """Speed and remaining time (when finished: time taken)."""
        speed = self.speed
        if finished:
            time = f"took {format_seconds(monotonic() - self.start)}"
        else:
            time = f"ETA {format_seconds((self.total - self.done) / speed) if speed else '-'}"
        return "  ".join(part for part in (format_speed(speed), time) if part)

    def line(self, description: str, finished: bool = False) -> str:
        """All there is to say, the caller's text last."""
        parts = (f"{description} {self.done}/{self.total}", f"{self.percent:.0f}%", self.tail(finished), self.text)
        return "  ".join(part for part in parts if part)


def format_speed(speed: float | None) -> str:
    """Steps per second, or seconds per step below one a second; nothing for None."""
    if speed is None:
        return ""
    return f"{speed:.1f} it/s" if speed >= 1 else f"{1 / speed:.1f} s/it"


def format_seconds(seconds: float) -> str:
    """Minutes and seconds, m:ss, or h:mm:ss from an hour on."""
    minutes, rest = divmod(int(seconds + 0.5), 60)
    return f"{minutes}:{rest:02d}" if minutes < 60 else f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}"


@contextmanager
def progress(
    total: int, description: str, disable: bool = False, completed: int = 0, console: Console | None = None
) -> Iterator[Callable[..., None]]:
    """Shows the progress of `total` steps; gives advance(count=1, text=None), text being shown until the next one.

    On a terminal a live bar with the text below it; elsewhere a plain line that ends with the text after 5 s, then at
    most every 10 s, and one at the end. Bars may be nested on one console. completed: steps made before, as in a
    resumed run. disable: show nothing.
    """
    console = console or get_console()
    meter = Meter(total, completed)
    if disable or console.quiet:
        yield lambda count=1, text=None: meter.advance(count, text)
    elif console.is_terminal and not console.is_dumb_terminal:
        with _live_bar(meter, description, console) as advance:
            yield advance
    else:
        with _plain_lines(meter, description, console) as advance:
            yield advance


class _Bar(Progress):
    """A bar with a text below it, which takes more lines where the terminal is narrow."""

    def __init__(self, *columns: ProgressColumn, console: Console) -> None:
        self.text = ""
        super().__init__(*columns, console=console)

    def get_renderables(self) -> Iterable[RenderableType]:
        """The bar, then the text where there is one."""
        yield from super().get_renderables()
        if self.text:
            yield Text(f"  {self.text}")


@contextmanager
def _live_bar(meter: Meter, description: str, console: Console) -> Iterator[Callable[..., None]]:
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TextColumn("{task.completed:.0f}/{task.total:.0f}  {task.percentage:.0f}%  {task.fields[tail]}", markup=False),
    )
    with _Bar(*columns, console=console) as bar:
        task = bar.add_task(description, total=meter.total, completed=meter.done, tail=meter.tail())

        def advance(count: int = 1, text: str | None = None) -> None:
            meter.advance(count, text)
            bar.text = meter.text
            bar.update(task, completed=meter.done, tail=meter.tail())

        try:
            yield advance
        finally:
            bar.update(task, tail=meter.tail(finished=True))


@contextmanager
def _plain_lines(meter: Meter, description: str, console: Console) -> Iterator[Callable[..., None]]:
    due = meter.start + FIRST_LINE

    def advance(count: int = 1, text: str | None = None) -> None:
        nonlocal due
        meter.advance(count, text)
        if monotonic() >= due and meter.done < meter.total:
            write(finished=False)
            due = monotonic() + LINE_EVERY

    def write(finished: bool) -> None:
        console.print(meter.line(description, finished), markup=False, highlight=False, soft_wrap=True)
        console.file.flush()  # a pipe or file is block buffered: minutes would pass unseen

    try:
        yield advance
    finally:
        write(finished=True)


class MetricsLog:
    """Appends records to a file, one JSON object a line, complete on disk after each. Only rank 0 may have one."""

    def __init__(self, path: str | Path) -> None:
        """Creates the folder if need be; a last line that a killed run left half written is dropped."""
        self.path = Path(path)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        if self.path.is_file() and not self.path.read_bytes().endswith(b"\n"):
            self._replace(read_metrics(self.path))

    def write(self, record: dict[str, Any]) -> None:
        """Adds a record. NumPy numbers and arrays become plain ones; NaN and infinities, which JSON lacks, null."""
        try:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(_to_line(record))
        except OSError as error:  # of a full disk: without the name
            raise OSError(error.errno, error.strerror, str(self.path)) from error

    def truncate_after(self, step: int, evaluated: bool = True) -> None:
        """Drops records with a larger `step`, in one move: what a resumed run will write again.

        evaluated: whether the evaluation of `step` itself is kept, too.
        """
        if self.path.is_file():
            records = [record for record in read_metrics(self.path) if record.get("step", step) <= step]
            repeated = [] if evaluated else [("eval", step)]
            self._replace([r for r in records if (r.get("kind"), r.get("step")) not in repeated])

    def _replace(self, records: list[dict[str, Any]]) -> None:
        replace_file(self.path, "".join(map(_to_line, records)))


def replace_file(path: Path, text: str) -> None:
    """Writes a text file in one move; of a full disk an OSError that names it, and nothing is left beside it."""
    new = path.with_name(f"{path.name}.new")
    try:
        new.write_text(text, encoding="utf-8", newline="")
        os.replace(new, path)
    except OSError as error:
        new.unlink(missing_ok=True)
        raise OSError(error.errno, error.strerror, str(path)) from error


def read_metrics(path: str | Path) -> list[dict[str, Any]]:
    """The records of a metrics.jsonl; a last line that was not written to its end is left out.

    Raises FileNotFoundError, and ValueError naming file and line for anything else that is no JSON object.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"there is no metrics file {path}; train.py writes it into the folder of a run")
    *lines, rest = path.read_bytes().split(b"\n")
    if _is_json(rest):  # what follows the last line end is empty or half a record, unless an editor removed the end
        lines.append(rest)
    return [_from_line(line, f"{path}:{number}") for number, line in enumerate(lines, 1)]


def _is_json(line: bytes) -> bool:
    try:
        json.loads(line)
    except ValueError:
        return False
    return True


def _from_line(line: bytes, place: str) -> dict[str, Any]:
    try:
        record = json.loads(line)
    except ValueError as error:
        raise ValueError(f"{place}: no JSON ({error}); every line must be one object, delete this one") from None
    if not isinstance(record, dict):
        raise ValueError(f"{place}: {type(record).__name__} instead of a JSON object {{...}}; delete this line")
    return record


def _to_line(record: dict[str, Any]) -> str:
    return json.dumps(plain(record), allow_nan=False) + "\n"


def plain(value: Any) -> Any:
    """A value as JSON has it: NumPy numbers and arrays as Python's, NaN and infinities as None."""
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, np.ndarray | np.generic):
        value = value.tolist()
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
