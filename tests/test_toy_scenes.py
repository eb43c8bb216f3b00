"""The toy scenes: repeatable, exactly labelled, every class common enough, colour alone nearly useless."""

import dataclasses
from collections.abc import Callable

import numpy as np
import pytest

from benchmarks.colour_classifier import best_iou, class_iou, labelled_pixels, lookup_counts, neighbour_counts
from src.constants import IGNORE
from src.data.toy_canvas import Street
from src.data.toy_scenes import (
    BASE_SIZE,
    CAR,
    PERSON,
    POLE,
    SIGN,
    SKY,
    TOY_CLASSES,
    TOY_PALETTE,
    VEGETATION,
    draw_bin,
    draw_bonnet,
    draw_car,
    draw_fronts,
    draw_ground,
    draw_person,
    draw_pole,
    draw_scene,
    draw_street_end,
    draw_tree,
    light,
    plan_street,
)  # fmt: skip

BLANK = 254  # no class: what the label holds where a test has drawn nothing


@pytest.fixture(scope="module")
def scenes() -> list[tuple[np.ndarray, np.ndarray]]:
    return [draw_scene(0, index) for index in range(40)]


def blank_street(seed: int) -> Street:
    """A street whose image is black and whose label is BLANK."""
    street = plan_street(np.random.default_rng(seed), BASE_SIZE)
    street.label[:] = BLANK
    return street


def extent(mask: np.ndarray) -> tuple[int, int]:
    """Height and width of the box around a mask."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return int(rows[-1] - rows[0] + 1), int(columns[-1] - columns[0] + 1)


def test_a_scene_depends_on_seed_and_index_only() -> None:
    forward = {index: draw_scene(3, index) for index in (0, 1, 7)}
    np.random.seed(99)
    draw_scene(4, 1, (64, 80))
    for index in (7, 0, 1):
        again = draw_scene(3, index)
        np.testing.assert_array_equal(again[0], forward[index][0])
        np.testing.assert_array_equal(again[1], forward[index][1])


def test_other_seed_or_index_gives_another_scene() -> None:
    labels = [draw_scene(seed, index)[1] for seed, index in ((0, 0), (0, 1), (1, 0), (1, 1))]
    for first in range(4):
        for second in range(first):
            assert np.mean(labels[first] != labels[second]) > 0.05


@pytest.mark.parametrize("size", [(96, 128), (75, 101), (160, 64), (32, 32), (192, 256)])
def test_types_shapes_and_values(size: tuple[int, int]) -> None:
    image, label = draw_scene(5, 2, size)
    assert image.shape == (*size, 3) and image.dtype == np.uint8
    assert label.shape == size and label.dtype == np.uint8
    assert set(np.unique(label)) <= {*range(len(TOY_CLASSES)), IGNORE}
    assert len(np.unique(label)) >= 6
    assert image.std() > 10


@pytest.mark.parametrize(
    ("arguments", "message"),
    [((-1, 0), "seed=-1"), ((0, -2), "index=-2"), ((0, 0, (31, 128)), r"\(31, 128\).*at least 32")],
)
def test_bad_arguments_are_named(arguments: tuple, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        draw_scene(*arguments)


def test_every_class_has_its_own_name_and_colour() -> None:
    assert len(TOY_CLASSES) >= 8
    assert len(set(TOY_CLASSES)) == len(set(TOY_PALETTE)) == len(TOY_CLASSES)


def test_every_class_is_common(scenes: list[tuple[np.ndarray, np.ndarray]]) -> None:
    labels = np.stack([label for _, label in scenes])
    for number, name in enumerate(TOY_CLASSES):
        assert np.mean(labels == number) > 0.015, name
        assert np.mean((labels == number).sum((1, 2)) >= 30) > 0.8, name


def test_some_pixels_are_unlabelled(scenes: list[tuple[np.ndarray, np.ndarray]]) -> None:
    shares = np.array([np.mean(label == IGNORE) for _, label in scenes])
    assert 0.01 < shares.mean() < 0.08
    assert (shares == 0).any()


def test_light_and_noise_differ_from_scene_to_scene() -> None:
    """On a flat grey sky, which has no texture and no shadow, only exposure, slope, tint and noise are left."""
    brightness, grain = [], []
    for seed in range(40):
        street = dataclasses.replace(blank_street(seed), image=np.full((96, 128, 3), 0.5, np.float32))
        street.label[:] = SKY
        image = light(street) / 255
        brightness.append(image.mean())
        grain.append(np.diff(image, axis=1).std() / np.sqrt(2))
    assert min(brightness) > 0.5 * 0.7 * 0.9 and max(brightness) < 0.5 * 1.15 * 1.1
    assert max(brightness) > 1.4 * min(brightness)
    assert 0.009 < min(grain) < 0.015 and 0.025 < max(grain) < 0.031


@pytest.mark.parametrize("draw", [draw_tree, draw_pole, draw_person, draw_car, draw_bin])
def test_image_and_label_of_a_thing_cover_the_same_pixels(draw: Callable) -> None:
    for seed in range(10):
        street = blank_street(seed)
        draw(street, (61.3, 83.7), street.scale(0.37))
        drawn = street.label != BLANK
        assert drawn.sum() > 50
        np.testing.assert_array_equal(street.image.any(2), drawn)


@pytest.mark.parametrize("draw", [draw_street_end, draw_bonnet, draw_ground])
def test_image_and_label_of_a_backdrop_cover_the_same_pixels(draw: Callable) -> None:
    for seed in range(10):
        street = blank_street(seed)
        draw(street)
        np.testing.assert_array_equal(street.image.any(2), street.label != BLANK)


def test_house_fronts_cover_the_same_pixels_in_image_and_label() -> None:
    for side in (0, 1):
        street = blank_street(side)
        draw_fronts(street, side)
        columns = np.flatnonzero((street.label != BLANK).any(0))
        assert (columns < 64).mean() > 0.7 if side == 0 else (columns >= 64).mean() > 0.7
        np.testing.assert_array_equal(street.image.any(2), street.label != BLANK)


def test_a_nearer_thing_hides_a_farther_one() -> None:
    street = blank_street(0)
    draw_car(street, (64, 80), 1.0)
    before = street.label.copy()
    draw_person(street, (64, 84), 1.0)
    person = street.label == PERSON
    assert (before[person] == CAR).sum() > 100
    np.testing.assert_array_equal(street.label[~person], before[~person])


def test_the_farthest_things_are_still_some_pixels_wide() -> None:
    for seed in range(10):
        street = blank_street(seed)
        far = street.scale(0.29)
        draw_pole(street, (30, 80), far)
        draw_person(street, (90, 80), far)
        assert (street.label[76] == POLE).sum() >= 4
        height, width = extent(street.label == PERSON)
        assert height >= 20 and width >= 8
        sign = street.label == SIGN
        assert not sign.any() or min(extent(sign)) >= 10


def test_light_changes_no_label_and_ends_at_label_dependent_texture() -> None:
    street = dataclasses.replace(blank_street(0), image=np.full((96, 128, 3), 0.4, np.float32))
    street.label[:, :64], street.label[:, 64:] = SKY, VEGETATION
    before = street.label.copy()
    image = light(street).astype(float)
    np.testing.assert_array_equal(street.label, before)
    sky, leaves = (np.diff(part, axis=0).std() for part in (image[:, :64], image[:, 64:]))
    assert leaves > 2 * sky


def test_class_iou_by_hand() -> None:
    truth, guess = np.array([0, 0, 0, 1, 1, 2]), np.array([0, 0, 1, 1, 2, 2])
    np.testing.assert_allclose(class_iou(truth, guess)[:4], [2 / 3, 1 / 3, 1 / 2, 0])


def test_colour_classifier_solves_scenes_that_colour_does_solve() -> None:
    labels = np.random.default_rng(0).integers(0, len(TOY_CLASSES), 900).astype(np.uint8)
    pixels = (np.array(TOY_PALETTE, np.uint8)[labels], labels)
    for counts in (lookup_counts(pixels, pixels[0], 16), neighbour_counts(pixels, pixels[0], 5)):
        assert best_iou(counts, labels, labels)[1].mean() == 1.0


def test_colour_alone_stays_below_the_bound() -> None:
    train, val = labelled_pixels(0, range(60)), labelled_pixels(0, range(60, 80))
    for bins in (8, 16, 32):
        balance, iou = best_iou(lookup_counts(train, val[0], bins), train[1], val[1])
        assert 0.1 < iou.mean() < 0.45, f"{bins} bins, balance {balance}: {iou}"
