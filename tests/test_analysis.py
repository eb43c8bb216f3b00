"""Compactness, locality and correlations against values worked out by hand (spec sazs, section 11)."""

import math
import os
from itertools import permutations
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import spearmanr

from src.analysis.compactness import bribiesca, class_compactness, exposed_sides, mask_compactness, polsby, solidity
from src.analysis.gains import ClassGain, correlations, draw_report, permutation_test, spearman, write_report
from src.analysis.locality import knn, nearest_seen

SQUARE = np.ones((5, 5), bool)
BAR = np.ones((1, 4), bool)
PLUS = np.array([[0, 1, 0], [1, 1, 1], [0, 1, 0]], bool)
APART = np.array([[1, 0, 0, 1]], bool)


RADIUS = np.hypot(*np.mgrid[-25:26, -25:26])


@pytest.mark.parametrize(
    ("mask", "area", "sides", "value"),
    [
        (SQUARE, 25, 20, 0.785398), (BAR, 4, 10, 0.502655), (PLUS, 5, 12, 0.436332), (APART, 2, 8, 0.392699),
        (RADIUS <= 20, 1257, 164, 0.587297), ((RADIUS <= 20) & (RADIUS >= 10), 952, 240, 0.207694),
    ],
)  # fmt: skip
def test_polsby(mask, area, sides, value):
    assert (mask.sum(), exposed_sides(mask)) == (area, sides)
    assert polsby(mask) == pytest.approx(value, abs=5e-7)


def test_bribiesca_and_solidity():
    assert [bribiesca(mask) for mask in (SQUARE, BAR, PLUS)] == pytest.approx([1, 0, 0])
    assert bribiesca(np.ones((1, 1), bool)) == 1
    assert [solidity(mask) for mask in (SQUARE, BAR)] == pytest.approx([1, 1])
    assert solidity(PLUS) == pytest.approx(5 / 7)  # the hull: the 3 x 3 square without four half pixels


def test_components_are_weighted_by_area():
    assert mask_compactness(APART) == pytest.approx(math.pi / 4)  # two squares, not one scattered mask
    mask = np.zeros((3, 8), bool)
    mask[0, :4] = mask[2, 6] = True
    assert mask_compactness(mask) == pytest.approx((4 * 0.502655 + math.pi / 4) / 5, abs=1e-6)
    found = class_compactness(np.array([[0, 0, 2, 255]]), 3)
    np.testing.assert_allclose(found, [4 * math.pi * 2 / 36, math.nan, math.pi / 4])
    for arguments, message in (((mask, "round"), "allowed: polsby"), ((mask & False,), "empty mask")):
        with pytest.raises(ValueError, match=message):
            mask_compactness(*arguments)


def test_locality():
    rows = np.array([[2.0, 0.0], [0.0, 1.0], [1.0, 1.0], [3.0, 4.0]])
    half = math.sqrt(0.5)
    np.testing.assert_allclose(nearest_seen(rows, [2, 3]), [0, 0, half, 0.8], atol=1e-12)
    np.testing.assert_allclose(knn(rows, 1), [half, 0.8, 1.4 * half, 1.4 * half])
    np.testing.assert_allclose(knn(rows, 3)[0], (half + 0 + 0.6) / 3)
    with pytest.raises(ValueError, match="1 to 3"):
        knn(rows, 4)


def test_published_localities(data_root):
    """Spec section 11: mean of nearest_seen over the unseen classes of PASCAL's folds, from Detic's ViT-B/32 rows."""
    file = Path(os.environ.get("ECENET_CLIP", data_root / "clip")) / "coco_clip_a+cname.npy"
    if not file.is_file():
        pytest.skip(f"no {file} of Detic; ECENET_CLIP names its folder")
    rows = np.load(file)[[4, 1, 14, 8, 39, 5, 2, 15, 56, 19, 60, 16, 17, 3, 0, 58, 18, 57, 6, 62]]
    folds = [range(5 * fold, 5 * fold + 5) for fold in range(4)]
    found = [nearest_seen(rows, unseen)[list(unseen)].mean() for unseen in folds]
    np.testing.assert_allclose(found, [0.8977, 0.9158, 0.9075, 0.8770], atol=1e-4)


def test_spearman_equals_scipy_with_ties():
    rng = np.random.default_rng(0)
    for _ in range(10):
        first, second = rng.integers(0, 5, 12), rng.integers(0, 5, 12)
        assert spearman(first, second) == pytest.approx(spearmanr(first, second).statistic)


def test_permutation_p_equals_that_of_all_permutations():
    first, second = [1.0, 2.0, 3.0, 4.0, 5.0], [2.0, 1.0, 3.0, 5.0, 4.0]
    value = spearman(first, second)
    all_values = [spearman(first, order) for order in permutations(second)]
    exact = np.mean([abs(x) >= value - 1e-12 for x in all_values])
    found, p = permutation_test(first, second)
    assert found == value == pytest.approx(0.8) and p == pytest.approx(exact, abs=0.015)
    assert permutation_test(first, second) == (found, p) != permutation_test(first, second, seed=1)
    assert all(map(math.isnan, permutation_test(first, [1.0] * 5)))
    with pytest.raises(ValueError, match="5 with 2 values"):
        permutation_test(first, [1.0, 2.0])


def draw_rows(count: int = 6) -> list[ClassGain]:
    """Gains that grow with compactness and do not with locality; the last class is absent."""
    rows = [ClassGain(f"class {i}", 0.2, 0.2 + 0.01 * i, 0.1 * i, [0.9, 0.3, 0.5][i % 3], i) for i in range(count)]
    return [*rows, ClassGain("none", math.nan, math.nan, 0.5, 0.5, 0)]


def test_the_report_holds_rows_and_correlations(tmp_path):
    found = correlations(draw_rows())
    assert found["compactness"][0] == pytest.approx(1) and found["compactness"][1] < 0.02 < found["locality"][1]
    write_report(tmp_path / "a.csv", draw_rows(), "select", False)
    lines = (tmp_path / "a.csv").read_text().splitlines()
    assert lines[0] == "# fusion: select; uses_ground_truth: false"
    assert lines[1].startswith("# Spearman of gain with compactness: 1.0000, p 0.0")
    assert lines[3:5] == ["class,iou_none,iou_select,gain,compactness,locality,images,unseen",
                          "class 0,0.200000,0.200000,0.000000,0.000000,0.900000,0,0"]  # fmt: skip
    assert lines[-1] == "none,,,,0.500000,0.500000,0,0"
    draw_report(tmp_path / "a.png", draw_rows(), "select", False)
    assert (tmp_path / "a.png").stat().st_size > 10_000


def test_a_report_of_the_oracle_says_so(tmp_path):
    write_report(tmp_path / "a.csv", draw_rows(), "oracle", True)
    lines = (tmp_path / "a.csv").read_text().splitlines()
    assert lines[0].endswith("uses_ground_truth: true") and "oracle uses the ground truth" in lines[1]
