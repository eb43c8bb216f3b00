"""The AlignSeg recipe: cases T14 (learning rate) and T16 (tiles) of the spec, logits resized corner to corner."""

import numpy as np
import pytest
from mindspore import nn, ops

from src.engine.inference import window_starts
from src.engine.optimizer import learning_rates
from src.engine.predict_net import PredictNet
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
    assert -(-tile * 2 // 3) == stride
    assert window_starts(1024, tile, stride) == tops
    assert window_starts(2048, tile, stride) == lefts


class Means(nn.Cell):
    """Logits of two classes on a grid of 3 x 5: means of the image's first channel, and their negatives."""

    def __init__(self, align_corners: bool) -> None:
        super().__init__()
        self.align_corners = align_corners

    def construct(self, image):
        grid = ops.avg_pool2d(image[:, :1], 8, 8)
        return {"logits": ops.concat((grid, -grid), 1)}


@pytest.mark.parametrize("corners", [True, False])
def test_logits_are_resized_as_the_network_says(corners):
    image = np.random.default_rng(0).integers(0, 256, (24, 40, 3), np.uint8)
    found = run(PredictNet(Means(corners), (24, 40), "logits"), image[None])[0, 0]
    grid = image[..., 2].astype(np.float64).reshape(3, 8, 5, 8).mean((1, 3))  # BGR comes in, the first channel is red
    wanted = resize_corners(grid, (24, 40))
    assert (np.abs(found - wanted).max() < 1e-3) == corners
    assert corners or found[0, 0] == pytest.approx(grid[0, 0], abs=1e-3)
