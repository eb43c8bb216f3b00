"""Predictions of many classes, or of one, fused with eigensegments, and what they score (SAZS spec, sections 7 and 8).

Everything here is NumPy on the class shares of one image. How a rule for a single class is put to many is ours: see
`select_labels` and `oracle_counts`.

Letters: K classes, H x W image, V eigenvectors, h x w grid of nodes.
"""

from collections.abc import Sequence

import numpy as np

from src.constants import IGNORE
from src.engine.inference import resize_maps
from src.metrics import confusion_matrix
from src.spectral import fusion
from src.spectral.segments import Segments, segment_masks, upsample, with_trivial_vector
from src.zero_shot import binary_counts


def softmax(logits: np.ndarray) -> np.ndarray:
    """Shares (K, H, W) of logits, over the classes."""
    powers = np.exp(logits - logits.max(0))
    return powers / powers.sum(0)


def calibrate(shares: np.ndarray, seen: Sequence[int], gamma: float) -> np.ndarray:
    """Shares after `gamma` has been subtracted from the logits of the seen classes; they add up to 1 again."""
    factor = np.ones((len(shares), 1, 1), shares.dtype)
    factor[list(seen)] = np.exp(-gamma)
    weighed = shares * factor
    return weighed / weighed.sum(0)


def project_shares(shares: np.ndarray, segments: Segments, alpha: float = 0.5) -> np.ndarray:
    """(1 - alpha) p + alpha V V^T D p, shares (K, H, W); the graph's grid is taken to cover the image."""
    nodes = resize_maps(shares.astype(np.float32), segments.degree.shape)
    smooth = fusion.project(nodes, with_trivial_vector(segments), segments.degree, 1.0)
    return (1 - alpha) * shares + alpha * resize_maps(smooth.astype(np.float32), shares.shape[1:])


def region_shares(shares: np.ndarray, segments: Segments) -> np.ndarray:
    """Shares (K, H, W), each the mean over its region of nodes."""
    nodes = resize_maps(shares.astype(np.float32), segments.degree.shape)
    means = fusion.regions(nodes, with_trivial_vector(segments))
    return upsample(means, shares.shape[1:], segments.meta["patch"])


def candidates_of(segments: Segments) -> np.ndarray:
    """Both sides of every eigenvector at the image's size, (2 V, H, W) bool."""
    negative = upsample(segments.vectors < 0, tuple(segments.meta["image_size"]), segments.meta["patch"])
    return fusion.both_sides(segment_masks(segments), negative)


def select_labels(shares: np.ndarray, segments: Segments) -> np.ndarray:
    """Label map (H, W) after `fusion.select` for each class that the network predicts, by its own mask.

    A pixel goes to the most probable of the classes whose masks then hold it, and keeps its class where none does.
    """
    own, candidates = shares.argmax(0), candidates_of(segments)
    claimed = np.full(shares.shape, -1.0, shares.dtype)
    for k in np.unique(own):
        mask = fusion.select((own == k).astype(np.float32), candidates).mask
        claimed[k][mask] = shares[k][mask]
    return np.where(claimed.max(0) >= 0, claimed.argmax(0), own)


def fused_labels(kind: str, shares: np.ndarray, segments: Segments | None) -> np.ndarray:
    """Label map (H, W) of a kind of fusion that does not look at the label."""
    if kind == "select":
        return select_labels(shares, segments)
    if kind == "project":
        return project_shares(shares, segments).argmax(0)
    if kind == "regions":
        return region_shares(shares, segments).argmax(0)
    return shares.argmax(0)


def label_counts(pred: np.ndarray, label: np.ndarray, num_classes: int) -> np.ndarray:
    """Counts (K, 2, 2) int64 of every class against all others, each as of `zero_shot.binary_counts`."""
    matrix = confusion_matrix(pred, label, num_classes)
    hit, total = np.diag(matrix), matrix.sum()
    union = matrix.sum(0) + matrix.sum(1) - hit
    return np.stack([np.stack([total - union, hit], 1), np.stack([total - hit, union], 1)], 1)


def oracle_counts(shares: np.ndarray, segments: Segments, label: np.ndarray) -> np.ndarray:
    """Counts (K, 2, 2) where the label chooses, for each class by itself, among the network's mask and the segments.

    As in the release, each class is scored by its best mask, even where those of two classes overlap: no label map has
    these scores.
    """
    own, masks = shares.argmax(0), segment_masks(segments)
    counts = []
    for k in range(len(shares)):
        truth = np.where(label == IGNORE, IGNORE, label == k)
        chosen = fusion.oracle((own == k).astype(np.float32), masks, truth)
        counts.append(binary_counts(chosen.mask.astype(int), truth))
    return np.stack(counts)


def class_counts(kind: str, shares: np.ndarray, segments: Segments | None, label: np.ndarray) -> np.ndarray:
    """Counts (K, 2, 2) of one image with a kind of fusion."""
    if kind == "oracle":
        return oracle_counts(shares, segments, label)
    return label_counts(fused_labels(kind, shares, segments), label, len(shares))


def asked_counts(kind: str, share: np.ndarray, segments: Segments | None, truth: np.ndarray) -> np.ndarray:
    """Counts (2, 2) of the one class that is asked for, by its share (H, W) against all else; truth of 0, 1 and 255."""
    if kind == "oracle":
        mask = fusion.oracle(share, segment_masks(segments), truth).mask
    elif kind == "select":
        mask = fusion.select(share, candidates_of(segments)).mask
    else:
        mask = fused_labels(kind, np.stack([1 - share, share]), segments)
    return binary_counts(np.asarray(mask, int), truth)


def chance_counts(matrix_rows: np.ndarray) -> np.ndarray:
    """Expected counts (K, 2, 2) of predictions drawn evenly among the classes; matrix_rows: labelled pixels (K,)."""
    labelled = np.asarray(matrix_rows, np.float64)
    count, total = len(labelled), labelled.sum()
    hit = labelled / count
    union = labelled + total / count - hit
    return np.stack([np.stack([total - union, hit], 1), np.stack([total - hit, union], 1)], 1)


def overlaps_of(counts: np.ndarray) -> np.ndarray:
    """IoU (K,) of every class from counts (K, 2, 2); NaN for one that neither labels nor predictions hold."""
    hit, union = counts[:, 0, 1].astype(float), counts[:, 1, 1].astype(float)
    return np.divide(hit, union, out=np.full(len(hit), np.nan), where=union > 0)
