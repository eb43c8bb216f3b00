"""The feature consistency loss (DFR spec, section 5): embeddings of a class are alike, those of two classes are not.

The paper (arXiv 2108.01296) says that there is such a head; loss, pairs and labels are ours.

Letters: B batch, K classes, D embedding width, h x w grid, N = h w, M classes at most in one image.
"""

import mindspore as ms
import numpy as np
from mindspore import Tensor, nn, ops

from src.constants import IGNORE
from src.functional import check_choice, one_hot, spread
from src.losses.mask_terms import class_targets
from src.losses.pairwise import gram_factors, off_diagonal, shifted, window_offsets
from src.losses.regulariser import places

AFFINITIES = ("gaussian", "l1mean", "sigmoid_dot")
LABELS = ("both", "scribble", "prediction")
PAIRS = ("all", "window")
SMALL = 1e-5  # keeps the logarithms finite


class ConsistencyLoss(nn.Cell):
    """Class-balanced cross entropy of the affinity of pairs of cells.

    A cell's label is its scribble's, or else the network's own guess among the classes of the image, where it is sure
    of it. A pair counts where both cells have a label and are near, or both have a scribble.

    Args:
        num_classes: K.
        stride: pixels of a cell.
        affinity: of embeddings: `gaussian` exp(-|a - b|^2 / 2 sigma^2), `l1mean` exp(-mean |a - b|), `sigmoid_dot`
            sigmoid(a . b).
        sigma: of the gaussian; the regulariser's `deep` trains what the kernel uses.
        normalise: embeddings have length 1.
        labels: of `scribble`, of `prediction`, or `both`.
        tau: share among the image's classes from which a guess counts.
        pairs: `all` that count, or those near each other alone, in a `window`: nothing is made for every pair of cells,
            so finer strides fit (A2GNN: stride 8, radius 4).
        radius: in cells, of what is near.
        background: class whose pairs are averaged by themselves, None where no class is background.
        pseudo_start: share of the training steps from which guesses count.
    """

    def __init__(
        self, num_classes: int, *, stride: int = 16, affinity: str = "gaussian", sigma: float = 0.5,
        normalise: bool = True, labels: str = "both", tau: float = 0.9, pairs: str = "all", radius: int = 8,
        background: int | None = 0, pseudo_start: float = 0.1,
    ) -> None:  # fmt: skip
        super().__init__()
        check_choice("affinity", affinity, AFFINITIES)
        check_choice("labels", labels, LABELS)
        check_choice("pairs", pairs, PAIRS)
        if stride < 1 or radius < 1 or sigma <= 0.0 or not 0.0 <= tau <= 1.0 or not 0.0 <= pseudo_start <= 1.0:
            raise ValueError(
                f"stride {stride}, radius {radius}, sigma {sigma}, tau {tau}, pseudo_start {pseudo_start}; give at "
                "least 1, at least 1, above 0, 0 to 1 and 0 to 1"
            )
        if background is not None and not 0 <= background < num_classes:
            raise ValueError(f"background is {background}; give a class, 0 to {num_classes - 1}, or null")
        self.num_classes, self.stride, self.affinity, self.sigma = num_classes, stride, affinity, sigma
        self.normalise, self.labels, self.tau, self.radius = normalise, labels, tau, radius
        self.background, self.pseudo_start = background, pseudo_start
        self.offsets = window_offsets(radius, (1,)) if pairs == "window" else ()
        self.products, self.argmax = ops.BatchMatMul(transpose_a=True), ops.Argmax(1, ms.int32)

    def construct(self, embedding, shares, cells, inside, present, progress):
        """Scalar: embedding (B, D, h, w), shares (B, K, h, w), cells (B, 1, h, w) int32 labels, inside (B, 1, h, w),
        present (B, M) int32 classes of the whole image, then -1, progress ()."""
        b, k, h, w = shares.shape
        scribbled, guessed = self.targets(shares, cells, inside, present, progress)
        if len(self.offsets) > 0:
            return self.in_window(embedding, (scribbled + guessed).reshape(b, k, h, w))
        same_bg, same, different = self.pairs(scribbled, guessed, near_cells(h, w, self.radius))
        affinity = self.affinities(embedding.reshape(b, -1, h * w))
        alike, apart = -ops.log(affinity + SMALL), -ops.log(1.0 + SMALL - affinity)
        return self.balance(mean(alike, same_bg), mean(alike, same), mean(apart, different))

    def balance(self, same_bg, same, different):
        """The loss of the means over three sets of pairs."""
        if self.background is None:
            return same / 2 + different / 2
        return same_bg / 4 + same / 4 + different / 2

    def in_window(self, embedding, labels):
        """The loss over pairs no farther than the radius: embedding (B, D, h, w), one-hot labels (B, K, h, w)."""
        h, w = labels.shape[2], labels.shape[3]
        costs, counts = (0.0, 0.0, 0.0), (0.0, 0.0, 0.0)
        for dy, dx in self.offsets:
            if dy < h and -w < dx < w:
                first, second = shifted(embedding, dy, dx)
                affinity = self.affinity_of(first, second)
                alike, apart = -ops.log(affinity + SMALL), -ops.log(1.0 + SMALL - affinity)
                first, second = shifted(labels, dy, dx)
                same, known = (first * second).sum(1), first.sum(1) * second.sum(1)
                ground = 0.0 * same
                if self.background is not None:
                    ground = first[:, self.background] * second[:, self.background]
                sets = (ground, same - ground, known - same)
                costs = (
                    costs[0] + (alike * sets[0]).sum(), costs[1] + (alike * sets[1]).sum(),
                    costs[2] + (apart * sets[2]).sum(),
                )  # fmt: skip
                counts = (counts[0] + sets[0].sum(), counts[1] + sets[1].sum(), counts[2] + sets[2].sum())
        means = ()
        for i in range(3):
            means += (costs[i] / ops.maximum(ops.stop_gradient(counts[i]), 1.0),)
        return self.balance(means[0], means[1], means[2])

    def affinity_of(self, first, second):
        """(B, h, w) of the embeddings at both ends of pairs, (B, D, h, w) each."""
        if self.affinity == "gaussian":
            return ops.exp(-ops.square(first - second).sum(1) / (2.0 * self.sigma**2))
        if self.affinity == "sigmoid_dot":
            return ops.sigmoid((first * second).sum(1))
        return ops.exp(-ops.abs(first - second).mean(1))

    def targets(self, shares, cells, inside, present, progress):
        """One-hot labels (B, K, N) of scribbled cells, and of guessed ones; zeros elsewhere."""
        b, k, h, w = shares.shape
        n = h * w
        shares, inside = ops.stop_gradient(shares).reshape(b, k, n), inside.reshape(b, 1, n)
        cells, shape = cells.reshape(b, 1, n), (b, k, n)
        ids = ops.tile(ops.arange(k).astype(ms.int32), (b, 1))
        scribbled = class_targets(cells, ids) * spread(inside, shape)
        if self.labels == "prediction":
            scribbled = 0.0 * scribbled
        if self.labels == "scribble":
            return scribbled, 0.0 * scribbled
        here = ops.minimum(one_hot(present, k).sum(1), 1.0).reshape(b, k, 1)
        shares = shares * spread(here, shape)
        top, total = ops.amax(shares, 1, True), shares.sum(1, keepdims=True)
        sure = (top >= self.tau * total).astype(ms.float32) * (total > 0.0).astype(ms.float32) * inside
        if self.labels == "both":
            sure = sure * (1.0 - (cells != IGNORE).astype(ms.float32))
        sure = sure * spread((progress >= self.pseudo_start).astype(ms.float32).reshape(1, 1, 1), sure.shape)
        guessed = class_targets(self.argmax(shares).reshape(b, 1, n), ids) * spread(sure, shape)
        return scribbled, guessed

    def pairs(self, scribbled, guessed, near):
        """Sets of pairs, 0 or 1 (B, N, N): both of the background, of one (other) class, of two classes."""
        labels = scribbled + guessed
        known, drawn = labels.sum(1, keepdims=True), scribbled.sum(1, keepdims=True)
        pairs, same = self.products(known, known), self.products(labels, labels)
        allowed = ops.maximum(pairs * spread(near, pairs.shape), self.products(drawn, drawn))
        allowed = allowed * spread(off_diagonal(pairs.shape[1]), pairs.shape)
        same_bg = 0.0
        if self.background is not None:
            row = labels[:, self.background : self.background + 1]
            same_bg = self.products(row, row)
        sets = allowed * same_bg, allowed * (same - same_bg), allowed * (pairs - same)
        return ops.stop_gradient(sets[0]), ops.stop_gradient(sets[1]), ops.stop_gradient(sets[2])

    def affinities(self, embedding):
        """(B, N, N) of an embedding (B, D, N)."""
        if self.affinity == "gaussian":
            row, column = gram_factors(embedding)
            return ops.exp(ops.minimum(self.products(row, column) / self.sigma**2, 0.0))
        if self.affinity == "sigmoid_dot":
            return ops.sigmoid(self.products(embedding, embedding))
        width, places_first = embedding.shape[1], embedding.transpose(0, 2, 1)
        return ops.exp(-ops.cdist(places_first, places_first, 1.0) / width)


def shallow_consistency(embedding, colours, inside, stride, sigma, xy, rgb):
    """Mean over valid pairs of the shallow kernel times |E_i - E_j|^2 / 2 sigma^2, a scalar (spec 5, `L_fcs`).

    embedding (B, D, h, w), colours (B, 3, h, w), inside (B, 1, h, w); xy in pixels, stride pixels a cell.
    """
    b, _, h, w = colours.shape
    product = ops.BatchMatMul(transpose_a=True)
    position = ops.tile(places(h, w, stride / xy), (b, 1, 1, 1))
    row, column = gram_factors(ops.concat((position, colours / rgb), 1).reshape(b, -1, h * w))
    kernel = ops.exp(ops.minimum(product(row, column), 0.0))
    inside = inside.reshape(b, 1, h * w)
    pairs = product(inside, inside) * spread(off_diagonal(h * w), kernel.shape)
    row, column = gram_factors(embedding.reshape(b, -1, h * w))
    distance = -product(row, column) / sigma**2
    return mean(distance * ops.stop_gradient(kernel), ops.stop_gradient(pairs))


def mean(values, chosen):
    """Mean of values over the entries that are 1 in `chosen`, of equal shape; 0 for none."""
    return (values * chosen).sum() / ops.maximum(chosen.sum(), 1.0)


@ms.ops.constexpr
def near_cells(h: int, w: int, radius: int) -> Tensor:
    """(1, N, N) float32: 1 where two cells are at most `radius` rows and columns apart."""
    rows, columns = (np.abs(np.subtract.outer(np.arange(n), np.arange(n))) <= radius for n in (h, w))
    return Tensor(np.kron(rows, columns)[None].astype(np.float32))
