"""The AlignSeg losses: cross entropy of both classifiers, Lovász-softmax, hard examples (AlignSeg spec, section 6).

Letters: B batch, K classes, h x w output grid, H x W label, N = B H W pixels of this batch.

Cross entropy is a sum over this batch divided by the valid pixels of the whole global batch, so ranks and micro-batches
add up to one. Lovász-softmax and hard example mining are no sums over pixels: they are computed in each batch by
itself and weighted by its share of the valid pixels of the global batch. On one device without accumulation this is
the loss as published; on several it is a mean of the devices' losses (the release, too, takes each device's own).
"""

import mindspore as ms
from mindspore import nn, ops

from src.constants import IGNORE
from src.functional import check_choice, spread
from src.losses.cross_entropy import MeanCrossEntropy, pick_true
from src.losses.mask_terms import class_targets
from src.losses.options import read_weights

WEIGHTS = {"ce": 1.0, "aux": 0.1, "lovasz": 0.0}
CROSS_ENTROPIES = ("mean", "ohem")
RELEASED_THRESHOLD, RELEASED_MIN_KEPT = 0.7, 100000


class AlignSegLoss(nn.Cell):
    """Cross entropy of logits and auxiliary logits, and Lovász-softmax of logits, resized corner to corner.

    The release calls two of these: weights ce 1, aux 0.1 (its "OHEM NO"), and lovasz 0.8 besides ("OHEM YES": the flag
    of that name chooses Lovász). Its real hard example mining, which nothing selects, is ce "ohem" with aux 0.4.
    A term of weight 0 is 0 and costs nothing. The attribute `terms` names what `construct` returns.

    Args:
        num_classes: K.
        weights: of `ce`, `aux`, `lovasz`; those not given keep 1, 0.1, 0.
        ce: cross entropy of the logits, the `mean` over valid pixels or over hard ones (`ohem`, see `HardPixels`).
        ohem_threshold, ohem_min_kept: see `HardPixels` (None: 0.7 and 100,000, as released).
    """

    needs: tuple[str, ...] = ("logits", "auxiliary")  # keys of outputs; without auxiliary where its weight is 0
    align_corners = True  # how logits are resized

    def __init__(
        self, num_classes: int, *, weights: dict[str, float] | None = None, ce: str = "mean",
        ohem_threshold: float | None = None, ohem_min_kept: int | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        check_choice("ce", ce, CROSS_ENTROPIES)
        self.terms = tuple(WEIGHTS)
        merged = read_weights(weights, WEIGHTS)
        # Plain attributes: entries of a dict are no constants in the graph, and a term of weight 0 would be computed.
        self.ce_weight, self.aux_weight, self.lovasz_weight = merged["ce"], merged["aux"], merged["lovasz"]
        if self.aux_weight == 0.0:
            self.needs = ("logits",)
        self.cross_entropy = MeanCrossEntropy("valid", align_corners=True)
        self.hard = ce == "ohem"
        if self.hard:
            self.hard_pixels = HardPixels(
                RELEASED_THRESHOLD if ohem_threshold is None else ohem_threshold,
                RELEASED_MIN_KEPT if ohem_min_kept is None else ohem_min_kept,
            )
        elif ohem_threshold is not None or ohem_min_kept is not None:
            raise ValueError("ohem_threshold and ohem_min_kept belong to ce 'ohem', but ce is 'mean'; leave them out")
        self.num_classes = num_classes

    def construct(self, outputs, batch, counts):
        """Weighted terms (ce, aux, lovasz), float32 scalars.

        outputs: logits and auxiliary (B, K, h, w); batch: label (B, H, W) int32, 255 = ignore; counts (3,) float32:
        valid pixels, pairs and images of the global batch.
        """
        ce = aux = lovasz = ops.zeros((), ms.float32)
        label = batch["label"]
        if self.ce_weight > 0.0 or self.lovasz_weight > 0.0:
            log_shares = self.cross_entropy.log_shares(outputs["logits"], label)
            if self.ce_weight > 0.0:
                ce = self.main_cross_entropy(log_shares, label, counts)
            if self.lovasz_weight > 0.0:
                lovasz = lovasz_softmax(ops.exp(log_shares), label, self.num_classes, counts)
        if self.aux_weight > 0.0:
            aux = self.cross_entropy(outputs["auxiliary"], label, counts)
        return self.ce_weight * ce, self.aux_weight * aux, self.lovasz_weight * lovasz

    def main_cross_entropy(self, log_shares, label, counts):
        """Cross entropy of the logits: of all valid pixels or of the hard ones."""
        if self.hard:
            return self.hard_pixels(log_shares, label, counts)
        return self.cross_entropy.mean(log_shares, label, counts)


class HardPixels(nn.Cell):
    """Mean cross entropy of the valid pixels whose true class has a share of at most the threshold.

    The threshold rises until `min_kept` pixels of this batch are kept, or all, where fewer are valid. The release finds
    it on maps reduced to an eighth; here it is found on all pixels.

    Args:
        threshold: above 0 to 1 (release: 0.7).
        min_kept: pixels a batch of one device (release: 100,000).
    """

    def __init__(self, threshold: float, min_kept: int) -> None:
        super().__init__()
        if not 0.0 < threshold <= 1.0:
            raise ValueError(f"ohem_threshold is {threshold}; give a number above 0, at most 1 (release: 0.7)")
        if min_kept < 1:
            raise ValueError(f"ohem_min_kept is {min_kept}; give at least 1 (release: 100000)")
        self.threshold, self.min_kept = threshold, min_kept

    def construct(self, log_shares, label, counts):
        """This batch's scalar, weighted by its share of the valid pixels: log_shares (B, K, H W), label (B, H, W)."""
        picked, valid = pick_true(log_shares, label)
        picked, valid = picked.reshape(1, -1), valid.reshape(-1, 1)
        # Shares, ignored pixels above all others: 2.
        shares = ops.stop_gradient(ops.exp(picked) * valid.reshape(1, -1) + 2.0 * (1.0 - valid.reshape(1, -1)))
        count = min(self.min_kept, shares.shape[1])
        threshold = ops.maximum(-ops.topk(-shares, count)[0][0, count - 1], self.threshold)
        hard = (shares <= threshold).astype(ms.float32).reshape(-1, 1) * valid
        kept = ops.maximum(hard.sum(), 1.0)
        share = valid.sum() / ops.maximum(counts[0], 1.0)
        return -ops.matmul(picked, hard).sum() / kept * share


def lovasz_softmax(shares, label, num_classes, counts):
    """Mean over the batch's classes of the Lovász extension of 1 - IoU, all pixels of the batch as one image.

    Source: Berman et al., "The Lovász-Softmax loss", CVPR 2018. shares (B, K, H W), label (B, H, W) int32, counts (3,)
    of the global batch; a scalar, weighted by this batch's share of the valid pixels.

    With errors in falling order the loss of a class is the sum of each error times the growth of 1 - IoU when its pixel
    joins the wrong ones: 1 / U for a pixel of the class, I / (U (U - 1)) for another one, where I and U are
    intersection and union afterwards. (Differences of the quotients would lose most of float32's digits.)
    """
    pixels = shares.shape[0] * shares.shape[2]
    shares = shares.transpose(1, 0, 2).reshape(num_classes, pixels)
    label = label.reshape(1, 1, pixels)
    ids = ops.arange(num_classes).astype(ms.int32).reshape(1, num_classes)
    true = ops.stop_gradient(class_targets(label, ids)).reshape(num_classes, pixels)
    valid = (label != IGNORE).astype(ms.float32).reshape(1, pixels)
    errors = true + shares * (1.0 - 2.0 * true)
    every = spread(valid, errors.shape)
    order, growth, present = lovasz_growth(ops.stop_gradient((errors + 1.0) * every - 1.0), true)
    losses = ops.gather_elements(errors, 1, order) * growth
    mean = ops.matmul(losses, ops.ones((pixels, 1), ms.float32)).sum() / ops.maximum(present.sum(), 1.0)
    return mean * (valid.sum() / ops.maximum(counts[0], 1.0))


def lovasz_growth(keys, true):
    """Order (K, N) of falling keys, growth of 1 - IoU (K, N) in that order, 1 for classes that are there (K, 1).

    keys (K, N): errors, -1 at ignored pixels; true (K, N): 1 at the pixels of the class.
    """
    keys, order = ops.Sort(-1, True)(keys)
    inside = ops.gather_elements(true, 1, order)
    outside = (keys > -0.5).astype(ms.float32) - inside
    size = ops.matmul(true, ops.ones((true.shape[1], 1), ms.float32))
    sizes = spread(size, true.shape)
    intersection = sizes - ops.cumsum(inside, 1)
    union = sizes + ops.cumsum(outside, 1)
    growth = inside / ops.maximum(union, 1.0)
    growth = growth + outside * intersection / ops.maximum(union * (union - 1.0), 1.0)
    return order, ops.stop_gradient(growth), (size > 0.0).astype(ms.float32)
