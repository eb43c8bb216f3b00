"""Each transform against values worked out by hand, then the whole recipe on an image that holds its coordinates."""

import colorsys

import cv2
import numpy as np
import pytest

from src.config import DataConfig
from src.data import train_transforms
from src.data.transforms import (
    MEAN_PIXEL,
    change_colours,
    change_levels,
    declared_columns,
    largest_class_share,
    pad,
    photometric_distortion,
    present_classes,
    random_flip,
    random_window,
)


class Script:
    """A generator whose draws are written down beforehand; it also counts the draws that are made."""

    def __init__(self, *draws):
        self.draws = list(draws)
        self.count = 0

    def _next(self, *_):
        self.count += 1
        return self.draws.pop(0)

    random = uniform = integers = _next


def make_sample(label, image=None):
    label = np.asarray(label, np.uint8)
    image = np.repeat(label[..., None], 3, axis=2) if image is None else np.asarray(image, np.uint8)
    return {"image": image, "label": label}


def rng(seed=0):
    return np.random.default_rng(seed)


def random_resize(base_size, scale_range):
    """A window of all that there is."""
    return random_window(base_size, scale_range, (10**6, 10**6), 1.0)


def random_crop(size, max_class_share):
    return random_window(None, (1.0, 1.0), size, max_class_share)


# --- resize ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("base", "scale", "expected"),
    [
        (None, 0.5, (15, 20)),
        (None, 1.26, (38, 50)),  # 37.8, 50.4
        ((80, 45), 1.0, (45, 60)),  # min(80 / 40, 45 / 30) = 1.5
        ((45, 80), 1.0, (45, 60)),  # the larger number limits the long edge, whatever the order
        ((80, 45), 2.0, (90, 120)),
        ((50, 33), 0.7, (23, 31)),  # limits 35 and 23: min(35 / 40, 23 / 30) = 0.7667 -> 23 x 30.67
        ((2048, 15), 1.0, (15, 20)),  # the short edge decides
        ((20, 2048), 1.0, (20, 27)),  # 2048 limits the long edge, so the short one decides: 20 x 26.67
        (None, 0.001, (1, 1)),
    ],
)
def test_resize_keeps_the_ratio_within_the_limits(base, scale, expected):
    sample = random_resize(base, (scale, scale))(make_sample(np.zeros((30, 40))), rng())
    assert {key: array.shape[:2] for key, array in sample.items()} == dict.fromkeys(sample, expected)


def test_resize_draws_uniformly_from_the_range():
    resize, sample = random_resize(None, (0.5, 2.0)), make_sample(np.zeros((100, 2)))
    heights = [resize(sample, rng(seed))["label"].shape[0] for seed in range(300)]
    assert 50 <= min(heights) < 60 and 190 < max(heights) <= 200
    assert abs(np.mean(heights) - 125) < 4 * 43.3 / 300**0.5  # uniform: deviation 150 / 12**0.5 = 43.3


def test_resize_is_bilinear_for_the_image_and_nearest_for_the_rest():
    sample = make_sample([[0, 7]], [[[0, 40, 0], [100, 80, 0]]])
    bigger = random_resize(None, (2.0, 2.0))(sample, rng())
    np.testing.assert_array_equal(bigger["label"], [[0, 0, 7, 7]] * 2)
    np.testing.assert_array_equal(bigger["image"][0], [[0, 40, 0], [25, 50, 0], [75, 70, 0], [100, 80, 0]])
    smaller = random_resize(None, (0.5, 0.5))(make_sample([[0, 1, 2, 3]] * 2), rng())
    np.testing.assert_array_equal(smaller["label"], [[1, 3]])  # centres at 1.0 and 3.0, where pixels 1 and 3 begin


# --- crop -----------------------------------------------------------------------------------------------------------


def test_crop_cuts_everything_at_one_place():
    label = np.arange(12).reshape(3, 4)
    cropped = random_crop((2, 2), 1.0)(make_sample(label), Script(1.0, 1, 2))  # scale 1, top 1, left 2
    np.testing.assert_array_equal(cropped["label"], [[6, 7], [10, 11]])
    np.testing.assert_array_equal(cropped["image"][..., 1], [[6, 7], [10, 11]])
    assert cropped["label"].shape == (2, 2)


def test_crop_reaches_every_place_and_keeps_small_edges():
    label = np.arange(12).reshape(3, 4)
    corners = {int(random_crop((2, 9), 1.0)(make_sample(label), rng(s))["label"][0, 0]) for s in range(30)}
    assert corners == {0, 4}  # two places for the rows; all 4 columns are kept
    assert random_crop((2, 9), 1.0)(make_sample(label), rng())["label"].shape == (2, 4)


def test_crop_takes_the_first_window_within_the_limit():
    label = np.zeros((1, 8), np.uint8)
    label[0, 6:] = 1  # windows of 4 from 0..4: shares of class 0 are 1, 1, 1, 0.75, 0.5
    draws = Script(1.0, 0, 0, 0, 3, 0, 4, 0, 1)
    cropped = random_crop((1, 4), 0.75)(make_sample(label), draws)
    np.testing.assert_array_equal(cropped["label"], [[0, 0, 1, 1]])  # 0.75 itself is too much
    assert draws.count == 7


def test_crop_gives_up_after_ten_windows():
    draws = Script(1.0, *[0, 3] * 9, 0, 2, *[0, 1] * 5)
    cropped = random_crop((1, 4), 0.75)(make_sample([[0, 1, 2, 3, 3, 3, 3, 3]], None), draws)
    assert draws.count == 21
    np.testing.assert_array_equal(cropped["label"], [[2, 3, 3, 3]])


@pytest.mark.parametrize(
    ("label", "share"),
    [([0, 0, 0, 1], 0.75), ([0, 0, 255, 1], 2 / 3), ([255, 255], 1.0), ([4, 4], 1.0), ([254, 255, 255, 3], 0.5)],
)
def test_largest_class_share_counts_labelled_pixels(label, share):
    assert largest_class_share(np.array([label], np.uint8)) == pytest.approx(share)


# --- flip -----------------------------------------------------------------------------------------------------------


def test_flip_mirrors_everything_or_nothing():
    sample = make_sample([[1, 2, 3]])
    flipped = random_flip(1.0)(sample, rng())
    np.testing.assert_array_equal(flipped["label"], [[3, 2, 1]])
    np.testing.assert_array_equal(flipped["image"][..., 0], [[3, 2, 1]])
    assert random_flip(0.0)(sample, rng()) is sample
    share = np.mean([random_flip(0.3)(sample, rng(s))["label"][0, 0] == 3 for s in range(500)])
    assert abs(share - 0.3) < 4 * (0.21 / 500) ** 0.5


# --- colours --------------------------------------------------------------------------------------------------------


def test_levels_are_scaled_rounded_and_clipped():
    image = np.array([[[0, 101, 250]]], np.uint8)
    np.testing.assert_array_equal(change_levels(image, 1.0, 10.6), [[[11, 112, 255]]])
    np.testing.assert_array_equal(change_levels(image, 1.0, -20.0), [[[0, 81, 230]]])
    np.testing.assert_array_equal(change_levels(image, 0.5, 0.0), [[[0, 50, 125]]])  # 50.5 to even
    np.testing.assert_array_equal(change_levels(image, 1.5, 0.0), [[[0, 152, 255]]])


def test_hue_turns_and_saturation_scales():
    red, grey = [255, 0, 0], [90, 90, 90]
    image = np.array([[red, grey]], np.uint8)
    np.testing.assert_array_equal(change_colours(image, 1.0, 30), [[[255, 255, 0], grey]])  # 60 degrees: yellow
    np.testing.assert_array_equal(change_colours(image, 1.0, -30), [[[255, 0, 255], grey]])  # below 0: magenta
    np.testing.assert_allclose(change_colours(image, 0.5, 0), [[[255, 127, 127], grey]], atol=1)


def test_colours_agree_with_the_hsv_formula():
    image = rng().integers(0, 256, (5, 5, 3), dtype=np.uint8)
    expected = np.empty(image.shape)
    for place in np.ndindex(5, 5):
        hue, saturation, value = colorsys.rgb_to_hsv(*(image[place] / 255))
        expected[place] = colorsys.hsv_to_rgb((hue + 2 * 11 / 360) % 1, min(saturation * 1.3, 1), value)
    # 8-bit hue and saturation: a step of two degrees of hue is up to 255 / 30 levels
    np.testing.assert_allclose(change_colours(image, 1.3, 11), expected * 255, atol=7)


def as_table(gain, shift):
    return np.clip(np.rint(gain * np.arange(256, dtype=np.float32) + np.float32(shift)), 0, 255).astype(np.uint8)


def test_levels_are_those_of_the_rounded_formula():
    """A value within float32's rounding of a half may go the other way; seen once in 768,000."""
    generator, levels = rng(), np.arange(256, dtype=np.uint8)[None]
    draws = [(generator.uniform(0.5, 1.5), generator.uniform(-32, 32)) for _ in range(1000)]
    differences = [np.abs(change_levels(levels, *draw)[0].astype(int) - as_table(*draw)) for draw in draws]
    assert np.max(differences) <= 1 and np.mean(differences) < 1e-4


def test_colours_are_those_of_tables_of_hue_and_saturation():
    image = rng().integers(0, 256, (40, 50, 3), dtype=np.uint8)
    for saturation, turn in ((0.5, 0), (1.0, 18), (1.0, -18), (1.5, -7), (0.83, 11)):
        hsv = cv2.cvtColor(image, cv2.COLOR_RGB2HSV)
        hsv[..., 0] = (hsv[..., 0].astype(int) + turn) % 180
        hsv[..., 1] = as_table(saturation, 0.0)[hsv[..., 1]]
        expected = cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB)
        assert np.mean(change_colours(image, saturation, turn) != expected) < 1e-4


def test_photometric_order_and_ranges():
    """Draws: shift if coin, gain if coin, order coin, saturation if coin, turn if coin; a coin below 0.5 says yes."""
    sample = make_sample([[3]], [[[100, 60, 200]]])
    distort = photometric_distortion()
    first = distort(sample, Script(0.4, 20.0, 0.4, 1.4, 0.4, 0.6, 0.6))["image"]
    np.testing.assert_array_equal(first, [[[168, 112, 255]]])  # (120, 80, 220) * 1.4
    saturated = Script(0.6, 0.4, 1.4, 0.6, 0.4, 0.5, 0.6)  # saturation before the gain, which comes last
    # HSV of (100, 60, 200): S 0.7 -> 0.35; so 200, 130, and 150 between; times 1.4: 280, 182, 210
    np.testing.assert_allclose(distort(sample, saturated)["image"], [[[210, 182, 255]]], atol=2)
    unchanged = distort(sample, Script(0.6, 0.6, 0.6, 0.6, 0.6))
    np.testing.assert_array_equal(unchanged["image"], sample["image"])
    assert unchanged["label"] is sample["label"]


def test_photometric_stays_within_its_ranges():
    grey = make_sample(np.zeros((1, 1)), [[[100, 100, 100]]])
    distort, generator = photometric_distortion(), rng()
    values = np.array([distort(grey, generator)["image"][0, 0, 0] for _ in range(2000)])
    assert values.min() >= 34 and values.max() <= 198  # (100 -+ 32) * (0.5 .. 1.5)
    assert values.min() < 50 and values.max() > 180 and 0.22 < np.mean(values == 100) < 0.30  # nothing drawn: 1/4


# --- pad and present ------------------------------------------------------------------------------------------------


def test_pad_fills_right_and_below():
    padded = pad((2, 3), (9, 8, 7))(make_sample([[1, 2]]), rng())
    np.testing.assert_array_equal(padded["label"], [[1, 2, 255], [255, 255, 255]])
    np.testing.assert_array_equal(padded["valid"], [[1, 1, 0], [0, 0, 0]])
    assert pad((1, 2))(make_sample([[1, 2]]), rng())["valid"].tolist() == [[1, 1]]
    np.testing.assert_array_equal(padded["image"][0], [[1, 1, 1], [2, 2, 2], [9, 8, 7]])
    np.testing.assert_array_equal(padded["image"][1], [[9, 8, 7]] * 3)
    assert tuple(round(mean) for mean in (123.675, 116.28, 103.53)) == MEAN_PIXEL


def test_pad_needs_room_and_a_value_for_every_key():
    with pytest.raises(ValueError, match="2 x 2 pixels to 2 x 1"):
        pad((2, 1))(make_sample(np.zeros((2, 2))), rng())
    sample = {**make_sample([[1]]), "edge": np.ones((1, 1), np.uint8), "score": np.ones(4)}
    with pytest.raises(KeyError, match="'edge'.*fills"):
        pad((1, 2))(sample, rng())
    padded = pad((1, 2), fills={"edge": 5})(sample, rng())
    np.testing.assert_array_equal(padded["edge"], [[1, 5]])
    assert padded["score"].shape == (4,)  # not per pixel


def test_present_lists_the_classes_of_the_crop():
    transform = present_classes(3)
    present = transform(make_sample([[7, 2, 255, 7]]), rng())["present"]
    np.testing.assert_array_equal(present, [2, 7, -1])
    assert present.dtype == np.int32 and declared_columns([random_flip(0.5), transform]) == ("present",)
    np.testing.assert_array_equal(transform(make_sample([[255]]), rng())["present"], [-1, -1, -1])
    with pytest.raises(ValueError, match="4 classes.*at most 3.*max_classes"):
        transform(make_sample([[0, 1, 2, 254]]), rng())
    asked = {**make_sample([[7, 0, 255, 7]]), "category": np.array(5)}  # the crop has lost the class
    np.testing.assert_array_equal(transform(asked, rng())["present"], [5, 0, 7])


# --- the whole recipe -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("crop", [(64, 96), (300, 400)])  # inside the image; larger than it
def test_recipe_keeps_image_and_label_together(crop):
    """The image holds its coordinates, which bilinear resizing keeps; so the label can be worked out from the image."""
    rows, columns = np.mgrid[0:160, 0:200]
    image = np.stack([columns, rows, np.zeros_like(rows)], axis=-1).astype(np.uint8)
    label = columns // 25 + 8 * (rows // 40)
    settings = DataConfig(dataset="toy_scenes", crop_size=crop, photometric=False)
    transforms = train_transforms(settings, max_classes=32)
    mirrored = 0
    for seed in range(20):
        sample, generator = make_sample(label, image), rng(seed)
        for transform in transforms:
            sample = transform(sample, generator)
        assert sample["image"].shape == (*crop, 3) and sample["label"].shape == sample["valid"].shape == crop
        real = sample["valid"] == 1
        assert (sample["label"][~real] == 255).all() and (sample["image"][~real] == MEAN_PIXEL).all()
        x, y = sample["image"][..., 0].astype(int), sample["image"][..., 1].astype(int)
        clear = real & (abs(x % 25 - 12) < 11) & (abs(y % 40 - 20) < 18)  # not beside a border between labels
        np.testing.assert_array_equal(sample["label"][clear], (x // 25 + 8 * (y // 40))[clear])
        assert clear.mean() > 0.5 * real.mean() and set(np.unique(sample["label"][real])) <= set(range(32))
        np.testing.assert_array_equal(
            sample["present"][sample["present"] >= 0], np.unique(sample["label"][sample["label"] != 255])
        )
        mirrored += x[0, 0] > x[0, 30]
    assert 3 < mirrored < 17


def test_recipe_follows_the_settings():
    def count(**settings):
        return len(train_transforms(DataConfig(dataset="toy_scenes", crop_size=(8, 8), **settings), 3))

    assert count() == 5 and count(photometric=False) == 4
    image = np.full((8, 8, 3), 50, np.uint8)
    sample = make_sample(np.zeros((8, 8)), image)
    settings = DataConfig(dataset="toy_scenes", crop_size=(10, 9), flip=0.0, photometric=False, scale_range=(1.0, 1.0))
    for transform in train_transforms(settings, 3, pad_pixel=(1, 2, 3)):
        sample = transform(sample, rng())
    assert tuple(sample["image"][9, 8]) == (1, 2, 3) and cv2.countNonZero(sample["valid"]) == 64
