"""How near a class lies to others in text space (spec sazs, section 11). The paper's formula is not known; ours.

Letters: C classes, D width of an embedding.
"""

from collections.abc import Sequence

import numpy as np

from src.text.tables import unit_rows


def nearest_seen(rows: np.ndarray, unseen: Sequence[int]) -> np.ndarray:
    """For each class of rows (C, D) the largest cosine with a seen class other than itself, (C,)."""
    cosines = _cosines(rows)
    cosines[:, list(unseen)] = -np.inf
    return cosines.max(1)


def knn(rows: np.ndarray, count: int) -> np.ndarray:
    """For each class the mean cosine with its `count` nearest other classes, (C,)."""
    if not 1 <= count < len(rows):
        raise ValueError(f"analysis.locality knn of {count} neighbours among {len(rows)} classes: 1 to {len(rows) - 1}")
    return np.sort(_cosines(rows), 1)[:, -count:].mean(1)


def _cosines(rows: np.ndarray) -> np.ndarray:
    """(C, C), the diagonal -inf."""
    units = unit_rows(rows)
    cosines = units @ units.T
    np.fill_diagonal(cosines, -np.inf)
    return cosines
