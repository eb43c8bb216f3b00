"""Scores of the zero-shot protocols: one class at a time, and seen beside unseen classes (spec sazs, section 8).

Letters: K classes, C those of a fold. Label 255 = void.
"""

import math
from collections.abc import Sequence

import numpy as np

from src.constants import IGNORE


def binary_counts(pred: np.ndarray, label: np.ndarray, ignore_void: bool = True) -> np.ndarray:
    """Pixels (2, 2) int64 of one image and class: rows intersection and union, columns background and foreground.

    pred: (H, W) of 0 and 1; label: the same with 255. ignore_void=False counts predictions on void pixels into the
    unions, as the released evaluation does. Raises ValueError for different shapes and other values.
    """
    if pred.shape != label.shape:
        raise ValueError(f"the prediction has shape {pred.shape}, the label {label.shape}; they must be equal")
    for what, values, allowed in (("prediction", pred, (0, 1)), ("label", label, (0, 1, IGNORE))):
        wrong = np.setdiff1d(values, allowed)
        if wrong.size:
            raise ValueError(f"the {what} holds the value {wrong[0]}; allowed: {', '.join(map(str, allowed))}")
    if ignore_void:
        pred, label = pred[label != IGNORE], label[label != IGNORE]
    hit = [int(((pred == r) & (label == r)).sum()) for r in (0, 1)]
    whole = [int(((pred == r) | (label == r)).sum()) for r in (0, 1)]
    return np.array([hit, whole], np.int64)


def binary_scores(counts: np.ndarray) -> dict[str, float]:
    """`miou` and `fb_iou` of a fold from sums (C, 2, 2) of `binary_counts`, a class a row.

    miou: mean over classes of the foreground's IoU, 0 for a class that occurs nowhere; fb_iou: mean over background
    and foreground of the IoU of all classes together.
    """
    counts = np.asarray(counts, np.float64)
    per_class = counts[:, 0, 1] / np.maximum(counts[:, 1, 1], 1)
    total = counts.sum(0)
    return {"miou": float(per_class.mean()), "fb_iou": float((total[0] / np.maximum(total[1], 1)).mean())}


def mean_of_folds(scores: Sequence[dict[str, float]]) -> dict[str, float]:
    """The mean of every score over the folds."""
    return {key: float(np.mean([fold[key] for fold in scores])) for key in scores[0]}


def split_scores(overlaps: np.ndarray, unseen: Sequence[int]) -> dict[str, float | None]:
    """Mean IoU of the `seen` and of the `unseen` classes, and `hiou`, their harmonic mean; from IoUs (K,).

    Classes of NaN, which neither labels nor predictions hold, are in no mean; None where nothing is left. hiou is 0
    when both are. Raises ValueError for unseen ids that are no classes, or all of them.
    """
    classes = set(range(len(overlaps)))
    if not unseen or not set(unseen) < classes:
        raise ValueError(f"unseen classes {sorted(unseen)}: need some, not all, of the ids 0 to {len(overlaps) - 1}")
    seen, hidden = (_mean(overlaps[sorted(ids)]) for ids in (classes - set(unseen), set(unseen)))
    return {"seen": seen, "unseen": hidden, "hiou": harmonic_mean(seen, hidden)}


def _mean(values: np.ndarray) -> float | None:
    mean = float(np.mean(values[~np.isnan(values)])) if (~np.isnan(values)).any() else math.nan
    return None if math.isnan(mean) else mean


def harmonic_mean(seen: float | None, unseen: float | None) -> float | None:
    """2 S U / (S + U); 0 when both are 0, None when one is unknown."""
    if seen is None or unseen is None:
        return None
    return 2 * seen * unseen / (seen + unseen) if seen + unseen else 0.0
