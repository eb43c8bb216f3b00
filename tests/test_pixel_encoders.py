"""Pixel encoders of SAZS: parameter counts of the spec, DRN, cut and projecting ViTs, any head as an encoder."""

import numpy as np
import pytest
from mindspore import nn
from mindspore.nn.utils import no_init_parameters
from scipy.special import ndtr

from src.config import ModelConfig
from src.engine.weights import load_pretrained, parameters_of, write_weights
from src.models import create_model
from src.models.heads.pixel_encoders import PyramidPoolingHead, ReassembleHead
from src.models.heads.text import (
    PixelTextHead,
)
from src.models.layers import conv2d
from tests.running import draw, randomise, run
from tests.tiny import SIZE

WIDTH = 512
VIT = {"name": "vit", "width": 16, "depth": 2, "num_heads": 2, "taps": [2], "drop_path": 0.0}
PIXELS = {"name": "pixel_text", "encoder": {"name": "reassemble"}, "width": WIDTH}


def count(model: ModelConfig, size) -> int:
    with no_init_parameters():
        network = create_model(model, 3, size)
    return sum(p.size for p in network.trainable_params())


def large(backbone: str, **options) -> dict:
    hook = {"vit_large": 12}.get(backbone, 6)
    return {"name": backbone, "depth": hook, "taps": [hook], "class_token": True, "readout": "project",
            "tap_norm": False, **options}  # fmt: skip


def test_case_19_parameters_of_the_vit_are_those_of_the_spec():
    model = ModelConfig(backbone=large("vit_large"), head=PIXELS)
    assert count(model, (384, 384)) == 156_206_593  # positions of the 24 x 24 grid
    with no_init_parameters():
        network = create_model(model, 3, (384, 384))
    parts = {"backbone.blocks": 151_154_688, "backbone.patch_embed": 787_456, "backbone.cls_token": 1_024,
             "backbone.pos_embed": 590_848, "backbone.readouts": 2_098_176, "head.encoder.project": 524_800,
             "head.encoder.upsample": 1_049_088, "head.boundary": 513}  # fmt: skip
    found = {part: sum(p.size for p in network.trainable_params() if p.name.startswith(part)) for part in parts}
    assert found == parts
    assert [p.name for p in network.get_parameters() if not p.requires_grad] == ["head.similarity.text"]


@pytest.mark.parametrize(("backbone", "width"), [("vit_tiny", 192), ("vit_small", 384), ("vit_base", 768)])
def test_the_same_recipe_on_smaller_networks(backbone, width):
    d = width
    block = 12 * d * d + 13 * d
    wanted = 6 * block + (3 * 256 + 1) * d + d + (24 * 24 + 1) * d + (2 * d * d + d) + (d * 512 + 512) + 1_049_088 + 513
    assert count(ModelConfig(backbone=large(backbone), head=PIXELS), (384, 384)) == wanted


def test_case_19_parameters_of_the_drn_are_those_of_the_spec():
    head = {**PIXELS, "encoder": {"name": "pyramid_pooling", "norm": "batch"}}
    with no_init_parameters():
        network = create_model(ModelConfig(backbone={"name": "drn_d_105", "norm": "batch"}, head=head), 3, (512, 512))
    parameters = network.trainable_params()
    parts = {"backbone.": 54_288_304, "head.encoder.": 12_850_176}
    assert {part: sum(p.size for p in parameters if p.name.startswith(part)) for part in parts} == parts
    assert sum(p.size for p in parameters) == 67_138_993
    assert network.backbone.grids == ((64, 64),) and (network.noise_rates == np.float32(0.95)).sum() == 512
    with no_init_parameters():
        network = create_model(ModelConfig(backbone={"name": "drn_d_105"}, head=head), 3, (480, 481))
    assert network.backbone.grids == ((60, 61),)


@pytest.mark.parametrize("size", [512, 480])
def test_case_20_grids_of_the_pixels(size):
    with no_init_parameters():
        network = create_model(ModelConfig(backbone=large("vit_large"), head=PIXELS), 3, (size, size))
    assert network.head.output_grid == (size // 8, size // 8)


def test_drn_runs_on_its_grid():
    sizes = {"depths": [1, 1, 1, 1, 2, 1, 1, 1], "widths": [2, 2, 4, 2, 2, 2, 2, 6, 6]}
    backbone = {"name": "drn", "norm": "group", **sizes}
    head = {"name": "pixel_text", "encoder": {"name": "pyramid_pooling", "norm": "group"}, "width": 8}
    network = create_model(ModelConfig(backbone=backbone, head=head), 3, (37, 50))
    randomise(network)
    image = np.random.default_rng(0).integers(0, 256, (1, 3, 37, 50), np.uint8)
    outputs = run(network, image)
    assert outputs["logits"].shape == (1, 3, 5, 7) and outputs["boundary"].shape == (1, 1, 5, 7)
    assert np.ptp(outputs["logits"]) > 0
    assert network.backbone.count_macs() == by_hand(37, 50)
    layers = network.backbone.layers
    kernels = [layers[i][-1].conv2 if 3 <= i <= 6 else layers[i][-1].conv for i in range(9)]
    assert [kernel.dilation[0] for kernel in kernels] == [1, 1, 1, 1, 1, 2, 4, 2, 1]


def by_hand(height: int, width: int) -> int:
    """Multiply-accumulates of the tiny DRN above, layer by layer."""
    half, quarter, eighth = ((-(-height // s), -(-width // s)) for s in (2, 4, 8))
    n1, n2, n4, n8 = (h * w for h, w in ((height, width), half, quarter, eighth))
    total = n1 * (49 * 3 * 2 + 9 * 2 * 2) + n2 * 9 * 2 * 4
    total += n2 * 4 * 2 + n4 * (9 * 2 * 2 + 2 * 8 + 4 * 8)  # layer 3: 4 -> 2 -> 8 channels, shortcut 4 -> 8
    total += n4 * 8 * 2 + n8 * (9 * 4 + 16 + 64)  # layer 4
    total += 2 * n8 * (8 * 2 + 9 * 4 + 16) + n8 * (8 * 2 + 9 * 4 + 16)  # layer 5 of two blocks, layer 6: no shortcuts
    return total + n8 * 9 * (8 * 6 + 6 * 6)


class Dilated(nn.Cell):
    """A convolution of layers.py with holes."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = conv2d(1, 1, 3, bias=False, dilation=2)

    def construct(self, x):
        return self.conv(x)


def test_dilated_convolution():
    cell, x = Dilated(), draw(1, 1, 6, 7)
    weight = cell.conv.weight.asnumpy()[0, 0].astype(np.float64)
    padded = np.pad(x[0, 0].astype(np.float64), 2)
    wanted = sum(weight[i, j] * padded[2 * i : 2 * i + 6, 2 * j : 2 * j + 7] for i in range(3) for j in range(3))
    np.testing.assert_allclose(run(cell, x)[0, 0], wanted, atol=1e-6)


def test_reassembled_pixels_and_pooled_pixels():
    features = (draw(1, 4, 3, 2), draw(1, 6, 3, 2, seed=1))
    head = ReassembleHead((4, 6), ((3, 2), (3, 2)), 5)
    p = randomise(head)
    maps = np.einsum("dc,chw->dhw", p["project.weight"][:, :, 0, 0], features[1][0]) + p["project.bias"][:, None, None]
    wanted = np.einsum("cduv,chw->dhuwv", p["upsample.weight"], maps).reshape(5, 6, 4)
    wanted += p["upsample.bias"][:, None, None]
    np.testing.assert_allclose(run(head, features)["logits"][0], wanted, atol=1e-4)
    pooled = PyramidPoolingHead((4, 6), ((3, 2), (6, 6)), 5, norm="group")
    randomise(pooled)
    keep = np.array([[0, 2, 2, 0, 2]], np.float32)
    dropped = run(pooled, (draw(1, 4, 3, 2), draw(1, 6, 6, 6)), keep)["logits"]
    plain = run(pooled, (draw(1, 4, 3, 2), draw(1, 6, 6, 6)), np.ones((1, 5), np.float32))["logits"]
    assert plain.shape == (1, 5, 6, 6) and plain.min() == 0 < plain.max()
    np.testing.assert_allclose(dropped, plain * keep[:, :, None, None], rtol=1e-6)


def test_cut_backbones_leave_blocks_in_the_file(tmp_path):
    fcn = {"name": "fcn", "norm": "group"}
    whole = create_model(ModelConfig(backbone={**VIT, "depth": 3, "taps": [3], "tap_norm": False}, head=fcn), 2, SIZE)
    randomise(whole)
    file = tmp_path / "w.safetensors"
    write_weights(file, parameters_of(whole), {"position_grid": "2x3"})
    cut = {**VIT, "tap_norm": False}
    network = create_model(ModelConfig(backbone={**cut, "whole_depth": 3}, head=PIXELS), 2, SIZE)
    load_pretrained(network, file)
    for name in ("backbone.blocks.1.attn.qkv.weight", "backbone.pos_embed"):
        np.testing.assert_array_equal(parameters_of(network)[name], parameters_of(whole)[name])
    with pytest.raises(ValueError, match="unexpected: backbone.blocks.2"):
        load_pretrained(create_model(ModelConfig(backbone=cut, head=PIXELS), 2, SIZE), file)


def test_readout_by_hand():
    with pytest.raises(ValueError, match="readout 'project' needs class_token true"):
        create_model(ModelConfig(backbone={**VIT, "readout": "project"}, head=PIXELS), 2, SIZE)
    with pytest.raises(ValueError, match="depth 13: this network has 12 blocks"):
        create_model(ModelConfig(backbone={"name": "vit_tiny", "depth": 13, "taps": [13]}, head=PIXELS), 2, SIZE)
    projecting = {**VIT, "class_token": True, "readout": "project", "tap_norm": False}
    network = create_model(ModelConfig(backbone=projecting, head=PIXELS), 2, SIZE).backbone
    p, tokens = randomise(network), draw(1, 7, 16)
    pairs = np.concatenate([tokens[0, 1:], tokens[0, :1].repeat(6, 0)], 1).astype(np.float64)
    x = pairs @ p["readouts.0.linear.weight"].T + p["readouts.0.linear.bias"]
    np.testing.assert_allclose(run(network.readouts[0], tokens)[0], x * ndtr(x), atol=1e-4)
    assert network.layer_of("readouts.0.linear.weight") == 3


def test_any_head_is_a_pixel_encoder():
    for name in ("fcn", "alignseg", "ecenet"):
        head = {**PIXELS, "encoder": {"name": name, "norm": "group", "channels": 4}}
        with no_init_parameters():
            network = create_model(ModelConfig(backbone={**VIT, "taps": [1, 2]}, head=head), 3, SIZE)
        assert isinstance(network.head, PixelTextHead) and network.head.encoder.num_classes == WIDTH
        assert network.head.align_corners == (name == "alignseg") and network.head.count_macs() > 0
