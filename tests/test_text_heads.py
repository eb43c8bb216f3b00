"""Heads whose classes are told by text: values, parameter counts of the spec, other classes for the same weights."""

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor, nn, ops
from mindspore.nn.utils import no_init_parameters
from scipy.special import ndtr

from src.class_text import give_text, loader_of, read_names, text_rows
from src.config import ModelConfig, TextConfig
from src.engine.optimizer import create_optimizer
from src.engine.weights import load_pretrained, parameters_of, write_weights
from src.models import create_model
from src.models.heads.pixel_encoders import PyramidPoolingHead, ReassembleHead
from src.models.heads.text import (
    PixelTextHead,
    Similarity,
    TextConv,
    TextEmbedding,
    TextLinear,
    text_parameters,
)
from src.models.layers import conv2d
from src.text.tables import TextTable, new_meta, write_table
from tests.running import draw, randomise, run
from tests.tiny import SIZE

WIDTH = 512
NAMES = ("road", "sky", "car", "zebra crossing")
VIT = {"name": "vit", "width": 16, "depth": 2, "num_heads": 2, "taps": [2], "drop_path": 0.0}
PIXELS = {"name": "pixel_text", "encoder": {"name": "reassemble"}, "width": WIDTH}
MASKS = {"name": "text_ecenet", "channels": 16, "norm": "group", "dropout": 0.0}


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


@pytest.mark.parametrize(("normalise", "temperature"), [(False, 1.0), (True, 0.07)])
def test_similarity_is_the_inner_product(normalise, temperature):
    cell, x, text = Similarity(3, 8, normalise, temperature), draw(2, 8, 5), 3 * draw(3, 8, seed=1)
    cell.text.set_data(Tensor(text))
    a, b = x.astype(np.float64), text.astype(np.float64)
    if normalise:
        a, b = a / np.linalg.norm(a, axis=1, keepdims=True), b / np.linalg.norm(b, axis=1, keepdims=True)
    np.testing.assert_allclose(run(cell, x), np.einsum("kd,bdn->bkn", b, a) / temperature, atol=1e-4)


class Layers(nn.Cell):
    """The three layers that ECENet's classes go through: of a map, of vectors, and the text alone."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.linear = TextConv(4, 3, 8, True, 0.5), TextLinear(4, 3, 8, False, 1.0)
        self.embedding = TextEmbedding(3, 8, 4)

    def construct(self, x, vectors):
        return self.conv(x), self.linear(vectors), self.embedding(x, x)


def test_layers_that_stand_in_for_classifiers():
    cell, x, vectors = Layers(), draw(2, 4, 3, 5), draw(2, 6, 4, seed=1)
    p = randomise(cell)
    logits, scores, embedding = run(cell, x, vectors)
    pixels = np.einsum("dc,bchw->bdhw", p["conv.project.weight"][:, :, 0, 0], x) + p["conv.project.bias"][:, None, None]
    text = p["conv.similarity.text"] / np.linalg.norm(p["conv.similarity.text"], axis=1, keepdims=True)
    wanted = np.einsum("kd,bdhw->bkhw", text, pixels / np.linalg.norm(pixels, axis=1, keepdims=True)) / 0.5
    np.testing.assert_allclose(logits, wanted, atol=1e-5)
    projected = vectors @ p["linear.project.weight"].T + p["linear.project.bias"]
    np.testing.assert_allclose(scores, projected @ p["linear.similarity.text"].T, atol=1e-4)
    unit = p["embedding.text"] / np.linalg.norm(p["embedding.text"], axis=1, keepdims=True)
    own = unit @ p["embedding.linear.weight"].T + p["embedding.linear.bias"]
    np.testing.assert_allclose(embedding, np.stack([own, own]), atol=1e-5)


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


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    rows = np.random.default_rng(2).normal(size=(5, WIDTH)).astype(np.float32)
    file = tmp_path_factory.mktemp("text") / "street.npz"
    meta = new_meta("ViT-B/32", normalised=False, source="drawn")
    write_table(file, TextTable(NAMES, rows[:4], ("others",), rows[4:], meta))
    return file, dict(zip((*NAMES, "others"), rows, strict=True))


def model_of(head: dict, file, **text) -> ModelConfig:
    return ModelConfig(backbone=VIT, head=head, text=TextConfig(table=str(file), **text))


@pytest.mark.parametrize("head", [PIXELS, MASKS], ids=["pixels", "masks"])
def test_other_classes_by_name_are_rows_of_the_same_logits(head, table, tmp_path):
    """Weights trained for two classes serve four: logits of a class do not depend on which others there are."""
    file, rows = table
    model = model_of(head, file)
    trained = create_model(model, 2, SIZE)
    randomise(trained)
    give_text(trained, model, ("sky", "car"))
    weights = tmp_path / "w.safetensors"
    write_weights(weights, parameters_of(trained), {"position_grid": "2x3"})
    _, fill = loader_of(model, weights, NAMES, named=True)
    network = create_model(model, 4, SIZE)
    fill(network)
    owners = text_parameters(network)
    assert len(owners) == (1 if head is PIXELS else 4)
    for name, parameter in network.parameters_and_names():
        if name in owners:
            np.testing.assert_array_equal(parameter.asnumpy(), np.stack([rows[name] for name in NAMES]))
            assert not parameter.requires_grad
    assert not {p.name for p in create_optimizer(network, SETTINGS).parameters} & set(owners)  # case 18
    image = np.random.default_rng(0).integers(0, 256, (1, 3, *SIZE), np.uint8)
    two, four = run(trained, image), run(network.set_train(False), image)
    assert np.ptp(two["logits"]) > 0
    if head is PIXELS:
        np.testing.assert_allclose(four["logits"][:, 1:3], two["logits"], rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(four["boundary"], two["boundary"], rtol=1e-5, atol=1e-6)
    else:
        assert four["masks"][-1].shape[1] == 4
        np.testing.assert_allclose(four["masks"][-1][:, 1:3], two["masks"][-1], rtol=1e-4, atol=1e-5)


class SETTINGS:  # what create_optimizer reads
    name, weight_decay, momentum, head_lr_multiplier, layer_decay = "sgd", 0.0, 0.0, 1.0, None


class Slope(nn.Cell):
    """Gradient of a sum of logits for the parameters that are trained."""

    def __init__(self, network) -> None:
        super().__init__(auto_prefix=False)
        self.network = network
        self.differentiate = ops.value_and_grad(self.total, None, ms.ParameterTuple(network.trainable_params()))

    def total(self, image):
        outputs = self.network(image)
        return (outputs["logits"] * outputs["logits"]).sum() + outputs["boundary"].sum()

    def construct(self, image):
        return self.differentiate(image)


def test_gradients_reach_all_but_the_text(table):
    model = model_of({**PIXELS, "normalise": False, "temperature": 1.0}, table[0])
    network = create_model(model, 4, SIZE)
    randomise(network)
    give_text(network, model, NAMES)
    before = network.head.similarity.text.asnumpy().copy()
    _, gradients = Slope(network)(Tensor(np.random.default_rng(0).integers(0, 256, (1, 3, *SIZE), np.uint8)))
    pairs = zip(network.trainable_params(), gradients, strict=True)
    reached = {parameter.name for parameter, gradient in pairs if gradient.asnumpy().any()}
    assert not any("text" in name for name in reached) and "head.encoder.project.weight" in reached
    assert "backbone.patch_embed.proj.weight" in reached and "head.boundary.weight" in reached
    np.testing.assert_array_equal(network.head.similarity.text.asnumpy(), before)


def test_rows_by_name_length_and_error(table):
    file, rows = table
    text = TextConfig(table=str(file), names={"background": "others"}, rescale_norm=10.0)
    found = text_rows(text, ("background", "zebra-crossing"))
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 10.0, rtol=1e-6)
    np.testing.assert_allclose(found[0] / 10, rows["others"] / np.linalg.norm(rows["others"]), atol=1e-6)
    with pytest.raises(ValueError, match=r"for .zebra crosing. \(nearest: zebra crossing\); it holds road"):
        text_rows(TextConfig(table=str(file)), ("zebra crosing",))
    with pytest.raises(ValueError, match="model.text.names has car, which are no classes; known: road"):
        text_rows(TextConfig(table=str(file), names={"car": "sky"}), ("road",))
    with pytest.raises(FileNotFoundError, match="model.text.table none.npz does not exist; looked for none.npz and"):
        text_rows(TextConfig(table="none.npz"), NAMES)
    assert read_names(" road, zebra crossing").names == ("road", "zebra crossing")
    with pytest.raises(ValueError, match="different names between commas"):
        read_names("road,,sky")


def test_head_and_table_belong_together(table, tmp_path):
    plain = ModelConfig(backbone=VIT, head={"name": "fcn", "channels": 4, "norm": "group"})
    give_text(create_model(plain, 2, SIZE), plain, ("road", "sky"))  # nothing to give
    network = create_model(model_of(PIXELS, table[0]), 2, SIZE)
    with pytest.raises(ValueError, match="pixel_text tells classes by text: set model.text.table"):
        give_text(network, ModelConfig(backbone=VIT, head=PIXELS), ("road", "sky"))
    with pytest.raises(ValueError, match="fcn knows no text: leave model.text out"):
        give_text(create_model(plain, 2, SIZE), model_of(plain.head, table[0]), ("road", "sky"))
    narrow = {**PIXELS, "width": 8}
    with pytest.raises(ValueError, match="vectors of 512 numbers, the head was built for 8; set the head's width"):
        give_text(create_model(model_of(narrow, table[0]), 2, SIZE), model_of(narrow, table[0]), ("road", "sky"))
    file = tmp_path / "w.safetensors"
    write_weights(file, {"head.x": np.zeros(1, np.float32)}, {})
    with pytest.raises(ValueError, match="need a network whose classes are told by text"):
        loader_of(plain, file, NAMES, named=True)


@pytest.mark.parametrize(("head", "message"), [
    ({"name": "pixel_text", "encoder": {}}, "encoder needs a name; known: ecenet, fcn"),
    ({"name": "pixel_text", "encoder": {"name": "fnc"}}, "unknown encoder 'fnc'.*did you mean 'fcn'"),
    ({"name": "pixel_text", "encoder": {"name": "fcn", "chanels": 3}}, r"encoder \(fcn\).*unexpected .*'chanels'"),
    ({"name": "pixel_text"}, "missing argument 'encoder'"),
    ({**PIXELS, "temperature": 0.0}, "temperature is 0.0; give a number above 0"),
    ({**MASKS, "widht": 3}, "unexpected argument 'widht'"),
])  # fmt: skip
def test_wrong_heads_are_named(head, message):
    with pytest.raises(ValueError, match=message), no_init_parameters():
        create_model(ModelConfig(backbone=VIT, head=head), 2, SIZE)


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
