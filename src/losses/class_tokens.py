"""The loss of SegViT: classification of the class tokens, focal and dice loss of their masks, at every level.

B. Zhang et al., "SegViT: Semantic Segmentation with Plain Vision Transformers", NeurIPS 2022 (SegViT spec, loss).

Letters: B batch, K classes and class tokens, M classes at most in one image, S levels, h x w grid of the masks,
H x W label, P (image, present class) pairs and n images of the global batch.

Every term is a sum over this batch divided by counts of the whole global batch, and summed over the levels.
"""

import mindspore as ms
from mindspore import nn, ops

from src.functional import check_choice, one_hot
from src.losses.cross_entropy import LogSoftmax
from src.losses.mask_terms import MaskTerms, full_labels_for, sum_last
from src.losses.options import read_weights

WEIGHTS = {"class": 1.0, "mask": 20.0, "dice": 1.0}
ABSENT = ("crop", "image")
ABSENT_WEIGHT = 0.1  # of a token whose class is absent, against 1 of one whose class is present


class ClassTokenLoss(nn.Cell):
    """Classification of the class tokens, mask and dice terms of their masks; deep supervision with equal weights.

    Token k is to say class k where the class is present in the image, else "no object" (weight 0.1); its mask is to
    cover the pixels of class k. A term of weight 0 is 0 and costs nothing. An image without a valid pixel adds
    nothing, where the release has all its tokens say "no object". The attribute `terms` names what `construct` returns.

    Args:
        num_classes: K.
        weights: of `class`, `mask`, `dice`; those not given keep 1, 20, 1.
        mask_ignore: `exclude` ignored pixels, or count them as `negative` for every class (released).
        absent: which classes are absent: those without a label in the `crop` (released), or those without one in the
            whole `image`, for sparse labels: a class without a stroke in the crop may be there all the same, so its
            token learns nothing of it. The divisor stays what it is.
    """

    needs: tuple[str, ...] = ("class_scores", "token_masks")  # keys of outputs
    align_corners = False  # how logits are resized

    def __init__(
        self, num_classes: int, *, weights: dict[str, float] | None = None, mask_ignore: str = "exclude",
        absent: str = "crop",
    ) -> None:  # fmt: skip
        super().__init__()
        check_choice("absent", absent, ABSENT)
        self.terms = tuple(WEIGHTS)
        merged = read_weights(weights, WEIGHTS)
        self.class_weight, self.mask_weight, self.dice_weight = merged["class"], merged["mask"], merged["dice"]
        self.num_classes, self.absent_in_image = num_classes, absent == "image"
        self.columns = ("image_present",) if self.absent_in_image else ()
        self.needs_full_labels = full_labels_for({"absent: image": absent == "crop"}, mask_ignore)
        self.log_softmax = LogSoftmax()
        self.mask_terms = MaskTerms(num_classes, "focal", "present", mask_ignore)

    def construct(self, outputs, batch, counts):
        """Weighted terms (class, mask, dice), float32 scalars.

        outputs: class_scores, S tensors (B, K, K + 1), "no object" last; token_masks, S mask logits (B, K, h, w).
        batch: label (B, H, W) int32, 255 = ignore; present (B, M) int32, class ids and then -1; image_present (B, K)
        likewise, of the whole images, where `absent` is `image`.
        counts (3,) float32: valid pixels, (image, present class) pairs and images of the global batch.
        """
        classification = mask = dice = ops.zeros((), ms.float32)
        if self.class_weight > 0.0:
            classification = self.classification(outputs["class_scores"], batch, counts)
        if self.mask_weight > 0.0 or self.dice_weight > 0.0:
            maps = ()
            for each in outputs["token_masks"]:
                maps += (each.astype(ms.float32),)
            mask, dice = self.mask_terms(maps, batch["label"], batch["present"], counts)
        return self.class_weight * classification, self.mask_weight * mask, self.dice_weight * dice

    def classification(self, class_scores, batch, counts):
        """Weighted mean of the tokens' cross entropy, summed over the levels; not yet weighted as a term.

        The weights of the global batch add up to P + 0.1 (n K - P).
        """
        b, room = batch["present"].shape
        k = self.num_classes
        ids = one_hot(batch["present"], k)
        here = ops.matmul(ops.ones((b, 1, room), ms.float32), ids)  # (B, 1, K): 1 where present
        # Labels without a class say nothing of what is absent.
        labelled = ops.minimum(ops.matmul(here, ops.ones((b, k, k), ms.float32)), 1.0)
        absent = ABSENT_WEIGHT * (1.0 - here) * labelled
        if self.absent_in_image:
            elsewhere = one_hot(batch["image_present"], k).sum(1, keepdims=True)
            absent = absent * (1.0 - ops.minimum(elsewhere, 1.0))
        own = ops.matmul(ids.transpose(0, 2, 1), ids)  # (B, K, K): `here` on the diagonal
        weight = ops.stop_gradient(ops.concat((own, absent), 1))  # (B, K + 1, K tokens)
        total = 0.0
        for scores in class_scores:
            log_shares = self.log_softmax(scores.astype(ms.float32).transpose(0, 2, 1))  # (B, K + 1, K tokens)
            total = total - sum_last(log_shares * weight).sum()
        weights = counts[1] + ABSENT_WEIGHT * (counts[2] * k - counts[1])
        return total / ops.maximum(weights, ABSENT_WEIGHT)
