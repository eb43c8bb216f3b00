"""Conversion of Vision Transformers and Swin Transformers of all publishers: values, forward passes, sizes."""

import numpy as np
import pytest
from safetensors.numpy import save_file

from src.engine.weights import load_pretrained, read_tensors
from src.models.backbones.swin import SwinTransformer
from src.models.backbones.vit import vit_tiny
from src.models.conversion import convert
from src.models.conversion_transformers import from_augreg
from src.models.heads.fcn import FCNHead
from src.models.resizing import resize_bias_table, resize_position_embedding
from src.models.segmentor import Segmentor
from tests import swin_reference, vit_reference
from tests.pth_writer import write_pth
from tests.running import draw, run
from tools.convert_weights import main

WIDTH = vit_reference.WIDTH
# An impulse in the middle of three places, resized to five: places -0.2, 0.4, 1, 1.6, 2.2 and the cubic of -0.75,
# 1.25 d^3 - 2.25 d^2 + 1 at 0.6 and -0.75 (d^3 - 5 d^2 + 8 d - 4) at 1.2.
IMPULSE = np.array([-0.096, 0.46, 1.0, 0.46, -0.096])


def segmentor(backbone) -> Segmentor:
    head = FCNHead(backbone.channels, backbone.grids, 3, channels=8)
    return Segmentor(backbone, head, (0.0,) * 3, (1.0,) * 3)


def command(*arguments) -> int:
    return main([str(argument) for argument in arguments])


def extra(*shape: int) -> np.ndarray:
    return np.full(shape, 9.0, np.float32)


def published(source: str) -> tuple[dict[str, np.ndarray], set[str]]:
    """The reference's weights as a publisher's file names them, and what a conversion leaves out besides timm's."""
    weights = vit_reference.timm_weights()
    if source == "deit_vit":
        positions = weights["pos_embed"]
        weights["pos_embed"] = np.concatenate([positions[:, :1], extra(1, 1, WIDTH), positions[:, 1:]], 1)
        more = {"dist_token": extra(1, 1, WIDTH), "head_dist.weight": extra(7, WIDTH), "head_dist.bias": extra(7)}
        return {**weights, **more}, {*more, "pos_embed[:, 1]"}
    if source == "dino_vit":
        del weights["head.weight"], weights["head.bias"]
        more = {"head.mlp.0.weight": extra(8, WIDTH), "head.last_layer.weight_v": extra(9, 8)}
        named = {f"module.backbone.{name}": value for name, value in weights.items()}
        return {**named, **{f"module.{name}": value for name, value in more.items()}}, set(more)
    more = {
        "mask_token": extra(1, 1, 8), "decoder_pos_embed": extra(1, 5, 8), "decoder_blocks.0.norm1.bias": extra(8),
        "fc_norm.weight": extra(WIDTH),
    }  # fmt: skip
    return {**weights, **more}, set(more)


@pytest.mark.parametrize("source", ["deit_vit", "dino_vit", "mae_vit"])
@pytest.mark.parametrize("class_token", [False, True])
def test_publishers_of_vision_transformers(source, class_token):
    """All name the same network; test_conversion.py holds timm's to its forward pass."""
    weights, more = published(source)
    found = convert(source, weights, class_token=class_token)
    wanted = convert("timm_vit", vit_reference.timm_weights(), class_token=class_token)
    assert found.weights.keys() == wanted.weights.keys() and found.grid == wanted.grid == (2, 2)
    for name, value in wanted.weights.items():
        np.testing.assert_array_equal(found.weights[name], value, err_msg=name)
    heads = {"head.weight", "head.bias"} if source == "dino_vit" else set()
    assert set(found.dropped) == set(wanted.dropped) - heads | more


def test_deit_without_distillation_is_timms():
    weights = vit_reference.timm_weights()
    assert convert("deit_vit", weights).dropped == convert("timm_vit", weights).dropped


def test_a_foreign_publisher_is_told():
    weights, _ = published("mae_vit")
    with pytest.raises(ValueError, match=r"unexpected \(4\):\n  mask_token"):
        convert("timm_vit", weights)


def test_augreg_computes_what_jax_does():
    weights, image = vit_reference.augreg_weights(), draw(1, 3, 32, 32)
    timm, _ = from_augreg({f"opt/target/{name}": value for name, value in weights.items()})
    wanted = vit_reference.augreg_forward(weights, image)
    found = vit_reference.timm_forward(timm, image, class_token=True)
    for tokens, expected in zip(found, wanted, strict=True):
        np.testing.assert_allclose(tokens, expected[:, 1:], atol=1e-12)
    converted, direct = convert("augreg_vit", weights, class_token=True), convert("timm_vit", timm, class_token=True)
    for name, value in direct.weights.items():
        np.testing.assert_array_equal(converted.weights[name], value, err_msg=name)
    turned = {name for name in direct.weights if name.endswith((".weight", "qkv.bias")) and "norm" not in name}
    assert set(converted.rearranged) == turned and len(turned) == 1 + 5 * vit_reference.DEPTH


def test_real_quantised_deit_tiny(data_root, tmp_path):
    """Its public test vector holds integers: the patches of one image, and their tokens after the embedding.

    What follows in that network is rounded and clamped at every step, which no plain network can follow; the blocks are
    held to the published formula instead.
    """
    folder, output = data_root / "deit_tiny_int", tmp_path / "vit.safetensors"
    source = folder / "vit_tiny_patch16_plain_recalibrated_float16.npz"
    assert command("--source", "timm_vit", "--input", source, "--output", output, "--class-token") == 0
    backbone = vit_tiny((224, 224), class_token=True, tap_norm=False)
    load_pretrained(segmentor(backbone), output)
    backbone.set_train(False)
    with np.load(folder / "test_vector.npz") as vector:
        patches, tokens = vector["patch_embed_input"].astype(np.float32), vector["patch_embed_output"]
    # Steps of the image are 0.02084. The first row stands for the class token, and the last patch is left out there.
    patches = np.concatenate([0.02084 * patches[1:], np.zeros((1, 768), np.float32)])
    image = patches.reshape(14, 14, 3, 16, 16).transpose(2, 0, 3, 1, 4).reshape(1, 3, 224, 224)
    # Tokens are rounded to steps of 1 / 154.78; both steps are those that fit best.
    found = 154.78 * (run(backbone.patch_embed, image)[0, :195] + backbone.pos_embed.asnumpy()[0, 1:196])
    assert np.abs(found - tokens[1:]).max() < 0.8 and np.abs(tokens).max() > 1000
    with np.load(source) as weights:
        wanted = vit_reference.timm_forward(dict(weights), image, class_token=True, depth=12, heads=3)
    for tap, feature in zip((3, 6, 9, 12), run(backbone, image), strict=True):
        expected = wanted[tap - 1].transpose(0, 2, 1).reshape(1, 192, 14, 14)
        # Float32 is off by less than 1e-4 at taps 3, 6 and 9, and by 2.7e-4 at the last, whose values go up to 46.6.
        np.testing.assert_allclose(feature, expected, atol=1e-5 * np.abs(expected).max())


def test_augreg_lists_what_does_not_fit():
    weights = vit_reference.augreg_weights()
    del weights["Transformer/encoderblock_1/MultiHeadDotProductAttention_1/key/kernel"]
    weights["Transformer/other/kernel"] = extra(2, 2)
    with pytest.raises(ValueError) as caught:
        convert("augreg_vit", weights)
    assert str(caught.value).splitlines()[1:] == [
        "missing (1):", "  backbone.blocks.1.attn.qkv.weight (48, 16)", "unexpected (1):",
        "  Transformer/other/kernel (would be backbone.Transformer/other/kernel)",
    ]  # fmt: skip


@pytest.fixture(scope="module")
def swin_file(tmp_path_factory):
    """The official Swin as it is published: a .pth file with the weights under `model`."""
    return write_pth(tmp_path_factory.mktemp("swin") / "swin.pth", {"model": swin_reference.official_weights()})


def build_swin(window: int = swin_reference.WINDOW, size=(40, 56)) -> SwinTransformer:
    return SwinTransformer(
        size, embed_width=swin_reference.WIDTH, depths=swin_reference.DEPTHS, num_heads=swin_reference.HEADS,
        window=window,
    )  # fmt: skip


def test_official_swin_computes_what_its_repository_does(swin_file, tmp_path, capsys):
    output = tmp_path / "ours.safetensors"
    assert command("--source", "swin", "--input", swin_file, "--output", output) == 0
    backbone, image = build_swin(), draw(1, 3, 40, 56)
    load_pretrained(segmentor(backbone), output)
    backbone.set_train(False)
    wanted = swin_reference.official_forward(swin_reference.official_weights(), image[0])
    for found, expected in zip(run(backbone, image), wanted, strict=True):
        assert expected.std() > 0.9
        np.testing.assert_allclose(found[0], expected, atol=1e-4)
    lines = capsys.readouterr().out.splitlines()
    parts = ("norm.gamma", "norm.beta", "reduction.weight")
    moved = [f"backbone.stages.{i}.downsample.{part}" for i in range(3) for part in parts]
    turned = next(line for line in lines if line.startswith("transposed or reshaped (9): "))
    assert sorted(turned.partition(": ")[2].split(", ")) == sorted(moved)
    assert lines[0].startswith("loaded (") and "100.0% of the network's numbers, 100.0% wanted" in lines[0]
    left = next(line for line in lines if line.startswith("left out (12): "))
    assert all(name in left for name in ("blocks.1.attn_mask", "relative_position_index", "norm.bias", "head.bias"))
    assert "missing (0): nothing" in lines and "unexpected (0): nothing" in lines and "resized (0): nothing" in lines


def test_tables_of_another_window_are_resized(swin_file, tmp_path, capsys):
    plain, resized = tmp_path / "plain.safetensors", tmp_path / "resized.safetensors"
    assert command("--source", "swin", "--input", swin_file, "--output", plain) == 0
    assert command("--source", "swin", "--input", swin_file, "--output", resized, "--window", 4) == 0
    name = "backbone.stages.1.blocks.0.attn.relative_position_bias_table"
    assert "resized (6): " in (text := capsys.readouterr().out) and f"{name} (25, 2) -> (49, 2)" in text
    backbone = build_swin(window=4)
    load_pretrained(segmentor(backbone), plain)
    printed = capsys.readouterr().out
    assert "resized bicubically: 3 x relative_position_bias_table (25, 2) -> (49, 2)" in printed
    at_loading = backbone.stages[1].blocks[0].attn.relative_position_bias_table.asnumpy()
    np.testing.assert_array_equal(at_loading, read_tensors(resized)[0][name])
    np.testing.assert_array_equal(at_loading, resize_bias_table(read_tensors(plain)[0][name], 4))


def test_hand_made_values_of_both_resizes():
    table = np.zeros((9, 2), np.float32)
    table[4] = 1, -2
    found = resize_bias_table(table, 3)
    np.testing.assert_allclose(found[:, 0].reshape(5, 5), np.outer(IMPULSE, IMPULSE), atol=1e-6)
    np.testing.assert_allclose(found[:, 1], -2 * found[:, 0], atol=1e-6)
    positions = np.concatenate([np.full((1, 1, 2), 7, np.float32), table[None]], 1)
    resized = resize_position_embedding(positions, (3, 3), (5, 5))
    assert resized[0, 0].tolist() == [7, 7]
    np.testing.assert_allclose(resized[0, 1:], found, atol=1e-6)
    with pytest.raises(ValueError, match="not the square of an odd number"):
        resize_bias_table(np.zeros((16, 2), np.float32), 3)


def test_mmsegmentation_swin_alone_and_whole(golden_root):
    """The golden file holds mmsegmentation's names; test_swin.py holds its forward pass to the golden features."""
    with np.load(golden_root / "swin_ecenet.npz") as file:
        whole = {key.removeprefix("weight/"): file[key] for key in file.files if key.startswith("weight/")}
    wanted = {n: v for n, v in convert("released_ecenet", whole).weights.items() if n.startswith("backbone.")}
    alone = {n.removeprefix("backbone."): v for n, v in whole.items() if n.startswith("backbone.")}
    classifier = {n: v for n, v in alone.items() if not n.startswith("norm")}
    classifier |= {"norm.weight": extra(8), "head.bias": extra(7)}
    for weights, norms in ((whole, 8), (alone, 8), (classifier, 0)):
        found = convert("mm_swin", {**weights, "auxiliary_head.conv.weight": extra(1)})
        assert sum(name.startswith("backbone.norm") for name in found.weights) == norms
        assert len(found.weights) == len(wanted) - 8 + norms and "auxiliary_head.conv.weight" in found.dropped
        for name, value in found.weights.items():
            np.testing.assert_array_equal(value, wanted[name], err_msg=name)
    assert {"norm.weight", "head.bias"} <= set(found.dropped)


def test_position_embeddings_are_resized_by_the_command(tmp_path, capsys):
    save_file(vit_reference.timm_weights(), tmp_path / "timm.safetensors")
    output = tmp_path / "ours.safetensors"
    arguments = ("--source", "timm_vit", "--input", tmp_path / "timm.safetensors", "--output", output, "--grid", "3x4")
    assert command(*arguments) == 0
    assert "resized (1): backbone.pos_embed (1, 4, 16) -> (1, 12, 16)" in capsys.readouterr().out
    tensors, metadata = read_tensors(output)
    assert metadata["position_grid"] == "3x4"
    plain = convert("timm_vit", vit_reference.timm_weights()).weights["backbone.pos_embed"]
    np.testing.assert_array_equal(tensors["backbone.pos_embed"], resize_position_embedding(plain, (2, 2), (3, 4)))
