"""The command that converts weights: every kind of file, malicious ones, files with parts missing, wrong use."""

import json

import numpy as np
import pytest
from safetensors.numpy import save_file

from src.engine.weights import load_pretrained, read_tensors, write_weights
from src.models.backbones.vit import VisionTransformer
from src.models.conversion import convert, resize
from src.models.heads.fcn import FCNHead
from src.models.segmentor import Segmentor
from tests import swin_reference, vit_reference
from tests.pth_writer import Raw, Tensors, write_pth
from tools.convert_weights import main


def command(*arguments) -> int:
    return main([str(argument) for argument in arguments])


def extra(*shape: int) -> np.ndarray:
    return np.full(shape, 9.0, np.float32)


@pytest.mark.parametrize("suffix", [".npz", ".safetensors", ".ckpt", ".pth", ".pt"])
def test_every_kind_of_file(suffix, tmp_path):
    weights, source = vit_reference.timm_weights(), tmp_path / f"timm{suffix}"
    key = ()
    if suffix == ".npz":
        np.savez(source, **weights)
    elif suffix in (".pth", ".pt"):
        write_pth(source, {"teacher": weights, "student": {"x": extra(2)}})
        key = ("--key", "teacher")
    else:
        write_weights(source, weights, {})
    output = tmp_path / "ours.safetensors"
    assert command("--source", "timm_vit", "--input", source, "--output", output, *key) == 0
    found = read_tensors(output)[0]
    for name, value in convert("timm_vit", weights).weights.items():
        np.testing.assert_array_equal(found[name], value, err_msg=name)


def test_a_malicious_file_ends_the_command(tmp_path, capsys):
    mark = tmp_path / "mark"
    call = Raw(b"cposix\nsystem\n(" + Tensors().emit(f"touch {mark}") + b"tR")
    source = write_pth(tmp_path / "bad.pth", {"model": vit_reference.timm_weights(), "extra": call})
    output = tmp_path / "ours.safetensors"
    assert command("--source", "timm_vit", "--input", source, "--output", output) == 1
    assert "bad.pth: not a readable .pth file: it wants to use posix.system" in capsys.readouterr().err
    assert not mark.exists() and not output.exists()


def test_a_stated_share_may_be_missing(tmp_path, capsys):
    weights = vit_reference.timm_weights()
    lost = {name for name in weights if name.startswith("blocks.1.mlp.fc2")}
    partial = {name: value for name, value in weights.items() if name not in lost}
    partial["blocks.0.norm1.bias"] = extra(3)
    partial["strange"] = extra(2)
    save_file(partial, tmp_path / "timm.safetensors")
    output = tmp_path / "ours.safetensors"
    arguments = ["--source", "timm_vit", "--input", tmp_path / "timm.safetensors", "--output", output]
    total = sum(value.size for value in convert("timm_vit", weights).weights.values())
    share = 1 - (64 * 16 + 16 + 16) / total
    assert command(*arguments) == 1
    assert f"{share:.1%} of its numbers were found, 100.0% are wanted" in capsys.readouterr().err
    assert command(*arguments, "--least", share + 0.001) == 1 and not output.exists()
    capsys.readouterr()
    assert command(*arguments, "--least", share - 0.001) == 0
    printed = capsys.readouterr().out
    missing = ["backbone.blocks.0.norm1.beta", "backbone.blocks.1.mlp.fc2.weight", "backbone.blocks.1.mlp.fc2.bias"]
    line = next(line for line in printed.splitlines() if line.startswith("missing (3): "))
    assert sorted(line.partition(": ")[2].split(", ")) == sorted(missing)
    assert "unexpected (2): strange (would be backbone.strange), blocks.0.norm1.bias: (3,), need (16,)" in printed
    assert sorted(json.loads(read_tensors(output)[1]["missing"])) == sorted(missing)
    backbone = VisionTransformer((32, 32), width=vit_reference.WIDTH, depth=2, num_heads=2, taps=(2,))
    head = FCNHead(backbone.channels, backbone.grids, 3, channels=8)
    network = Segmentor(backbone, head, (0.0,) * 3, (1.0,) * 3)
    before = {p.name: p.asnumpy().copy() for p in network.get_parameters()}
    load_pretrained(network, output)
    kept = {p.name for p in network.get_parameters() if (p.asnumpy() == before[p.name]).all()}
    assert set(missing) <= kept and "backbone.blocks.0.mlp.fc2.weight" not in kept


@pytest.mark.parametrize("arguments, message", [
    (["--grid", "3"], "'3' is not HEIGHTxWIDTH in patches"),
    (["--window", "4"], "timm_vit has no windows, only swin, mm_swin and released_ecenet take it"),
    (["--source", "swin", "--grid", "3x3"], "swin has no position embeddings"),
    (["--source", "swin", "--window", "1"], "need at least 2"),
    (["--key", "model"], "has no entries, only .pth and .pt files do"),
    (["--least", "0"], "need a share above 0, up to 1"),
])  # fmt: skip
def test_misuse_exits_with_2(arguments, message, tmp_path, capsys):
    save_file(vit_reference.timm_weights(), tmp_path / "timm.safetensors")
    fixed = ("--source", "timm_vit", "--input", tmp_path / "timm.safetensors", "--output", tmp_path / "x.safetensors")
    with pytest.raises(SystemExit) as caught:
        command(*fixed, *arguments)
    assert caught.value.code == 2 and message in capsys.readouterr().err


def test_numbers_that_are_not_finite_are_refused_by_name(tmp_path, capsys):
    weights = vit_reference.timm_weights()
    broken = {name: weights[name].copy() for name in ("blocks.0.mlp.fc1.weight", "blocks.1.norm2.bias")}
    broken["blocks.0.mlp.fc1.weight"].flat[[0, 5]] = np.nan, np.inf
    broken["blocks.1.norm2.bias"][:] = -np.inf
    save_file({**weights, **broken}, tmp_path / "timm.safetensors")
    output = tmp_path / "ours.safetensors"
    assert command("--source", "timm_vit", "--input", tmp_path / "timm.safetensors", "--output", output) == 1
    told = capsys.readouterr().err
    assert "in 2 tensors:" in told and "backbone.blocks.0.mlp.fc1.weight (2 of 1024)" in told
    assert "backbone.blocks.1.norm2.beta (16 of 16)" in told and not output.exists()
    write_weights(tmp_path / "ours.ckpt", {"x": np.array([0.0, np.nan], np.float32), "n": np.array([3])}, {})
    assert command("--source", "checkpoint", "--input", tmp_path / "ours.ckpt", "--output", output) == 1
    assert "in 1 tensors:\n  x (1 of 2)\n" in capsys.readouterr().err and not output.exists()


@pytest.mark.parametrize("name", ["x.pth", "x.npz", "x"])
def test_others_files_are_no_checkpoints_of_ours(name, tmp_path, capsys):
    (tmp_path / name).write_bytes(b"PK")
    with pytest.raises(SystemExit) as caught:
        command("--source", "checkpoint", "--input", tmp_path / name, "--output", tmp_path / "y.safetensors")
    told = " ".join(capsys.readouterr().err.split())
    assert caught.value.code == 2 and "the folder of a run or of a checkpoint, .safetensors or .ckpt" in told
    assert "the source that tells whose they are: released_ecenet, timm_vit" in told


def test_sizes_that_weights_do_not_have():
    converted = convert("swin", swin_reference.official_weights())
    with pytest.raises(ValueError, match="no position embeddings"):
        resize(converted, (2, 2), None)
    with pytest.raises(ValueError, match="no tables of biases"):
        resize(convert("timm_vit", vit_reference.timm_weights()), None, 7)
