"""The ECENet loss: pixel cross entropy, mask and dice terms of the class masks, diversity (ECENet spec, section 7).

Letters: B batch, K classes, M classes at most in one image, S levels, h x w output grid, H x W label, C channels of a
diverse map, N its positions.

Every term is a sum over this batch divided by counts of the whole global batch. So the terms, and the gradients, of
ranks and micro-batches add up to those of the global batch.
"""

import mindspore as ms
from mindspore import nn, ops

from src.functional import check_choice
from src.losses.cross_entropy import MeanCrossEntropy
from src.losses.mask_terms import MaskTerms, full_labels_for, sum_last
from src.losses.options import read_weights

WEIGHTS = {"ce": 1.0, "mask": 5.0, "dice": 2.0, "diversity": 0.2}
MASK_SUPERVISIONS = ("all_but_finest", "total", "each")
DIVERSITY_NORMS = ("half", "full", "min")
DIVERSITY_REDUCTIONS = ("mean", "sum")


class ClassMaskLoss(nn.Cell):
    """Cross entropy of the logits, mask and dice terms of the class masks, diversity of the diverse maps.

    A class mask has a fixed target: the pixels of its class. A term of weight 0 is 0 and costs nothing, and so is
    `diversity` when the network has no diverse maps. An image without a valid pixel adds nothing but diversity.
    The attribute `terms` names what `construct` returns.

    Args:
        num_classes: K.
        weights: of `ce`, `mask`, `dice`, `diversity`; those not given keep 1, 5, 2, 0.2.
        mask_loss, mask_targets, mask_ignore: see `MaskTerms`.
        mask_sup: what is supervised: the sum of the masks `all_but_finest` (released), of all of them (`total`), or
            `each` mask by itself, averaged over the masks.
        div_norm: per-level divisor of the diversity: C (`half` of the level's channels), 2C (`full`), or the `min` of C
            and the number of positions.
        div_reduce: `mean` or `sum` over levels.
        ce_avg: see `MeanCrossEntropy`.
    """

    needs: tuple[str, ...] = ("logits", "masks", "finest_mask", "diverse")  # keys of outputs
    align_corners = False  # how logits are resized

    def __init__(
        self, num_classes: int, *, weights: dict[str, float] | None = None, mask_loss: str = "focal",
        mask_targets: str = "present", mask_sup: str = "all_but_finest", mask_ignore: str = "exclude",
        div_norm: str = "half", div_reduce: str = "mean", ce_avg: str = "valid",
    ) -> None:  # fmt: skip
        super().__init__()
        for name, value, allowed in (
            ("mask_sup", mask_sup, MASK_SUPERVISIONS), ("div_norm", div_norm, DIVERSITY_NORMS),
            ("div_reduce", div_reduce, DIVERSITY_REDUCTIONS),
        ):  # fmt: skip
            check_choice(name, value, allowed)
        self.terms = tuple(WEIGHTS)
        merged = read_weights(weights, WEIGHTS)
        # Plain attributes: entries of a dict are no constants in the graph, and a term of weight 0 would be computed.
        self.ce_weight, self.mask_weight = merged["ce"], merged["mask"]
        self.dice_weight, self.diversity_weight = merged["dice"], merged["diversity"]
        self.mask_sup, self.div_norm, self.div_reduce = mask_sup, div_norm, div_reduce
        self.mean_cross_entropy = MeanCrossEntropy(ce_avg)
        self.mask_terms = MaskTerms(num_classes, mask_loss, mask_targets, mask_ignore)
        self.needs_full_labels = full_labels_for({}, mask_ignore)
        self.position_softmax = PositionSoftmax()

    def construct(self, outputs, batch, counts):
        """Weighted terms (ce, mask, dice, diversity), float32 scalars.

        outputs: logits (B, K, h, w); masks: mask logits of the levels above the finest; finest_mask: those of the
        finest level, a tuple of one or none, all (B, K, h, w); diverse: S maps (B, C_s, H_s, W_s) or none.
        batch: label (B, H, W) int32, 255 = ignore; present (B, M) int32, class ids and then -1.
        counts (3,) float32: valid pixels, (image, present class) pairs and images of the global batch.
        """
        ce = mask = dice = diversity = ops.zeros((), ms.float32)
        if self.ce_weight > 0.0:
            ce = self.mean_cross_entropy(outputs["logits"], batch["label"], counts)
        if self.mask_weight > 0.0 or self.dice_weight > 0.0:
            maps = self.supervised(outputs["masks"], outputs["finest_mask"])
            mask, dice = self.mask_terms(maps, batch["label"], batch["present"], counts)
            mask, dice = mask / len(maps), dice / len(maps)
        if self.diversity_weight > 0.0:
            diversity = self.diversity(outputs["diverse"], counts)
        return self.ce_weight * ce, self.mask_weight * mask, self.dice_weight * dice, self.diversity_weight * diversity

    def supervised(self, masks, finest_mask):
        """The mask logits that are compared with targets: a tuple of maps (B, K, h, w) float32."""
        if self.mask_sup != "all_but_finest":
            masks = masks + finest_mask
        maps = ()
        for mask in masks:
            maps += (mask.astype(ms.float32),)
        if self.mask_sup == "each":
            return maps
        total = maps[0]
        for other in maps[1:]:
            total = total + other
        return (total,)

    def diversity(self, maps, counts):
        """Mean over images of 1 - sum_pos max_c softmax_pos(d)[c, pos] / divisor, over levels as `div_reduce` says.

        maps: S tensors (B, C, H_s, W_s). Source: diversity component of the Mutual-Channel loss (D. Chang et al.,
        "The Devil is in the Channels", TIP 2020); `half` is the spec's reading.
        """
        total = 0.0
        for d in maps:
            b, channels, height, width = d.shape
            positions = height * width
            divisor = channels
            if self.div_norm == "full":
                divisor = 2 * channels
            elif self.div_norm == "min":
                divisor = min(channels, positions)
            shares = self.position_softmax(d.astype(ms.float32).reshape(b, channels, positions))
            winner = ops.stop_gradient(ops.argmax(shares, 1, True))  # (B, 1, N): cheaper than the gradient of a maximum
            total += b - ops.gather_elements(shares, 1, winner).sum() / divisor
        if self.div_reduce == "mean":
            total = total / max(len(maps), 1)
        return total / ops.maximum(counts[2], 1.0)


class PositionSoftmax(nn.Cell):
    """Softmax over the last axis, with the row sums of its gradient as a product with ones."""

    def __init__(self) -> None:
        super().__init__()
        self.tile = ops.Tile()

    def construct(self, x):
        """(B, C, N) -> (B, C, N)."""
        return ops.softmax(x, -1)

    def bprop(self, x, out, dout):
        """Gradient s * (g - sum(s g)) of shares s for the gradient g."""
        product = out * dout
        return (product - out * self.tile(sum_last(product).expand_dims(-1), (1, 1, out.shape[2])),)
