"""CSV and event files beside metrics.jsonl: the same numbers, also after kills and resumes."""

import csv
import errno
import importlib.util
import math
from pathlib import Path

import numpy as np
import pytest

from src.engine import event_file
from src.engine.csv_table import CsvTable, flatten
from src.engine.event_file import EventFile, checksum, crc32c, encode_event, varint
from src.engine.run_logs import EVENTS, METRICS, TABLES, Logs
from src.log import read_metrics
from tests.event_files import event_class, read_events, shown

CLASSES = ("sky", "a, b")


@pytest.fixture(autouse=True)
def tensorboard(monkeypatch) -> None:
    """As where TensorBoard is installed."""
    monkeypatch.setattr(event_file, "wanted", lambda: True)


def rows(file: Path) -> list[dict[str, str]]:
    """The rows of a table; none where there is no file, since there was no such record."""
    if not file.is_file():
        return []
    with file.open(newline="", encoding="utf-8") as opened:
        return list(csv.DictReader(opened))


def train_record(step: int, loss: float = 0.5) -> dict:
    return {"kind": "train", "step": step, "lr": 0.1, "loss": loss, "terms": {"ce": loss / 3}, "skipped": 0}


def eval_record(step: int) -> dict:
    return {"kind": "eval", "step": step, "miou": np.float64(0.25 + step / 100), "iou": [0.5, None]}


def write(run: Path, first: int, last: int, evaluated: bool = True) -> None:
    """A start that goes on from a step: a record a step, an evaluation every second one."""
    logs = Logs(run, first, evaluated, CLASSES)
    for step in range(first + 1, last + 1):
        logs.write(train_record(step, 1 / step))
        if step % 2 == 0:
            logs.write(eval_record(step))


def agree(run: Path) -> list[tuple[str, int]]:
    """Kind and step of all records, after a look whether all three files say the same."""
    records = [record for record in read_metrics(run / METRICS) if "kind" in record]
    for kind, name in TABLES.items():
        own = [{k: v for k, v in record.items() if k != "kind"} for record in records if record["kind"] == kind]
        expected = [{k: "" if v is None else repr(v) for k, v in flatten(r, CLASSES).items()} for r in own]
        assert rows(run / name) == expected
    points: dict[str, list] = {}
    for record in records:
        for key, value in flatten({k: v for k, v in record.items() if k not in ("kind", "step")}, CLASSES).items():
            if value is not None:
                points.setdefault(f"{record['kind']}/{key}", []).append((record["step"], float(np.float32(value))))
    assert shown(run / EVENTS) == points
    return [(record["kind"], record["step"]) for record in records]


def test_all_files_say_the_same(tmp_path):
    write(tmp_path, 0, 3)
    assert agree(tmp_path) == [("train", 1), ("train", 2), ("eval", 2), ("train", 3)]
    head, *_ = (tmp_path / "metrics.csv").read_text().splitlines()
    assert head == "step,lr,loss,terms.ce,skipped"
    assert (tmp_path / "metrics_eval.csv").read_text() == 'step,miou,iou.sky,"iou.a, b"\n2,0.27,0.5,\n'
    assert len(list((tmp_path / EVENTS).iterdir())) == 1


def test_a_run_that_goes_on_says_nothing_twice(tmp_path):
    write(tmp_path, 0, 5)
    with (tmp_path / METRICS).open("a") as file:
        file.write('{"note": "by hand"}\n')
    write(tmp_path, 3, 4)  # killed again
    write(tmp_path, 2, 6)
    kinds = agree(tmp_path)
    assert [step for kind, step in kinds if kind == "train"] == [1, 2, 3, 4, 5, 6]
    assert [step for kind, step in kinds if kind == "eval"] == [2, 4, 6]


def test_an_evaluation_that_is_due_again_leaves_the_step_itself(tmp_path):
    write(tmp_path, 0, 4)
    write(tmp_path, 4, 4, evaluated=False)
    assert agree(tmp_path) == [("train", 1), ("train", 2), ("eval", 2), ("train", 3), ("train", 4)]


@pytest.mark.parametrize("name", [*TABLES.values(), METRICS])
def test_half_a_line_is_mended(name, tmp_path):
    write(tmp_path, 0, 4)
    file = tmp_path / name
    file.write_bytes(file.read_bytes()[:-5])
    write(tmp_path, 2, 4)
    assert len(agree(tmp_path)) == 6


def test_half_an_event_hides_nothing_else(tmp_path):
    write(tmp_path, 0, 4)
    [file] = (tmp_path / EVENTS).iterdir()
    whole = file.read_bytes()
    for cut in (1, 5, 30):
        file.write_bytes(whole[:-cut])
        assert len(read_events(file)) == 2 + 5
    write(tmp_path, 3, 4)
    assert len(agree(tmp_path)) == 6


def test_records_of_another_version_widen_the_table(tmp_path):
    table = CsvTable(tmp_path / "a.csv", [])
    assert not table.path.exists()
    table.write({"step": 1, "loss": 0.5})
    table.write({"step": 2, "scale": 8, "loss": None})
    table.write({"step": 3})
    assert table.path.read_text() == "step,loss,scale\n1,0.5,\n2,,8\n3,,\n"
    assert [file.name for file in tmp_path.iterdir()] == ["a.csv"]
    assert CsvTable(table.path, []).columns == [] and not table.path.exists()


def test_non_finite_values_are_gaps(tmp_path):
    logs = Logs(tmp_path, 0, True, CLASSES)
    logs.write(train_record(1, math.nan))
    logs.write(train_record(2, math.inf))
    agree(tmp_path)
    assert [row["loss"] for row in rows(tmp_path / "metrics.csv")] == ["", ""]


def test_full_disks_are_named(tmp_path):
    table, events = CsvTable(tmp_path / "a.csv", [{"step": 1}]), EventFile(tmp_path / "events", 1)
    for path in (table.path, events.path):
        path.unlink()
        path.symlink_to("/dev/full")
    for write_one in (lambda: table.write({"step": 2}), lambda: events.write(2, {"loss": 1.0})):
        with pytest.raises(OSError) as caught:
            write_one()
        assert caught.value.errno == errno.ENOSPC and caught.value.filename in (str(table.path), str(events.path))


def test_checksums_of_the_standard():
    # RFC 3720, B.4, and the check value of the CRC catalogue
    assert crc32c(b"123456789") == 0xE3069283
    assert crc32c(bytes(32)) == 0x8A9136AA and crc32c(b"\xff" * 32) == 0x62A8AB43
    assert crc32c(bytes(range(32))) == 0x46DD794E
    # turned right by 15: 0xE3069283 is 0x2507C60D, plus 0xA282EAD8
    assert checksum(b"123456789") == (0xC78AB0E5).to_bytes(4, "little")


def test_events_are_the_published_messages():
    text = encode_event(12.5, step=300, scalars={"train/loss": 0.25, "ä": -1.0})
    event = event_class().FromString(text)
    assert (event.wall_time, event.step, event.HasField("session_log")) == (12.5, 300, False)
    assert [(value.tag, value.simple_value) for value in event.summary.value] == [("train/loss", 0.25), ("ä", -1.0)]
    assert event_class().FromString(encode_event(0.0, version=event_file.VERSION)).file_version == "brain.Event:2"
    assert event_class().FromString(encode_event(0.0, step=7, starts=True)).session_log.status == 1
    assert varint(300) == b"\xac\x02" and varint(127) == b"\x7f" and varint(128) == b"\x80\x01"


def test_tensorboard_itself_reads_them(tmp_path):
    accumulator = pytest.importorskip(
        "tensorboard.backend.event_processing.event_accumulator", reason="tensorboard is not installed"
    )
    write(tmp_path, 0, 5)
    write(tmp_path, 2, 4)
    [*_, file] = sorted((tmp_path / EVENTS).iterdir())
    file.write_bytes(file.read_bytes()[:-3])  # killed
    write(tmp_path, 3, 6)
    agree(tmp_path)
    read = accumulator.EventAccumulator(str(tmp_path / EVENTS)).Reload()
    points = shown(tmp_path / EVENTS)
    assert set(read.Tags()["scalars"]) == set(points)
    assert {tag: [(e.step, e.value) for e in read.Scalars(tag)] for tag in points} == points


def test_event_files_are_written_where_someone_will_look(tmp_path, monkeypatch):
    monkeypatch.undo()
    found = {"tensorboardX"}
    real = importlib.util.find_spec
    spec = real("csv")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: spec if name in found else None)
    assert event_file.wanted()
    found.clear()
    assert not event_file.wanted()
    write(tmp_path, 0, 2)
    assert {file.name for file in tmp_path.iterdir()} == {METRICS, *TABLES.values()}
    monkeypatch.setattr(importlib.util, "find_spec", real)
    (tmp_path / "tensorboard").mkdir()
    monkeypatch.syspath_prepend(tmp_path)  # a folder is no package
    if real("tensorboardX") is None and not getattr(real("tensorboard"), "origin", None):
        assert not event_file.wanted()
