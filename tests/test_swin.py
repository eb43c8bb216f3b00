"""Swin Transformer against the released network, a float64 reference of a block, and the specification's counts."""

import re

import mindspore as ms
import numpy as np
import pytest
from mindspore import Parameter, Tensor, nn
from mindspore.nn.utils import no_init_parameters
from scipy.special import erf

from src.models.backbones import swin
from src.models.backbones.swin import PatchEmbedding, PatchMerging, SwinBlock, SwinTransformer, window_layout

RELEASED_TO_OURS = (
    (r"\.attn\.w_msa\.", ".attn."),
    (r"\.ffn\.layers\.0\.0\.", ".mlp.fc1."),
    (r"\.ffn\.layers\.1\.", ".mlp.fc2."),
    (r"(^|\.)(norm\d?)\.weight$", r"\1\2.gamma"),
    (r"(^|\.)(norm\d?)\.bias$", r"\1\2.beta"),
)
PREFIX = "weight/backbone."
BUILDERS = [
    (swin.swin_tiny, 512, 27520698, 25.503),
    (swin.swin_small, 512, 48838602, 49.222),
    (swin.swin_base, 640, 86880376, 148.498),
    (swin.swin_large, 640, 195201204, 326.820),
    (swin.swin_large, 480, 195201204, 187.700),
]


@pytest.fixture(scope="module")
def golden(golden_root):
    with np.load(golden_root / "swin_ecenet.npz") as values:
        return dict(values)


def tiny(image_size=(40, 52), **options) -> SwinTransformer:
    options = {"embed_width": 8, "depths": (1, 2, 1, 1), "num_heads": (1, 2, 2, 4), "window": 4, **options}
    network = SwinTransformer(image_size, **options)
    randomise(network)
    return network


def randomise(network: nn.Cell) -> None:
    """Weights large enough that every branch counts; the initial biases and tables would hide mistakes."""
    rng = np.random.default_rng(1)
    for weight in network.get_parameters():
        base = 1.0 if weight.name.endswith("gamma") else 0.0
        weight.set_data(Tensor((base + rng.normal(0.0, 0.3, weight.shape)).astype(np.float32)))


def images(batch: int, size: tuple[int, int]) -> np.ndarray:
    return np.random.default_rng(2).normal(size=(batch, 3, *size)).astype(np.float32)


def arrays(features) -> list[np.ndarray]:
    return [feature.asnumpy() for feature in features]


def assert_equal_features(got, want, tolerance):
    for i, (a, b) in enumerate(zip(arrays(got), want, strict=True)):
        np.testing.assert_allclose(a, b, rtol=0, atol=tolerance, err_msg=f"feature {i}")


# The released network


def our_weights(golden: dict) -> dict[str, Parameter]:
    weights = {}
    for name, value in golden.items():
        if name.startswith(PREFIX) and not name.endswith("relative_position_index"):
            ours = name.removeprefix(PREFIX)
            for pattern, replacement in RELEASED_TO_OURS:
                ours = re.sub(pattern, replacement, ours)
            weights[ours] = Parameter(Tensor(value), name=ours)
    return weights


def test_features_of_the_released_network(golden):
    network = SwinTransformer((96, 160), embed_width=24, depths=(2, 2, 2, 2), num_heads=(3, 3, 6, 6), window=7)
    missing, unused = ms.load_param_into_net(network, our_weights(golden), strict_load=True)
    assert (missing, unused) == ([], [])
    assert_equal_features(network(Tensor(golden["input"])), [golden[f"feature/{i}"] for i in range(4)], 1e-4)


def test_relative_position_index_of_the_released_network(golden):
    released = golden[PREFIX + "stages.0.blocks.0.attn.w_msa.relative_position_index"]
    np.testing.assert_array_equal(swin.relative_position_index(7), released)


# One block, in float64, without windows: every token looks at the tokens of its cell of the shifted lattice


def reference_attention(x, grid, window, shift, heads, weights):
    """Attention of normalised tokens (B, N, D) by the definition: no rolling, no masks, no order of windows."""
    b, _, width = x.shape
    padded = [-(-side // window) * window for side in grid]
    plane = np.zeros((b, *padded, width))
    plane[:, : grid[0], : grid[1]] = x.reshape(b, *grid, width)
    y, x_ = (axis.reshape(-1) for axis in np.meshgrid(*(np.arange(side) for side in padded), indexing="ij"))
    cell = np.stack(((y - shift) // window, (x_ - shift) // window))
    together = (cell[:, :, None] == cell[:, None, :]).all(0)
    row = (y[:, None] - y[None, :] + window - 1) * (2 * window - 1) + x_[:, None] - x_[None, :] + window - 1
    bias = weights["attn.relative_position_bias_table"][np.where(together, row, 0)]  # (P, P, h)
    qkv = plane.reshape(b, -1, width) @ weights["attn.qkv.weight"].T + weights["attn.qkv.bias"]
    q, k, v = (part.reshape(b, -1, heads, width // heads) for part in np.split(qkv, 3, -1))
    score = np.einsum("bihd,bjhd->bijh", q, k) / np.sqrt(width // heads) + bias
    weight = np.exp(score - score.max(2, keepdims=True)) * together[None, :, :, None]
    mixed = np.einsum("bijh,bjhd->bihd", weight / weight.sum(2, keepdims=True), v).reshape(b, *padded, width)
    mixed = mixed[:, : grid[0], : grid[1]].reshape(b, -1, width)
    return mixed @ weights["attn.proj.weight"].T + weights["attn.proj.bias"]


def reference_norm(x, weights, name):
    centred = x - x.mean(-1, keepdims=True)
    scaled = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-5)
    return scaled * weights[f"{name}.gamma"] + weights[f"{name}.beta"]


def reference_block(x, grid, window, shift, heads, weights):
    x = x + reference_attention(reference_norm(x, weights, "norm1"), grid, window, shift, heads, weights)
    hidden = reference_norm(x, weights, "norm2") @ weights["mlp.fc1.weight"].T + weights["mlp.fc1.bias"]
    hidden = hidden * 0.5 * (1 + erf(hidden / np.sqrt(2)))
    return x + hidden @ weights["mlp.fc2.weight"].T + weights["mlp.fc2.bias"]


@pytest.mark.parametrize("shift", [0, 2])
@pytest.mark.parametrize("grid", [(9, 6), (8, 8), (3, 2), (1, 5)])
def test_block_equals_its_definition(grid, shift):
    block = SwinBlock(8, 2, 4, window_layout(grid, 4, shift), 4, 0)
    randomise(block)
    x = np.random.default_rng(3).normal(size=(2, grid[0] * grid[1], 8)).astype(np.float32)
    weights = {weight.name: weight.asnumpy().astype(np.float64) for weight in block.get_parameters()}
    want = reference_block(x.astype(np.float64), grid, 4, shift, 2, weights)
    np.testing.assert_allclose(block(Tensor(x)).asnumpy(), want, rtol=0, atol=2e-5)


def test_block_gradient_equals_finite_differences():
    """A shifted block whose map needs padding: d<g, block(x)> along a random direction, by the float64 reference."""
    grid, window, shift, heads = (5, 9), 4, 2, 2
    block = SwinBlock(8, heads, window, window_layout(grid, window, shift), 4, 0)
    randomise(block)
    rng = np.random.default_rng(4)
    x, g, direction = rng.normal(size=(3, 2, 45, 8))
    weights = {weight.name: weight.asnumpy().astype(np.float64) for weight in block.get_parameters()}
    step = 1e-5
    ahead, behind = (reference_block(x + s * direction, grid, window, shift, heads, weights) for s in (step, -step))
    want = (g * (ahead - behind)).sum() / (2 * step)
    weight = Tensor(g.astype(np.float32))

    def product(x):
        return (block(x) * weight).sum()

    x = Tensor(x.astype(np.float32))
    product(x)  # a graph compiled before must not spoil the gradient's
    gradient = ms.grad(product)(x).asnumpy()
    assert (gradient * direction).sum() == pytest.approx(want, rel=1e-4)


# Patches


def test_patch_merging_joins_cells_channel_by_channel():
    merging = PatchMerging(2, (3, 5))
    randomise(merging)
    x = np.random.default_rng(5).normal(size=(2, 15, 2)).astype(np.float32)
    weights = {weight.name: weight.asnumpy().astype(np.float64) for weight in merging.get_parameters()}
    plane = np.zeros((2, 4, 6, 2))
    plane[:, :3, :5] = x.reshape(2, 3, 5, 2)
    corners = [(row, column) for row in (0, 2) for column in (0, 2, 4)]
    cells = [[plane[:, y + i, x_ + j, c] for c in (0, 1) for i in (0, 1) for j in (0, 1)] for y, x_ in corners]
    want = reference_norm(np.transpose(cells, (2, 0, 1)), weights, "norm") @ weights["reduction.weight"].T
    np.testing.assert_allclose(merging(Tensor(x)).asnumpy(), want, rtol=0, atol=1e-5)


def test_patch_embedding_pads_with_zeros_right_and_bottom():
    embedding = PatchEmbedding(8)
    image = images(2, (5, 10))
    padded = np.zeros((2, 3, 8, 12), np.float32)
    padded[:, :, :5, :10] = image
    np.testing.assert_array_equal(embedding(Tensor(image)).asnumpy(), embedding(Tensor(padded)).asnumpy())


# Sizes and gradients of the whole network


def test_odd_image_gives_rounded_up_maps_and_gradients_everywhere():
    network = tiny((75, 101), window=7)
    assert network.grids == ((19, 26), (10, 13), (5, 7), (3, 4))
    weights = network.trainable_params()
    image = Tensor(images(2, (75, 101)))

    def total(image):
        features = network(image)
        return sum((feature**2 * feature).sum() for feature in features), features

    (_, features), gradients = ms.value_and_grad(total, None, weights, has_aux=True)(image)
    assert [f.shape for f in features] == [(2, 8, 19, 26), (2, 16, 10, 13), (2, 32, 5, 7), (2, 64, 3, 4)]
    for weight, gradient in zip(weights, gradients, strict=True):
        values = gradient.asnumpy()
        assert np.isfinite(values).all() and np.abs(values).max() > 1e-3, weight.name


def test_attributes():
    network = tiny(drop_path=0.2, depths=(1, 2, 3, 1), window=5)
    assert network.channels == (8, 16, 32, 64)
    assert network.strides == (4, 8, 16, 32)
    want = [0.2 * i / 6 for i in range(7) for _ in range(2)]
    np.testing.assert_allclose(network.noise_rates, want, atol=1e-7)


@pytest.mark.parametrize(("builder", "side", "parameters", "gmacs"), BUILDERS)
def test_counts_of_the_specification(builder, side, parameters, gmacs):
    with no_init_parameters():  # shapes are enough, and take no time
        network = builder((side, side))
    assert sum(weight.size for weight in network.get_parameters()) == parameters
    assert network.count_macs() / 1e9 == pytest.approx(gmacs, abs=1e-3)


def test_window_of_a_builder_can_be_chosen():
    with no_init_parameters():
        network = swin.swin_tiny((64, 64), window=12)
    heads = 2 * 3 + 2 * 6 + 6 * 12 + 2 * 24
    assert sum(weight.size for weight in network.get_parameters()) == 27520698 + heads * (23**2 - 13**2)


# Drop path


def test_noise_column_scales_its_branch_of_its_image():
    """Zeros in a column for one image equal a branch that ends in zero weights; the other image keeps its features."""
    network = tiny()
    image = Tensor(images(2, (40, 52)))
    noise = np.ones((2, 10), np.float32)
    plain = arrays(network(image, Tensor(noise)))
    branches = {4: "stages.1.blocks.1.attn.proj", 7: "stages.2.blocks.0.mlp.fc2"}
    for column, layer in branches.items():
        dropped = noise.copy()
        dropped[1, column] = 0.0
        got = arrays(network(image, Tensor(dropped)))
        want = without_layer(network, layer, image, Tensor(noise))
        for ours, kept, killed in zip(got, plain, want, strict=True):
            np.testing.assert_allclose(ours[0], kept[0], rtol=0, atol=1e-5)
            np.testing.assert_allclose(ours[1], killed[1], rtol=0, atol=1e-5)
        assert np.abs(want[3][1] - plain[3][1]).max() > 1e-2


def without_layer(network: SwinTransformer, layer: str, *inputs: Tensor) -> list[np.ndarray]:
    """Features with the weights of one Dense layer at zero; the weights are put back."""
    weights = [weight for weight in network.get_parameters() if weight.name.startswith(layer)]
    assert len(weights) == 2
    saved = [weight.asnumpy().copy() for weight in weights]
    for weight in weights:
        weight.set_data(Tensor(np.zeros(weight.shape, np.float32)))
    features = arrays(network(*inputs))
    for weight, value in zip(weights, saved, strict=True):
        weight.set_data(Tensor(value))
    return features


# Export and errors


@pytest.mark.slow
def test_exported_network_equals_the_network(tmp_path):
    network = tiny()
    network.set_train(False)
    image = Tensor(images(1, (40, 52)))
    ms.export(network, image, file_name=str(tmp_path / "swin"), file_format="MINDIR")
    exported = nn.GraphCell(ms.load(str(tmp_path / "swin.mindir")))
    assert_equal_features(exported(image), arrays(network(image)), 1e-6)


def test_image_of_another_size_is_an_error(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # the compiler leaves its dump of the failed graph here
    with pytest.raises(ValueError, match=r"image is \(40, 48\), but the network was built for \(40, 52\)"):
        tiny()(Tensor(images(1, (40, 48))))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"image_size": (0, 8)}, "image_size is"),
        ({"depths": (2, 2)}, "depths is"),
        ({"num_heads": (1, 2, 0, 1)}, "num_heads is"),
        ({"window": 1}, "window is 1"),
        ({"num_heads": (3, 3, 3, 3)}, "not a multiple of num_heads 3"),
    ],
)
def test_impossible_sizes_are_errors(options, message):
    with pytest.raises(ValueError, match=message):
        tiny(**options)
