"""Progress on a terminal and in logs; metrics.jsonl through kills and resumes."""

import errno
import io
import json
import math
import re
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

import src.log
from src.log import (
    MetricsLog,
    format_seconds,
    format_speed,
    get_console,
    progress,
    read_metrics,
    replace_file,
    silence_other_ranks,
)


class Clock:
    """Stands in for the clock of src.log; it moves when told."""

    def __init__(self, monkeypatch) -> None:
        self.now = 100.0
        monkeypatch.setattr(src.log, "monotonic", lambda: self.now)


@pytest.fixture
def clock(monkeypatch) -> Clock:
    return Clock(monkeypatch)


def plain_console() -> Console:
    return Console(file=io.StringIO(), width=40, highlight=False)


def run_job(clock: Clock, steps: int, seconds: float, text: str | None = None, completed: int = 0) -> list[str]:
    console = plain_console()
    with progress(completed + steps, "train", completed=completed, console=console) as advance:
        for _ in range(steps):
            clock.now += seconds
            advance(text=text)
    return console.file.getvalue().splitlines()


def test_log_has_a_line_after_5_s_then_every_10_s_and_at_the_end(clock):
    lines = run_job(clock, steps=60, seconds=0.5)  # 30 s
    assert lines == [
        "train 10/60  17%  2.0 it/s  ETA 0:25",  # 5 s
        "train 30/60  50%  2.0 it/s  ETA 0:15",  # 15 s
        "train 50/60  83%  2.0 it/s  ETA 0:05",  # 25 s
        "train 60/60  100%  2.0 it/s  took 0:30",
    ]


def test_short_job_leaves_its_last_line_only(clock):
    assert run_job(clock, steps=4, seconds=1.0) == ["train 4/4  100%  1.0 it/s  took 0:04"]


def test_first_step_does_not_spoil_the_speed(clock):
    console = plain_console()
    with progress(3, "train", console=console) as advance:
        clock.now += 60  # compiling
        advance()
        clock.now += 20
        advance()
    first, second, *_ = console.file.getvalue().splitlines()
    assert first == "train 1/3  33%  ETA -"
    assert second == "train 2/3  67%  20.0 s/it  ETA 0:20"


def test_resumed_job_counts_on_and_times_only_its_own_steps(clock):
    lines = run_job(clock, steps=20, seconds=1.0, completed=80)
    assert lines[0] == "train 85/100  85%  1.0 it/s  ETA 0:15"
    assert lines[-1] == "train 100/100  100%  1.0 it/s  took 0:20"


def test_text_is_shown_as_it_is_and_long_lines_are_not_broken(clock):
    text = "loss 1.25 [ce 1.00] [/mask] " + "x" * 60
    lines = run_job(clock, steps=3, seconds=6.0, text=text)
    assert len(lines) == 2 and all(line.endswith(text) for line in lines)


def test_failed_job_says_how_far_it_came(clock):
    console = plain_console()
    with pytest.raises(RuntimeError), progress(10, "train", console=console) as advance:
        advance()
        raise RuntimeError("broken")
    assert console.file.getvalue() == "train 1/10  10%  took 0:00\n"


def test_nothing_to_do_is_100_percent(clock):
    assert run_job(clock, steps=0, seconds=1.0) == ["train 0/0  100%  took 0:00"]


def test_disabled_progress_is_silent_and_still_callable():
    console = plain_console()
    with progress(2, "train", disable=True, console=console) as advance:
        advance()
        advance(1, "loss 1")
    assert console.file.getvalue() == ""


def test_only_rank_0_writes(capsys):
    try:
        for rank in (0, 1):
            silence_other_ranks(rank)
            get_console().print(f"rank {rank}")
            with progress(1, f"job {rank}") as advance:
                advance()
    finally:
        silence_other_ranks(0)
    out = capsys.readouterr().out
    assert "rank 0" in out and "job 0 1/1" in out and "rank 1" not in out and "job 1" not in out


def terminal_text(console: Console) -> str:
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", console.file.getvalue())


def test_terminal_gets_a_bar_also_inside_another():
    console = Console(file=io.StringIO(), force_terminal=True, width=120, _environ={"TERM": "xterm"})
    with progress(4, "train", console=console) as advance:
        advance(2, "loss [ce] 0.5")
        with progress(3, "evaluate", console=console) as inner:
            inner(3)
        console.print("message")
        advance(2)
    text = terminal_text(console)
    assert "evaluate" in text and "3/3  100%" in text and "message" in text
    assert re.search(r"train .*━.* 4/4  100%  .*took 0:00 *\n  loss \[ce\] 0.5", text)


def test_no_fact_is_cut_off_on_a_narrow_terminal():
    console = Console(file=io.StringIO(), force_terminal=True, width=30, _environ={"TERM": "xterm"})
    words = [f"word{number}" for number in range(20)]
    with progress(4, "train", console=console) as advance:
        advance(4, " ".join(words))
    assert terminal_text(console).replace("\r", "").split("\n  word0")[-1].split() == words[1:]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0:00"), (59.4, "0:59"), (59.6, "1:00"), (252, "4:12"), (3599.5, "1:00:00"), (7384, "2:03:04")],
)
def test_times_read_like_a_clock(seconds, text):
    assert format_seconds(seconds) == text


def test_slow_steps_are_told_in_seconds():
    assert [format_speed(speed) for speed in (None, 12.34, 1.0, 0.25)] == ["", "12.3 it/s", "1.0 it/s", "4.0 s/it"]


def test_metrics_come_back_as_written(tmp_path):
    log = MetricsLog(tmp_path / "new" / "metrics.jsonl")
    log.write({"kind": "train", "step": 1, "loss": np.float32(0.5), "terms": {"ce": np.float64(0.25)}})
    assert read_metrics(log.path) == [{"kind": "train", "step": 1, "loss": 0.5, "terms": {"ce": 0.25}}]  # at once
    log.write({"kind": "eval", "step": np.int64(2), "iou": np.array([0.5, math.nan]), "miou": math.inf, "note": "ä\n"})
    assert read_metrics(log.path)[1] == {"kind": "eval", "step": 2, "iou": [0.5, None], "miou": None, "note": "ä\n"}
    assert len(log.path.read_text().splitlines()) == 2


def write_steps(path: Path, *steps: int) -> MetricsLog:
    log = MetricsLog(path)
    for step in steps:
        log.write({"kind": "train", "step": step})
    return log


def steps_of(path: Path) -> list[int]:
    return [record["step"] for record in read_metrics(path)]


def test_half_a_line_is_left_out_and_does_not_spoil_the_next(tmp_path):
    path = tmp_path / "metrics.jsonl"
    write_steps(path, 1, 2)
    whole = path.read_bytes()
    for length in range(len(whole)):  # a kill at any byte
        path.write_bytes(whole[:length])
        kept = whole[:length].count(b"}")
        assert steps_of(path) == [1, 2][:kept]
        write_steps(path, 9)
        assert steps_of(path) == [*[1, 2][:kept], 9]


def test_resume_drops_later_records(tmp_path):
    path = tmp_path / "metrics.jsonl"
    log = write_steps(path, 10, 20, 20, 30)
    log.write({"kind": "note"})
    log.truncate_after(20)
    assert [record.get("step") for record in read_metrics(path)] == [10, 20, 20, None]
    log.write({"kind": "train", "step": 21})
    assert read_metrics(path)[4:] == [{"kind": "train", "step": 21}]
    assert [file.name for file in tmp_path.iterdir()] == ["metrics.jsonl"]


def test_truncate_without_a_file_does_nothing(tmp_path):
    MetricsLog(tmp_path / "metrics.jsonl").truncate_after(0)
    assert not list(tmp_path.iterdir())


def test_interrupted_truncation_leaves_the_old_file(tmp_path, monkeypatch):
    log = write_steps(tmp_path / "metrics.jsonl", 1, 2)

    def fail(*paths):
        raise OSError(errno.EIO, "killed")

    monkeypatch.setattr(src.log.os, "replace", fail)
    with pytest.raises(OSError, match="killed"):
        log.truncate_after(1)
    assert steps_of(log.path) == [1, 2]


@pytest.mark.parametrize(
    ("line", "message"), [('{"step": 1', ":2: no JSON"), ("[1]", ":2: list instead of a JSON object")]
)
def test_broken_line_is_named(tmp_path, line, message):
    path = tmp_path / "metrics.jsonl"
    path.write_text(f'{{"step": 0}}\n{line}\n{{"step": 2}}\n')
    with pytest.raises(ValueError, match=re.escape(f"{path}{message}")):
        read_metrics(path)


def test_missing_metrics_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="no metrics file .*metrics.jsonl; train.py writes it"):
        read_metrics(tmp_path / "metrics.jsonl")


def test_metrics_are_json_for_others(tmp_path):
    log = MetricsLog(tmp_path / "metrics.jsonl")
    log.write({"loss": math.nan})
    assert json.loads(log.path.read_text(), parse_constant=pytest.fail) == {"loss": None}


def test_a_full_disk_is_named_and_leaves_the_old_file_alone(tmp_path, monkeypatch):
    file = tmp_path / "table.csv"
    replace_file(file, "old\n")

    def full(path, text, **options):
        path.touch()  # the name fits, the content does not
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(OSError, match="No space left on device: '.*table.csv'"):
        replace_file(file, "new\n")
    assert [path.name for path in tmp_path.iterdir()] == ["table.csv"] and file.read_bytes() == b"old\n"
