"""Softmax cross entropy of the pixels.

Letters: B batch, K classes, h x w output grid, H x W label, M classes at most in one image.
"""

import mindspore as ms
from mindspore import nn, ops

from src.constants import IGNORE
from src.functional import check_choice, resize_bilinear
from src.losses.options import read_weights

CE_AVERAGES = ("valid", "all")


class CrossEntropyLoss(nn.Cell):
    """Cross entropy of outputs["logits"] alone; the attribute `terms` names what `construct` returns.

    Args:
        num_classes: K; not needed here, but every loss takes it.
        weights: weight of the term `ce`.
        ce_avg: see `MeanCrossEntropy`.
    """

    needs: tuple[str, ...] = ("logits",)  # keys of outputs
    align_corners = False  # how logits are resized
    softmax_alone = True  # even where a head's logits are scores

    def __init__(self, num_classes: int, *, weights: dict[str, float] | None = None, ce_avg: str = "valid") -> None:
        super().__init__()
        self.mean_cross_entropy = MeanCrossEntropy(ce_avg)
        self.num_classes = num_classes
        self.terms = ("ce",)
        self.weight = read_weights(weights, {"ce": 1.0})["ce"]

    def construct(self, outputs, batch, counts):
        """logits (B, K, h, w), label (B, H, W) int32, counts (3,) of the global batch -> (ce,), a scalar."""
        return (self.weight * self.mean_cross_entropy(outputs["logits"], batch["label"], counts),)


class MeanCrossEntropy(nn.Cell):
    """This batch's share of the global mean cross entropy (spec section 7).

    Args:
        average: over the `valid` pixels, or over `all` pixels, the ignored ones counting as 0.
        align_corners: how logits are resized, see `resize_bilinear`.
    """

    def __init__(self, average: str, align_corners: bool = False) -> None:
        super().__init__()
        check_choice("ce_avg", average, CE_AVERAGES)
        self.average, self.align_corners = average, align_corners
        self.log_softmax = LogSoftmax()

    def construct(self, logits, label, counts):
        """Scalar float32. logits (B, K, h, w) are resized bilinearly to label (B, H, W) int32, 255 = ignore.

        counts (3,): valid pixels, pairs and images of the global batch.
        """
        return self.mean(self.log_shares(logits, label), label, counts)

    def log_shares(self, logits, label):
        """Logarithms of the classes' shares (B, K, H W) at the pixels of the label (B, H, W)."""
        b, height, width = label.shape
        logits = resize_bilinear(logits.astype(ms.float32), (height, width), self.align_corners)
        return self.log_softmax(logits.reshape(b, -1, height * width))

    def mean(self, log_shares, label, counts):
        """Scalar: the share of the mean, from what `log_shares` returns."""
        picked, valid = pick_true(log_shares, label)
        # A product, because reductions run on one thread on CPU.
        total = -ops.matmul(picked, valid.reshape(picked.shape[0], -1, 1)).sum()
        pixels = counts[0] if self.average == "valid" else counts[2] * (label.shape[1] * label.shape[2])
        return total / ops.maximum(pixels, 1.0)


def pick_true(log_shares, label):
    """Entries (B, 1, N) of log_shares (B, K, N) at the label (B, H, W), N = H W; and (B, 1, N) float32, 1 where valid.

    The entry of an ignored pixel is that of class 0.
    """
    label = label.reshape(log_shares.shape[0], 1, -1)
    valid = label != IGNORE
    return ops.gather_elements(log_shares, 1, label * valid.astype(ms.int32)), valid.astype(ms.float32)


class LogSoftmax(nn.Cell):
    """Logarithm of the softmax over the classes, (B, K, N) -> (B, K, N), with the sums of its gradient as products.

    MindSpore's own gradient along an axis that is not the last takes ten times as long on CPU.
    """

    def __init__(self) -> None:
        super().__init__()
        self.tile, self.product, self.depend = ops.Tile(), ops.BatchMatMul(), ops.Depend()

    def construct(self, x):
        return ops.log_softmax(x, 1)

    def bprop(self, x, out, dout):
        b, k, _ = out.shape
        sums = self.product(ops.ones((b, 1, k), ms.float32), dout)  # (B, 1, N)
        return (dout - ops.exp(self.depend(out, dout)) * self.tile(sums, (1, k, 1)),)
