"""Conversion of public weights: names, values, what is left out, and that nothing wrong gets through."""

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from mindspore import nn
from safetensors.numpy import save_file

from src.engine.weights import load_pretrained, read_tensors
from src.models.backbones.vit import VisionTransformer, vit_tiny
from src.models.conversion import convert
from src.models.conversion_names import HEAD_MODULES, SWIN_MODULES, VIT_MODULES
from src.models.heads.fcn import FCNHead
from src.models.resizing import resize_position_embedding
from src.models.segmentor import Segmentor
from tests.running import run
from tests.vit_reference import DEPTH, HEADS, WIDTH, timm_forward, timm_weights
from tools.convert_weights import main

ROOT = Path(__file__).resolve().parents[1]


def segmentor(backbone: nn.Cell) -> Segmentor:
    head = FCNHead(backbone.channels, backbone.grids, 3, channels=8)
    return Segmentor(backbone, head, (0.0,) * 3, (1.0,) * 3)


def command(*arguments) -> int:
    return main([str(argument) for argument in arguments])


@pytest.mark.parametrize("class_token", [False, True])
def test_vit_computes_what_timm_does(class_token, tmp_path):
    weights = timm_weights()
    save_file(weights, tmp_path / "timm.safetensors")
    flag = ["--class-token"] if class_token else []
    output = tmp_path / "ours.safetensors"
    assert command("--source", "timm_vit", "--input", tmp_path / "timm.safetensors", "--output", output, *flag) == 0
    backbone = VisionTransformer(
        (32, 32), width=WIDTH, depth=DEPTH, num_heads=HEADS, taps=(1, 2), class_token=class_token, tap_norm=False
    )
    load_pretrained(segmentor(backbone), output)
    backbone.set_train(False)
    image = np.random.default_rng(1).normal(size=(1, 3, 32, 32)).astype(np.float32)
    expected = timm_forward(weights, image, class_token)
    for feature, tokens in zip(run(backbone, image), expected, strict=True):
        np.testing.assert_allclose(feature, tokens.transpose(0, 2, 1).reshape(1, WIDTH, 2, 2), atol=1e-4)


def test_vit_reports_what_it_leaves_out(capsys, tmp_path):
    np.savez(tmp_path / "timm.npz", **timm_weights())
    output = tmp_path / "ours.safetensors"
    assert command("--source", "timm_vit", "--input", tmp_path / "timm.npz", "--output", output) == 0
    printed = capsys.readouterr().out
    for name in ("cls_token", "norm.weight", "norm.bias", "head.weight", "head.bias", "pos_embed[:, 0]"):
        assert name in printed
    tensors, metadata = read_tensors(output)
    assert metadata == {"source": "timm_vit", "position_grid": "2x2"}
    assert len(tensors) == 3 + 12 * DEPTH and all(name.startswith("backbone.") for name in tensors)


def test_half_precision_becomes_single_without_change():
    weights = {name: value.astype(np.float16) for name, value in timm_weights().items()}
    result = convert("timm_vit", weights).weights
    assert {value.dtype for value in result.values()} == {np.dtype(np.float32)}
    np.testing.assert_array_equal(result["backbone.blocks.1.mlp.fc2.weight"], weights["blocks.1.mlp.fc2.weight"])


def test_real_vit_tiny_loads_at_another_image_size(data_root, tmp_path):
    folder = data_root / "deit_tiny_int"
    source, output = folder / "vit_tiny_patch16_plain_recalibrated_float16.npz", tmp_path / "vit.safetensors"
    assert command("--source", "timm_vit", "--input", source, "--output", output) == 0
    network = segmentor(vit_tiny((64, 96)))
    load_pretrained(network, output)
    with np.load(source) as weights:
        positions = weights["pos_embed"][:, 1:].astype(np.float32)
        patch = weights["patch_embed.proj.weight"].astype(np.float32)
    expected = resize_position_embedding(positions, (14, 14), (4, 6))
    np.testing.assert_array_equal(network.backbone.pos_embed.asnumpy(), expected)
    np.testing.assert_array_equal(network.backbone.patch_embed.proj.weight.asnumpy(), patch.reshape(192, 768))
    clamped = folder / "vit_tiny_patch16_clamped_float32.npz"
    assert command("--source", "timm_vit", "--input", clamped, "--output", tmp_path / "no.safetensors") == 1
    assert not (tmp_path / "no.safetensors").exists()


def test_clamps_are_refused():
    with pytest.raises(ValueError, match=r"clamp\.v_unit.*plain recalibrated file"):
        convert("timm_vit", {**timm_weights(), "clamp.v_unit": np.ones(2, np.float32)})


def released(folder: Path, name: str = "ecenet_head_q_none") -> dict[str, np.ndarray]:
    with np.load(folder / f"{name}.npz") as file:
        return {key.removeprefix("weight/"): file[key] for key in file.files if key.startswith("weight/")}


@pytest.mark.parametrize("name, prefix, counter", [
    ("ecenet_head_q_none", "", "proj.bn.num_batches_tracked"),
    ("ecenet_head_q_none", "decode_head.", "decode_head.proj.bn.num_batches_tracked"),
    ("swin_ecenet", "", "decode_head.proj.bn.num_batches_tracked"),
])  # fmt: skip
def test_released_weights_are_all_used_once(name, prefix, counter, golden_root):
    weights = {prefix + key: value for key, value in released(golden_root, name).items()}
    result = convert("released_ecenet", {**weights, counter: np.array(3)})
    kept = [key for key in weights if not key.endswith("relative_position_index")]
    assert sorted(v.tobytes() for v in result.weights.values()) == sorted(weights[key].tobytes() for key in kept)
    assert set(result.dropped) == {*weights, counter} - set(kept)


def test_every_rule_is_needed(golden_root):
    """Each public module of the tables stands for one of ours and occurs in a real file."""
    public = (*released(golden_root), *released(golden_root, "swin_ecenet"), *timm_weights())
    modules = {re.sub(r"\d+", "#", name.removeprefix("backbone.").rpartition(".")[0]) for name in public}
    for table in (HEAD_MODULES, SWIN_MODULES, VIT_MODULES):
        assert len(set(table.values())) == len(table)
        assert {re.sub(r"\d+", "#", pattern) for pattern in table} <= modules


def test_every_problem_is_listed_at_once(golden_root):
    weights = released(golden_root)
    weights["laterals.00.weight"] = weights["laterals.0.weight"]
    weights["strange.weight"] = np.zeros(3, np.float32)
    weights["conv_seg.scale"] = np.zeros(3, np.float32)
    del weights["trans.bias"], weights["ghost_up_layers.2.layers.1.cheap.bn.running_var"]
    weights["learner.1.weight"] = weights["learner.1.weight"][:, :, 0, 0]
    weights["transfer.1.cross_attn.proj.weight"] = weights["transfer.1.cross_attn.proj.weight"][..., 0, 0]
    with pytest.raises(ValueError) as caught:
        convert("released_ecenet", weights)
    assert str(caught.value).splitlines()[1:] == [
        "missing (2):",
        "  head.ghosts.3.1.cheap_norm.moving_variance (64,)",
        "  head.confidence.bias (19,)",
        "unexpected (2):",
        "  strange.weight",
        "  conv_seg.scale (would be head.classifier.scale)",
        "doubly mapped (1):",
        "  head.laterals.0.weight: laterals.0.weight, laterals.00.weight",
        "wrong shape (2):",
        "  transfer.1.cross_attn.proj.weight: (32, 32), need (32, 32, 1, 1) for head.attentions.1.proj.weight",
        "  learner.1.weight: (19, 32), need (19, 32, 1, 1) for head.class_mask.classify.weight",
    ]


def test_head_names_without_prefix_do_not_mix_with_a_backbone(golden_root):
    weights = released(golden_root, "swin_ecenet")
    weights["conv_seg.weight"] = weights["decode_head.conv_seg.weight"]
    with pytest.raises(ValueError, match=r"unexpected \(1\):\n  conv_seg\.weight$"):
        convert("released_ecenet", weights)


@pytest.mark.parametrize("change, message", [
    ({"pos_embed": np.zeros((1, 4, WIDTH), np.float32)}, "need a class token and a square grid"),
    ({"pos_embed": None, "patch_embed.proj.weight": None}, "patch_embed.proj.weight, pos_embed not in the file"),
    ({"blocks.1.attn.qkv.bias": None}, r"missing \(1\):\n  backbone.blocks.1.attn.qkv.bias \(48,\)"),
    ({"fc_norm.weight": np.ones(WIDTH, np.float32)}, r"unexpected \(1\):\n  fc_norm.weight"),
    ({"patch_embed.proj.weight": np.zeros((WIDTH, 16, 16, 3), np.float32)}, r"need \(16, 3, 16, 16\)"),
])  # fmt: skip
def test_vit_problems(change, message):
    weights = {name: value for name, value in {**timm_weights(), **change}.items() if value is not None}
    with pytest.raises(ValueError, match=message):
        convert("timm_vit", weights)


def test_vit_with_class_token_needs_one():
    weights = timm_weights()
    del weights["cls_token"]
    with pytest.raises(ValueError, match=r"missing \(1\):\n  backbone.cls_token \(1, 1, 16\)"):
        convert("timm_vit", weights, class_token=True)


@pytest.mark.parametrize("arguments, message", [
    (["--source", "other"], "invalid choice: 'other'"),
    (["--input", "absent.npz"], "absent.npz: no such file"),
    (["--input", "weights.txt"], "ends in .npz, .safetensors, .ckpt, .pth or .pt"),
    (["--output", "weights.npz"], "ends in .safetensors or .ckpt"),
    (["--output", "nowhere/ours.safetensors"], "there is no folder nowhere"),
    (["--source", "released_ecenet", "--class-token"], "only timm_vit, deit_vit, .* take this flag"),
    (["--input", "same.safetensors", "--output", "same.safetensors"], "would overwrite the input"),
])  # fmt: skip
def test_misuse_exits_with_2(arguments, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    np.savez("timm.npz", **timm_weights())
    save_file(timm_weights(), "same.safetensors")
    with pytest.raises(SystemExit) as caught:
        command("--source", "timm_vit", "--input", "timm.npz", "--output", "ours.safetensors", *arguments)
    assert caught.value.code == 2
    assert re.search(message, capsys.readouterr().err)


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 cut off", b"text"])
def test_unreadable_files_are_named(content, tmp_path, capsys):
    for name in ("weights.npz", "weights.safetensors"):
        (tmp_path / name).write_bytes(content)
        arguments = ("--source", "timm_vit", "--input", tmp_path / name, "--output", tmp_path / "ours.safetensors")
        assert command(*arguments) == 1
        assert f"{name}: not a readable" in capsys.readouterr().err


def test_runs_from_any_folder(tmp_path):
    np.savez(tmp_path / "timm.npz", **timm_weights())
    script = str(ROOT / "tools" / "convert_weights.py")
    arguments = ["--source", "timm_vit", "--input", "timm.npz", "--output", "ours.safetensors"]
    done = subprocess.run([sys.executable, script, *arguments], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["ours.safetensors", "timm.npz"]
