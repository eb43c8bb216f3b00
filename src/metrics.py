"""Scores of label maps: counts first, summed over images and devices, divided once at the end.

Letters: K classes, H x W pixels of an image. Label 255 = ignore. Scores of classes that do not occur are NaN in the
arrays and null, with `absent` said, in the summary.
"""

import io
import math
from collections.abc import Sequence

import numpy as np
from rich import box
from rich.console import Console
from rich.table import Table
from scipy.ndimage import distance_transform_edt

from src.constants import IGNORE


def confusion_matrix(pred: np.ndarray, label: np.ndarray, num_classes: int, ignore_index: int = IGNORE) -> np.ndarray:
    """Counts (K, K) int64: row = label, column = prediction; pixels labelled ignore_index are left out.

    pred, label: integer arrays of one shape. Raises ValueError for different shapes and for values that are no class
    (a prediction also where the label is ignored: no network of K classes can give it).
    """
    if pred.shape != label.shape:
        raise ValueError(f"the prediction has shape {pred.shape}, the label {label.shape}; they must be equal")
    keep = label != ignore_index
    _check_classes(pred, num_classes, "prediction", "no other value is allowed")
    _check_classes(label[keep], num_classes, "label", f"other pixels must be {ignore_index} (ignore)")
    index = label[keep].astype(np.int64) * num_classes + pred[keep]
    return np.bincount(index, minlength=num_classes**2).reshape(num_classes, num_classes).astype(np.int64)


def _check_classes(values: np.ndarray, num_classes: int, what: str, rule: str) -> None:
    wrong = values[(values < 0) | (values >= num_classes)]
    if wrong.size:
        raise ValueError(
            f"the {what} holds the value {int(wrong.flat[0])} ({wrong.size} pixels are no class), but there are "
            f"{num_classes} classes, 0 to {num_classes - 1}; {rule}"
        )


def _ratio(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    return np.divide(part, whole, out=np.full(np.shape(whole), np.nan), where=whole > 0)


def _mean_of_known(values: np.ndarray) -> float:
    known = values[~np.isnan(values)]
    return float(known.mean()) if known.size else math.nan


def iou(matrix: np.ndarray) -> np.ndarray:
    """Intersection over union per class, (K,) float64; NaN for a class neither labelled nor predicted."""
    hit = np.diag(matrix)
    return _ratio(hit, matrix.sum(0) + matrix.sum(1) - hit)


def class_accuracy(matrix: np.ndarray) -> np.ndarray:
    """Share of each class's labelled pixels that are predicted as it, (K,) float64; NaN for a class without labels."""
    return _ratio(np.diag(matrix), matrix.sum(1))


def pixel_accuracy(matrix: np.ndarray) -> float:
    """Share of labelled pixels with the right class; NaN without labelled pixels."""
    return float(_ratio(np.trace(matrix), matrix.sum()))


def mean_iou(matrix: np.ndarray) -> float:
    """Mean IoU over the classes that occur in label or prediction; NaN where none does."""
    return _mean_of_known(iou(matrix))


def boundary_counts(
    pred: np.ndarray, label: np.ndarray, num_classes: int, radius: float, ignore_index: int = IGNORE
) -> np.ndarray:
    """Boundary counts of one image, (K, 4) int64, to be added up over images.

    Columns: predicted boundary pixels within `radius` of a labelled one of the same class, predicted boundary pixels,
    labelled ones within `radius` of a predicted one, labelled boundary pixels. Distances are Euclidean, between pixel
    centres, in pixels; `radius` itself counts as near.

    A boundary pixel of class k is a pixel of k with a 4-neighbour of another class; neither ignored pixels nor the edge
    of the image make a boundary. Predictions on ignored pixels are left out before boundaries are drawn.
    pred, label: (H, W) integers, as checked by `confusion_matrix`.
    """
    pred = np.where(label == ignore_index, ignore_index, pred)
    pred_edges, label_edges = _boundary(pred, ignore_index), _boundary(label, ignore_index)
    counts = np.zeros((num_classes, 4), np.int64)
    for k in np.union1d(pred[pred_edges], label[label_edges]):
        predicted, labelled = pred_edges & (pred == k), label_edges & (label == k)
        counts[k] = (
            _count_near(predicted, labelled, radius),
            predicted.sum(),
            _count_near(labelled, predicted, radius),
            labelled.sum(),
        )
    return counts


def _boundary(classes: np.ndarray, ignore_index: int) -> np.ndarray:
    edges = np.zeros(classes.shape, bool)
    known = classes != ignore_index
    for first, second in ((np.s_[1:], np.s_[:-1]), (np.s_[:, 1:], np.s_[:, :-1])):
        border = (classes[first] != classes[second]) & known[first] & known[second]
        edges[first] |= border
        edges[second] |= border
    return edges


def _count_near(points: np.ndarray, targets: np.ndarray, radius: float) -> int:
    """How many of `points` lie within radius of one of `targets`; both (H, W) bool."""
    if not points.any() or not targets.any():
        return 0
    both = points | targets
    rows, columns = np.flatnonzero(both.any(1)), np.flatnonzero(both.any(0))
    part = np.s_[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]  # the transform is slow on whole images
    distance = distance_transform_edt(~targets[part])
    return int((distance[points[part]] <= radius).sum())


def boundary_f(counts: np.ndarray) -> tuple[np.ndarray, float]:
    """Boundary F-score per class, (K,) float64, and its mean; counts as of `boundary_counts`.

    F = 2 P R / (P + R) of precision and recall over all images; 0 without a hit, NaN for a class that has no boundary
    in label or prediction. The mean is over the other classes.
    """
    near_predicted, predicted, near_labelled, labelled = counts.T.astype(np.float64)
    precision = near_predicted / np.maximum(predicted, 1)
    recall = near_labelled / np.maximum(labelled, 1)
    score = 2 * precision * recall / np.maximum(precision + recall, np.finfo(np.float64).tiny)
    score = np.where(predicted + labelled > 0, score, np.nan)
    return score, _mean_of_known(score)


def summarise(matrix: np.ndarray, boundary: np.ndarray, class_names: Sequence[str], boundary_radius: float) -> dict:
    """All scores as plain values for JSON; a score that does not exist is None, never NaN.

    matrix: (K, K) counts; boundary: (K, 4) counts taken with boundary_radius (pixels). Keys: miou, pixel_accuracy,
    mean_accuracy, boundary_f, boundary_radius, classes; each class: name, iou, accuracy, boundary_f, pixels (labelled),
    absent (neither labelled nor predicted; its scores are None and in no mean).
    """
    accuracies = class_accuracy(matrix)
    edge_scores, edge_mean = boundary_f(boundary)
    rows = zip(class_names, iou(matrix), accuracies, edge_scores, matrix.sum(1), matrix.sum(0), strict=True)
    return {
        "miou": _number(mean_iou(matrix)),
        "pixel_accuracy": _number(pixel_accuracy(matrix)),
        "mean_accuracy": _number(_mean_of_known(accuracies)),
        "boundary_f": _number(edge_mean),
        "boundary_radius": boundary_radius,
        "classes": [
            {
                "name": name,
                "iou": _number(overlap),
                "accuracy": _number(accuracy),
                "boundary_f": _number(edge_score),
                "pixels": int(labelled),
                "absent": not labelled and not predicted,
            }
            for name, overlap, accuracy, edge_score, labelled, predicted in rows
        ],
    }


def _number(value: float) -> float | None:
    return None if math.isnan(value) else float(value)


def format_table(summary: dict) -> str:
    """The summary as text: one line a class, then the means. A score that does not exist is a dash."""
    table = Table(box=box.ASCII2, show_footer=True)
    radius = summary["boundary_radius"]
    means = [summary[key] for key in ("miou", "mean_accuracy", "boundary_f")]
    for head, foot in zip(
        ("class", "IoU", "accuracy", f"boundary F ({radius:g} px)", "share of pixels"),
        ("mean", *map(_score, means), ""),
        strict=True,
    ):
        table.add_column(head, foot, justify="left" if head == "class" else "right", no_wrap=True)
    pixels = sum(row["pixels"] for row in summary["classes"])
    for row in summary["classes"]:
        overlap = "absent" if row["absent"] else _score(row["iou"])
        share = f"{100 * row['pixels'] / max(pixels, 1):.2f} %"
        table.add_row(row["name"], overlap, _score(row["accuracy"]), _score(row["boundary_f"]), share)
    # a console of its own, without colour and markup: the text also goes into files, and names may hold brackets
    out = io.StringIO()
    Console(file=out, width=250, markup=False, highlight=False, color_system=None, emoji=False).print(table)
    return f"{out.getvalue()}pixel accuracy {_score(summary['pixel_accuracy'])}"


def _score(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"
