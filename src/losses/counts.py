"""What the losses divide by.

Letters: B images, H x W pixels, M classes at most in one image.
"""

from collections.abc import Mapping

import numpy as np

from src.constants import IGNORE


def batch_counts(batch: Mapping[str, np.ndarray]) -> np.ndarray:
    """Counts (3,) float32 of one batch: valid pixels, (image, present class) pairs, images.

    batch: `label` (B, H, W) integer, 255 = ignore; `present` (B, M) integer, class ids and then -1. The counts of the
    ranks and micro-batches of one step add up to those that the losses take.
    """
    label, present = batch["label"], batch["present"]
    return np.array([np.sum(label != IGNORE), np.sum(present >= 0), len(label)], np.float32)
