"""The compiled training step on disk: another process takes it over and computes the same; other settings do not."""

import os
import subprocess
import sys

import mindspore as ms
import pytest

import train
from src.config import load_config
from src.engine import checkpoint
from src.engine.graph_cache import fingerprint, graph_cache, require_folder
from tests.commands import ROOT
from tests.tiny import SMALL, write_config


def train_in_a_process(config, output, cache):
    """Console of `train.py` in a process of its own, and the bytes of the weights at its end."""
    command = [sys.executable, "train.py", "--config", config, *SMALL, f"output_dir={output}"]
    command.append(f"device.compile_cache={cache}")
    result = subprocess.run(command, cwd=ROOT, env=os.environ, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr
    tensors, _ = checkpoint.read_tensors(output / "tiny" / "checkpoints" / "latest" / "weights.safetensors")
    return result.stdout, {name: array.tobytes() for name, array in tensors.items()}


def test_a_second_process_takes_the_step_over(tmp_path):
    config, cache = write_config(tmp_path), tmp_path / "cache"
    console, weights = train_in_a_process(config, tmp_path / "first", cache)
    assert "comes from" not in console
    (kept,) = cache.iterdir()
    written = {file: file.stat().st_mtime_ns for file in kept.rglob("*.*")}
    assert any(file.suffix == ".mindir" for file in written)
    console, again = train_in_a_process(config, tmp_path / "second", cache)
    assert "comes from" in console and kept.name in console.replace("\n", "") and again == weights
    assert {file: file.stat().st_mtime_ns for file in kept.rglob("*.*")} == written and list(cache.iterdir()) == [kept]


@pytest.mark.parametrize(
    "change",
    ["train.batch_size=3", "data.crop_size=[64,64]", "model.head.channels=32", "loss.name=cross_entropy",
     "optimizer.clip_norm=2.0", "optimizer.weight_decay=0.5", "data.max_classes=3", "train.accumulate=2",
     "optimizer.layer_decay=0.9", "train.ema_decay=null", "model.backbone.recompute=true"],
)  # fmt: skip
def test_other_settings_have_another_cache(tmp_path, change):
    config = write_config(tmp_path)
    prints = {
        fingerprint(train.graph_facts(load_config(config, overrides), 4, 0, 1)) for overrides in ([], [], [change])
    }
    assert len(prints) == 2


def test_settings_of_the_loop_keep_the_cache(tmp_path):
    config = write_config(tmp_path)
    changes = ["train.steps=900", "name=other", "train.log_every=7", "seed=5", "optimizer.lr=1e-5"]
    longer = load_config(config, [*changes, "optimizer.reference_batch=8", "train.ema_decay=0.5"])
    facts = train.graph_facts(load_config(config), 4, 0, 1)
    assert fingerprint(train.graph_facts(longer, 4, 0, 1)) == fingerprint(facts)
    assert fingerprint(train.graph_facts(longer, 5, 0, 1)) != fingerprint(facts)
    assert fingerprint(train.graph_facts(longer, 4, 1, 2)) != fingerprint(facts)
    assert fingerprint(train.graph_facts(longer, 4, 0, 1, ms.float16)) != fingerprint(facts)


def test_a_failure_leaves_nothing_behind(tmp_path, monkeypatch):
    monkeypatch.setattr("src.engine.graph_cache.USED", [])
    with pytest.raises(RuntimeError, match="no step"), graph_cache(str(tmp_path / "cache"), {}):
        raise RuntimeError("no step")
    assert list((tmp_path / "cache").iterdir()) == []


def test_folders_that_cannot_hold_a_cache(tmp_path):
    file = tmp_path / "file"
    file.write_text("")
    for wrong in (file, file / "below"):
        with pytest.raises(ValueError, match="device.compile_cache .*file.*; give a folder"):
            require_folder(str(wrong), "graph")
    with pytest.raises(ValueError, match="device.mode=graph; in mode pynative"):
        require_folder(str(tmp_path), "pynative")
    require_folder(str(tmp_path / "new" / "folder"), "graph")
    assert list((tmp_path / "new" / "folder").iterdir()) == []
