"""The smallest eigenvectors of a graph's Laplacian (spec sazs, section 6.3).

Letters: N nodes, K eigenvectors, D diagonal matrix of degrees d, W affinities, D width of a feature in `low_rank`.

(D - W) v = lambda D v becomes S u = mu u with S = D^-1/2 W D^-1/2, mu = 1 - lambda and u = D^1/2 v: the smallest lambda
are the largest mu, so nothing needs to be factorised. The plain Laplacian takes S = c - (D - W), mu = c - lambda.
"""

import warnings
from typing import NamedTuple

import numpy as np
from scipy import linalg, sparse
from scipy.sparse.linalg import ArpackError, eigsh, lobpcg

from src.spectral.affinity import EPSILON
from src.spectral.options import SOLVERS

TOLERANCE = 1e-10  # of Lanczos
BLOCK_TOLERANCE = 1e-8  # of LOBPCG
BLOCK_STEPS = 200
RESIDUAL = 1e-6  # largest that is accepted
DENSE_NODES = 1500  # a whole decomposition is not tried beyond
SMALL = 8  # a graph of fewer nodes than this many times K is always decomposed whole
SHIFT = -1e-3  # not 0: D - W is singular
ZERO = 1e-12  # smaller eigenvalues are 0
SAME_ZERO = 1e-9  # eigenvalues below belong to the components of the graph
TIE = 1e-6  # relative: entries that count as equally large
CHECK_ROWS = 512


class Spectrum(NamedTuple):
    """Eigenvalues (K,) ascending and eigenvectors (N, K) float64, D-orthonormal, the trivial one first.

    degree (N,): d, or ones for the plain Laplacian; residual: the largest; solver: which one found them.
    """

    values: np.ndarray
    vectors: np.ndarray
    degree: np.ndarray
    residual: float
    solver: str


def laplacian_spectrum(affinity, count: int, *, normalise: bool = True, solver: str = "lanczos", seed: int = 0):
    """The Spectrum of the `count` smallest eigenvalues of a graph, dense or sparse, of N >= count nodes.

    normalise: the generalised problem with D; else plain D - W. solver: the first one tried; those after it in SOLVERS
    follow while residuals are above RESIDUAL. Raises ValueError for a count out of range and where no solver succeeds.
    """
    nodes = affinity.shape[0]
    if not 1 <= count <= nodes:
        raise ValueError(f"{count} eigenvectors of a graph of {nodes} nodes: ask for 1 to {nodes}")
    degree = np.asarray(affinity.sum(1), np.float64).reshape(-1)
    degree[degree < EPSILON] = 1.0
    matrix, top = symmetric_form(affinity, degree, normalise)
    weight = degree if normalise else np.ones(nodes)
    trivial = np.sqrt(weight / weight.sum())
    tried, order = [], SOLVERS[SOLVERS.index(solver) :] if nodes >= SMALL * count else ("dense",)
    for name in order:
        if name == "dense" and nodes > max(DENSE_NODES, SMALL * count):
            continue
        found = solve(name, matrix, count, top, trivial, seed)
        if found is None:
            tried.append(f"{name} failed")
            continue
        vectors = with_trivial(found, trivial, matrix, top) / np.sqrt(weight)[:, None]
        values, vectors = ordered(affinity, degree, weight, vectors)
        residual = largest_residual(affinity, degree, weight, values, vectors)
        if residual <= RESIDUAL:
            return Spectrum(values, fix_signs(vectors), weight, residual, name)
        tried.append(f"{name} left a residual of {residual:.1e}")
    raise ValueError(f"no solver found {count} eigenvectors of a graph of {nodes} nodes: {'; '.join(tried)}")


def symmetric_form(affinity, degree: np.ndarray, normalise: bool) -> tuple:
    """(S, c): its largest eigenvalues are c - lambda."""
    diagonal = sparse.diags(degree).tocsr() if sparse.issparse(affinity) else np.diag(degree)
    if not normalise:
        top = 2 * float(degree.max())  # no eigenvalue of D - W is larger
        shift = sparse.identity(len(degree)) if sparse.issparse(affinity) else np.eye(len(degree))
        return top * shift - (diagonal - affinity), top
    root = 1 / np.sqrt(degree)
    if sparse.issparse(affinity):
        return sparse.diags(root) @ affinity @ sparse.diags(root), 1.0
    matrix = affinity * root[:, None]
    matrix *= root
    return matrix, 1.0


def solve(name: str, matrix, count: int, top: float, trivial: np.ndarray, seed: int) -> np.ndarray | None:
    """Orthonormal vectors (N, count) of the largest eigenvalues by one solver; None where it gives up."""
    nodes, rng = matrix.shape[0], np.random.default_rng(seed)
    try:
        if name == "lanczos":  # the start must be fixed, and not the trivial vector, which would end the iteration
            return eigsh(matrix, count, which="LA", v0=rng.standard_normal(nodes), tol=TOLERANCE)[1]
        if name == "lobpcg":
            start = rng.standard_normal((nodes, count + 3))
            start[:, 0] = trivial
            with warnings.catch_warnings():  # that it has not converged is seen in the residuals
                warnings.simplefilter("ignore")
                return lobpcg(matrix, start, tol=BLOCK_TOLERANCE, maxiter=BLOCK_STEPS)[1][:, :count]
        if name == "shift_invert":
            lowest = top * (sparse.identity(nodes).tocsc() if sparse.issparse(matrix) else np.eye(nodes)) - matrix
            v0 = rng.standard_normal(nodes)
            return eigsh(lowest, count, sigma=SHIFT * top, which="LM", v0=v0, tol=TOLERANCE)[1]
        dense = matrix.toarray() if sparse.issparse(matrix) else matrix
        return linalg.eigh(dense, subset_by_index=(nodes - count, nodes - 1))[1]
    except (ArpackError, np.linalg.LinAlgError, ValueError):
        return None


def with_trivial(vectors: np.ndarray, trivial: np.ndarray, matrix, top: float) -> np.ndarray:
    """The vectors (N, K), orthonormal, with the exact trivial one in their zero space; it must lie in their span."""
    mu = np.einsum("nk,nk->k", vectors, matrix @ vectors)
    zero = top - mu < SAME_ZERO * top
    if not zero.any():  # a wrong result, which the residuals will show
        return vectors
    kernel, others = vectors[:, zero], vectors[:, ~zero]
    rest = kernel - np.outer(trivial, trivial @ kernel)
    basis = np.linalg.svd(rest, full_matrices=False)[0][:, : kernel.shape[1] - 1]
    others = others - np.outer(trivial, trivial @ others)
    return np.concatenate([trivial[:, None], basis, others], 1)


def ordered(affinity, degree: np.ndarray, weight: np.ndarray, vectors: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Eigenvalues by their quotients, ascending, those of rounding size 0, and the vectors in their order."""
    quotients = np.einsum("nk,nk->k", vectors, degree[:, None] * vectors - affinity @ vectors)
    values = quotients / np.einsum("nk,nk->k", vectors, weight[:, None] * vectors)
    values[np.abs(values) < ZERO * max(1.0, degree.max() / weight.max())] = 0.0
    values[0] = 0.0  # the trivial one, whose quotient is rounding alone
    order = np.argsort(values, kind="stable")
    return values[order], vectors[:, order]


def largest_residual(affinity, degree, weight, values: np.ndarray, vectors: np.ndarray) -> float:
    """Largest ||(D - W) v - lambda D v|| / ||D v||; for the plain Laplacian with 1 in place of the second D."""
    right = weight[:, None] * vectors
    rest = degree[:, None] * vectors - affinity @ vectors - values * right
    return float((np.linalg.norm(rest, axis=0) / np.linalg.norm(right, axis=0)).max())


def low_rank_spectrum(features: np.ndarray, count: int) -> Spectrum:
    """As `laplacian_spectrum` for W = f f^T of prepared features (N, D), without any (N, N) matrix.

    Raises ValueError where a cosine is negative: this W would be no graph.
    """
    features = np.asarray(features, np.float64)
    nodes, width = features.shape
    if not 1 <= count <= min(nodes, width):
        raise ValueError(f"{count} eigenvectors of {nodes} features of width {width}: ask for 1 to {min(nodes, width)}")
    lowest = min(float((features[i : i + CHECK_ROWS] @ features.T).min()) for i in range(0, nodes, CHECK_ROWS))
    if lowest < 0:
        raise ValueError(f"spectral.threshold=false needs cosines of at least 0, not {lowest:.3g}; use true")
    degree = features @ features.sum(0)
    degree[degree < EPSILON] = 1.0
    scaled = features / np.sqrt(degree)[:, None]
    mu, right = linalg.eigh(scaled.T @ scaled, subset_by_index=(width - count, width - 1))
    vectors = scaled @ right / np.sqrt(np.maximum(mu, EPSILON))
    trivial = np.sqrt(degree / degree.sum())
    vectors = np.concatenate([trivial[:, None], vectors[:, -2::-1]], 1) / np.sqrt(degree)[:, None]
    values = np.concatenate([[0.0], 1 - mu[-2::-1]])
    product = features @ (features.T @ vectors)
    rest = degree[:, None] * vectors * (1 - values) - product
    residual = float((np.linalg.norm(rest, axis=0) / np.linalg.norm(degree[:, None] * vectors, axis=0)).max())
    if residual > RESIDUAL:
        raise ValueError(f"singular vectors of the features left a residual of {residual:.1e}; use threshold=true")
    return Spectrum(values, fix_signs(vectors), degree, residual, "low_rank")


def fix_signs(vectors: np.ndarray) -> np.ndarray:
    """Every vector (column) or its negative, whichever `sign_of` says; the same for v and -v."""
    return vectors * np.array([sign_of(vector) for vector in vectors.T])


def sign_of(vector: np.ndarray) -> int:
    """1 or -1: times it, fewer entries are positive than negative.

    Where there are as many, or all are on one side as in the constant vector, the entry of the largest magnitude, the
    first among equals, becomes positive.
    """
    positive, negative = int((vector > 0).sum()), int((vector < 0).sum())
    if positive and negative and positive != negative:
        return 1 if positive < negative else -1
    size = np.abs(vector)
    first = vector[int(np.argmax(size >= size.max() * (1 - TIE)))]
    return -1 if first < 0 else 1
