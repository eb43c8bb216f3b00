"""The tool that draws affinities: they are those of the loss, its table, what misuse says."""

import cv2
import numpy as np
import pytest
from mindspore import Tensor

from src.config import load_config
from src.data import load_classes
from src.data.classes import Classes
from src.engine.weights import write_weights
from src.losses.regulariser import Regulariser
from src.models import create_model
from tests import dfr_reference as reference
from tests.commands import refuse, succeed
from tests.running import draw
from tests.tiny import weights_of
from tools import inspect_affinity
from tools.inspect_affinity import KINDS, Scene, affinities, load, look, table

TOOL = "tools/inspect_affinity.py"
CONFIG = """\
name: affinity
data: {dataset: toy_scenes, crop_size: [32, 48]}
model:
  backbone: {name: vit, width: 16, depth: 2, num_heads: 2, taps: [1, 2]}
  head: {name: consistency, channels: 8, main: {name: fcn, channels: 8, norm: group}}
loss: {name: dfr, regulariser: {kernels: [[1.0, 20.0, 0.1, 0.5]]}, consistency: {background: null}}
optimizer: {name: sgd, lr: 1e-3}
train: {steps: 2, batch_size: 2}
eval: {mode: whole, size: [48, 64]}
"""
KERNELS = ((0.5, 16.0, 0.3, 0.0), (1.5, 0.0, 0.2, 0.7))


def random_scene(h=3, w=4, stride=8):
    rng = np.random.default_rng(0)
    colours, deep = rng.random((1, 3, h, w)).astype(np.float32), draw(1, 5, h, w)
    label = rng.integers(0, 2, (h, w)).repeat(stride, 0).repeat(stride, 1)
    image = np.zeros((h * stride, w * stride, 3), np.uint8)
    return Scene(image, (h * stride, w * stride - 3), label, Tensor(colours), Tensor(deep), stride)


@pytest.mark.parametrize("l1mean", [False, True])
def test_affinities_are_the_kernel_of_the_loss(l1mean):
    scene, cell = random_scene(), (1, 2)
    term = "exp_l1mean" if l1mean else "gaussian"
    found = affinities(Regulariser(2, kernels=KERNELS, deep_term=term), scene, cell)
    colours, deep = scene.colours.asnumpy()[0], scene.deep.asnumpy()[0]
    scales = {  # xy in cells
        "joint": ((0.5, 2.0, 0.3, 0.0), (1.5, 0.0, 0.2, 0.7)), "shallow": ((0.5, 2.0, 0.3, 0.0), (1.5, 0.0, 0.2, 0.0)),
        "deep": ((1.5, 0.0, 0.0, 0.7),),
    }  # fmt: skip
    for kind in KINDS:
        weight = sum(scale[0] for scale in scales[kind])
        for place in np.ndindex(3, 4):
            wanted = reference.kernel(place, cell, colours, deep, scales[kind], 1.0, l1mean) / weight
            assert found[kind][place] == pytest.approx(wanted, rel=1e-4)
        assert found[kind][cell] == 1.0


def test_table_leaves_out_padding_and_the_pixel_itself():
    scene, classes = random_scene(), Classes(("road", "sky"), ((0, 0, 0), (1, 1, 1)), {0: 0, 1: 1})
    scene.label[:] = 0
    scene.label[:8] = 1  # the first row of cells; the last column holds padding
    even = {kind: np.ones((3, 4)) for kind in KINDS}
    first = np.zeros((3, 4))
    first[0], first[2, 3] = 1.0, 7.0
    first[1, 1] = 1.0
    line = table(["9,3"], [(9, 3)], [even | {"joint": first}], scene, classes).splitlines()[1]
    assert line.split() == ["9,3", "sky", "25.0%", "25.0%", "25.0%", "66.7%"]  # 2 of 8; 2 of 3


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A config file and random weights."""
    folder = tmp_path_factory.mktemp("affinity")
    file, weights = folder / "affinity.yaml", folder / "weights.safetensors"
    file.write_text(CONFIG)
    config = load_config(file)
    network = create_model(config.model, 9, config.eval.size)
    for i, parameter in enumerate(network.get_parameters()):
        if parameter.name.endswith("classifier.weight"):
            parameter.set_data(Tensor(draw(*parameter.shape, seed=i)))
    write_weights(weights, weights_of(network), {})
    return file, weights


def test_what_is_compared_is_what_the_loss_sees(trained):
    """Colours are means of cells, embeddings have length 1, and the label is the one that is predicted."""
    config, photo = load_config(trained[0]), np.random.default_rng(0).integers(0, 256, (48, 64, 3), np.uint8)
    network, regulariser = load(config, trained[1], load_classes(config.data))
    scene = look(network, regulariser, photo, (48, 64))
    wanted = photo.reshape(6, 8, 8, 8, 3).mean((1, 3)).transpose(2, 0, 1) / 255
    np.testing.assert_allclose(scene.colours.asnumpy()[0], wanted, atol=1e-5)
    np.testing.assert_allclose(np.square(scene.deep.asnumpy()).sum(1), 1.0, atol=1e-3)
    assert scene.deep.shape == (1, 8, 6, 8) and scene.inside().all()
    assert scene.label.shape == (48, 64) and len(np.unique(scene.label)) > 1


def test_the_predicted_classes_have_a_legend(tmp_path, monkeypatch):
    scene, figures = random_scene(), []
    monkeypatch.setattr(inspect_affinity.plt, "close", figures.append)
    classes = Classes(("road", "sky"), ((0, 0, 0), (255, 0, 0)), {0: 0, 1: 1})
    inspect_affinity.draw([(3, 4)], [dict.fromkeys(KINDS, np.zeros((3, 4)))], scene, classes, tmp_path / "a.png")
    legend = figures[0].axes[0].get_legend()
    assert [text.get_text() for text in legend.get_texts()] == ["road", "sky"]
    assert [patch.get_facecolor()[:3] for patch in legend.get_patches()] == [(0.0, 0.0, 0.0), (1.0, 0.0, 0.0)]


def test_command_draws_any_image(trained, tmp_path):
    file, weights = trained
    photo, output = tmp_path / "photo.png", tmp_path / "figures" / "affinity.png"
    cv2.imwrite(str(photo), np.random.default_rng(0).integers(0, 256, (50, 90, 3), np.uint8))
    arguments = ("--config", file, "--checkpoint", weights, "--image", photo, "--output", output)
    told = succeed(TOOL, *arguments, "--pixel", "89,49", "--pixel", "0,0").splitlines()
    assert told[1].startswith("89,49") and told[2].startswith("0,0") and told[3] == str(output)
    assert all(part.endswith("%") for part in told[1].split()[-4:])
    picture = cv2.imread(str(output))
    assert picture.shape[1] > 1500 and len(np.unique(picture.reshape(-1, 3), axis=0)) > 500


def test_misuse_says_why(trained, tmp_path):
    file, weights = trained
    photo = tmp_path / "photo.png"
    base = ["--config", file, "--checkpoint", weights, "--image", photo, "--output", tmp_path / "a.png"]
    assert f"no image at {photo}" in refuse(TOOL, *base, "--pixel", "3,4")
    cv2.imwrite(str(photo), np.zeros((50, 90, 3), np.uint8))
    assert "required: --checkpoint, --image and --pixel" in refuse(TOOL, *base)
    for text in ("3", "3,4,5", "a,b", "-1,4", "1.5,2"):
        assert f"--pixel {text}: give X,Y" in refuse(TOOL, *base, f"--pixel={text}")
    assert "90,4 lies outside the image, which has 90 x 50" in refuse(TOOL, *base, "--pixel", "90,4")
    base += ["--pixel", "3,4"]
    assert "loss is 'cross_entropy', which has no affinities" in refuse(TOOL, *base, "loss={name: cross_entropy}")
    assert "this loss is static" in refuse(TOOL, *base, "loss={name: dfr, regulariser: {kernels: [[1, 9, 1, 0]]}}")
    assert "reads 'embedding', which the head 'fcn'" in refuse(TOOL, *base, "model.head={name: fcn}")
    assert "no whole number of cells of 7 pixels" in refuse(TOOL, *base, "loss={name: dfr, regulariser: {stride: 7}}")
    assert "does not fit the network" in refuse(TOOL, *base, "model.head.channels=16")
    other = "model.head={name: consistency, main: {name: upernet, channels: 8, auxiliary: 0}}"
    assert "another head than 'consistency'" in (told := refuse(TOOL, *base, other)) and "config.yaml" in told
    assert len(told.splitlines()) == 1
    base[base.index("--output") + 1] = tmp_path / "a.jpg"
    assert "give a name that ends in .png" in refuse(TOOL, *base)
