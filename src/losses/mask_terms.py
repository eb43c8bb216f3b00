"""Mask and dice terms of masks that belong to fixed classes (ECENet spec, section 7; SegViT spec, loss).

Letters: B batch, K classes, M classes at most in one image (K when every class is a target), h x w grid of the masks,
H x W label, N = H * W.
"""

import mindspore as ms
from mindspore import nn, ops

from src.constants import IGNORE
from src.functional import check_choice, one_hot, resize_bilinear

MASK_LOSSES = ("focal", "bce")
MASK_TARGETS = ("present", "all")
MASK_IGNORES = ("exclude", "negative")
FOCAL_ALPHA = 0.25  # weight of target pixels, gamma is 2 (Lin et al., "Focal Loss for Dense Object Detection")


def full_labels_for(mends: dict[str, bool], mask_ignore: str) -> tuple[str, ...]:
    """The settings that would let a loss learn from sparse labels, in which what has no label may be of any class.

    mends: setting -> whether it is needed; that of `mask_ignore` is added.
    """
    return tuple(mend for mend, on in {**mends, "mask_ignore: exclude": mask_ignore == "negative"}.items() if on)


class MaskTerms(nn.Cell):
    """Mask loss and dice loss of masks, one a class, against the pixels of their class; not yet weighted.

    Summed over masks, images and target classes and divided by the (image, class) pairs of the global batch. An image
    without a valid pixel adds nothing.

    Args:
        num_classes: K.
        mask_loss: sigmoid `focal` loss (alpha 0.25, gamma 2) or plain `bce`, averaged over the image's pixels.
        mask_targets: masks of the classes `present` in the image, or `all` K, absent ones with empty targets.
        mask_ignore: `exclude` ignored pixels, or count them as `negative` for every class (SegViT).
    """

    def __init__(self, num_classes: int, mask_loss: str, mask_targets: str, mask_ignore: str) -> None:
        super().__init__()
        check_choice("mask_loss", mask_loss, MASK_LOSSES)
        check_choice("mask_targets", mask_targets, MASK_TARGETS)
        check_choice("mask_ignore", mask_ignore, MASK_IGNORES)
        self.num_classes, self.mask_targets, self.mask_ignore = num_classes, mask_targets, mask_ignore
        self.focal = mask_loss == "focal"
        self.mask_sums = MaskSums(self.focal)

    def construct(self, maps, label, present, counts):
        """Mask and dice term, float32 scalars.

        maps: tuple of mask logits (B, K, h, w) float32; label (B, H, W) int32, 255 = ignore; present (B, M) int32,
        class ids and then -1; counts (3,): valid pixels, pairs and images of the global batch.
        """
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
            mask = mask + (mask_losses * pair_weight).sum()
            dice = dice + (dice_losses * pair_weight).sum()
        divisor = ops.maximum(pairs, 1.0)
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
