"""Fusion of predictions with eigensegments: the spec's numeric cases (sazs, section 12, 12 to 15)."""

import numpy as np
import pytest

from src.spectral import fusion
from src.spectral.fusion import both_sides, describe, none, oracle, overlap, project, regions, select
from src.spectral.solver import laplacian_spectrum
from tests.spectral_graphs import blocks, random_features


def on_graph(sizes: tuple[int, ...], count: int = 2):
    """Eigenvectors (K, 6) with the trivial one and degrees (6,) of blocks with 0.1 between them."""
    found = laplacian_spectrum(blocks(sizes, 0.1), count)
    return found.vectors.T, found.degree


@pytest.mark.parametrize(
    ("sizes", "before", "after"),
    [
        ((3, 3), [0.9, 0.8, 0.7, 0.2, 0.1, 0.3], [0.8, 0.8, 0.8, 0.2, 0.2, 0.2]),
        ((2, 4), [1.0, 0.6, 0.2, 0.2, 0.1, 0.1], [0.8, 0.8, 0.15, 0.15, 0.15, 0.15]),
    ],
)
def test_cases_12_and_13_project(sizes, before, after):
    vectors, degree = on_graph(sizes)
    np.testing.assert_allclose(project(np.array(before), vectors, degree, 1.0), after, atol=1e-12)
    np.testing.assert_allclose(project(np.array(before), vectors, degree), (np.array(before) + after) / 2, atol=1e-12)
    np.testing.assert_allclose(project(np.array(before), -vectors, degree, 1.0), after, atol=1e-12)


def test_project_keeps_shapes_and_the_sum_over_classes():
    vectors, degree = on_graph((3, 3))
    scores = np.random.default_rng(0).dirichlet(np.ones(4), 6).T.reshape(4, 2, 3)
    found = project(scores, vectors.reshape(-1, 2, 3), degree.reshape(2, 3))
    assert found.shape == (4, 2, 3)
    np.testing.assert_allclose(found.sum(0), 1, atol=1e-12)


def test_case_14_select():
    fiedler = on_graph((3, 3))[0][1:]
    candidates = both_sides(fiedler > 0, fiedler < 0)
    probability = np.array([0.9, 0.8, 0.2, 0.1, 0.1, 0.1])
    found = select(probability, candidates)
    assert found.mask.tolist() == [True, True, True, False, False, False] and not found.uses_ground_truth
    assert overlap(found.mask, probability > 0.5) == pytest.approx(2 / 3)
    kept = select(probability, candidates, 0.7)
    assert kept.mask.tolist() == [True, True, False, False, False, False] and kept.chosen == -1
    exact = select(probability, candidates, 2 / 3)
    assert exact.chosen == found.chosen  # the threshold itself is enough


def test_select_takes_the_first_of_equal_candidates():
    positive = np.array([[1, 0, 0, 0], [1, 0, 0, 0]], bool)
    candidates = both_sides(positive, ~positive)
    assert candidates.astype(int).tolist() == [[1, 0, 0, 0], [0, 1, 1, 1], [1, 0, 0, 0], [0, 1, 1, 1]]
    assert select(np.array([0.9, 0.1, 0.1, 0.1]), candidates).chosen == 0
    assert select(np.array([0.1, 0.9, 0.9, 0.9]), candidates).chosen == 1


def test_regions_are_means_over_clusters():
    vectors, _ = on_graph((2, 4))
    scores = np.array([[1.0, 0.6, 0.2, 0.2, 0.1, 0.1], [0.0, 0.4, 0.8, 0.8, 0.9, 0.9]])
    found = regions(scores, vectors, count=2)
    np.testing.assert_allclose(found, [[0.8, 0.8, 0.15, 0.15, 0.15, 0.15], [0.2, 0.2, 0.85, 0.85, 0.85, 0.85]])
    vectors = random_features(60, width=4).T.reshape(4, 6, 10)
    scores = np.random.default_rng(1).random((3, 6, 10))
    first, second = regions(scores, vectors), regions(scores, vectors)
    np.testing.assert_array_equal(first, second)
    assert len(np.unique(first[0])) == 8 and first.sum() == pytest.approx(scores.sum())


def test_case_15_the_oracle_is_never_below_any_candidate():
    rng = np.random.default_rng(3)
    for _ in range(50):
        probability, label = rng.random((5, 6)), rng.integers(0, 2, (5, 6)).astype(np.uint8)
        label[rng.random((5, 6)) < 0.2] = 255
        masks = rng.random((4, 5, 6)) < 0.5
        found, known = oracle(probability, masks, label), label != 255
        scores = [overlap(mask[known], label[known] == 1) for mask in (none(probability).mask, *masks)]
        best = overlap(found.mask[known], label[known] == 1)
        assert best == max(scores) == scores[found.chosen + 1] and found.uses_ground_truth
    assert (probability > 0.5).tolist() == none(probability).mask.tolist()


def test_the_oracle_is_flagged():
    assert [describe(kind)["uses_ground_truth"] for kind in fusion.KINDS] == [False, False, False, False, True]
    with pytest.raises(ValueError, match="fusion.kind 'best' is not known; allowed: none, select"):
        describe("best")
