"""Publishing a run: its best weights byte for byte, a configuration that loads anywhere, a card with the facts."""

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest

from src.config import config_to_yaml, load_config
from src.data import load_classes
from src.data.toy_scenes import TOY_CLASSES, TOY_PALETTE
from src.engine import checkpoint_files
from src.engine.checkpoint_files import OPTIMIZER, STATE, WEIGHTS
from src.engine.tensor_files import tensor_blocks
from src.engine.weights import load_weights, parameters_of, read_tensors, write_weights
from src.log import MetricsLog
from src.models import create_model
from tests.commands import run_command, succeed

CONFIG = """\
name: tiny
seed: 5
data: {dataset: toy_scenes, crop_size: [64, 96], options: {train_count: 8, val_count: 2, size: [360, 480]}}
model:
  backbone: {name: vit, width: 16, depth: 2, num_heads: 2, taps: [1, 2]}
  head: {name: fcn, channels: 8}
loss: {name: cross_entropy}
optimizer: {name: adamw, lr: 3e-3}
train: {steps: 60, batch_size: 4}
eval: {mode: slide, size: [64, 96], stride: [32, 48], scales: [0.75, 1.0], flip: true}
"""


def evaluation(step: int, miou: float) -> dict:
    iou = [round(miou + i / 100, 4) for i in range(len(TOY_CLASSES) - 1)] + [None]
    return {"kind": "eval", "step": step, "miou": miou, "pixel_accuracy": 0.875, "boundary_f": None, "iou": iou}


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """A run's folder whose best checkpoint, step 40, is older than its latest; started from weights in a file."""
    root = tmp_path_factory.mktemp("runs")
    (root / "tiny.yaml").write_text(CONFIG)
    overrides = (f"output_dir={root}", f"model.pretrained={root}/start.safetensors", f"device.compile_cache={root}/c")
    config = load_config(root / "tiny.yaml", overrides)
    run, log = root / "tiny", MetricsLog(root / "tiny" / "metrics.jsonl")
    (run / "config.yaml").write_text(config_to_yaml(config))
    network = create_model(config.model, len(TOY_CLASSES), (64, 96))
    values = parameters_of(network)
    write_weights(root / "start.safetensors", {"backbone.x": np.zeros(2, np.float32)}, {"source": "timm_vit"})
    classes = {"names": list(TOY_CLASSES), "palette": [list(colour) for colour in TOY_PALETTE]}
    for step, miou in ((20, 0.25), (40, 0.5), (60, 0.375)):
        log.write(evaluation(step, miou))
        log.write({"kind": "train", "step": step, "loss": 1.0})
        files = {
            WEIGHTS: tensor_blocks(
                {name: value + step for name, value in values.items()},
                {**network.weight_metadata(), "classes": json.dumps(classes)},
            ),
            OPTIMIZER: tensor_blocks({"m": np.zeros(2, np.float32)}, {}),
            STATE: [json.dumps({"step": step}).encode()],
        }
        checkpoint_files.publish(run / "checkpoints", step, files, best=step == 40, keep=2)
    return run


@pytest.fixture(scope="module")
def published(run, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "tiny"
    succeed("tools/publish.py", run, "--output", folder, "--licence", "CC BY-NC 4.0")
    return folder


def test_best_weights_are_published_unchanged(run, published):
    assert sorted(path.name for path in published.iterdir()) == ["README.md", "best.safetensors", "config.yaml"]
    best = run / "checkpoints" / "step_00000040" / WEIGHTS
    assert (published / "best.safetensors").read_bytes() == best.read_bytes()


def test_configuration_and_weights_make_the_network(run, published):
    config = load_config(published / "config.yaml")
    network = create_model(config.model, len(TOY_CLASSES), (64, 96))
    load_weights(network, published / "best.safetensors")
    wanted = read_tensors(run / "checkpoints" / "best" / WEIGHTS)[0]
    for parameter in network.get_parameters():
        np.testing.assert_array_equal(parameter.asnumpy(), wanted[parameter.name])


def test_configuration_differs_only_in_what_belongs_to_a_machine(run, published):
    before, after = (load_config(folder / "config.yaml").model_dump() for folder in (run, published))
    assert after["output_dir"] == "output" and after["model"]["pretrained"] is after["device"]["compile_cache"] is None
    before["output_dir"] = "output"
    before["model"]["pretrained"] = before["device"]["compile_cache"] = None
    assert after == before
    for file in ("config.yaml", "README.md"):
        assert str(run.parent) not in (published / file).read_text()


def test_card_states_the_facts(run, published):
    card = (published / "README.md").read_text()
    digests = {n: hashlib.sha256((published / n).read_bytes()).hexdigest() for n in ("best.safetensors", "config.yaml")}
    start = hashlib.sha256((run.parent / "start.safetensors").read_bytes()).hexdigest()
    tensors = read_tensors(published / "best.safetensors")[0]
    lines = [
        "# tiny", "CC BY-NC 4.0",
        "| data set | toy_scenes |", "| trained on | train |", "| scored on | val |",
        f"| classes ({len(TOY_CLASSES)}) | {', '.join(TOY_CLASSES)} |",
        f"| parameters, running statistics included | {sum(map(np.size, tensors.values())):,} |",
        "| step of these weights | 40 of 60 |", f"| started from | start.safetensors (timm_vit), SHA-256 `{start}` |",
        "| batch per device, accumulated | 4, 1 times |", "| seed | 5 |",
        "| miou | 0.5000 |", "| pixel accuracy | 0.8750 |", "| boundary f | none |",
        f"| {TOY_CLASSES[2]} | 0.5200 |", f"| {TOY_CLASSES[-1]} | none |",
        *(f"| {n} | {(published / n).stat().st_size} | `{digest}` |" for n, digest in digests.items()),
    ]  # fmt: skip
    missing = [line for line in lines if line not in card.splitlines()]
    assert not missing, card
    assert 'Split val, mode="slide", size=[64, 96], stride=[32, 48]' in card and "scales=[0.75, 1.0], flip=true" in card
    assert "output_dir; device.compile_cache; model.pretrained" in card and "lr=0.003" in card


def test_without_licence_or_evaluation_the_card_says_so(run, tmp_path):
    other = tmp_path / "run"
    other.mkdir()
    (other / "config.yaml").write_text((run / "config.yaml").read_text())
    (other / "checkpoints").symlink_to(run / "checkpoints")
    text = succeed("tools/publish.py", other)
    assert "state a licence with --licence" in text
    card = (other / "published" / "README.md").read_text()
    assert "## Licence\n\nnot stated" in card and "holds no evaluation of these weights" in card


def test_absolute_data_paths_are_left_out(run, tmp_path):
    other = tmp_path / "run"
    other.mkdir()
    changes = (f"data.root={tmp_path}/data", f"data.options.prepared={tmp_path}/labels")
    (other / "config.yaml").write_text(config_to_yaml(load_config(run / "config.yaml", changes)))
    (other / "checkpoints").symlink_to(run / "checkpoints")
    succeed("tools/publish.py", other)
    data = load_config(other / "published" / "config.yaml").data
    assert data.root is None and data.options == {"train_count": 8, "val_count": 2, "size": [360, 480]}
    assert "data.root" in (other / "published" / "README.md").read_text()


def test_a_model_of_own_data_brings_its_classes(run, tmp_path):
    other = tmp_path / "run"
    other.mkdir()
    changes = (f"data.root={tmp_path}/data", "data.dataset=folder")
    (other / "config.yaml").write_text(config_to_yaml(load_config(run / "config.yaml", changes)))
    (other / "checkpoints").symlink_to(run / "checkpoints")
    succeed("tools/publish.py", other)
    shared = other / "published"
    classes = load_classes(load_config(shared / "config.yaml", [f"data.root={shared}"]).data)
    assert classes.names == TOY_CLASSES and np.array_equal(classes.palette, TOY_PALETTE)
    card = (shared / "README.md").read_text()
    assert "--output RESULTS data.root=.\n" in card and "best.safetensors data.root=ROOT\n" in card


def test_misuse(run, published, tmp_path):
    (tmp_path / "file").write_text("")
    for arguments, message in (
        ((run, "--output", tmp_path / "file" / "x"), "file for x: File exists; choose another place"),
        ((run, "--output", published), "exists already; remove it, or name another folder"),
        ((tmp_path,), "is no folder of a run: it holds no config.yaml"),
    ):
        result = run_command("tools/publish.py", *arguments)
        assert result.code == 2 and message in result.err


def test_damaged_weights_are_not_published(run, tmp_path):
    other, folder = tmp_path / "run", tmp_path / "run" / "checkpoints" / "step_00000040"
    folder.mkdir(parents=True)
    (other / "config.yaml").write_text((run / "config.yaml").read_text())
    for file in (run / "checkpoints" / "step_00000040").iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    content = bytearray((folder / WEIGHTS).read_bytes())
    content[-1] ^= 1
    (folder / WEIGHTS).write_bytes(content)
    (other / "checkpoints" / "best").symlink_to("step_00000040")
    result = run_command("tools/publish.py", other)
    assert result.code == 2 and "has other content than was written" in result.err
    assert sorted(path.name for path in other.iterdir()) == ["checkpoints", "config.yaml"]
