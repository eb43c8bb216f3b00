"""Wrong command lines, settings and data: exit code 2, a message that helps, no traceback."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from src.config import load_config
from tests.commands import ROOT, refuse, run_command, succeed
from tests.tiny import write_config

COMMANDS = ("train.py", "eval.py", "export.py", "predict.py")
TOOLS = sorted(str(path.relative_to(ROOT)) for path in (ROOT / "tools").glob("*.py"))


@pytest.fixture(scope="module")
def config(tmp_path_factory) -> Path:
    return write_config(tmp_path_factory.mktemp("misuse"))


@pytest.mark.parametrize("script", [*COMMANDS, *TOOLS])
def test_help(script):
    text = succeed(script, "--help")
    assert text.startswith("usage: ") and len(text.splitlines()) > 5


@pytest.mark.parametrize(
    ("script", "options"),
    [
        ("train.py", ["--config", "--print-config", "key=value"]),
        ("eval.py", ["--config", "--print-config", "key=value", "--checkpoint", "--model", "--output"]),
        ("export.py", ["--config", "--checkpoint", "--output", "--kind {labels,logits}", "--inspect"]),
        ("predict.py", ["--config", "--checkpoint", "--model", "--input", "--output", "--device {CPU,GPU,Ascend}"]),
    ],
)
def test_help_names_every_option(script, options):
    text = succeed(script, "--help")
    assert [option for option in options if option not in text] == []
    assert "Exit codes: 0 success, 2 wrong usage" in " ".join(text.split())


@pytest.mark.parametrize("script", COMMANDS)
def test_print_config_shows_values_and_sources(script, config, tmp_path):
    text = succeed(script, "--config", config, "optimizer.lr=6e-5", "data.crop_size=[64,64]", "--print-config")
    lines = [" ".join(line.split()) for line in text.splitlines()]
    assert "lr: 6.0e-5 # command line" in lines or "lr: 6e-05 # command line" in lines, text
    assert any(line.startswith("batch_size: 2 # ") and "tiny.yaml:" in line for line in lines)
    assert "momentum: 0.9 # default" in lines
    copy = tmp_path / "tiny.yaml"
    copy.write_text(text)
    assert load_config(copy) == load_config(config, ["optimizer.lr=6e-5", "data.crop_size=[64,64]"])
    assert not (config.parent / "runs").exists()  # printed, not run


NO_MODEL = "no exported model at nothing.mindir; make one with export.py"
USAGE = [  # {c}: a config, {d}: a folder, {e}: an empty folder, {i}: an image
    ("train.py", "required: --config"),
    ("train.py --config", "--config: expected one argument"),
    ("train.py --config nothing.yaml", "config file not found: nothing.yaml"),
    ("train.py --config {c} --steps 5", "unrecognized arguments: --steps"),
    ("train.py --config {c} steps", "override 'steps' is not of the form key=value"),
    ("eval.py --config {c}", "one of the arguments --checkpoint --model is required"),
    ("eval.py --config {c} --checkpoint a --model b", "not allowed with argument"),
    ("eval.py --config {c} --checkpoint nothing", "no weights at nothing; looked for nothing/weights.safetensors"),
    ("eval.py --config {c} --model nothing.mindir", NO_MODEL),
    ("eval.py --config {c} --model {c}", "tiny.yaml: not a MindIR file"),
    ("eval.py --config {c} --checkpoint a --output {d}", "is a folder; name a file in it"),
    ("export.py", "required: --config (or --inspect)"),
    ("export.py --config {c} --output x.mindir", "required: --checkpoint and --output"),
    ("export.py --config {c} --checkpoint a --output x.onnx", "--output x.onnx: the name must end in .mindir"),
    ("export.py --config {c} --checkpoint nothing --output {d}/x.mindir", "no weights at nothing"),
    ("export.py --config {c} --checkpoint a --output {c}/x.mindir", "cannot make the folder"),
    ("export.py --config {c} --kind scores", "invalid choice: 'scores'"),
    ("export.py --inspect nothing.mindir", NO_MODEL),
    ("export.py --inspect {c}", "tiny.yaml: not a MindIR file"),
    ("predict.py", "give either --model, or --config and --checkpoint"),
    ("predict.py --config {c} --input a --output b", "required: --checkpoint"),
    ("predict.py --config {c} --model a --input a --output b", "give either --model, or --config and --checkpoint"),
    ("predict.py --model nothing.mindir --input {i}", "required: --input and --output"),
    ("predict.py --model nothing.mindir --input nothing.png --output {d}", "no such image or folder: nothing.png"),
    ("predict.py --model nothing.mindir --input {e} --output {d}", "no images in"),
    ("predict.py --model nothing.mindir --input {i} {i} --output {d}", "several inputs would be written as image"),
    ("predict.py --model nothing.mindir --input {i} --output {d}", NO_MODEL),
    ("predict.py --model nothing.mindir --input {i} --output {c}", "cannot make the folder"),
    ("predict.py --model nothing.mindir a=1", "'a=1': settings need --config; a model carries its own"),
]


@pytest.mark.parametrize(("command", "message"), USAGE)
def test_wrong_usage(command, message, config, tmp_path):
    (tmp_path / "empty").mkdir()
    Image.new("RGB", (20, 10)).save(tmp_path / "image.png")
    places = {"c": config, "d": tmp_path, "e": tmp_path / "empty", "i": tmp_path / "image.png"}
    assert message in refuse(*[word.format(**places) for word in command.split()])


SETTINGS = [
    (["optimizer.lrr=1"], ["unknown config key 'optimizer.lrr' (command line); did you mean 'optimizer.lr'?"]),
    (["optimizer.lr=abc"], ["wrong type for 'optimizer.lr' (command line): wanted float, got 'abc'"]),
    (["optimizer.warmup_steps=6"], ["optimizer.warmup_steps (6) must be smaller than train.steps (6)"]),
    (["model.backbone.name=inception"], ["unknown backbone 'inception'; known: drn", "vit"]),
    (["model.head.chanels=8"], ["model.head (ecenet)", "unexpected", "'chanels'", "It takes channels"]),
    (["loss.mask_losses=focal"], ["loss (class_mask): unexpected argument 'mask_losses'; did you mean 'mask_loss'?"]),
    (["data.dataset=camvidd"], ["unknown data set 'camvidd'", "did you mean 'camvid'"]),
    (["data.options.sise=[1,1]"], ["data.options (toy_scenes): unexpected argument 'sise'"]),
    (["data.crop_size=[33,48]"], ["(33, 48) is not a multiple of 16; use (48, 48)"]),
    (["eval.size=[32,32]"], ["48 x 64 pixels (height x width) is larger than eval.size 32 x 32", "eval.mode=slide"]),
    (["model.pretrained=nothing.safetensors"], ["no weights at nothing.safetensors"]),
    (["data.max_classes=1"], ["scene_", "classes in one crop, but at most 1 have room; raise data.max_classes"]),
    (["device.target=Ascend"], ["device.target Ascend cannot be used on this machine"]),
]  # fmt: skip


@pytest.mark.parametrize(("overrides", "parts"), SETTINGS, ids=lambda value: value[0][:40])
def test_wrong_settings_stop_training(overrides, parts, config, tmp_path):
    text = refuse("train.py", "--config", config, f"output_dir={tmp_path}", *overrides)
    assert [part for part in parts if part not in text] == []
    assert not (tmp_path / "tiny" / "checkpoints").exists()


def test_a_file_in_the_place_of_the_output_folder(config, tmp_path):
    (tmp_path / "taken").write_text("")
    text = refuse("train.py", "--config", config, f"output_dir={tmp_path / 'taken'}")
    assert "cannot make the run's folder" in text and "set output_dir" in text


def write_data(root: Path) -> None:
    """Two pairs a split of 48 x 64 pixels, classes road and sky."""
    for split in ("train", "val"):
        for name in ("a", "b"):
            for kind, mode in (("images", "RGB"), ("labels", "L")):
                (root / kind / split).mkdir(parents=True, exist_ok=True)
                Image.new(mode, (64, 48)).save(root / kind / split / f"{name}.png")
    (root / "classes.yaml").write_text("names: [road, sky]\n")


DAMAGE = {
    "missing root": (shutil.rmtree, ["data does not exist; set data.root to your data"]),
    "missing folder": (
        lambda r: shutil.rmtree(r / "labels" / "train"), ["labels/train does not exist", "data.train_split"],
    ),
    "empty split": (
        lambda r: [file.unlink() for file in r.rglob("val/*.png")], ["split 'val' of", "is empty", "images/val"],
    ),
    "unpaired": (lambda r: (r / "labels" / "train" / "a.png").unlink(), ["1 image (a) without a label"]),
    "no classes": (lambda r: (r / "classes.yaml").unlink(), ["classes.yaml does not exist; write it"]),
    "value": (
        lambda r: Image.fromarray(np.full((48, 64), 7, np.uint8)).save(r / "labels" / "val" / "a.png"),
        ["val/a.png holds values outside the table: 7", "allowed: 0..1, 255"],
    ),
    "colours": (
        lambda r: Image.new("RGB", (64, 48)).save(r / "labels" / "train" / "b.png"),
        ["train/b.png has colour mode 'RGB'", "save the mask as PNG with one channel"],
    ),
    "size": (lambda r: Image.new("L", (9, 9)).save(r / "labels" / "train" / "b.png"), ["is 48 x 64", "is 9 x 9"]),
    "cut": (
        lambda r: (r / "images" / "train" / "b.png").write_bytes((r / "images" / "train" / "a.png").read_bytes()[:40]),
        ["cannot decode image", "train/b.png"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGE)
def test_wrong_data_stop_training(damage, config, tmp_path):
    root = tmp_path / "data"
    write_data(root)
    spoil, parts = DAMAGE[damage]
    spoil(root)
    file = tmp_path / "own.yaml"
    lines = [line for line in config.read_text().splitlines() if "options:" not in line]
    file.write_text("\n".join(lines).replace("toy_scenes", f"folder\n  root: {root}"))
    text = refuse("train.py", "--config", file, f"output_dir={tmp_path}")
    assert [part for part in parts if part not in text] == []


def test_an_error_of_ours_is_not_called_misuse(monkeypatch, config):
    import src.data

    def broken(*_):
        raise ZeroDivisionError("a defect")

    monkeypatch.setattr(src.data, "load_classes", broken)
    with pytest.raises(ZeroDivisionError):
        run_command("eval.py", "--config", config, "--checkpoint", "a")


def start(*arguments) -> subprocess.CompletedProcess:
    environment = {**os.environ, "GLOG_v": "3"}
    command = [sys.executable, *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)


def test_a_real_process_exits_as_the_tests_above_say(config, tmp_path):
    wrong = start("train.py", "--config", config, "train.stepz=3")
    assert wrong.returncode == 2 and wrong.stdout == ""
    assert "unknown config key 'train.stepz' (command line); did you mean 'train.steps'?" in wrong.stderr
    assert "Traceback" not in wrong.stderr


def test_commands_of_the_docs_can_be_copied():
    """A line goes on after one backslash; two would be an argument."""
    files = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
    assert [file.name for file in files for line in file.read_text().splitlines() if line.endswith("\\\\")] == []
