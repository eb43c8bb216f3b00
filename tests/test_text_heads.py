"""Heads whose classes are told by text: values, other classes for the same weights, wrong settings."""

import json

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor, nn, ops
from mindspore.nn.utils import no_init_parameters

from src.class_text import give_text, loader_of, read_names, text_rows
from src.config import ModelConfig, TextConfig
from src.engine.optimizer import create_optimizer
from src.engine.weights import CLASSES, parameters_of, write_weights
from src.models import create_model
from src.models.heads.text import (
    Similarity,
    TextConv,
    TextEmbedding,
    TextLinear,
    text_parameters,
)
from src.text.tables import TextTable, new_meta, write_table
from tests.running import draw, randomise, run
from tests.tiny import SIZE

WIDTH = 512
NAMES = ("road", "sky", "car", "zebra crossing")
VIT = {"name": "vit", "width": 16, "depth": 2, "num_heads": 2, "taps": [2], "drop_path": 0.0}
PIXELS = {"name": "pixel_text", "encoder": {"name": "reassemble"}, "width": WIDTH}
MASKS = {"name": "text_ecenet", "channels": 16, "norm": "group", "dropout": 0.0}


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
    assert text_rows(TextConfig(table=str(file), names={"car": "sky"}), ("road",), ("car",)).shape == (1, WIDTH)
    for same in (("road", "Road"), ("sky", "road", "ROAD")):
        with pytest.raises(ValueError, match="the classes 'road' and 'R(oad|OAD)' have one vector"):
            text_rows(TextConfig(table=str(file)), same)
    with pytest.raises(FileNotFoundError, match="model.text.table none.npz does not exist; looked for none.npz and"):
        text_rows(TextConfig(table="none.npz"), NAMES)
    assert read_names(" road, zebra crossing").names == ("road", "zebra crossing")
    with pytest.raises(ValueError, match="different names between commas"):
        read_names("road,,sky")


def test_names_of_the_training_hold_and_encoders_are_not_mixed(table, tmp_path):
    file, rows = table
    model = model_of(PIXELS, file, names={"car": "zebra crossing", "background": "others"})
    trained = create_model(model, 2, SIZE)
    give_text(trained, model, ("car", "background"))
    metadata = {"position_grid": "2x3", CLASSES: json.dumps({"names": ["car", "background"], "palette": []})}
    write_weights(tmp_path / "w.safetensors", parameters_of(trained), metadata)
    network = create_model(model, 3, SIZE)
    loader_of(model, tmp_path / "w.safetensors", ("sky", "background", "car"), named=True)[1](network)
    wanted = np.stack([rows[name] for name in ("sky", "others", "zebra crossing")])
    np.testing.assert_array_equal(network.head.similarity.text.asnumpy(), wanted)
    other = tmp_path / "other.npz"
    mixed = model.model_copy(update={"text": TextConfig(table=str(other), names={"car": "zebra crossing"})})
    fill, fresh = loader_of(mixed, tmp_path / "w.safetensors", ("sky",), named=True)[1], create_model(mixed, 1, SIZE)
    noise = np.random.default_rng(3).normal(size=(4, WIDTH)).astype(np.float32)

    def write(names: tuple[str, ...], scale: float) -> None:
        made = np.stack([rows[name] for name in NAMES]) + np.float32(scale) * noise
        meta = new_meta("ViT-B/16", normalised=False, source="drawn")
        write_table(other, TextTable(names, made, ("others",), rows["others"][None], meta))

    write(NAMES, 0.5)  # another prompt
    fill(fresh)
    write(("sky", "moon", "car", "sea"), 9.0)  # no name in common, as `car` is spelt: nothing to tell by
    fill(fresh)
    write(NAMES, 9.0)
    with pytest.raises(ValueError, match="other.npz is of another text encoder than .* of 1 common names"):
        fill(fresh)


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
    ({"name": "pixel_text", "encoder": {}}, "encoder {} has no name; known: ecenet, fcn"),
    ({"name": "pixel_text", "encoder": {"name": "fnc"}}, "unknown encoder 'fnc'.*did you mean 'fcn'"),
    ({"name": "pixel_text", "encoder": {"name": "fcn", "chanels": 3}}, r"encoder \(fcn\).*unexpected .*'chanels'"),
    ({"name": "pixel_text"}, "missing argument 'encoder'"),
    ({**PIXELS, "temperature": 0.0}, "temperature is 0.0; give a number above 0"),
    ({**MASKS, "widht": 3}, "unexpected argument 'widht'"),
])  # fmt: skip
def test_wrong_heads_are_named(head, message):
    with pytest.raises(ValueError, match=message), no_init_parameters():
        create_model(ModelConfig(backbone=VIT, head=head), 2, SIZE)
