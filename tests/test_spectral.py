"""Graphs over images and the eigenvectors of their Laplacians: the spec's numeric cases (sazs, section 12, 1 to 11)."""

import numpy as np
import pytest
from scipy import linalg, sparse

from src.spectral import solver
from src.spectral.affinity import (
    add_sparse,
    colour_affinity,
    connect,
    count_components,
    feature_affinity,
    grid_links,
    prepare_features,
)
from src.spectral.options import SOLVERS
from src.spectral.solver import fix_signs, laplacian_spectrum, low_rank_spectrum, sign_of
from tests.spectral_graphs import blocks, path, random_features, split_image


@pytest.fixture(scope="module")
def grid_graph() -> np.ndarray:
    """The graph of random features on 30 x 30 nodes."""
    return feature_affinity(prepare_features(random_features(900), False))


@pytest.fixture(scope="module")
def by_lanczos(grid_graph):
    return laplacian_spectrum(grid_graph, 6)


@pytest.mark.parametrize(("between", "value", "entry"), [(0.1, 0.181818, 0.224733), (0.01, 0.019802, None)])
def test_case_1_two_equal_blocks(between, value, entry):
    found = laplacian_spectrum(blocks((3, 3), between), 6)
    np.testing.assert_allclose(found.values, [0, value, 1, 1, 1, 1], atol=5e-7)
    sign = np.sign(found.vectors[0, 1])
    size = 1 / np.sqrt(found.degree.sum())
    np.testing.assert_allclose(found.vectors[:, 1], sign * np.repeat([size, -size], 3), atol=1e-12)
    if entry:
        np.testing.assert_allclose(found.degree, 3.3)
        assert size == pytest.approx(entry, abs=5e-7)


def test_case_2_unequal_blocks():
    found = laplacian_spectrum(blocks((2, 4), 0.1), 2)
    np.testing.assert_allclose(found.degree, [2.4] * 2 + [4.2] * 4)
    assert found.values[1] == pytest.approx(0.214286, abs=5e-7)
    assert found.vectors[0, 1] / found.vectors[2, 1] == pytest.approx(-3.5)
    assert found.vectors[:, 1] @ found.degree == pytest.approx(0, abs=1e-12)


def test_case_3_path_of_four():
    plain = laplacian_spectrum(path(4), 4, normalise=False)
    np.testing.assert_allclose(plain.values, [0, 0.585786, 2, 3.414214], atol=5e-7)
    np.testing.assert_allclose(plain.degree, 1)
    found = laplacian_spectrum(path(4), 4)
    np.testing.assert_allclose(found.values, [0, 0.5, 1.5, 2], atol=5e-7)
    fiedler = np.array([0.577350, 0.288675, -0.288675, -0.577350])
    np.testing.assert_allclose(found.vectors[:, 1] * np.sign(found.vectors[0, 1]), fiedler, atol=5e-7)


@pytest.mark.parametrize(("links", "rest"), [(np.ones((5, 5)), 1), (np.ones((5, 5)) - np.eye(5), 1.25)])
def test_case_4_all_linked(links, rest):
    np.testing.assert_allclose(laplacian_spectrum(links, 5).values, [0, *[rest] * 4], atol=1e-12)


@pytest.mark.parametrize("form", [np.asarray, sparse.csr_matrix])
def test_case_5_two_components(form):
    graph = form(blocks((3, 3), 0.0))
    found = laplacian_spectrum(graph, 6)
    np.testing.assert_allclose(found.values, [0, 0, 1, 1, 1, 1], atol=1e-12)
    np.testing.assert_allclose(found.vectors.T @ np.diag(found.degree) @ found.vectors, np.eye(6), atol=1e-12)
    assert count_components(graph) == 2 and count_components(form(blocks((3, 3), 0.1))) == 1
    joined, components = connect(graph, (2, 3), 0.1)
    assert components == 2 and count_components(joined) == 1
    dense = joined.toarray() if sparse.issparse(joined) else joined
    links = dense - blocks((3, 3), 0.0)
    assert links[0].tolist() == pytest.approx([0, 0.1, 0, 0.1, 0, 0])  # right and below, in a grid of 2 x 3
    whole = form(blocks((3, 3), 0.1))
    assert connect(whole, (2, 3), 0.1)[0] is whole


def test_links_of_the_grid():
    links = grid_links((3, 4), 0.5).toarray()
    wanted = np.zeros((12, 12))
    for i in range(12):
        for j in range(12):
            wanted[i, j] = 0.5 * (abs(i // 4 - j // 4) + abs(i % 4 - j % 4) == 1)
    np.testing.assert_array_equal(links, wanted)


@pytest.mark.parametrize("second", [[0.0, 1.0], [-1.0, 0.0]])
def test_case_6_opposite_features_do_not_attract(second):
    features = prepare_features(np.array([[1.0, 0.0], [1.0, 0.0], second, second]), False)
    graph = feature_affinity(features)
    np.testing.assert_array_equal(graph, blocks((2, 2), 0.0))
    np.testing.assert_allclose(laplacian_spectrum(graph, 4).values, [0, 0, 1, 1], atol=1e-12)


def test_case_7_colours_part_the_halves():
    graph = colour_affinity(split_image(), (8, 8))
    dense = graph.toarray()
    assert count_components(graph) == count_components(dense) == 2
    right = np.tile(np.arange(8) >= 4, 8)
    assert dense[np.ix_(~right, right)].sum() == 0 and (np.diag(dense) == 4).all()
    np.testing.assert_array_equal(dense, dense.T)
    assert dense.sum() == 2 * 64 * (20 + 10)  # so the mean row sum is 60


def test_case_8_scale_and_order_of_the_nodes(grid_graph, by_lanczos):
    scaled = laplacian_spectrum(7 * grid_graph, 6)
    np.testing.assert_allclose(scaled.values, by_lanczos.values, atol=1e-12)
    order = np.random.default_rng(1).permutation(900)
    permuted = laplacian_spectrum(grid_graph[np.ix_(order, order)], 6)
    np.testing.assert_allclose(permuted.values, by_lanczos.values, atol=1e-12)
    alike = np.abs(np.einsum("nk,n,nk->k", permuted.vectors, permuted.degree, by_lanczos.vectors[order]))
    np.testing.assert_allclose(alike[:3], 1, atol=1e-8)  # the others lie too near to each other to be told apart


def projector(vectors: np.ndarray, degree: np.ndarray) -> np.ndarray:
    return vectors @ (vectors * degree[:, None]).T


def test_case_9_residual_orthonormality_and_span(grid_graph, by_lanczos):
    degree = grid_graph.sum(1)
    laplacian = np.diag(degree) - grid_graph
    values, vectors = linalg.eigh(laplacian, np.diag(degree), subset_by_index=(0, 5))
    np.testing.assert_allclose(by_lanczos.values, values, atol=1e-10)
    right = degree[:, None] * by_lanczos.vectors
    rest = laplacian @ by_lanczos.vectors - by_lanczos.values * right
    largest = (np.linalg.norm(rest, axis=0) / np.linalg.norm(right, axis=0)).max()
    assert largest <= 1e-6 and by_lanczos.residual == pytest.approx(largest, abs=1e-12)
    assert by_lanczos.solver == "lanczos" and by_lanczos.values[0] == 0
    assert np.abs(by_lanczos.vectors.T @ right - np.eye(6)).max() <= 1e-8
    assert np.abs(projector(by_lanczos.vectors, degree) - projector(vectors, degree)).max() <= 1e-8
    np.testing.assert_allclose(by_lanczos.vectors[:, 0], 1 / np.sqrt(degree.sum()), rtol=1e-14)


@pytest.mark.parametrize("name", SOLVERS[1:])
def test_all_solvers_span_the_same(grid_graph, by_lanczos, name):
    found = laplacian_spectrum(grid_graph, 6, solver=name)
    assert found.solver == name and found.residual <= 1e-6
    atol = 1e-5 if name == "lobpcg" else 1e-8  # its residual is 1e-8, divided by the gaps between eigenvalues
    assert np.abs(projector(found.vectors, found.degree) - projector(by_lanczos.vectors, found.degree)).max() <= atol


@pytest.mark.parametrize("normalise", [True, False])
@pytest.mark.parametrize("name", SOLVERS)
def test_sparse_graphs_equal_dense_ones(normalise, name):
    graph, components = connect(colour_affinity(split_image(12, 16), (12, 16)), (12, 16), 0.1)
    assert components == 2
    dense = laplacian_spectrum(graph.toarray(), 4, normalise=normalise, solver="dense")
    found = laplacian_spectrum(graph, 4, normalise=normalise, solver=name)
    np.testing.assert_allclose(found.values, dense.values, atol=1e-6)
    halves = np.tile(np.arange(16) >= 8, 12)
    assert (found.vectors[halves, 1] > 0).all() != (found.vectors[~halves, 1] > 0).all()


def test_solvers_follow_each_other_while_residuals_are_large(grid_graph, by_lanczos, monkeypatch):
    right, asked = solver.solve, []

    def wrong_until(name, *args):
        asked.append(name)
        good = right(name, *args)
        return {"lanczos": None, "lobpcg": np.roll(good, 1, 0)}.get(name, good)

    monkeypatch.setattr(solver, "solve", wrong_until)
    found = laplacian_spectrum(grid_graph, 6)
    assert asked == ["lanczos", "lobpcg", "dense"] and found.solver == "dense"
    assert np.abs(projector(found.vectors, found.degree) - projector(by_lanczos.vectors, found.degree)).max() <= 1e-8
    monkeypatch.setattr(solver, "DENSE_NODES", 800)
    assert laplacian_spectrum(grid_graph, 6).solver == "shift_invert"
    monkeypatch.setattr(solver, "solve", lambda *args: None)
    with pytest.raises(ValueError, match="900 nodes: lanczos failed; lobpcg failed; shift_invert failed"):
        laplacian_spectrum(grid_graph, 6)


def test_low_rank_features_need_no_graph():
    features = prepare_features(np.abs(random_features(200, width=24)), False)
    found = low_rank_spectrum(features, 5)
    wanted = laplacian_spectrum((features.astype(np.float64) @ features.T.astype(np.float64)), 5, solver="dense")
    np.testing.assert_allclose(found.values, wanted.values, atol=1e-9)
    assert np.abs(projector(found.vectors, found.degree) - projector(wanted.vectors, wanted.degree)).max() <= 1e-6
    with pytest.raises(ValueError, match="cosines of at least 0"):
        low_rank_spectrum(prepare_features(random_features(20), False), 3)


def test_case_11_signs():
    assert sign_of(np.array([1.0, 2.0, 3.0, -1.0])) == -1
    assert sign_of(np.array([-1.0, -2.0, -3.0, 1.0])) == 1
    assert sign_of(np.array([1.0, 2.0, -3.0, -1.0])) == -1 and sign_of(np.array([1.0, 3.0, -2.0, -1.0])) == 1
    assert sign_of(-np.ones(4)) == -1 and sign_of(np.ones(4)) == 1
    assert sign_of(np.array([-2.0, 2.0 + 1e-7, 1.0, -1.0])) == -1  # equally large but for rounding: the first


def test_signs_are_the_same_for_a_vector_and_its_negative():
    rng = np.random.default_rng(2)
    vectors = rng.integers(-2, 3, (6, 200)).astype(float)  # zeros and ties in plenty
    vectors = vectors[:, np.abs(vectors).sum(0) > 0]
    np.testing.assert_array_equal(fix_signs(vectors), fix_signs(-vectors))


def test_what_cannot_be_decomposed_is_refused():
    with pytest.raises(ValueError, match="7 eigenvectors of a graph of 6 nodes: ask for 1 to 6"):
        laplacian_spectrum(blocks((3, 3), 0.1), 7)
    with pytest.raises(ValueError, match="not finite"):
        prepare_features(np.array([[np.nan, 1.0]]), False)


def test_affinities_are_symmetric_cosines_without_negative_ones(grid_graph):
    np.testing.assert_array_equal(grid_graph, grid_graph.T)
    units = random_features(900) / np.linalg.norm(random_features(900), axis=1, keepdims=True)
    np.testing.assert_allclose(grid_graph, np.maximum(units @ units.T, 0), atol=1e-6)
    colours, dense = colour_affinity(split_image(), (8, 8)), np.ones((64, 64))
    add_sparse(dense, colours, 10.0)
    np.testing.assert_array_equal(dense, 1 + 10 * colours.toarray())


def test_features_are_centred_before_they_are_normalised():
    features = np.array([[3.0, 1.0], [5.0, 1.0], [7.0, 1.0]])
    np.testing.assert_allclose(prepare_features(features, True), [[-1, 0], [0, 0], [1, 0]])
