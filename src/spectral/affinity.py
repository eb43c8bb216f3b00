"""Graphs over the nodes of an image: features, colours, links (spec sazs, sections 6.1 and 6.4).

Letters: h x w grid of nodes, N = h w, D width of a feature. W is (N, N), symmetric, not negative, with self links.
"""

import cv2
import numpy as np
from scipy import sparse
from scipy.sparse.csgraph import connected_components
from scipy.spatial import cKDTree

NEIGHBOURS = ((20, 2.0), (10, 0.1))  # nearest neighbours, factor of the position, as in deep spectral methods
EPSILON = 1e-12


def prepare_features(features: np.ndarray, center: bool) -> np.ndarray:
    """Features (N, D) with unit rows, float32; center: less their mean first. A row of zeros stays.

    Raises ValueError for values that are not finite.
    """
    if not np.isfinite(features).all():
        raise ValueError("features of an eigenproblem are not finite; check the weights of the network they come from")
    features = features - features.mean(0) if center else features
    length = np.linalg.norm(features, axis=1, keepdims=True)
    return np.asarray(features / np.maximum(length, EPSILON), np.float32)


def feature_affinity(features: np.ndarray) -> np.ndarray:
    """max(0, cosine) of prepared features: W (N, N) float64, divided by its maximum."""
    product = features @ features.T  # float32, half the time; NumPy makes it symmetric to the last bit
    np.maximum(product, 0, out=product)
    affinity = product.astype(np.float64)
    affinity /= max(float(product.max()), EPSILON)
    return affinity


def add_sparse(affinity: np.ndarray, links: sparse.csr_matrix, weight: float) -> None:
    """affinity += weight * links, in place, without a dense copy of the links."""
    entries = links.tocoo()
    entries.sum_duplicates()
    affinity[entries.row, entries.col] += weight * entries.data


def colour_affinity(image: np.ndarray, grid: tuple[int, int]) -> sparse.csr_matrix:
    """Links between nodes that are near in colour and place; image (H, W, 3) uint8 RGB, brought to the grid (h, w).

    Each node links to its k nearest in (r, g, b, s x, s y), itself included; a link counts in both directions.
    """
    height, width = grid
    small = cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA).reshape(-1, 3) / 255.0
    y, x = np.divmod(np.arange(height * width), width)
    place = np.stack([x / max(width - 1, 1), y / max(height - 1, 1)], 1)
    total = sparse.csr_matrix((height * width,) * 2)
    for count, factor in NEIGHBOURS:
        points = np.concatenate([small, factor * place], 1)
        count = min(count, len(points))
        _, nearest = cKDTree(points).query(points, count)
        start = np.repeat(np.arange(len(points)), count)
        links = sparse.coo_matrix((np.ones(len(start)), (start, nearest.reshape(-1))), total.shape).tocsr()
        total = total + links + links.T
    return total


def grid_links(grid: tuple[int, int], weight: float) -> sparse.csr_matrix:
    """Links of `weight` between 4-neighbours of the grid."""
    height, width = grid
    rows, columns = (sparse.diags([1.0, 1.0], [-1, 1], (side, side)) for side in (height, width))
    links = sparse.kron(rows, sparse.identity(width)) + sparse.kron(sparse.identity(height), columns)
    return (weight * links).tocsr()


def count_components(affinity) -> int:
    """Connected components of a graph, dense or sparse."""
    if sparse.issparse(affinity):
        return int(connected_components(affinity, directed=False, return_labels=False))
    rest, components = np.arange(len(affinity)), 0  # nodes not reached yet; SciPy would make a sparse copy first
    while len(rest):
        front, rest, components = rest[:1], rest[1:], components + 1
        while len(front) and len(rest):
            reached = (affinity[np.ix_(front, rest)] > 0).any(0)
            front, rest = rest[reached], rest[~reached]
    return components


def connect(affinity, grid: tuple[int, int], weight: float):
    """The graph, with links between neighbours of the grid where it falls apart, and its components before that.

    Solvers miss eigenvectors of a disconnected graph without a sign of it in their residuals.
    """
    components = count_components(affinity)
    if components == 1:
        return affinity, components
    links = grid_links(grid, weight)
    return (affinity + links if sparse.issparse(affinity) else affinity + links.toarray()), components
