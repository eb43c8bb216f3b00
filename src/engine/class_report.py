"""What class masks and class embeddings of a trained head say about the classes, stage by stage.

Letters: B images, K classes, S masks, R class embeddings, E width of an embedding, H x W image, h x w output grid,
N vectors.
"""

from collections.abc import Sequence

import numpy as np
from mindspore import nn, ops

from src.constants import IGNORE
from src.metrics import confusion_matrix, mean_iou

NEEDS = ("masks", "finest_mask", "embeddings")  # keys of a head's outputs


class ClassOutputs(nn.Cell):
    """uint8 RGB (1, 3, H, W) -> scores (S + 2, K, h, w), embeddings (R, K, E), of a network whose head gives NEEDS.

    Scores: the masks of the levels in the order in which they are made, coarsest first; then the logits without what
    the head adds to them from the masks (`head.prior`), and the logits themselves.
    """

    def __init__(self, network: nn.Cell) -> None:
        super().__init__(auto_prefix=False)
        missing = [key for key in NEEDS if key not in network.head.outputs]
        if missing:
            raise ValueError(
                f"this head gives no {', '.join(missing)}; class masks and embeddings are those of model.head.name "
                "ecenet"
            )
        self.network = network
        self.has_prior = network.head.mask_prior != "none"
        self.set_train(False)

    def construct(self, image):
        outputs = self.network(image)
        masks, logits, embeddings = outputs["finest_mask"] + outputs["masks"], outputs["logits"], outputs["embeddings"]
        scores, total = (), None
        for mask in masks:
            scores = (mask, *scores)
            total = mask if total is None else total + mask
        pixels = logits
        if self.has_prior:
            pixels = logits - self.network.head.prior(embeddings[-1], total)
        return ops.concat((*scores, pixels, logits), 0), ops.concat(embeddings, 0)


class StageScores:
    """Scores of the label maps that each of several score maps gives, summed over images.

    `share_changed` is the part of the labelled pixels on which the last map decides otherwise than the one before it.
    """

    def __init__(self, stages: int, num_classes: int) -> None:
        self.matrices = np.zeros((2, stages, num_classes, num_classes), np.int64)
        self.changed = self.pixels = 0

    def add(self, scores: np.ndarray, label: np.ndarray) -> None:
        """scores (stages, K, H, W) of one image, label (H, W) with 255 = ignore."""
        known = label != IGNORE
        num_classes = scores.shape[1]
        absent = np.setdiff1d(np.arange(num_classes), label[known])
        predictions = scores.argmax(1)
        among = scores.copy()
        among[:, absent] = -np.inf
        for stage, (free, given) in enumerate(zip(predictions, among.argmax(1), strict=True)):
            self.matrices[0, stage] += confusion_matrix(free, label, num_classes)
            self.matrices[1, stage] += confusion_matrix(given, label, num_classes)
        self.changed += int((predictions[-1] != predictions[-2])[known].sum())
        self.pixels += int(known.sum())

    def miou(self) -> list[float]:
        """Mean IoU of every map."""
        return [mean_iou(matrix) for matrix in self.matrices[0]]

    def miou_among_present(self) -> list[float]:
        """The same with the choice limited to the classes of the image's label: it uses the ground truth.

        A mask that is only trained where its class is present may say anything elsewhere.
        """
        return [mean_iou(matrix) for matrix in self.matrices[1]]

    @property
    def share_changed(self) -> float:
        return self.changed / max(self.pixels, 1)


def separation(vectors: np.ndarray, classes: Sequence[int]) -> dict[str, float | None]:
    """How far vectors (N, E) of the same class, from different images, stand apart from those of other classes.

    `same`, `other`: mean cosine between vectors of one class and of two; `nearest`: share of vectors whose nearest
    class mean, that of its own class taken without itself, is that of its class. Classes with fewer than two vectors
    are left out; None where that leaves fewer than two classes.
    """
    ids = np.asarray(classes)
    names, counts = np.unique(ids, return_counts=True)
    names = names[counts > 1]
    keep = np.isin(ids, names)
    if len(names) < 2:
        return {"same": None, "other": None, "nearest": None}
    index = np.searchsorted(names, ids[keep])
    lengths = np.linalg.norm(vectors[keep], axis=1, keepdims=True).astype(np.float64)
    units = vectors[keep] / np.maximum(lengths, 1e-12)
    sums = np.zeros((len(names), units.shape[1]))
    np.add.at(sums, index, units)
    sizes = np.bincount(index)
    squares = (sums**2).sum(1)  # of n unit vectors: n and twice the sum over their pairs
    same = (squares - sizes).sum() / (sizes * (sizes - 1)).sum()
    other = ((sums.sum(0) ** 2).sum() - squares.sum()) / (sizes.sum() ** 2 - (sizes**2).sum())
    means = sums / np.maximum(np.linalg.norm(sums, axis=1, keepdims=True), 1e-12)
    cosines = units @ means.T
    own = sums[index] - units
    own /= np.maximum(np.linalg.norm(own, axis=1, keepdims=True), 1e-12)
    cosines[np.arange(len(units)), index] = (units * own).sum(1)
    return {"same": float(same), "other": float(other), "nearest": float((cosines.argmax(1) == index).mean())}


def steadiness(first: np.ndarray, second: np.ndarray) -> float:
    """Mean cosine between vectors before and after a step, both (N, E)."""
    lengths = np.linalg.norm(first, axis=1) * np.linalg.norm(second, axis=1)
    return float(((first * second).sum(1) / np.maximum(lengths, 1e-12)).mean())
