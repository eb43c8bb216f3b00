"""The class token loss in float64 NumPy, written from the formulas of the SegViT spec.

Letters: B batch, K classes, S levels, h x w grid of the masks, H x W label.
"""

import numpy as np

from tests.losses_reference import reference_pair, resize

WEIGHTS = {"class": 1.0, "mask": 20.0, "dice": 1.0}


def token_reference(class_scores, token_masks, label, counts, weights=WEIGHTS, mask_ignore="exclude") -> dict:
    """Terms of S scores (B, K, K + 1) and S mask logits (B, K, h, w) for label (B, H, W) and counts (3,)."""
    classes = token_masks[0].shape[1]
    terms = dict.fromkeys(WEIGHTS, 0.0)
    pairs = max(1.0, counts[1])
    token_weights = max(0.1, counts[1] + 0.1 * (counts[2] * classes - counts[1]))
    for scores, masks in zip(class_scores, token_masks, strict=True):
        scores, masks = np.asarray(scores, np.float64), resize(np.asarray(masks, np.float64), label.shape[1:])
        for i in range(len(label)):
            valid = label[i] != 255
            if not valid.any():
                continue
            counted = np.ones(valid.shape) if mask_ignore == "negative" else valid.astype(float)
            for k in range(classes):
                target = (label[i] == k).astype(float)
                wanted, weight = (k, 1.0) if target.any() else (classes, 0.1)
                entropy = np.logaddexp.reduce(scores[i, k]) - scores[i, k, wanted]
                terms["class"] += weight * entropy / token_weights
                if target.any():
                    mask, dice = reference_pair(masks[i, k], target, counted, "focal")
                    terms["mask"] += mask / pairs
                    terms["dice"] += dice / pairs
    return {name: weights[name] * value for name, value in terms.items()}
