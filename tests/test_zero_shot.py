"""Scores of the zero-shot protocols against values worked out by hand (spec sazs, section 8)."""

import json

import numpy as np
import pytest

from src.metrics import iou
from src.zero_shot import binary_counts, binary_scores, harmonic_mean, mean_of_folds, split_scores
from tests.commands import refuse, succeed


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
    found = split_scores(iou(matrix), [1, 3])  # IoU 6/9, 4/6, 1/2, absent
    seen, unseen = (6 / 9 + 1 / 2) / 2, 4 / 6
    assert found == pytest.approx({"seen": seen, "unseen": unseen, "hiou": 2 * seen * unseen / (seen + unseen)})
    assert split_scores(iou(matrix), [3]) == {"seen": pytest.approx(11 / 18), "unseen": None, "hiou": None}
    assert harmonic_mean(0.0, 0.0) == 0.0 and harmonic_mean(0.919, 0.778) == pytest.approx(0.843, abs=5e-4)


@pytest.mark.parametrize("unseen", [[], [0, 1], [5]])
def test_unseen_classes_must_be_some_of_the_classes(unseen):
    with pytest.raises(ValueError, match="need some, not all, of the ids 0 to 1"):
        split_scores(np.ones(2), unseen)


def write_fold(file, unseen: str, miou: float, kinds=("none", "oracle")) -> str:
    scores = {"fb_iou": 0.5, "iou": [miou]}
    rows = [{"fusion": kind, "uses_ground_truth": kind == "oracle", "miou": miou + 0.1 * i, **scores}
            for i, kind in enumerate(kinds)]  # fmt: skip
    file.write_text(json.dumps({"protocol": "pairs", "unseen": [unseen], "rows": rows}))
    return str(file)


def test_the_command_makes_the_mean_of_folds(tmp_path):
    tool, out = "tools/mean_of_folds.py", tmp_path / "mean.md"
    files = [write_fold(tmp_path / f"{i}.json", name, 0.1 * i) for i, name in enumerate("abcd")]
    assert succeed(tool, *files, "--output", out).startswith(out.read_text())
    plain, oracle = json.loads(out.with_suffix(".json").read_text())["rows"]
    assert plain == {"fusion": "none", "uses_ground_truth": False, "miou": pytest.approx(0.15), "fb_iou": 0.5}
    assert oracle["uses_ground_truth"] and oracle["miou"] == pytest.approx(0.25)
    assert "| oracle (ground truth) | 0.2500 | 0.5000 | **yes** |" in out.read_text()
    assert "the same unseen classes" in refuse(tool, files[0], files[0], "--output", out)
    other = write_fold(tmp_path / "x.json", "e", 0.5, ("none",))
    assert "rows none, those of" in refuse(tool, files[0], other, "--output", out)
    (tmp_path / "y.json").write_text("[]")
    assert "holds no scores" in refuse(tool, files[0], tmp_path / "y.json", "--output", out)
