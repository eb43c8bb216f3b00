"""The ECENet loss with its default switches (spec section 7): cross entropy, mask, dice, diversity.

Letters: B batch, K classes, M classes at most in one image, P (image, present class) pairs, H x W label.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

IGNORE = 255
TERMS = ("ce", "mask", "dice", "diversity")
WEIGHTS = (1.0, 5.0, 2.0, 0.2)
FOCAL_ALPHA = 0.25


def pairs_of(present: Tensor) -> tuple[Tensor, Tensor]:
    """(P,) image numbers and (P,) class ids of present (B, M), whose rows end in -1."""
    image, place = (present >= 0).nonzero(as_tuple=True)
    return image, present[image, place].long()


class ClassMaskLoss(nn.Module):
    """Weighted terms (4,) in the order of TERMS.

    outputs: as of ECENetHead; label (B, H, W) integer; pairs: see `pairs_of`; counts (3,): valid pixels, pairs, images
    of the global batch.
    """

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("weights", torch.tensor(WEIGHTS), persistent=False)

    def forward(self, outputs: dict, label: Tensor, pairs: tuple[Tensor, Tensor], counts: Tensor) -> Tensor:
        counts = counts.clamp(min=1.0)
        size = tuple(label.shape[1:])
        logits = F.interpolate(outputs["logits"].float(), size, mode="bilinear", align_corners=False)
        rows = logits.permute(0, 2, 3, 1).flatten(0, 2)  # a view of channels-last logits; faster than along axis 1
        ce = F.cross_entropy(rows, label.long().flatten(), ignore_index=IGNORE, reduction="sum") / counts[0]
        mask, dice = mask_terms(outputs["mask"].float(), label, pairs)
        diversity = sum(map(flatness, outputs["diverse"])) / len(outputs["diverse"])
        return self.weights * torch.stack((ce, mask / counts[1], dice / counts[1], diversity / counts[2]))


def mask_terms(masks: Tensor, label: Tensor, pairs: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """Sums over pairs of focal loss (mean over the image's valid pixels) and dice loss; masks (B, K, h, w)."""
    image, ids = pairs
    scores = masks[image, ids].unsqueeze(1)
    scores = F.interpolate(scores, label.shape[1:], mode="bilinear", align_corners=False).flatten(1)  # (P, H W)
    label = label.flatten(1)[image]
    valid = (label != IGNORE).float()
    target = (label == ids[:, None]).float()
    entropy = F.binary_cross_entropy_with_logits(scores, target, reduction="none")
    share = torch.sigmoid(scores) * valid
    error = (share - target).abs()  # 1 - p of the right answer
    alpha = (1.0 - FOCAL_ALPHA) + (2.0 * FOCAL_ALPHA - 1.0) * target
    focal = (alpha * entropy * error.square()).sum(1) / valid.sum(1).clamp(min=1.0)
    dice = 1.0 - (2.0 * (share * target).sum(1) + 1.0) / (share.sum(1) + target.sum(1) + 1.0)
    return focal.sum(), dice.sum()


def flatness(diverse: Tensor) -> Tensor:
    """Sum over images of 1 - sum_pos max_c softmax_pos(d)[c, pos] / C for a diverse map d (B, C, H, W)."""
    shares = diverse.float().flatten(2).softmax(-1)
    return len(diverse) - shares.amax(1).sum() / diverse.shape[1]
