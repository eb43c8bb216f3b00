"""Predictions fused with eigensegments (spec sazs, section 7).

Letters: C classes, K eigenvectors, h x w grid of nodes, H x W image or grid: masks only need to agree.

`select` and `oracle` work on masks of a single class; `project` and `regions` on probabilities of any number. Only
`oracle` looks at the label: an analysis, whose result says so, and never a prediction.
"""

from typing import NamedTuple

import numpy as np
from scipy.cluster.vq import kmeans2

from src.constants import IGNORE

KINDS = ("none", "select", "project", "regions", "oracle")
NEED_LABEL = ("oracle",)
THRESHOLD = 0.5  # of a foreground probability, and of the overlap that `select` asks for
KMEANS_STEPS = 50


class Fused(NamedTuple):
    """A mask (H, W) bool; which candidate it is, -1 the network's own; whether the label decided about it."""

    mask: np.ndarray
    chosen: int
    uses_ground_truth: bool


def overlap(first: np.ndarray, second: np.ndarray) -> float:
    """IoU of two masks; 0 where both are empty."""
    return float((first & second).sum() / max((first | second).sum(), 1))


def none(probability: np.ndarray) -> Fused:
    """The network's own mask, [p > 0.5], of foreground probabilities (H, W)."""
    return Fused(probability > THRESHOLD, -1, False)


def both_sides(positive: np.ndarray, negative: np.ndarray) -> np.ndarray:
    """Candidates (2 K, H, W) of `select` from [v > 0] and [v < 0], (K, H, W) each: v_0's sides, v_1's, ..."""
    return np.stack([positive, negative], 1).reshape(-1, *positive.shape[1:])


def select(probability: np.ndarray, candidates: np.ndarray, threshold: float = THRESHOLD) -> Fused:
    """The candidate (2 K, H, W) that overlaps the network's mask most, if by `threshold` at least; else the mask.

    Of equal ones the first.
    """
    own = none(probability).mask
    overlaps = [overlap(candidate, own) for candidate in candidates]
    best = int(np.argmax(overlaps))
    return Fused(candidates[best], best, False) if overlaps[best] >= threshold else Fused(own, -1, False)


def project(probability: np.ndarray, vectors: np.ndarray, degree: np.ndarray, alpha: float = 0.5) -> np.ndarray:
    """(1 - alpha) p + alpha V V^T D p: probabilities (..., h, w) moved towards their smooth part on the graph.

    vectors: (K, h, w), D-orthonormal, the trivial one among them; degree: (h, w), ones for a plain Laplacian. The sum
    over classes stays 1; a value may leave [0, 1] a little.
    """
    shape, nodes = probability.shape, degree.size
    basis = np.asarray(vectors, np.float64).reshape(-1, nodes)
    flat = np.asarray(probability, np.float64).reshape(-1, nodes)
    smooth = (flat * degree.reshape(-1)) @ basis.T @ basis
    return ((1 - alpha) * flat + alpha * smooth).reshape(shape)


def regions(probability: np.ndarray, vectors: np.ndarray, count: int = 8, seed: int = 0) -> np.ndarray:
    """Probabilities (..., h, w), each the mean over its region: `count` clusters of the rows of vectors (K, h, w)."""
    rows = np.asarray(vectors, np.float64).reshape(len(vectors), -1).T
    flat = np.asarray(probability, np.float64).reshape(-1, len(rows))
    _, region = kmeans2(rows, min(count, len(rows)), KMEANS_STEPS, minit="++", seed=seed)
    sizes = np.bincount(region, minlength=count)
    sums = np.stack([np.bincount(region, weights=values, minlength=count) for values in flat])
    return (sums / np.maximum(sizes, 1))[:, region].reshape(probability.shape)


def oracle(probability: np.ndarray, masks: np.ndarray, label: np.ndarray) -> Fused:
    """The best of the network's mask and [v_k > 0], masks (K, H, W), by IoU **with the label** (H, W) of 0, 1, 255.

    Pixels of 255 do not count. The network's own mask goes before equal ones.
    """
    own, known = none(probability).mask, label != IGNORE
    truth = (label == 1)[known]
    overlaps = [overlap(mask[known], truth) for mask in (own, *masks)]
    best = int(np.argmax(overlaps))
    return Fused(own if best == 0 else masks[best - 1], best - 1, True)


def describe(kind: str) -> dict:
    """What every report of a fusion says of it; ValueError for an unknown kind."""
    if kind not in KINDS:
        raise ValueError(f"fusion.kind {kind!r} is not known; allowed: {', '.join(KINDS)}")
    return {"fusion": kind, "uses_ground_truth": kind in NEED_LABEL}
