"""The tool that trains rows of settings: planning, running, stopping, going on, and what it writes."""

import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from src.config import load_config
from src.engine.ablation_process import follow, locked, stop_signals
from src.engine.ablation_table import DONE, FAILED
from src.log import read_metrics
from tests.commands import refuse, run_command
from tools import ablate

ROOT = Path(__file__).resolve().parents[1]
CONFIG = """\
data:
  dataset: toy_scenes
  crop_size: [32, 48]
  workers: 1
  options: {train_count: 4, val_count: 2, size: [32, 48]}
model:
  backbone: {name: vit, width: 16, depth: 2, num_heads: 2, taps: [1, 2]}
  head: {name: fcn, channels: 8, norm: group}
loss: {name: cross_entropy}
optimizer: {name: adamw, lr: 1e-3}
train: {steps: 40, batch_size: 2, log_every: 5, evaluate_every: 40, checkpoint_every: 1}
eval: {mode: resize, size: [32, 48]}
"""
# Stands in for train.py: writes what a run leaves behind, with a mIoU of 0.5 + 0.1 * seed, 0.2 less without dropout.
TRAIN = """\
import json, os, sys, time
sys.path.insert(0, {root!r})
from src.config import config_to_yaml, load_config
from src.engine.checkpoint_files import FILES, STATE, publish
from src.engine.run_folder import open_run
from src.log import MetricsLog
config = load_config(sys.argv[2], sys.argv[3:])
run = open_run(config.output_dir, config.name, config_to_yaml(config))
print("training", config.name)
if os.environ.get("FAKE_FAIL", "nothing") in config.name:
    sys.exit("error: it fell over")
steps = config.train.steps
files = dict.fromkeys(FILES, [b""]) | {{STATE: [json.dumps({{"step": steps}}).encode()]}}
publish(run / "checkpoints", steps, files, best=False, keep=1)
log = MetricsLog(run / "metrics.jsonl")
for step, speed in ((5, 0.1), (10, 4.0), (40, 8.0)):
    log.write({{"kind": "train", "step": step, "lr": 0.1, "loss": 1.0, "images_per_s": speed, "waiting": 0.25}})
miou = 0.5 + 0.1 * config.seed - (0.2 if config.model.head.get("dropout") == 0.0 else 0.0)
scores = {{"miou": miou, "boundary_f": 0.5 * miou, "pixel_accuracy": 0.9, "mean_accuracy": 0.8, "iou": [miou] * 9}}
log.write({{"kind": "eval", "step": steps, **scores}})
"""


def write_config(folder: Path, name: str = "toy", text: str = CONFIG) -> str:
    (folder / f"{name}.yaml").write_text(text, encoding="utf-8")
    return str(folder / f"{name}.yaml")


@pytest.fixture
def fake(tmp_path, monkeypatch) -> Path:
    """The tool with a stand-in for train.py, in a folder that holds toy.yaml."""
    (tmp_path / "train.py").write_text(TRAIN.format(root=str(ROOT)), encoding="utf-8")
    monkeypatch.setattr(ablate, "TRAIN", tmp_path / "train.py")
    write_config(tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def table_of(folder: Path) -> dict:
    return json.loads((folder / "table.json").read_text(encoding="utf-8"))


def test_a_dry_run_plans_all_and_writes_nothing(fake, capsys):
    second = write_config(fake, "other", CONFIG.replace("channels: 8", "channels: 4"))
    ablate.main([
        "--config", "toy.yaml", second, "train.steps=30", "--switch", "model.head.dropout=0.1,0.0", "--switch",
        "model.head.channels=4+optimizer.lr=2e-3", "--seeds", "0,1", "--dry-run",
    ])  # fmt: skip
    text = capsys.readouterr().out
    names = ["toy", "toy--model.head.dropout=0.0", "toy--model.head.channels=4+optimizer.lr=0.002",
             "other", "other--model.head.dropout=0.0"]  # fmt: skip
    commands = [line for line in text.splitlines() if "--config" in line]
    assert [line.split(" name=")[1].split()[0] for line in commands] == [f"{n}--seed{s}" for s in (0, 1) for n in names]
    assert all("train.steps=30" in line for line in commands)
    lines = [line.split(" | ") for line in text.splitlines() if line.startswith("| ")]
    assert [line[0].strip("| ") for line in lines[2:]] == [
        "toy", "toy: model.head.dropout=0.0", "toy: model.head.channels=4 + optimizer.lr=2e-3", "other",
        "other: model.head.dropout=0.0",
    ]  # fmt: skip
    assert lines[2][4:6] == ["not run", "not run"]
    # the default written out changes nothing; the second file with another rate is the first file with both changes
    assert "Equal to toy and not run again: toy: model.head.dropout=0.1." in text
    assert "optimizer.lr=2e-3 and not run again: other: model.head.channels=4 + optimizer.lr=2e-3." in text
    assert "other: model.head.dropout=0.0 against other" in text and "other against toy" in text
    assert not (fake / "output").exists()


def test_parameters_and_macs_are_those_of_each_row(fake, capsys):
    ablate.main(["--config", "toy.yaml", "--switch", "model.head.channels=4", "--dry-run"])
    rows = [line.split(" | ") for line in capsys.readouterr().out.splitlines() if line.startswith("| ")][2:]
    # head, by hand: 3x3 convolution of 32 channels without bias, norm, classifier of 9 classes, on a grid of 2 x 3
    heads = {n: (9 * 32 * n + 2 * n + 9 * n + 9, 6 * (9 * 32 * n + 9 * n)) for n in (8, 4)}
    counts = [int(row[1].replace(",", "")) for row in rows]
    assert counts[0] - counts[1] == heads[8][0] - heads[4][0]
    facts = [ablate.check(load_config("toy.yaml", [f"model.head.channels={n}"])) for n in (8, 4)]
    assert (facts[0]["gmacs"] - facts[1]["gmacs"]) * 1e9 == pytest.approx(heads[8][1] - heads[4][1])


def test_everything_wrong_is_listed_at_once(fake):
    text = refuse(
        "tools/ablate.py", "--config", "toy.yaml", "nowhere.yaml", "name=x", "--seeds", "", "--switch",
        "model.head.chanels=3", "--switch", "model.head.channels=many", "--switch", "train.stepz=3", "--switch",
        "train.steps=few", "--switch", "loss.name=class_mask", "--switch", "eval.size=[30,48]", "--switch", "seed=1,2",
        "--switch", "nonsense", "--switch", "train.steps=3", "--switch", "data.dataset=camvid",
        "--output", fake / "out",
    )  # fmt: skip
    for problem in (
        "unexpected argument 'chanels'; did you mean 'channels'?", "channels is 'many', wanted int",
        "unknown config key 'train.stepz'", "train.steps", "toy: loss.name=class_mask: loss 'class_mask' needs masks",
        "(30, 48) is not a multiple of 16", "name cannot be set here", "seed cannot be set here: use --seeds",
        "--seeds '': wanted whole numbers", "'nonsense' is not of the form", "config file not found: nowhere.yaml",
        "--switch 'train.steps=3' repeats the keys of 'train.steps=few'", "data.options (camvid)",
    ):  # fmt: skip
        assert problem in text
    assert text.count("nowhere.yaml") == 1 and not (fake / "out" / "runs").exists()


def test_two_configs_of_one_name_are_refused(fake):
    (fake / "sub").mkdir()
    other = write_config(fake / "sub", "toy", CONFIG.replace("channels: 8", "channels: 4"))
    with pytest.raises(ValueError, match="are both named 'toy'; set another `name:`"):
        ablate.main(["--config", "toy.yaml", other, "--dry-run"])


def test_an_output_that_cannot_be_written_is_refused_first(fake):
    (fake / "file").write_text("")
    for output in ("file", "file/in", "/proc/ablation"):
        assert "cannot" in refuse("tools/ablate.py", "--config", "toy.yaml", "--output", output)
    assert run_command("tools/ablate.py", "--config", "a=b").code == 2


ONE = ["--config", "toy.yaml", "--output", "out"]
ROWS = [*ONE, "--switch", "model.head.dropout=0.0"]
TWO = [*ROWS, "--seeds", "0,1"]


def test_runs_are_trained_once_each_and_failed_ones_again(fake, monkeypatch, capsys):
    monkeypatch.setenv("FAKE_FAIL", "dropout=0.0--seed1")
    with pytest.raises(SystemExit) as caught:
        ablate.main(TWO)
    assert caught.value.code == 1
    rows = table_of(fake / "out")["rows"]
    failed = rows[1]["runs"][1]
    assert failed["state"] == FAILED and failed["error"].splitlines()[0] == "exit code 1"
    assert "error: it fell over" in failed["error"] and "training toy--model.head.dropout=0.0--seed1" in failed["error"]
    assert [run["state"] for row in rows for run in row["runs"]] == [DONE, DONE, DONE, FAILED]
    assert rows[1]["summary"]["difference_seeds"] == 1 and rows[1]["summary"]["spread"] is None
    capsys.readouterr()

    monkeypatch.delenv("FAKE_FAIL")
    ablate.main(TWO)
    assert [line for line in capsys.readouterr().out.splitlines() if line.startswith("training")] == [
        "training toy--model.head.dropout=0.0--seed1"
    ]
    table = table_of(fake / "out")
    base, changed = (row["summary"] for row in table["rows"])
    assert base["miou"] == pytest.approx(0.55) and changed["miou"] == pytest.approx(0.35)
    assert base["spread"] == pytest.approx(0.1) and base["spread_kind"] == "max - min"
    assert changed["difference"] == pytest.approx(-0.2) and base["difference"] is None
    assert changed["boundary_f"] == pytest.approx(0.175)
    run = table["rows"][1]["runs"][1]
    assert run["error"] is None and run["wall_seconds"] > 0.0 and len(run["result"]["iou"]) == 9
    assert table["seeds"] == [0, 1] and "--seeds 0,1" in table["command"] and run["versions"]["mindspore"]
    last = (fake / "out" / "table.md").read_text().splitlines()[3]
    assert last.startswith("| model.head.dropout=0.0 |")
    assert last.split(" | ")[3:] == ["0.375", "0.3000", "0.4000", "0.3500", "0.1000", "0.1750", "-0.2000 |"]
    assert (fake / "out" / "curves.png").stat().st_size > 10_000


def test_rows_that_are_no_longer_asked_for_stay_in_the_file(fake):
    ablate.main(ROWS)
    spent = table_of(fake / "out")["rows"][1]["runs"][0]["wall_seconds"]
    ablate.main(ONE)
    table = table_of(fake / "out")
    assert len(table["rows"]) == 1 and len(table["other_runs"]) == 1
    ablate.main(ROWS)
    table = table_of(fake / "out")
    assert table["other_runs"] == [] and table["rows"][1]["runs"][0]["wall_seconds"] == spent > 0.0


def test_changed_settings_and_damaged_folders_are_refused(fake):
    command = [*ONE, "--seeds", "0,1"]
    ablate.main(command)
    logs = sorted((fake / "out" / "logs").iterdir())
    sizes = [log.stat().st_size for log in logs]
    with pytest.raises(ValueError, match="with other settings.*\n.*train.steps: 40 there, 30 now") as caught:
        ablate.main([*command, "train.steps=30"])
    assert str(caught.value).count("other settings") == 2
    with pytest.raises(ValueError, match=r"has finished, and was evaluated with other.*\n.*eval.boundary_radius: 3"):
        ablate.main([*command, "eval.boundary_radius=2"])
    ablate.main([*command, "train.log_every=7"])  # changes no result
    (fake / "out" / "runs" / "toy--seed0" / "metrics.jsonl").write_text("")
    with pytest.raises(ValueError, match="holds no evaluation of 9 classes after step 40"):
        ablate.main(command)
    (fake / "out" / "table.json").write_text("[]")
    with pytest.raises(ValueError, match="table.json is no table of this tool"):
        ablate.main(command)
    assert len(logs) == 2 and [log.stat().st_size for log in logs] == sizes


def sleeper(folder: Path, reaction: str) -> list[str]:
    """A command that sleeps, and what it does when it is interrupted."""
    text = f"""\
import time
print("sleeping", flush=True)
while True:
    try:
        time.sleep(30)
    except KeyboardInterrupt:
        {reaction}
"""
    (folder / "sleep.py").write_text(text)
    return [sys.executable, str(folder / "sleep.py")]


def interrupt_when(happened: Callable[[], bool], number: int) -> None:
    """Sends this process a signal once something has happened, nothing if that takes two minutes."""
    until = time.monotonic() + 120.0
    while time.monotonic() < until:
        if happened():
            os.kill(os.getpid(), number)
            return
        time.sleep(0.02)


@pytest.mark.parametrize(
    ("reaction", "number", "last"),
    [
        ("raise SystemExit('gone to bed')", signal.SIGTERM, "gone to bed"),
        ("print('no', flush=True)", signal.SIGINT, "killed"),
    ],
)
def test_a_signal_ends_the_process_too(tmp_path, reaction, number, last):
    log = tmp_path / "logs" / "run.log"

    def asleep() -> bool:
        return log.is_file() and "sleeping" in log.read_text()

    before = [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)]
    began = time.monotonic()
    with stop_signals(), locked(tmp_path) as lock, pytest.raises(KeyboardInterrupt) as caught:
        threading.Thread(target=interrupt_when, args=(asleep, number)).start()
        follow(sleeper(tmp_path, reaction), log, dict(os.environ), lock, grace=1.0 if last == "killed" else 20.0)
    assert caught.value.args == (number,) and time.monotonic() - began < 20.0
    assert log.read_text().splitlines()[-1] == last
    assert before == [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)]
    with locked(tmp_path):
        pass  # nothing is left that holds it


@pytest.mark.slow
def test_real_runs_go_on_after_a_stop(tmp_path, capsys):
    out = tmp_path / "out"
    first, second = (out / "runs" / f"toy{end}--seed3" for end in ("", "--model.head.channels=4"))
    command = ["--config", write_config(tmp_path), "--switch", "model.head.channels=4", "--seeds", "3"]
    command += ["--output", str(out)]
    started = (first / "checkpoints" / "latest").exists
    threading.Thread(target=interrupt_when, args=(started, signal.SIGTERM)).start()
    with pytest.raises(SystemExit) as caught:
        ablate.main(command)
    assert caught.value.code == 128 + signal.SIGTERM
    text = capsys.readouterr().out
    assert "stopped by SIGTERM; to go on from here: python tools/ablate.py --config" in text
    stopped = table_of(out)["rows"][0]["runs"][0]
    assert stopped["state"] == "unfinished" and 0 < stopped["step"] < 40 and not second.exists()
    assert f"unfinished, step {stopped['step']}" in (out / "table.md").read_text()

    ablate.main(command)
    rows = table_of(out)["rows"]
    for row, folder in zip(rows, (first, second), strict=True):
        run = row["runs"][0]
        last = read_metrics(folder / "metrics.jsonl")[-1]
        saved = json.loads((folder / "checkpoints" / "latest" / "state.json").read_text())
        assert run["state"] == DONE and run["result"]["step"] == saved["step"] == last["step"] == 40
        assert run["result"]["miou"] == saved["miou"] == last["miou"]
        assert run["result"]["boundary_f"] == last["boundary_f"] and run["result"]["seconds_per_step"] > 0.0
    log = (out / "logs" / "toy--seed3.log").read_text()
    assert f"going on from {first / 'checkpoints'}" in log.replace("\n", "")
    assert rows[0]["runs"][0]["wall_seconds"] > stopped["wall_seconds"] > 1.0
    assert rows[1]["summary"]["difference"] == pytest.approx(
        rows[1]["runs"][0]["result"]["miou"] - rows[0]["runs"][0]["result"]["miou"]
    )
