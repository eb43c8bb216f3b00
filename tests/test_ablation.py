"""Parts of the ablation tables: switches, seeds, names, results read from runs, means and spreads, locks."""

import json
import os
import subprocess
import sys

import pytest

from src.config import load_config
from src.engine.ablation import (
    canonical,
    done_steps,
    read_result,
    read_seeds,
    read_switch,
    read_switches,
    row_name,
    short_names,
)
from src.engine.ablation_process import describe_exit, follow, locked
from src.engine.ablation_table import DONE, FAILED, spread, summarise
from src.engine.checkpoint_files import FILES, STATE, publish
from src.log import MetricsLog
from tests.config_example import COMPLETE, write


@pytest.mark.parametrize(
    ("text", "changes"),
    [
        ("a.b=1,2", [("a.b=1",), ("a.b=2",)]),
        ("a=[1,2], {b: 1, c: 2}", [("a=[1,2]",), ("a={b: 1, c: 2}",)]),
        ("a='x,y',\"u+v=w\"", [("a='x,y'",), ('a="u+v=w"',)]),
        ("lr=1e+3", [("lr=1e+3",)]),
        ("a.fr=false+loss.weights={diversity: 0}", [("a.fr=false", "loss.weights={diversity: 0}")]),
        ("a=1,2+b=[3,4],5", [("a=1", "b=[3,4]"), ("a=2", "b=5")]),
        ("a=null", [("a=null",)]),
    ],
)
def test_a_switch_is_read(text, changes):
    assert read_switch(text) == changes


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("model.head.fr", "'model.head.fr' is not of the form key=value"),
        ("=1", "'=1' is not of the form"),
        ("a..b=1", "'a..b=1' is not of the form"),
        ("a=", "a value of a is empty; write null for none"),
        ("a=1,,2", "a value of a is empty"),
        ("a=[1,2", "not closed"),
        ("a='x", "not closed"),
        ("a=1+a=2", "a is given twice"),
        ("a=1,2+b=3", "need equally many values, but there are 2 of a, 1 of b"),
    ],
)
def test_a_malformed_switch_is_refused(text, message):
    with pytest.raises(ValueError, match=message.replace("[", r"\[")):
        read_switch(text)
    assert len(read_switches([text])[1]) == 1


def test_a_switch_given_twice_is_refused_whatever_the_order_of_its_keys():
    assert read_switches(["a=1", "a=1+b=2", "b=3"])[1] == []
    problems = read_switches(["a=1", "a=2", "b=1+c=2", "c=1+b=2"])[1]
    assert len(problems) == 2
    assert "--switch 'a=2' repeats the keys of 'a=1'" in problems[0] and "'c=1+b=2'" in problems[1]


def test_seeds_are_read():
    assert read_seeds("0, 7,12") == [0, 7, 12]
    for text in ("", "1,", "x", "-1", "1.5"):
        with pytest.raises(ValueError, match="wanted whole numbers from 0 on"):
            read_seeds(text)
    with pytest.raises(ValueError, match="names a seed twice"):
        read_seeds("1,01")


def test_a_name_depends_on_the_row_alone():
    assert row_name("toy", ()) == "toy"
    assert row_name("toy", ("b.fr=false", "a=add")) == "toy--a=add+b.fr=false"
    assert row_name("toy", ("a=add", "b.fr=false")) == "toy--a=add+b.fr=false"
    assert canonical("a={x: [1,  2.50]}") == 'a={"x":[1,2.5]}' and canonical("a=None") == "a=None"
    spaced, tight = row_name("toy", ("a={x: [1, 2]}",)), row_name("toy", ("a={x: [1,2]}",))
    assert spaced == tight and spaced.startswith("toy--a=-x-1-2-") and len(spaced) == len("toy--a=-x-1-2-") + 6
    assert row_name("toy", ("a=[1,2]",)) != row_name("toy", ("a=1-2",)) == "toy--a=1-2"
    long = [row_name("toy", (f"a={'x' * 300}{end}",)) for end in "yz"]
    assert long[0] != long[1] and max(map(len, long)) < 130
    assert "/" not in row_name("../up", ("a=/b/c",))


@pytest.mark.parametrize(("files", "names"), [
    (["a/x.yaml"], ["x"]),
    (["a/x.yaml", "a/y.yaml"], ["x", "y"]),
    (["c/a/x.yaml", "c/b/x.yaml", "c/b/y.yaml"], ["a/x", "b/x", "b/y"]),
    (["x.yaml", "b/x.yaml"], ["x", "b/x"]),
    (["x.yaml", "./x.yaml"], ["x", "x"]),
])  # fmt: skip
def test_bases_are_named_so_that_they_differ(files, names):
    assert short_names(files) == names


def test_a_folder_is_locked_as_long_as_a_run_lives(tmp_path):
    with locked(tmp_path) as lock:
        with pytest.raises(FileExistsError, match="is in use by another ablate.py"), locked(tmp_path):
            pass
        left_behind = subprocess.Popen(["sleep", "60"], pass_fds=(lock,))
    with pytest.raises(FileExistsError), locked(tmp_path):
        pass
    left_behind.kill()
    left_behind.wait()
    with locked(tmp_path):
        pass


def test_a_run_holds_the_lock(tmp_path):
    code = "import os, sys; print(os.readlink(f'/proc/self/fd/{sys.argv[1]}'))"
    with locked(tmp_path) as lock:
        result = follow([sys.executable, "-c", code, str(lock)], tmp_path / "log", dict(os.environ), lock)
    assert result == (0, [str(tmp_path / "lock")])


def test_an_exit_is_described():
    assert describe_exit(2, ["error: x"]) == "exit code 2\nerror: x"
    assert describe_exit(-9, []) == "ended by SIGKILL, which the system sends when memory runs out"
    assert describe_exit(-15, ["a"]) == "ended by SIGTERM\na"


def save_step(run, step: int) -> None:
    files = dict.fromkeys(FILES, [b""]) | {STATE: [json.dumps({"step": step}).encode()]}
    publish(run / "checkpoints", step, files, best=False, keep=1)


def test_a_result_is_that_of_the_last_step(tmp_path):
    config = load_config(write(tmp_path, COMPLETE), ["train.steps=40", "train.accumulate=2"])  # 4 images a step
    run = tmp_path / "run"
    assert done_steps(run) == 0 and read_result(run, config, ("a", "b")) is None
    log = MetricsLog(run / "metrics.jsonl")
    for step, speed, waiting in ((10, 1.0, 0.9), (20, 2.0, 0.1), (30, 8.0, 0.3), (40, 4.0, 0.2)):
        log.write({"kind": "train", "step": step, "loss": 1.0 / step, "images_per_s": speed, "waiting": waiting})
    scores = {"boundary_f": 0.25, "pixel_accuracy": 0.9, "mean_accuracy": 0.7}
    log.write({"kind": "eval", "step": 20, "miou": 0.8, "iou": [0.8, 0.8], **scores})  # the best is not reported
    save_step(run, 39)
    assert read_result(run, config, ("a", "b")) is None
    save_step(run, 40)
    with pytest.raises(ValueError, match="no evaluation of 2 classes after step 40"):
        read_result(run, config, ("a", "b"))
    log.write({"kind": "eval", "step": 40, "miou": 0.5, "iou": [0.5, None], **scores})
    assert read_result(run, config, ("a", "b")) == {
        "step": 40, "miou": 0.5, "iou": {"a": 0.5, "b": None}, **scores, "loss": 0.025,
        "seconds_per_step": 1.0, "waiting": 0.2, "windows": 3,  # without the first, 4 s; of 2, 0.5 and 1 s the median
    }  # fmt: skip


def record(miou: float | None, state: str = DONE) -> dict:
    result = {"miou": miou, "boundary_f": miou, "seconds_per_step": 1.0, "waiting": 0.5}
    return {"state": state, "result": result if state == DONE else None}


def test_means_spreads_and_differences():
    values = [0.1, 0.2, 0.6]
    row = summarise([record(value) for value in values], [record(0.0), record(0.1), record(0.0, FAILED)])
    assert row["miou"] == pytest.approx(0.3) and row["spread_kind"] == "std"
    assert row["spread"] == pytest.approx(0.07**0.5)  # (0.04 + 0.01 + 0.09) / 2
    assert row["difference"] == pytest.approx(0.1) and row["difference_seeds"] == 2  # of the first two seeds alone
    assert spread([0.2, 0.5], 2) == pytest.approx(0.3) and spread([0.2], 2) is None and spread([0.2], 1) is None
    nothing = summarise([record(None), record(0.4, FAILED)], [record(0.3), record(0.3)])
    assert nothing["runs_done"] == 1 and nothing["miou"] is nothing["difference"] is nothing["boundary_f"] is None
