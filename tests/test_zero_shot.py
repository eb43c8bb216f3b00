"""Scores of the zero-shot protocols against values worked out by hand (spec sazs, section 8)."""

import numpy as np
import pytest

from src.zero_shot import binary_counts, binary_scores, generalised_scores, harmonic_mean, mean_of_folds


def test_the_published_toy_check():
    counts = np.array([[[80, 6], [84, 10]], [[70, 3], [79, 12]]])
    found = binary_scores(counts)
    assert found["miou"] == pytest.approx(0.425)
    assert found["fb_iou"] == pytest.approx(0.664668, abs=5e-7)
    assert mean_of_folds([found, {"miou": 0.0, "fb_iou": 0.0}])["miou"] == pytest.approx(0.2125)


def test_counts_of_an_image_with_void():
    pred, label = np.array([[0, 0, 1, 1, 1, 0]]), np.array([[0, 1, 1, 0, 255, 255]])
    assert binary_counts(pred, label).tolist() == [[1, 1], [3, 3]]
    assert binary_counts(pred, label, ignore_void=False).tolist() == [[1, 1], [4, 4]]  # each void pixel in one union


def test_a_class_that_occurs_nowhere_scores_0():
    counts = np.array([[[4, 0], [4, 0]], [[2, 2], [2, 2]]])
    assert binary_scores(counts) == {"miou": 0.5, "fb_iou": 1.0}


@pytest.mark.parametrize(
    ("pred", "label", "message"),
    [
        ([[0, 2]], [[0, 1]], "prediction holds the value 2"), ([[0, 1]], [[0, 7]], "label holds the value 7"),
        ([[0]], [[0, 1]], "must be equal"),
    ],
)  # fmt: skip
def test_maps_of_other_values_are_refused(pred, label, message):
    with pytest.raises(ValueError, match=message):
        binary_counts(np.array(pred), np.array(label))


def test_seen_unseen_and_their_harmonic_mean():
    matrix = np.array([[6, 2, 0, 0], [0, 4, 0, 0], [1, 0, 1, 0], [0, 0, 0, 0]])
    found = generalised_scores(matrix, [1, 3])  # IoU 6/9, 4/6, 1/2, absent
    seen, unseen = (6 / 9 + 1 / 2) / 2, 4 / 6
    assert found == pytest.approx({"seen": seen, "unseen": unseen, "hiou": 2 * seen * unseen / (seen + unseen)})
    assert generalised_scores(matrix, [3]) == {"seen": pytest.approx(11 / 18), "unseen": None, "hiou": None}
    assert harmonic_mean(0.0, 0.0) == 0.0 and harmonic_mean(0.919, 0.778) == pytest.approx(0.843, abs=5e-4)


@pytest.mark.parametrize("unseen", [[], [0, 1], [5]])
def test_unseen_classes_must_be_some_of_the_classes(unseen):
    with pytest.raises(ValueError, match="need some, not all, of the ids 0 to 1"):
        generalised_scores(np.eye(2), unseen)
