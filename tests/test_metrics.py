"""Counts and scores against hand-computed values and plain loops; the evaluator's sums and messages."""

import json
import math
from threading import Event
from types import SimpleNamespace

import numpy as np
import pytest

from src.engine.evaluator import evaluate
from src.metrics import (
    boundary_counts,
    boundary_f,
    class_accuracy,
    confusion_matrix,
    format_table,
    iou,
    mean_iou,
    pixel_accuracy,
    summarise,
)

LABEL = np.array([[0, 0, 1], [1, 255, 2]], np.uint8)
PRED = np.array([[0, 1, 1], [1, 0, 2]], np.uint8)
MATRIX = [[1, 1, 0, 0], [0, 2, 0, 0], [0, 0, 1, 0], [0, 0, 0, 0]]  # of the two above, class 3 is absent
CLASSES = SimpleNamespace(names=("road", "car [old]", "sky", "cow"))


def split_at(column: int) -> np.ndarray:
    """(5, 8) uint8: class 0 left of the column, class 1 from it on."""
    return np.repeat((np.arange(8) >= column)[None], 5, axis=0).astype(np.uint8)


def test_confusion_matrix_has_rows_of_labels_and_leaves_out_ignored_pixels():
    matrix = confusion_matrix(PRED, LABEL, 4)
    assert matrix.dtype == np.int64
    assert matrix.tolist() == MATRIX


def test_scores_are_the_hand_computed_ones():
    matrix = np.array(MATRIX)
    np.testing.assert_allclose(iou(matrix), [1 / 2, 2 / 3, 1, math.nan], rtol=1e-15)
    np.testing.assert_allclose(class_accuracy(matrix), [1 / 2, 1, 1, math.nan], rtol=1e-15)
    assert pixel_accuracy(matrix) == pytest.approx(4 / 5)
    assert mean_iou(matrix) == pytest.approx((1 / 2 + 2 / 3 + 1) / 3)


def test_class_that_is_only_predicted_counts_with_zero():
    matrix = confusion_matrix(np.array([[0, 1]]), np.array([[0, 0]]), 2)
    assert mean_iou(matrix) == pytest.approx((1 / 2 + 0) / 2)
    np.testing.assert_array_equal(class_accuracy(matrix), [1 / 2, math.nan])


def test_nothing_labelled_gives_nan_without_a_warning(recwarn):
    matrix = np.zeros((2, 2), np.int64)
    assert math.isnan(mean_iou(matrix)) and math.isnan(pixel_accuracy(matrix))
    assert not recwarn.list


@pytest.mark.parametrize(
    ("pred", "label", "message"),
    [
        ([[0, 4]], [[0, 1]], "the prediction holds the value 4 .1 pixels are no class., but there are 4 classes"),
        ([[0, 4]], [[0, 255]], "the prediction holds the value 4"),
        ([[0, -1]], [[0, 0]], "the prediction holds the value -1"),
        ([[0, 1]], [[0, 77]], "the label holds the value 77 .* other pixels must be 255"),
        ([[0, 1]], [[0], [1]], r"prediction has shape \(1, 2\), the label \(2, 1\)"),
    ],
)
def test_confusion_matrix_refuses_what_is_no_class(pred, label, message):
    with pytest.raises(ValueError, match=message):
        confusion_matrix(np.array(pred), np.array(label), 4)


def test_boundary_counts_of_a_shifted_border():
    # labelled: class 0 ends in column 2, class 1 starts in column 3; predicted: two columns further right
    assert boundary_counts(split_at(5), split_at(3), 2, radius=2).tolist() == [[5, 5, 5, 5]] * 2
    assert boundary_counts(split_at(5), split_at(3), 2, radius=1.9).tolist() == [[0, 5, 0, 5]] * 2


def test_boundary_distances_are_euclidean():
    pred, label = np.zeros((2, 5, 5), np.uint8)
    pred[1, 1] = label[2, 2] = 1  # class 1: one pixel each, a diagonal step apart
    assert boundary_counts(pred, label, 2, radius=1.4)[1].tolist() == [0, 1, 0, 1]
    assert boundary_counts(pred, label, 2, radius=1.5)[1].tolist() == [1, 1, 1, 1]


def test_ignored_pixels_make_no_boundary_and_hide_predictions():
    label = split_at(3)
    label[:, 2:5] = 255  # the border itself is not labelled
    assert boundary_counts(split_at(4), label, 2, radius=9).tolist() == [[0, 0, 0, 0]] * 2
    # a predicted border inside the labelled part still counts, and finds nothing
    assert boundary_counts(split_at(6), label, 2, radius=9).tolist() == [[0, 5, 0, 0]] * 2


def counts_by_loops(pred: np.ndarray, label: np.ndarray, num_classes: int, radius: float) -> list[list[int]]:
    pred = np.where(label == 255, 255, pred)

    def edges(classes, k):
        found = []
        for y, x in np.argwhere(classes == k):
            for near_y, near_x in ((y - 1, x), (y + 1, x), (y, x - 1), (y, x + 1)):
                inside = 0 <= near_y < classes.shape[0] and 0 <= near_x < classes.shape[1]
                if inside and classes[near_y, near_x] not in (k, 255):
                    found.append((y, x))
                    break
        return found

    def near(points, targets):
        return sum(any(math.dist(point, target) <= radius for target in targets) for point in points)

    rows = [(edges(pred, k), edges(label, k)) for k in range(num_classes)]
    return [[near(p, t), len(p), near(t, p), len(t)] for p, t in rows]


@pytest.mark.parametrize("radius", [1, 2.3])
def test_boundary_counts_equal_plain_loops(radius):
    rng = np.random.default_rng(1)
    pred, label = rng.integers(0, 4, (2, 4, 5)).repeat(3, axis=1).repeat(3, axis=2).astype(np.uint8)
    label[rng.random(label.shape) < 0.1] = 255
    expected = counts_by_loops(pred, label, 5, radius)
    assert boundary_counts(pred, label, 5, radius).tolist() == expected
    assert 0 < sum(row[0] for row in expected) < sum(row[1] for row in expected)  # the case tells near from far


def test_boundary_f_is_the_harmonic_mean_and_leaves_out_classes_without_boundary():
    score, mean = boundary_f(np.array([[3, 4, 1, 2], [0, 5, 0, 5], [0, 0, 0, 7], [0, 0, 0, 0]]))
    first = 2 * (3 / 4) * (1 / 2) / (3 / 4 + 1 / 2)
    np.testing.assert_allclose(score, [first, 0, 0, math.nan], rtol=1e-15)
    assert mean == pytest.approx(first / 3)


def test_summary_is_json_and_says_absent():
    summary = summarise(np.array(MATRIX), boundary_counts(PRED, LABEL, 4, 1), CLASSES.names, 1)
    assert json.loads(json.dumps(summary, allow_nan=False)) == summary
    assert summary["miou"] == pytest.approx(13 / 18)
    assert summary["mean_accuracy"] == pytest.approx(5 / 6)
    assert summary["classes"][1] | {"boundary_f": None} == {
        "name": "car [old]", "iou": 2 / 3, "accuracy": 1.0, "boundary_f": None, "pixels": 2, "absent": False,
    }  # fmt: skip
    assert summary["classes"][3] == {
        "name": "cow", "iou": None, "accuracy": None, "boundary_f": None, "pixels": 0, "absent": True,
    }  # fmt: skip


def test_table_shows_every_class_and_the_means():
    text = format_table(summarise(np.array(MATRIX), np.zeros((4, 4), np.int64), CLASSES.names, 3))
    *lines, last = text.splitlines()
    cells = [[cell.strip() for cell in line.strip("| ").split("|")] for line in lines]
    rows = {row[0]: row[1:] for row in cells}
    assert rows["class"] == ["IoU", "accuracy", "boundary F (3 px)", "share of pixels"]
    assert rows["car [old]"] == ["0.6667", "1.0000", "-", "40.00 %"]
    assert rows["cow"] == ["absent", "-", "-", "0.00 %"]
    assert rows["mean"][:3] == ["0.7222", "0.8333", "-"]
    assert last == "pixel accuracy 0.8000"


def make_samples() -> list[tuple[str, dict]]:
    """Two images whose red channel is what the predictor says; of different sizes, so that means of means differ."""
    rng = np.random.default_rng(0)
    samples = []
    for name, shape in (("a.png", (6, 8)), ("b.png", (12, 9)), ("c.png", (5, 5))):
        label = rng.integers(0, 3, shape).astype(np.uint8)
        image = np.repeat(np.where(rng.random(shape) < 0.7, label, 0)[..., None], 3, axis=2).astype(np.uint8)
        samples.append(
            (name, {"image": image, "label": np.where(rng.random(shape) < 0.1, 255, label).astype(np.uint8)})
        )
    return samples


def predict_red(image: np.ndarray) -> np.ndarray:
    return image[..., 0]


def test_evaluate_adds_counts_over_images_and_divides_once():
    samples = make_samples()
    summary = evaluate(predict_red, samples, CLASSES, 1, progress=False)
    pred = np.concatenate([sample["image"][..., 0].ravel() for _, sample in samples])
    label = np.concatenate([sample["label"].ravel() for _, sample in samples])
    expected = []
    for k in range(3):
        known = label != 255
        both, either = (pred == k) & (label == k) & known, ((pred == k) | (label == k)) & known
        expected.append(both.sum() / either.sum())
    assert [row["iou"] for row in summary["classes"]] == [*map(pytest.approx, expected), None]
    assert summary["miou"] == pytest.approx(np.mean(expected))
    edges = sum(boundary_counts(predict_red(sample["image"]), sample["label"], 4, 1) for _, sample in samples)
    assert summary["boundary_f"] == pytest.approx(boundary_f(edges)[1])
    assert summary["images"] == 3 and summary["boundary_radius"] == 1


def test_the_next_image_is_read_while_one_is_predicted():
    samples, order = make_samples(), []
    read = [Event() for _ in samples]

    class Noted:
        def __len__(self):
            return len(samples)

        def __getitem__(self, i):
            order.append(i)
            read[i].set()
            return samples[i]

    def predict(image):
        at = [i for i, (_, sample) in enumerate(samples) if sample["image"] is image][0]
        assert read[min(at + 1, 2)].wait(60)
        return image[..., 0]

    summary = evaluate(predict, Noted(), CLASSES, 1, progress=False)
    assert order == [0, 1, 2]
    assert summary == evaluate(predict_red, samples, CLASSES, 1, progress=False)
    assert evaluate(predict_red, [], CLASSES, 1, progress=False)["images"] == 0


def test_evaluate_over_two_ranks_equals_one():
    samples, sent = make_samples(), []

    def keep(counts):
        sent.append(counts.copy())
        return counts

    evaluate(predict_red, samples[1::2], CLASSES, 1, progress=False, all_reduce=keep)
    assert sent[0].dtype == np.int64 and len(sent) == 1
    summary = evaluate(predict_red, samples[0::2], CLASSES, 1, progress=False, all_reduce=lambda own: own + sent[0])
    assert summary == evaluate(predict_red, samples, CLASSES, 1, progress=False)


@pytest.mark.parametrize(
    ("predict", "message"),
    [
        (lambda image: image[1:, :, 0], r"a.png: the prediction has 5 x 8 pixels .* the label 6 x 8"),
        (lambda image: image[..., 0] + 9, r"a.png: the prediction holds the value 9 "),
    ],
)
def test_evaluate_names_the_image_that_went_wrong(predict, message):
    samples = [("a.png", {"image": np.zeros((6, 8, 3), np.uint8), "label": np.zeros((6, 8), np.uint8)})]
    with pytest.raises(ValueError, match=message):
        evaluate(predict, samples, CLASSES, 1, progress=False)
