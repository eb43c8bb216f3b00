"""Training from scribbles (DFR spec, sections 3 and 6): partial cross entropy, and DFR's terms beside any loss.

B. Zhang et al., "Dynamic Feature Regularized Loss for Weakly Supervised Semantic Segmentation", arXiv 2108.01296.

Letters: B batch, K classes, h x w output grid, H x W label, n images of the global batch.
"""

import mindspore as ms
from mindspore import nn, ops

from src.constants import IGNORE
from src.functional import check_choice, pool_grid
from src.losses.consistency import ConsistencyLoss, shallow_consistency
from src.losses.cross_entropy import LogSoftmax, MeanCrossEntropy, pick_true
from src.losses.grids import cell_labels, cells_of, class_logits, grid_of, grid_shares, to_grid, unit, whole_cells
from src.losses.options import read_weights
from src.losses.regulariser import Regulariser

BALANCES = ("none", "bgfg_mean", "bgfg_sum")
BACKGROUND = 0
WEIGHTS = {"regulariser": 1.0, "consistency": 0.1, "shallow": 0.0}


class PartialCrossEntropyLoss(nn.Cell):
    """Cross entropy over the labelled pixels of the logits and, with a weight, of the auxiliary logits.

    Args:
        num_classes: K; not needed here.
        weights: of `ce` and `aux`; those not given keep 1 and 0.
        balance: mean over all labelled pixels (`none`), or over those of class 0 and the others apart, then their mean
            or their sum (`bgfg_mean`, `bgfg_sum`): of each batch by itself, weighted by its share of the images.
        align_corners: how logits are resized; true for heads that say so.
    """

    needs: tuple[str, ...] = ("logits",)
    align_corners: bool | None = None  # as the option says

    def __init__(
        self, num_classes: int, *, weights: dict[str, float] | None = None, balance: str = "none",
        align_corners: bool = False,
    ) -> None:  # fmt: skip
        super().__init__()
        check_choice("balance", balance, BALANCES)
        merged = read_weights(weights, {"ce": 1.0, "aux": 0.0})
        self.terms = ("ce", "aux")
        self.ce_weight, self.aux_weight, self.balance = merged["ce"], merged["aux"], balance
        if self.aux_weight > 0.0:
            self.needs = ("logits", "auxiliary")
        self.align_corners = align_corners
        self.cross_entropy = MeanCrossEntropy("valid", align_corners)

    def construct(self, outputs, batch, counts):
        """Weighted terms (ce, aux): outputs logits and auxiliary (B, K, h, w), batch label (B, H, W) int32."""
        ce = aux = ops.zeros((), ms.float32)
        if self.ce_weight > 0.0:
            ce = self.average(class_logits(outputs), batch["label"], counts)
        if self.aux_weight > 0.0:
            aux = self.average(outputs["auxiliary"], batch["label"], counts)
        return self.ce_weight * ce, self.aux_weight * aux

    def average(self, logits, label, counts):
        """This batch's share of the global mean."""
        if self.balance == "none":
            return self.cross_entropy(logits, label, counts)
        costs, _ = pick_true(-self.cross_entropy.log_shares(logits, label), label)
        label = label.reshape(costs.shape)
        ground = (label == BACKGROUND).astype(ms.float32)
        things = (label != IGNORE).astype(ms.float32) - ground
        total = 0.0
        for chosen in (ground, things):
            total = total + (costs * chosen).sum() / ops.maximum(chosen.sum(), 1.0)
        total = total / 2 if self.balance == "bgfg_mean" else total
        return total * (label.shape[0] / ops.maximum(counts[2], 1.0))


class DFRLoss(nn.Cell):
    """A loss on the labelled pixels, with the regulariser, the consistency loss and its shallow term beside it.

    Labels off the strokes are 255 and so ignored by every part; padding is told from them by `valid`. The regulariser
    is a mean over images and adds up over ranks and micro-batches; the consistency terms are means over the pairs of
    each batch by itself, weighted by its share of the images. Schedules are functions of the batch's `progress`, so
    nothing is compiled anew. A term of weight 0 is 0 and costs nothing.

    Args:
        num_classes: K.
        base: the loss on the labelled pixels.
        regulariser, consistency: their parts.
        weights: of `regulariser`, `consistency`, `shallow`; those not given keep 1, 0.1, 0.
    """

    needs: tuple[str, ...] = ("logits", "embedding")
    align_corners: bool | None = None  # as the base has it

    def __init__(
        self, num_classes: int, *, base: nn.Cell, regulariser: Regulariser, consistency: ConsistencyLoss,
        weights: dict[str, float] | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        merged = read_weights(weights, WEIGHTS)
        self.terms = (*base.terms, *WEIGHTS)
        self.base, self.regulariser, self.consistency = base, regulariser, consistency
        self.align_corners = base.align_corners
        self.regulariser_weight, self.consistency_weight = merged["regulariser"], merged["consistency"]
        self.shallow_weight = merged["shallow"]
        self.kernel = regulariser.kernels[0]
        if self.shallow_weight > 0.0 and min(self.kernel[1:3]) == 0.0:
            raise ValueError("weights.shallow needs xy and rgb of the first of regulariser.kernels above 0")
        self.pairs = self.consistency_weight > 0.0 or self.shallow_weight > 0.0
        deep = (regulariser.deep_source,) if self.regulariser_weight > 0.0 and regulariser.deep else ()
        pairs = ("embedding",) if self.pairs else ()
        self.needs = tuple(dict.fromkeys((*base.needs, "logits", *deep, *pairs)))
        self.needs_full_labels = getattr(base, "needs_full_labels", ())
        self.columns = ("image_present", "progress")  # of the batch, besides those that every batch has
        self.log_softmax = LogSoftmax()

    def check_crop(self, size: tuple[int, int]) -> None:
        """Raises ValueError where crops of `size` pixels (H, W) are no whole cells, or too few for the kernel."""
        if self.regulariser_weight > 0.0:
            grid = cells_of("loss.regulariser.stride", self.regulariser.stride, size)
            try:
                self.regulariser.energy.check_grid(grid)
            except ValueError as error:
                raise ValueError(f"loss.regulariser: {error} (crops of {size[0]} x {size[1]} pixels)") from error
        if self.pairs:
            cells_of("loss.consistency.stride", self.consistency.stride, size)

    def construct(self, outputs, batch, counts):
        """Weighted terms: the base's, then regulariser, consistency, shallow.

        outputs: logits (B, K, h, w), embedding (B, D, h', w') or another deep_source, and what the base reads. batch:
        image (B, 3, H, W) uint8, label (B, H, W) int32, valid (B, H, W), image_present (B, M) int32, progress (1,).
        """
        regulariser = consistency = shallow = ops.zeros((), ms.float32)
        images = ops.maximum(counts[2], 1.0)
        if self.regulariser_weight > 0.0:
            regulariser = self.regularise(outputs, batch).sum() / images
        if self.pairs:
            consistency, shallow = self.compare(outputs, batch)
            share = batch["label"].shape[0] / images
            consistency, shallow = consistency * share, shallow * share
        return (
            *self.base(outputs, batch, counts), self.regulariser_weight * regulariser,
            self.consistency_weight * consistency, self.shallow_weight * shallow,
        )  # fmt: skip

    def regularise(self, outputs, batch):
        """The regulariser (B,), not yet weighted."""
        stride, label = self.regulariser.stride, batch["label"]
        size = grid_of(label, stride)
        shares = grid_shares(class_logits(outputs), size, self.log_softmax)
        embedding = None
        if self.regulariser.deep:
            embedding = to_grid(outputs[self.regulariser.deep_source].astype(ms.float32), size)
            if not self.regulariser.kernel_grad:
                embedding = ops.stop_gradient(embedding)
            embedding = unit(embedding) if self.regulariser.normalise else embedding
        cells, inside = cell_labels(label, stride), whole_cells(batch["valid"], stride)
        colours = pool_grid(batch["image"].astype(ms.float32) / 255.0, size)
        return self.regulariser(shares, colours, embedding, cells, inside, batch["progress"].reshape(()))

    def compare(self, outputs, batch):
        """Consistency and shallow term of this batch, not yet weighted."""
        stride, label = self.consistency.stride, batch["label"]
        size = grid_of(label, stride)
        embedding = to_grid(outputs["embedding"].astype(ms.float32), size)
        embedding = unit(embedding) if self.consistency.normalise else embedding
        inside = whole_cells(batch["valid"], stride)
        consistency = shallow = ops.zeros((), ms.float32)
        if self.consistency_weight > 0.0:
            shares = ops.stop_gradient(grid_shares(class_logits(outputs), size, self.log_softmax))
            cells, progress = cell_labels(label, stride), batch["progress"].reshape(())
            consistency = self.consistency(embedding, shares, cells, inside, batch["image_present"], progress)
        if self.shallow_weight > 0.0:
            colours = pool_grid(batch["image"].astype(ms.float32) / 255.0, size)
            sigma, xy, rgb = self.consistency.sigma, self.kernel[1], self.kernel[2]
            shallow = shallow_consistency(embedding, colours, inside, stride, sigma, xy, rgb)
        return consistency, shallow
