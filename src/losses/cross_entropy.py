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
        ce_avg: see `mean_cross_entropy`.
    """

    needs: tuple[str, ...] = ("logits",)  # keys of outputs

    def __init__(self, num_classes: int, *, weights: dict[str, float] | None = None, ce_avg: str = "valid") -> None:
        super().__init__()
        check_choice("ce_avg", ce_avg, CE_AVERAGES)
        self.num_classes, self.ce_avg = num_classes, ce_avg
        self.terms = ("ce",)
        self.weight = read_weights(weights, {"ce": 1.0})["ce"]

    def construct(self, outputs, batch, counts):
        """logits (B, K, h, w), label (B, H, W) int32, counts (3,) of the global batch -> (ce,), a scalar."""
        return (self.weight * mean_cross_entropy(outputs["logits"], batch["label"], counts, self.ce_avg),)


def mean_cross_entropy(logits, label, counts, average):
    """This batch's share of the global mean cross entropy, float32 (spec section 7).

    logits (B, K, h, w) are resized bilinearly to label (B, H, W). `average`: over the `valid` pixels, or over `all`
    pixels, the ignored ones counting as 0. counts (3,): valid pixels, pairs and images of the global batch.
    """
    height, width = label.shape[1:]
    total = cross_entropy_sum(resize_bilinear(logits.astype(ms.float32), (height, width)), label)
    pixels = counts[0] if average == "valid" else counts[2] * (height * width)
    return total / ops.maximum(pixels, 1.0)


def cross_entropy_sum(logits, label):
    """Sum of -log softmax(logits)[label] over pixels whose label is not 255.

    logits (B, K, H, W) float32, label (B, H, W) int32. Sums are products with constant vectors: reductions run on one
    thread on CPU, and the gradient of log_softmax over channels is several times slower than that of this form.
    """
    b, k, height, width = logits.shape
    logits = logits.reshape(b, k, height * width)
    label = label.reshape(b, 1, height * width)
    valid = label != IGNORE
    largest = ops.stop_gradient(ops.amax(logits, 1, keepdims=True))
    partition = ops.matmul(ops.ones((1, k), ms.float32), ops.exp(logits - largest))  # (B, 1, HW)
    picked = ops.gather_elements(logits, 1, label * valid.astype(ms.int32))
    losses = ops.log(partition) + largest - picked
    return ops.matmul(losses, valid.astype(ms.float32).reshape(b, height * width, 1)).sum()
