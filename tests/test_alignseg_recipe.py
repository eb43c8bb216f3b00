"""The AlignSeg recipe: cases T14 (learning rate) and T16 (tiles) of the spec, logits resized corner to corner, tiles,
scales and flip from the image to the scores.
"""

import cv2
import numpy as np
import pytest
from mindspore import nn, ops
from scipy.special import softmax

from src.config import EvalConfig, load_config
from src.constants import MEAN_PIXEL
from src.engine.graphs import NetworkLogits
from src.engine.inference import predict_scores, window_starts
from src.engine.optimizer import learning_rates
from src.engine.predict_net import PredictNet
from tests.conftest import ROOT
from tests.network_reference import resize_corners
from tests.running import run


def test_t14_learning_rates():
    rates = learning_rates(0.01, 120_000, power=0.9)
    expected = {0: 1.0e-2, 30_000: 7.7189e-3, 60_000: 5.3589e-3, 90_000: 2.8717e-3, 119_999: 2.6837e-7}
    for step, rate in expected.items():
        assert rates[step] == pytest.approx(rate, rel=1e-4), step


@pytest.mark.parametrize(("tile", "stride", "tops", "lefts"), [
    (872, 582, [0, 152], [0, 582, 1164, 1176]), (769, 513, [0, 255], [0, 513, 1026, 1279]),
])  # fmt: skip
def test_t16_tiles(tile, stride, tops, lefts):
    assert window_starts(1024, tile, stride) == tops
    assert window_starts(2048, tile, stride) == lefts


@pytest.mark.parametrize("name", ["resnet101_cityscapes", "resnet50_cityscapes"])
def test_the_released_recipe_of_cityscapes(name):
    """Section 7.1 and 7.4 of the spec."""
    config = load_config(ROOT / "config" / "alignseg" / f"{name}.yaml")
    rule, data = config.optimizer, config.data
    assert (rule.name, rule.lr, rule.momentum, rule.weight_decay, rule.power) == ("sgd", 0.01, 0.9, 5e-4, 0.9)
    assert (rule.warmup_steps, rule.head_lr_multiplier, config.train.steps) == (0, 1.0, 120_000)
    assert config.train.batch_size == 4 and "Train: bash scripts/run_distribute_train.sh" in header(name)
    assert header(name).split(f"{name}.yaml ")[1].startswith("2\n")  # devices
    assert (data.crop_size, data.scale_range, data.flip) == ((872, 872), (0.7, 2.1), 0.5)
    assert not data.photometric and data.max_class_share == 1.0
    assert config.loss == {"name": "alignseg", "weights": {"lovasz": 0.8}}
    assert (config.eval.mode, config.eval.size, config.eval.stride) == ("slide", (872, 872), (582, 582))
    assert config.model.head == {"name": "alignseg", "channels": 256}


def header(name: str) -> str:
    """What stands above the settings of a config of ours."""
    return (ROOT / "config" / "alignseg" / f"{name}.yaml").read_text().split("_base_:")[0]


class Means(nn.Cell):
    """Logits of two classes on a grid of 3 x 5: (m - 127.5) / 8 of means m of the image's red, and their negatives."""

    def __init__(self, align_corners: bool) -> None:
        super().__init__()
        self.align_corners = align_corners

    def construct(self, image):
        grid = (ops.avg_pool2d(image[:, :1], 8, 8) - 127.5) / 8.0
        return {"logits": ops.concat((grid, -grid), 1)}


@pytest.mark.parametrize("corners", [True, False])
def test_logits_are_resized_as_the_network_says(corners):
    image = np.random.default_rng(0).integers(0, 256, (24, 40, 3), np.uint8)
    found = run(PredictNet(Means(corners), (24, 40), "logits"), image[None])[0, 0]
    grid = (image[..., 2].astype(np.float64).reshape(3, 8, 5, 8).mean((1, 3)) - 127.5) / 8  # BGR comes in
    wanted = resize_corners(grid, (24, 40))
    assert (np.abs(found - wanted).max() < 1e-3) == corners
    assert corners or found[0, 0] == pytest.approx(grid[0, 0], abs=1e-3)


TILE, STRIDE = (24, 40), (16, 27)  # two thirds, rounded up
IMAGE = np.random.default_rng(1).integers(0, 256, (37, 70, 3), np.uint8)


def tile_logits(tile: np.ndarray) -> np.ndarray:
    """Logits (2, 24, 40) of the network of `Means` over a tile, resized corner to corner."""
    grid = (tile[..., 0].astype(np.float64).reshape(3, 8, 5, 8).mean((1, 3)) - 127.5) / 8
    return resize_corners(np.stack([grid, -grid]), TILE)


def slid(view: np.ndarray) -> np.ndarray:
    """Spec section 8.1: tiles of logits are added up and divided by their number; too small an image is padded."""
    height, width = (max(side, tile) for side, tile in zip(view.shape[:2], TILE, strict=True))
    padded = np.full((height, width, 3), MEAN_PIXEL, np.uint8)
    padded[: view.shape[0], : view.shape[1]] = view
    total, hits = np.zeros((2, height, width)), np.zeros((height, width))
    for y in (*range(0, height - 24, STRIDE[0]), height - 24):
        for x in (*range(0, width - 40, STRIDE[1]), width - 40):
            total[:, y : y + 24, x : x + 40] += tile_logits(padded[y : y + 24, x : x + 40])
            hits[y : y + 24, x : x + 40] += 1
    return (total / hits)[:, : view.shape[0], : view.shape[1]]


@pytest.fixture(scope="module")
def make():
    return NetworkLogits(lambda size: Means(True), lambda network: None)


def test_tiles_of_logits_are_averaged(make):
    settings = EvalConfig(mode="slide", size=TILE, stride=STRIDE)
    np.testing.assert_allclose(predict_scores(IMAGE, settings, make), slid(IMAGE), atol=1e-4)


def test_scales_and_flip_are_brought_back_before_they_are_added(make):
    """The release adds views of unequal sizes and turns images upside down (spec section 8.2)."""
    settings = EvalConfig(mode="slide", size=TILE, stride=STRIDE, scales=(0.5, 1.0, 1.5), flip=True)
    wanted = np.zeros((2, 37, 70))
    for size in ((19, 35), (37, 70), (56, 105)):
        view = cv2.resize(IMAGE, size[::-1], interpolation=cv2.INTER_LINEAR)
        for turned in (False, True):
            logits = slid(view[:, ::-1] if turned else view)
            logits = np.stack([cv2.resize(part, (70, 37), interpolation=cv2.INTER_LINEAR) for part in logits])
            shares = softmax(logits, 0)
            wanted += (shares[:, :, ::-1] if turned else shares) / 6
    assert np.ptp(wanted[0]) > 0.3
    np.testing.assert_allclose(predict_scores(IMAGE, settings, make), wanted, atol=1e-4)
