"""Fusion of many classes and what it scores, against values worked out by hand and pixel by pixel."""

import numpy as np
import pytest

from src.engine.predict_net import PredictNet
from src.fused import (
    asked_counts,
    calibrate,
    candidates_of,
    chance_counts,
    class_counts,
    fused_labels,
    label_counts,
    oracle_counts,
    overlaps_of,
    project_shares,
    region_shares,
    softmax,
)
from src.fused_net import ProjectNet, draw_spectrum
from src.metrics import confusion_matrix, iou
from src.spectral.segments import Segments, upsample
from src.zero_shot import binary_counts, binary_scores, split_scores
from tests.running import draw, run
from tests.test_alignseg_recipe import Means

PATCH, GRID, SIZE = 4, (3, 5), (12, 20)


@pytest.fixture(scope="module")
def segments() -> Segments:
    """Left against right, top against bottom; even degrees. The trivial vector is left out."""
    y, x = np.mgrid[0:3, 0:5]
    waves = np.stack([x - 2.0, y - 1.0]) + 0.01  # nowhere 0
    degree = np.full(GRID, 2.0, np.float32)
    flat = np.stack([np.ones(15), *waves.reshape(2, -1)], 1)
    basis = np.linalg.qr(flat)[0] / np.sqrt(2.0)
    vectors = (basis * np.sign(basis[-1])).T[1:].reshape(2, *GRID).astype(np.float32)
    return Segments(np.array([0.1, 0.2]), vectors, degree, {"patch": PATCH, "image_size": SIZE, "skip_trivial": True})


@pytest.fixture(scope="module")
def image_shares() -> np.ndarray:
    return softmax(2 * draw(4, *GRID).repeat(PATCH, 1).repeat(PATCH, 2))


@pytest.fixture(scope="module")
def label() -> np.ndarray:
    label = np.random.default_rng(1).integers(0, 3, GRID).repeat(PATCH, 0).repeat(PATCH, 1)  # class 3 is absent
    label[0] = 255
    return label


def test_calibration_is_taken_off_logits():
    logits = draw(3, 2, 2)
    lowered = logits.copy()
    lowered[[0, 2]] -= 1.5
    np.testing.assert_allclose(calibrate(softmax(logits), [0, 2], 1.5), softmax(lowered), rtol=1e-5)
    np.testing.assert_allclose(calibrate(softmax(logits), [0], 0.0), softmax(logits), rtol=1e-6)


def test_counts_are_those_of_one_class_after_the_other(image_shares, label):
    pred = image_shares.argmax(0)
    found = label_counts(pred, label, 4)
    for k in range(4):
        truth = np.where(label == 255, 255, label == k)
        np.testing.assert_array_equal(found[k], binary_counts((pred == k).astype(int), truth))
    np.testing.assert_allclose(overlaps_of(found), iou(confusion_matrix(pred, label, 4)))
    wanted = split_scores(iou(confusion_matrix(pred, label, 4)), [1, 3])
    assert split_scores(overlaps_of(found), [1, 3]) == wanted


def test_chance_by_hand():
    counts = chance_counts(np.array([60, 40, 0]))  # a third of each class is hit
    np.testing.assert_allclose(overlaps_of(counts), [20 / (60 + 100 / 3 - 20), (40 / 3) / (40 + 100 / 3 - 40 / 3), 0.0])
    pred, label = np.tile(np.arange(3), 3000), np.repeat([0, 1], [5400, 3600])
    np.testing.assert_allclose(overlaps_of(label_counts(pred, label, 3)), overlaps_of(counts), atol=1e-3)
    assert binary_scores(counts)["fb_iou"] == pytest.approx(np.mean(counts[:, 0].sum(0) / counts[:, 1].sum(0)))


def test_projected_shares(segments, image_shares):
    found = project_shares(image_shares, segments)
    np.testing.assert_allclose(found.sum(0), 1.0, atol=1e-5)
    trivial = np.full((1, 15), 1 / np.sqrt(30.0))
    basis = np.concatenate([trivial, segments.vectors.reshape(2, 15)])
    nodes = image_shares[:, 2::4, 2::4].reshape(4, 15)  # even inside a patch, so that resizing picks the patch
    smooth = (nodes * 2.0) @ basis.T @ basis
    centres = project_shares(image_shares, segments, 1.0)
    middle = (centres[:, 1::4, 1::4] + centres[:, 2::4, 2::4] + centres[:, 1::4, 2::4] + centres[:, 2::4, 1::4]) / 4
    np.testing.assert_allclose(middle[:, 1, 1:4].ravel(), smooth.reshape(4, *GRID)[:, 1, 1:4].ravel(), atol=0.05)
    np.testing.assert_allclose(found, (image_shares + centres) / 2, atol=1e-6)


def test_regions_are_even(segments, image_shares):
    found = region_shares(image_shares, segments)
    assert found.shape == image_shares.shape and len(np.unique(found[0])) <= 8
    np.testing.assert_allclose(found.sum(0), 1.0, atol=1e-5)
    np.testing.assert_allclose(found.mean((1, 2)), image_shares.mean((1, 2)), atol=1e-5)


def test_select_gives_each_class_its_segment(segments):
    """The network's class 1 nearly fills the right half, class 2 a corner of it: the half is class 1's but there."""
    right = upsample(segments.vectors > 0, SIZE, PATCH)[0]
    shares = np.full((3, *SIZE), 0.1)
    shares[0][~right] = shares[1][right] = 0.8
    shares[:, 0, -4:] = np.array([0.6, 0.3, 0.1])[:, None]  # a mistake of class 0 at the edge of the half
    shares[:, 8:, -4:] = np.array([0.1, 0.2, 0.7])[:, None, None]
    found = fused_labels("select", shares, segments)
    wanted = np.where(right, 1, 0)
    wanted[8:, -4:] = 2
    np.testing.assert_array_equal(found, wanted)
    assert (fused_labels("none", shares, segments) != wanted).sum() == 4
    assert candidates_of(segments).shape == (4, *SIZE)


def test_a_pixel_that_no_mask_claims_keeps_its_class(segments):
    """Class 3 becomes the left half; its pixels in the right half belong to none of the bands there."""
    right = upsample(segments.vectors > 0, SIZE, PATCH)[0]
    own = np.where(right, np.arange(12)[:, None] // 4, 3)  # bands, none of which overlaps a segment by a half
    own[0, -2:] = 3
    shares = softmax(4.0 * np.eye(4)[own].transpose(2, 0, 1))
    np.testing.assert_array_equal(fused_labels("select", shares, segments), own)


def test_the_oracle_takes_the_best_mask_of_every_class(segments, image_shares, label):
    found, masks = oracle_counts(image_shares, segments, label), segments.vectors > 0
    own, best = label_counts(image_shares.argmax(0), label, 4), []
    for k in range(4):
        truth, known = label == k, label != 255
        candidates = [image_shares.argmax(0) == k, *upsample(masks, SIZE, PATCH)]
        best.append(max((c & truth & known).sum() / max(((c | truth) & known).sum(), 1) for c in candidates))
    np.testing.assert_allclose(np.nan_to_num(overlaps_of(found)), best)
    assert (overlaps_of(found)[:3] >= overlaps_of(own)[:3]).all()
    np.testing.assert_array_equal(class_counts("oracle", image_shares, segments, label), found)


@pytest.mark.parametrize("kind", ["none", "project", "select", "regions", "oracle"])
def test_one_class_that_is_asked_for(kind, segments, label):
    share = softmax(2 * draw(2, *GRID, seed=4).repeat(PATCH, 1).repeat(PATCH, 2))[1]
    truth = np.where(label == 255, 255, label == 1)
    found = asked_counts(kind, share, segments, truth)
    both = np.stack([1 - share, share])
    masks = {"none": share > 0.5, "project": project_shares(both, segments)[1] > 0.5,
             "regions": region_shares(both, segments)[1] > 0.5}  # fmt: skip
    if kind in masks:
        np.testing.assert_array_equal(found, binary_counts(masks[kind].astype(int), truth))
    own, total = binary_counts((share > 0.5).astype(int), truth), (label != 255).sum()
    assert (found[1] <= total).all()
    if kind == "oracle":
        assert found[0, 1] / found[1, 1] >= own[0, 1] / own[1, 1]


@pytest.mark.parametrize("kind", ["logits", "labels"])
def test_the_served_graph_projects_as_evaluation_does(kind):
    vectors, degree = draw_spectrum()
    basis = vectors.reshape(4, -1).astype(np.float64)
    np.testing.assert_allclose(basis * degree.ravel() @ basis.T, np.eye(4), atol=1e-5)
    stored = Segments(np.zeros(4), vectors, degree, {"patch": 8, "image_size": (24, 40), "skip_trivial": False})
    image = np.random.default_rng(0).integers(0, 256, (1, 24, 40, 3), np.uint8)
    plain = PredictNet(Means(False), (24, 40), "logits")
    wanted = project_shares(softmax(run(plain, image)[0]), stored)
    found = run(ProjectNet(plain, kind), image, vectors, degree)[0]
    if kind == "logits":
        np.testing.assert_allclose(found, wanted, atol=2e-5)
        assert np.abs(wanted - softmax(run(plain, image)[0])).max() > 0.05
    else:
        assert (found == wanted.argmax(0)).mean() > 0.998 and len(np.unique(found)) == 2
