"""The tool that draws offset fields: lengths and directions, the maps that it shows, its table, what misuse says."""

import cv2
import numpy as np
import pytest
from mindspore import Tensor

from src.config import load_config
from src.engine.weights import write_weights
from src.models import create_model
from src.models.heads.sampler import Sampler
from tests.commands import refuse, succeed
from tests.network_reference import resize_corners
from tests.running import draw
from tests.tiny import weights_of
from tools.inspect_offsets import Move, components, fit, inspect, move, table, wheel_colours

TOOL = "tools/inspect_offsets.py"
CONFIG = """\
name: offsets
data: {dataset: toy_scenes, crop_size: [32, 48]}
model:
  backbone: {name: mobilenet, repeats: [1, 1, 1, 1, 1, 1, 1]}
  head: {name: alignseg, channels: 8, norm: group}
loss: {name: alignseg}
optimizer: {name: sgd, lr: 1e-3}
train: {steps: 2, batch_size: 2}
eval: {mode: whole, size: [48, 64]}
"""


def test_shifts_are_in_pixels_of_the_input():
    source = Tensor(draw(1, 4, 5, 7))
    offset = np.empty((1, 2, 5, 7), np.float32)
    offset[:, 0], offset[:, 1] = 1.0, -0.5
    for mode, corners, shift in (
        ("standard", True, (48 / 6, -0.5 * 32 / 4)),  # an offset of 1 is a place of the grid
        ("legacy", True, (1 / 7 * 48 / 2, -0.5 / 5 * 32 / 2)),
    ):
        sampler = Sampler(mode, "zeros", corners)
        found = move("x", source, source, Tensor(offset), sampler, (33, 49))
        np.testing.assert_allclose(found.shift[0], shift[0], rtol=1e-6)
        np.testing.assert_allclose(found.shift[1], shift[1], rtol=1e-6)
    standard = move("x", source, source, Tensor(offset), Sampler(), (33, 49))
    np.testing.assert_allclose(standard.after[:, 0, :6], 0.5 * standard.before[:, 0, 1:], atol=1e-5)  # half is void
    np.testing.assert_allclose(
        standard.after[:, 1:, :6], (standard.before[:, 1:, 1:] + standard.before[:, :-1, 1:]) / 2, atol=1e-5
    )


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A config file, its network with offsets that move something, and its weights' file."""
    folder = tmp_path_factory.mktemp("offsets")
    file, weights = folder / "offsets.yaml", folder / "weights.safetensors"
    file.write_text(CONFIG)
    config = load_config(file)
    network = create_model(config.model, 9, config.eval.size).set_train(False)
    for parameter in network.get_parameters():
        if parameter.name.endswith("offset.weight"):
            parameter.set_data(Tensor(draw(*parameter.shape, seed=len(parameter.name)) * 0.3))
    write_weights(weights, weights_of(network), {})
    return file, network, weights


def test_maps_are_those_that_the_network_adds(trained):
    _, network, _ = trained
    head, image = network.head, np.random.default_rng(0).integers(0, 256, (48, 64, 3), np.uint8)
    rows, label = inspect(network, image)
    assert [len(row) for row in rows] == [2, 2, 2, 2, 1]
    up, acc = rows[3]
    assert np.abs(up.shift).max() > 0.5 and np.abs(up.after - up.before).max() > 1e-3
    total = head.smooths[3](Tensor((up.after + acc.after)[None]))
    wanted = resize_corners(head.main(total, None).asnumpy(), (48, 64))[0].argmax(0)
    assert (label == wanted).mean() > 0.99 and len(np.unique(label)) > 1
    coarser, before = rows[0]
    assert (coarser.name, before.name) == ("sum 1: coarser map", "sum 1: accumulated map")
    assert before.before.shape == (8, 12, 16) and rows[4][0].before.shape == (8, 2, 2)


def test_table_tells_borders_from_the_rest():
    label, shift = np.zeros((33, 65), int), np.zeros((2, 33, 65))
    label[:, 32:] = 1  # the border lies before column 32
    shift[0, :, 20:45], shift[1, :, 20:45] = 3.0, 4.0
    maps = np.zeros((4, 33, 65))
    line = table([[Move("sum 1: coarser map", shift, maps, maps)]], label, (33, 65)).splitlines()[1]
    # 24 .. 40 are near: all 5 pixels long; of the other 48 columns 4 + 4 are.
    assert line.split()[4:] == ["1.92", "5.00", "5.00", "5.00", f"{5 * 8 / 48:.2f}"]
    line = table([[Move("sum 1: coarser map", shift, maps, maps)]], label, (33, 20)).splitlines()[1]
    assert line.split()[4:] == ["0.00", "0.00", "0.00", "-", "0.00"]  # what is padding does not count


def test_colours_follow_the_first_component():
    pattern = np.linspace(0.0, 1.0, 12).reshape(3, 4)
    vector = np.array([1.0, -2.0, 3.0, 0.5])
    before, after = components(vector[:, None, None] * pattern, vector[:, None, None] * pattern[::-1])
    np.testing.assert_allclose(before[::-1], after, atol=1e-6)
    assert (np.diff(before[..., 0].ravel()) >= 0).all() and np.ptp(before[..., 0]) == pytest.approx(1.0)


def test_wheel_has_a_hue_for_each_direction():
    right, down, none, far = wheel_colours(np.array([[[1.0, 0.0, 0.0, 5.0]], [[0.0, 1.0, 0.0, 0.0]]]))[0]
    np.testing.assert_allclose([right, none, far], [[1, 0, 0], [1, 1, 1], [1, 0, 0]], atol=1e-6)
    np.testing.assert_allclose(down, [0.5, 1, 0], atol=1e-6)


@pytest.mark.parametrize(("shape", "fitted"), [((48, 64), (48, 64)), ((100, 50), (48, 24)), ((10, 40), (16, 64))])
def test_image_keeps_its_ratio(shape, fitted):
    image, found = fit(np.full((*shape, 3), 7, np.uint8), (48, 64))
    assert image.shape == (48, 64, 3) and found == fitted
    assert (image[: fitted[0], : fitted[1]] == 7).all() and (image[fitted[0] :] != 7).all()


def test_command_draws_any_image(trained, tmp_path):
    file, _, weights = trained
    photo, output = tmp_path / "photo.png", tmp_path / "figures" / "offsets.png"
    cv2.imwrite(str(photo), np.random.default_rng(0).integers(0, 256, (50, 90, 3), np.uint8))
    told = succeed(TOOL, "--config", file, "--checkpoint", weights, "--image", photo, "--output", output)
    assert told.count("coarser map") == told.count("accumulated map") == 4 and "context" in told
    picture = cv2.imread(str(output))
    assert picture.shape[1] > 1500 and len(np.unique(picture.reshape(-1, 3), axis=0)) > 1000


def test_misuse_says_why(trained, tmp_path):
    file, _, weights = trained
    photo = tmp_path / "photo.png"
    base = ["--config", file, "--checkpoint", weights, "--image", photo, "--output", tmp_path / "offsets.png"]
    assert f"no image at {photo}" in refuse(TOOL, *base)
    photo.write_bytes(b"no image")
    assert "cannot decode image" in refuse(TOOL, *base)
    assert "only 'alignseg' has" in refuse(TOOL, *base, "model.head={name: fcn}")
    fixed = ["model.head.align_up=false", "model.head.align_acc=false", "model.head.context=gap"]
    assert "this network moves nothing" in refuse(TOOL, *base, *fixed)
    assert "does not fit the network" in refuse(TOOL, *base, "model.head.channels=16")
    assert "give a name that ends in .png" in refuse(TOOL, *base[:-1], tmp_path / "offsets.jpg")
    assert "--checkpoint and --image" in refuse(TOOL, "--config", file)
