"""The ECENet loss: pixel cross entropy, mask and dice terms of the class masks, diversity (ECENet spec, section 7).

Letters: B batch, K classes, M classes at most in one image (K when every class is a target), S levels, h x w output
grid, H x W label, N = H * W, C channels of a diverse map.

Every term is a sum over this batch divided by counts of the whole global batch. So the terms, and the gradients, of
ranks and micro-batches add up to those of the global batch.
"""

import mindspore as ms
from mindspore import nn, ops

from src.constants import IGNORE
from src.functional import check_choice, one_hot, resize_bilinear
from src.losses.cross_entropy import MeanCrossEntropy
from src.losses.options import read_weights

WEIGHTS = {"ce": 1.0, "mask": 5.0, "dice": 2.0, "diversity": 0.2}
MASK_LOSSES = ("focal", "bce")
MASK_TARGETS = ("present", "all")
MASK_SUPERVISIONS = ("all_but_finest", "total", "each")
MASK_IGNORES = ("exclude", "negative")
DIVERSITY_NORMS = ("half", "full", "min")
DIVERSITY_REDUCTIONS = ("mean", "sum")
FOCAL_ALPHA = 0.25  # weight of target pixels, gamma is 2 (Lin et al., "Focal Loss for Dense Object Detection")


class ClassMaskLoss(nn.Cell):
    """Cross entropy of the logits, mask and dice terms of the class masks, diversity of the diverse maps.

    A class mask has a fixed target: the pixels of its class. A term of weight 0 is 0 and costs nothing, and so is
    `diversity` when the network has no diverse maps. An image without a valid pixel adds nothing but diversity.
    The attribute `terms` names what `construct` returns.

    Args:
        num_classes: K.
        weights: of `ce`, `mask`, `dice`, `diversity`; those not given keep 1, 5, 2, 0.2.
        mask_loss: sigmoid `focal` loss (alpha 0.25, gamma 2) or plain `bce`, averaged over the image's pixels.
        mask_targets: masks of the classes `present` in the image, or `all` K, absent ones with empty targets.
        mask_sup: what is supervised: the sum of the masks `all_but_finest` (released), of all of them (`total`), or
            `each` mask by itself, averaged over the masks.
        mask_ignore: `exclude` ignored pixels, or count them as `negative` for every class (SegViT).
        div_norm: per-level divisor of the diversity: C (`half` of the level's channels), 2C (`full`), or the `min` of C
            and the number of positions.
        div_reduce: `mean` or `sum` over levels.
        ce_avg: see `MeanCrossEntropy`.
    """

    needs: tuple[str, ...] = ("logits", "masks", "finest_mask", "diverse")  # keys of outputs

    def __init__(
        self, num_classes: int, *, weights: dict[str, float] | None = None, mask_loss: str = "focal",
        mask_targets: str = "present", mask_sup: str = "all_but_finest", mask_ignore: str = "exclude",
        div_norm: str = "half", div_reduce: str = "mean", ce_avg: str = "valid",
    ) -> None:  # fmt: skip
        super().__init__()
        for name, value, allowed in (
            ("mask_loss", mask_loss, MASK_LOSSES), ("mask_targets", mask_targets, MASK_TARGETS),
            ("mask_sup", mask_sup, MASK_SUPERVISIONS), ("mask_ignore", mask_ignore, MASK_IGNORES),
            ("div_norm", div_norm, DIVERSITY_NORMS), ("div_reduce", div_reduce, DIVERSITY_REDUCTIONS),
        ):  # fmt: skip
            check_choice(name, value, allowed)
        self.terms = tuple(WEIGHTS)
        merged = read_weights(weights, WEIGHTS)
        # Plain attributes: entries of a dict are no constants in the graph, and a term of weight 0 would be computed.
        self.ce_weight, self.mask_weight = merged["ce"], merged["mask"]
        self.dice_weight, self.diversity_weight = merged["dice"], merged["diversity"]
        self.num_classes, self.mask_targets, self.mask_sup = num_classes, mask_targets, mask_sup
        self.mask_ignore, self.div_norm, self.div_reduce = mask_ignore, div_norm, div_reduce
        self.focal = mask_loss == "focal"
        self.mean_cross_entropy = MeanCrossEntropy(ce_avg)
        self.mask_sums = MaskSums(self.focal)
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

    def mask_terms(self, maps, label, present, counts):
        """Mask and dice term of maps (B, K, h, w), label (B, H, W), present (B, M), not yet weighted."""
        b, height, width = label.shape
        label = label.reshape(b, 1, height * width)
        valid = (label != IGNORE).astype(ms.float32)
        if self.mask_targets == "all":
            ids = ops.tile(ops.arange(self.num_classes).astype(ms.int32), (b, 1))
            pairs = counts[2] * self.num_classes
        else:
            ids, pairs = present, counts[1]
        pair_weight = (ids >= 0).astype(ms.float32) * ops.amax(valid, 2)  # (B, M)
        counted = ops.ones_like(valid) if self.mask_ignore == "negative" else valid
        counted, target = ops.stop_gradient(counted), ops.stop_gradient(class_targets(label, ids))
        mask, dice = 0.0, 0.0
        for scores in maps:
            if self.mask_targets == "present":
                scores = select_classes(scores, ids)
            scores = resize_bilinear(scores, (height, width)).reshape(b, -1, height * width)
            mask_losses, dice_losses = self.pair_losses(scores, target, counted)
            mask += (mask_losses * pair_weight).sum()
            dice += (dice_losses * pair_weight).sum()
        divisor = ops.maximum(pairs, 1.0) * len(maps)
        return mask / divisor, dice / divisor

    def pair_losses(self, scores, target, counted):
        """Mask loss and dice loss of every (image, class) pair, both (B, M).

        scores, target (B, M, N); counted (B, 1, N), 1 where a pixel takes part. With e = |sigmoid(score) - target|
        the dice sums follow from sums of e: sum(p t) = sum(t) - sum(e t), sum(p) = sum(e) + sum(t) - 2 sum(e t).
        """
        loss_sum, target_loss_sum, error_sum, target_error_sum, _, _ = self.mask_sums(scores, target, counted)
        size = sum_last(target)
        overlap = size - target_error_sum
        dice_losses = 1.0 - (2.0 * overlap + 1.0) / (error_sum + 2.0 * overlap + 1.0)
        if self.focal:  # alpha on the target pixels, 1 - alpha on the others
            loss_sum = (1.0 - FOCAL_ALPHA) * loss_sum + (2.0 * FOCAL_ALPHA - 1.0) * target_loss_sum
        return loss_sum / ops.maximum(sum_last(counted), 1.0), dice_losses

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


class MaskSums(nn.Cell):
    """Sums over pixels from which mask loss and dice loss of every (image, class) pair follow.

    With z = score off the target and -score on it: error e = sigmoid(z) = |sigmoid(score) - target|, binary cross
    entropy c = softplus(z), loss l = c e^2 (focal with gamma 2, without alpha) or c. The gradient is written out: it
    takes about half the time of the derived one on CPU.
    """

    def __init__(self, focal: bool) -> None:
        super().__init__()
        self.focal = focal
        self.tile, self.depend = ops.Tile(), ops.Depend()

    def construct(self, scores, target, counted):
        """scores, target (B, M, N), target 0 or 1; counted (B, 1, N), 1 where a pixel takes part.

        Returns sums (B, M) of l over counted and over target pixels, of e over counted and over target pixels; then
        e and c (B, M, N), which only the gradient needs.
        """
        z = scores - 2.0 * (scores * target)
        error = ops.sigmoid(z)
        # softplus(z) without overflow: max(z, 0) - log(sigmoid(|z|))
        entropy = ops.relu(z) - ops.log(ops.maximum(error, 1.0 - error))
        loss = entropy * error * error if self.focal else entropy
        column = counted.transpose(0, 2, 1)
        return (
            ops.matmul(loss, column).squeeze(-1), sum_last(loss * target),
            ops.matmul(error, column).squeeze(-1), sum_last(error * target), error, entropy,
        )  # fmt: skip

    def bprop(self, scores, target, counted, out, dout):
        """Gradient for the scores from those of the four sums; none flows through the last two outputs."""
        error, entropy = self.depend(out[4], dout[0]), self.depend(out[5], dout[0])
        rest = 1.0 - error
        # dl/dz = e * slope and de/dz = e * rest
        slope = error * (2.0 * (rest * entropy) + error) if self.focal else 1.0
        columns = (1, 1, scores.shape[2])
        loss_weight = ops.matmul(dout[0].expand_dims(-1), counted)
        loss_weight = loss_weight + target * self.tile(dout[1].expand_dims(-1), columns)
        error_weight = ops.matmul(dout[2].expand_dims(-1), counted)
        error_weight = error_weight + target * self.tile(dout[3].expand_dims(-1), columns)
        gradient = error * (loss_weight * slope + error_weight * rest)
        gradient = gradient - 2.0 * (gradient * target)  # dz/dscore is -1 on the target
        # Not zeros_like: a custom gradient that calls Python functions with branches breaks other compilations.
        return gradient, 0.0 * target, 0.0 * counted


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


def class_targets(label, ids):
    """1.0 where the label is the class, else 0.0: label (B, 1, N) int32, ids (B, M) int32 -> (B, M, N) float32.

    label - id as a product of small matrices, exact for such integers, and 1 - difference^2 cut at 0: a third of the
    time of a broadcast comparison on CPU.
    """
    label, ids = label.astype(ms.float32), ids.astype(ms.float32).expand_dims(-1)
    left = ops.concat((ops.ones_like(ids), -ids), 2)  # (B, M, 2)
    difference = ops.matmul(left, ops.concat((label, ops.ones_like(label)), 1))
    return ops.relu(1.0 - ops.square(difference))


def select_classes(maps, ids):
    """Maps of the given classes: maps (B, K, h, w), ids (B, M) int32 -> (B, M, h, w); an id of -1 gives zeros."""
    b, k, height, width = maps.shape
    return ops.matmul(one_hot(ids, k), maps.reshape(b, k, height * width)).reshape(b, -1, height, width)


def sum_last(x):
    """Sum over the last axis, (B, M, N) -> (B, M), as a product with ones: reductions run on one thread on CPU."""
    b, m, n = x.shape
    return ops.matmul(x.reshape(b * m, n), ops.ones((n, 1), ms.float32)).reshape(b, m)
