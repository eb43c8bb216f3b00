"""The loss of SAZS: pixels aligned with the text of their class, boundaries, their shapes (SAZS spec, 3 and 9).

Liu et al., "Delving into Shape-aware Zero-shot Semantic Segmentation", CVPR 2023; details are its release's.

Letters: B batch, K classes, M classes at most in one image, h x w grid of the logits, H x W label, N = h w.
"""

import mindspore as ms
from mindspore import nn, ops

from src.constants import IGNORE
from src.functional import check_choice
from src.losses.cross_entropy import LogSoftmax, MeanCrossEntropy, pick_true
from src.losses.edges import check_edges, distance_edges, half_widths, reduce_edges, sample, sobel_edges
from src.losses.mask_terms import select_classes
from src.losses.options import read_weights
from src.losses.shape import shape_difference

WEIGHTS = {"align": 1.0, "bce": 0.3, "att": 0.1, "shape": 0.0}
PROTOCOLS = ("multiclass", "binary")
RESOLUTIONS = ("grid", "label")
KEPT_ABOVE = 0.8  # boundary logit, not probability


class AlignmentLoss(nn.Cell):
    """Cross entropy of the similarities with text; cross entropy and shapes of the boundaries; edge attention.

    The terms of the boundaries are means over the images, which add up over micro-batches and devices; shares and
    weights inside them are those of the micro-batch at hand, as published. A term of weight 0 is 0 and costs nothing.

    Args:
        num_classes: K.
        weights: of `align`, `bce`, `att` and `shape`; those not given keep 1, 0.3, 0.1, 0. Published is 0.3 for a shape
            term without gradient; ours is `shape_difference`.
        protocol: `multiclass`, or `binary` (published): class 0, which stands for all else, against the class that is
            asked for, the first of `present` (`data.options.samples=pairs`).
        resolution: `grid`, labels at the first pixel of each cell (published), or `label`, logits resized to the label;
            of `align` in multiclass.
        ignore_void: leave ignored pixels out; false counts them as class 0 (published), binary only.
        att_reduce: `mean` over images, or their `sum` (published), which grows with the batch.
        edge_operator: `distance` (release), or `sobel` (paper).
        edge_radius: pixels from another class, `distance` only.
        edge_scope: `seen`: ignored pixels neither make boundaries nor count; `all` (published): they are a value like
            any other. Both take every class that the data leave in the label (`data.options.others`); `target`, binary
            only: as `seen`, of the class that is asked for alone.
        edge_frame: the frame of the image is a boundary (published); `distance` only.
        edge_downsample: `nearest`, dotted (published), or `max`.
    """

    needs: tuple[str, ...] = ("logits", "boundary")  # keys of outputs; the second for all terms but `align`
    align_corners: bool | None = None  # how logits are resized: not at all, unless resolution is `label`

    def __init__(
        self, num_classes: int, *, weights: dict[str, float] | None = None, protocol: str = "multiclass",
        resolution: str = "grid", ignore_void: bool = True, att_reduce: str = "mean", edge_operator: str = "distance",
        edge_radius: int = 2, edge_scope: str = "seen", edge_frame: bool = False, edge_downsample: str = "max",
    ) -> None:  # fmt: skip
        super().__init__()
        check_choice("protocol", protocol, PROTOCOLS)
        check_choice("resolution", resolution, RESOLUTIONS)
        check_choice("att_reduce", att_reduce, ("mean", "sum"))
        check_edges(edge_operator, edge_radius, edge_scope, edge_downsample)
        self.binary, self.at_label = protocol == "binary", resolution == "label"
        self.needs_asked_class = self.binary
        self.align_corners = False if self.at_label else None
        if not self.binary and not ignore_void:
            raise ValueError("ignore_void false needs protocol binary: among many classes void is none of them")
        if edge_scope == "target" and not self.binary:
            raise ValueError("edge_scope 'target' needs protocol binary: among many classes none is asked for")
        if self.binary and self.at_label:
            raise ValueError("resolution 'label' needs protocol multiclass")
        merged = read_weights(weights, WEIGHTS)
        self.terms = tuple(WEIGHTS)
        self.align_weight, self.bce_weight = merged["align"], merged["bce"]
        self.att_weight, self.shape_weight = merged["att"], merged["shape"]
        self.has_edges = self.bce_weight > 0.0 or self.shape_weight > 0.0
        self.needs = ("logits", "boundary") if self.has_edges or self.att_weight > 0.0 else ("logits",)
        self.num_classes, self.ignore_void, self.att_mean = num_classes, ignore_void, att_reduce == "mean"
        self.distance, self.widths, self.scope = edge_operator == "distance", half_widths(edge_radius), edge_scope
        self.of_target = edge_scope == "target"
        self.frame, self.downsample = edge_frame, edge_downsample
        self.log_softmax, self.mean_cross_entropy = LogSoftmax(), MeanCrossEntropy("valid")

    def construct(self, outputs, batch, counts):
        """Weighted terms (align, bce, att, shape), float32 scalars.

        outputs: logits (B, K, h, w); boundary (B, 1, h, w), where a term needs it.
        batch: label (B, H, W) int32, 255 = ignore; present (B, M) int32, class ids and then -1.
        counts (3,) float32: valid pixels, (image, present class) pairs and images of the global batch.
        """
        align = bce = att = shape = ops.zeros((), ms.float32)
        logits, label = outputs["logits"].astype(ms.float32), batch["label"]
        part = label.shape[0] / ops.maximum(counts[2], 1.0)  # of the images of the global batch
        grid = logits.shape[2:]
        if self.binary:
            logits, label = self.two_classes(logits, label, batch["present"])
        small = sample(label, grid)
        shares = self.log_softmax(logits.reshape(logits.shape[0], -1, grid[0] * grid[1]))
        if self.align_weight > 0.0:
            if self.at_label:
                align = self.mean_cross_entropy(logits, label, counts)
            else:
                align = part * mean_alignment(shares, small)
        if self.att_weight > 0.0:
            att = edge_attention(shares, small, outputs["boundary"], 2 if self.binary else self.num_classes)
            if self.att_mean:
                att = att / ops.maximum(counts[2], 1.0)
        if self.has_edges:
            bce, shape = self.boundary_terms(outputs["boundary"], label if self.of_target else batch["label"])
        return (
            self.align_weight * align, self.bce_weight * part * bce, self.att_weight * att,
            self.shape_weight * part * shape,
        )  # fmt: skip

    def two_classes(self, logits, label, present):
        """Logits (B, 2, h, w) of class 0 and of the one asked for, and the label of 0, 1 and perhaps 255."""
        asked = present[:, :1]
        logits = select_classes(logits, ops.concat((ops.zeros_like(asked), asked), 1))
        void = ops.equal(label, IGNORE).astype(ms.int32)
        own = (label == ops.tile(asked.expand_dims(-1), (1, label.shape[1], label.shape[2]))).astype(ms.int32)
        return logits, own + IGNORE * void if self.ignore_void else own

    def boundary_terms(self, boundary, label):
        """Balanced cross entropy and shape term of boundary logits (B, 1, h, w); the latter 0 where it is off."""
        boundary, grid = boundary.astype(ms.float32).squeeze(1), boundary.shape[2:]
        if self.distance:
            edge = distance_edges(label, self.widths, self.frame, self.scope)
        else:
            edge = sobel_edges(label, self.scope)
        target = ops.stop_gradient(reduce_edges(edge, grid, self.downsample))
        valid = ops.ones_like(target)
        if self.scope != "all":
            valid = (sample(label, grid) != IGNORE).astype(ms.float32)
        bce = balanced_cross_entropy(boundary, target, ops.stop_gradient(valid))
        if self.shape_weight > 0.0:
            return bce, shape_difference(ops.sigmoid(boundary) * valid, target * valid)
        return bce, ops.zeros((), ms.float32)


def mean_alignment(log_shares, label):
    """Mean over the valid positions of the cross entropy: log_shares (B, K, N), label (B, h, w) int32 -> a scalar."""
    picked, valid = pick_true(log_shares, label)
    return -(picked * valid).sum() / ops.maximum(valid.sum(), 1.0)


def balanced_cross_entropy(boundary, target, valid):
    """Mean over the valid positions of the binary cross entropy, a boundary weighted by the share of the others.

    boundary logits, target and valid of 0 and 1: (B, h, w) float32 -> a scalar.
    """
    count = ops.maximum(valid.sum(), 1.0)
    share = (target * valid).sum() / count
    z = boundary - 2.0 * (boundary * target)
    # softplus(z); written with |z| it would have no slope at 0, where fresh boundaries are.
    entropy = -ops.log_softmax(ops.stack((ops.zeros_like(z), z), -1), -1)[..., 0]
    weight = target * (1.0 - share) + (1.0 - target) * share
    return (entropy * weight * valid).sum() / count


def edge_attention(log_shares, label, boundary, classes):
    """Cross entropy where the network sees a boundary, frequent classes weighing less; summed over the images.

    Positions with a boundary logit above 0.8 count; a class among them has weight 1 + (1 - its share of them). Each
    image's sum is divided by the sum of its weights. No gradient reaches the boundary. log_shares (B, K, N), label
    (B, h, w) int32, boundary (B, 1, h, w) -> a scalar, 0 where nothing counts.
    """
    b, _, n = log_shares.shape
    picked, valid = pick_true(log_shares, label)  # (B, 1, N)
    kept = ops.stop_gradient((boundary.reshape(b, 1, n) > KEPT_ABOVE).astype(ms.float32)) * valid
    total, weights = ops.maximum(kept.sum(), 1.0), ops.zeros_like(kept)
    label = label.reshape(b, 1, n)
    for k in range(classes):
        own = ops.equal(label, k).astype(ms.float32) * kept
        weights = weights + own * (2.0 - own.sum() / total)
    weights = ops.stop_gradient(weights)
    per_image = -(picked * weights).sum((1, 2)) / ops.maximum(weights.sum((1, 2)), 1e-6)
    return per_image.sum()
