"""Modes, scales and flip over made-up logits functions for which the answer is known."""

import cv2
import numpy as np
import pytest

from src.config import EvalConfig
from src.engine.inference import limited_size, predict_label, predict_scores, resize_maps, slide, window_starts

WEIGHTS = np.array(
    [[1, -2, 1], [-1, 1, 0], [0, 1, -1], [2, 0, -2]], np.float32
)  # (K, 3), small integers: sums are exact
IMAGE = np.random.default_rng(0).integers(0, 256, (37, 53, 3), dtype=np.uint8)
PAD = (124, 116, 104)


class ColourMaker:
    """make(size): logits that are a linear map of each pixel's colour; keeps what it was asked for and what it saw."""

    def __init__(self) -> None:
        self.sizes: list[tuple[int, int]] = []
        self.seen: list[np.ndarray] = []

    def __call__(self, size):
        def logits_of(image):
            assert image.flags.c_contiguous and image.dtype == np.uint8
            self.seen.append(image)
            return colour_logits(image)

        self.sizes.append(tuple(size))
        return logits_of


def colour_logits(image: np.ndarray) -> np.ndarray:
    return np.einsum("kc,hwc->khw", WEIGHTS, image.astype(np.float32))


def softmax(logits: np.ndarray) -> np.ndarray:
    powers = np.exp(logits.astype(np.float64) - logits.max(axis=0))
    return powers / powers.sum(axis=0)


def settings(**values) -> EvalConfig:
    return EvalConfig(**{"mode": "whole", "size": (64, 64), **values})


MODES = {
    "resize": settings(mode="resize"),
    "whole": settings(),
    "slide": settings(mode="slide", size=(16, 24), stride=(10, 16)),
    "slide, gapless": settings(mode="slide", size=(16, 16), stride=(16, 16)),
    "slide, window larger than the image": settings(mode="slide", size=(64, 64), stride=(40, 40)),
    "slide, window wider than the image": settings(mode="slide", size=(16, 60), stride=(8, 60)),
}


@pytest.mark.parametrize("mode", MODES)
def test_every_mode_gives_the_colour_map_of_the_image(mode):
    scores = predict_scores(IMAGE, MODES[mode], ColourMaker())
    assert scores.dtype == np.float32
    np.testing.assert_allclose(scores, colour_logits(IMAGE), rtol=1e-6)
    label = predict_label(IMAGE, MODES[mode], ColourMaker(), num_classes=4)
    assert label.dtype == np.uint8
    np.testing.assert_array_equal(label, colour_logits(IMAGE).argmax(axis=0))


@pytest.mark.parametrize("mode", MODES)
def test_flip_changes_nothing_for_a_map_of_single_pixels(mode):
    scores = predict_scores(IMAGE, MODES[mode].model_copy(update={"flip": True}), ColourMaker())
    np.testing.assert_allclose(scores, softmax(colour_logits(IMAGE)), atol=1e-6)


@pytest.mark.parametrize("mode", [mode for mode in MODES if mode != "resize"])
def test_scales_change_nothing_for_an_image_of_one_colour(mode):
    image = np.full((37, 53, 3), (1, 2, 3), np.uint8)
    maker = ColourMaker()
    chosen = MODES[mode].model_copy(update={"scales": (0.5, 1.0, 1.75), "flip": True})
    np.testing.assert_allclose(predict_scores(image, chosen, maker), softmax(colour_logits(image)), atol=1e-6)


def test_scales_keep_a_ramp_where_it_is():
    # rows 8 levels apart: doubling keeps the straight line between the outermost pixel centres
    image = np.repeat((8 * np.arange(20, dtype=np.uint8))[:, None, None], 16, axis=1).repeat(3, axis=2)

    def make(size):
        return lambda view: np.stack([view[..., 0], np.full(view.shape[:2], 75)]).astype(np.float32)

    label = predict_label(image, settings(scales=(2.0,), size=(32, 32)), make, num_classes=2)
    np.testing.assert_array_equal(label, image[..., 0] < 75)


def test_views_are_averaged_as_probabilities():
    logits = {(64, 64): [0.0, 3.0], (128, 128): [4.0, 0.0]}  # by network size: scale 1 and scale 2

    def make(size):
        return lambda view: np.broadcast_to(np.array(logits[size], np.float32)[:, None, None], (2, *view.shape[:2]))

    scores = predict_scores(IMAGE, settings(scales=(1.0, 2.0)), make)
    first = (1 / (1 + np.exp(3)) + 1 / (1 + np.exp(-4))) / 2
    np.testing.assert_allclose(scores[:, 5, 7], [first, 1 - first], rtol=1e-6)
    assert scores.shape == (2, 37, 53)


def test_flipped_view_is_turned_back():
    columns = np.linspace(-2, 3, 53, dtype=np.float32)

    def make(size):  # sees nothing of the image: class 1 grows to the right
        return lambda view: np.stack([np.zeros((37, 53), np.float32), np.tile(columns, (37, 1))])

    scores = predict_scores(IMAGE, settings(mode="resize", flip=True), make)
    right = 1 / (1 + np.exp(-columns.astype(np.float64)))
    np.testing.assert_allclose(scores[1], np.tile((right + right[::-1]) / 2, (37, 1)), rtol=1e-6)


def test_flipped_view_is_mirrored_before_padding():
    maker = ColourMaker()
    predict_scores(IMAGE, settings(flip=True), maker)
    np.testing.assert_array_equal(maker.seen[1][:37, :53], IMAGE[:, ::-1])


def test_whole_pads_right_and_below_with_the_pad_pixel():
    maker = ColourMaker()
    predict_scores(IMAGE, settings(), maker)
    seen = maker.seen[0]
    assert maker.sizes == [(64, 64)] and seen.shape == (64, 64, 3)
    np.testing.assert_array_equal(seen[:37, :53], IMAGE)
    assert (seen[37:] == PAD).all() and (seen[:, 53:] == PAD).all()
    predict_scores(IMAGE, settings(), maker, pad_pixel=(1, 2, 3))
    assert (maker.seen[1][37:] == (1, 2, 3)).all()


def test_whole_asks_for_scaled_sizes_in_steps_of_32():
    maker = ColourMaker()
    image = np.zeros((360, 480, 3), np.uint8)
    predict_scores(image, settings(size=(368, 480), scales=(0.75, 1.0, 1.25, 1.1)), maker)
    assert maker.sizes == [(288, 384), (368, 480), (480, 608), (416, 544)]  # 276 x 360, -, 460 x 600, 405 x 528


def test_slide_uses_one_window_size_at_all_scales():
    maker = ColourMaker()
    predict_scores(IMAGE, settings(mode="slide", size=(16, 16), stride=(8, 8), scales=(0.5, 2.0)), maker)
    assert set(maker.sizes) == {(16, 16)} and {view.shape for view in maker.seen} == {(16, 16, 3)}


def test_whole_refuses_a_larger_image_with_the_remedy():
    with pytest.raises(ValueError) as caught:
        predict_label(IMAGE, settings(size=(32, 64)), ColourMaker(), 4)
    for part in ("37 x 53", "eval.size 32 x 64", "larger eval.size or eval.mode=slide"):
        assert part in str(caught.value)
    with pytest.raises(ValueError, match="37 x 53 pixels .*, 34 x 48 after eval.base_size, is larger .* 32 x 64"):
        predict_label(IMAGE, settings(size=(32, 64), base_size=(48, 40)), ColourMaker(), 4)


@pytest.mark.parametrize(
    ("length", "window", "stride", "starts"),
    [(4, 4, 3, [0]), (10, 4, 3, [0, 3, 6]), (11, 4, 3, [0, 3, 6, 7]), (5, 4, 4, [0, 1]), (9, 3, 3, [0, 3, 6])],
)
def test_last_window_is_moved_back_inside(length, window, stride, starts):
    assert window_starts(length, window, stride) == starts


def test_overlapping_windows_are_averaged():
    def logits_of(view):  # depends on the place in the window: class 0 row, class 1 column
        return np.stack(np.meshgrid(np.arange(4), np.arange(5), indexing="ij")).astype(np.float32)

    result = slide(IMAGE[:7, :9], (4, 5), (2, 3), logits_of, PAD)
    expected = np.zeros((2, 7, 9))
    for y in range(7):
        for x in range(9):
            rows = [y - top for top in (0, 2, 3) if 0 <= y - top < 4]
            columns = [x - left for left in (0, 3, 4) if 0 <= x - left < 5]
            expected[:, y, x] = np.mean(rows), np.mean(columns)
    np.testing.assert_allclose(result, expected, rtol=1e-6)


@pytest.mark.parametrize(
    ("size", "limits", "expected"),
    [
        ((100, 200), None, (100, 200)),
        ((100, 200), (100, 60), (50, 100)),  # the long edge decides
        ((100, 200), (400, 60), (60, 120)),  # the short edge decides
        ((200, 100), (400, 60), (120, 60)),
        ((360, 480), (2048, 512), (512, 683)),
    ],
)
def test_base_size_limits_both_edges_and_keeps_the_ratio(size, limits, expected):
    assert limited_size(size, limits) == expected


def test_base_size_resizes_the_image_and_brings_the_logits_back():
    maker = ColourMaker()
    scores = predict_scores(IMAGE, settings(base_size=(106, 100), size=(96, 128)), maker)
    assert maker.seen[0].shape == (96, 128, 3)
    inner = maker.seen[0][:74, :106]
    np.testing.assert_array_equal(inner, cv2.resize(IMAGE, (106, 74), interpolation=cv2.INTER_LINEAR))
    np.testing.assert_allclose(scores, bilinear(colour_logits(inner), (37, 53)), atol=1e-3)


def bilinear(maps: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Half-pixel centres, clamped at the edges, no anti-aliasing; float64."""
    for axis, target in zip((1, 2), size, strict=True):
        source = maps.shape[axis]
        place = np.clip((np.arange(target) + 0.5) * source / target - 0.5, 0, source - 1)
        low = np.floor(place).astype(int)
        share = (place - low).reshape([-1, 1] if axis == 1 else [1, -1])
        upper = maps.take(np.minimum(low + 1, source - 1), axis)
        maps = maps.take(low, axis).astype(np.float64) * (1 - share) + upper * share
    return maps


@pytest.mark.parametrize("size", [(23, 31), (46, 62), (50, 33), (92, 124), (11, 15), (7, 31), (6, 8), (1, 1), (23, 8)])
def test_resize_is_the_half_pixel_formula_up_and_down(size):
    maps = np.random.default_rng(2).normal(size=(3, 23, 31)).astype(np.float32)
    np.testing.assert_allclose(resize_maps(maps, size), bilinear(maps, size), atol=2e-6)


def test_halving_is_the_half_pixel_formula():
    maps = np.random.default_rng(3).normal(size=(2, 24, 32)).astype(np.float32)
    np.testing.assert_allclose(resize_maps(maps, (12, 16)), bilinear(maps, (12, 16)), atol=2e-6)


def test_first_of_equal_classes_wins():
    def make(size):
        return lambda view: np.zeros((3, *view.shape[:2]), np.float32)

    assert not predict_label(IMAGE, settings(), make, 3).any()


def test_another_number_of_classes_is_refused():
    with pytest.raises(ValueError, match="the network gives 4 classes, but the data set has 11"):
        predict_label(IMAGE, settings(), ColourMaker(), 11)
