"""The losses in float64 NumPy, written from the formulas of the ECENet spec, section 7, and inputs for them.

Letters: B batch, K classes, M classes at most in one image, h x w output grid, H x W label.
"""

import numpy as np

B, K, M = 3, 4, 3
LABEL, GRID = (6, 8), (3, 4)
COUNTS = np.array([200.0, 9.0, 5.0], np.float32)  # of a larger global batch than the one at hand
MAPS = ("logits", "finest", "middle", "coarse", "diverse_1", "diverse_2")
DIVERSE = ((3, 4), (6, 4))  # channels, positions; the second has more channels than positions


def make_maps(seed: int, batch_size: int = B, grid: tuple = GRID) -> dict:
    rng = np.random.default_rng(seed)
    maps = {name: 2.0 * rng.standard_normal((batch_size, K, *grid)) for name in MAPS[:4]}
    for name, (channels, _) in zip(MAPS[4:], DIVERSE, strict=True):
        maps[name] = 2.0 * rng.standard_normal((batch_size, channels, 2, 2))
    return {name: array.astype(np.float32) for name, array in maps.items()}


def present_of(label: np.ndarray, room: int = M) -> np.ndarray:
    present = np.full((len(label), room), -1, np.int32)
    for row, image in zip(present, label, strict=True):
        ids = [k for k in range(K) if (image == k).any()]
        row[: len(ids)] = ids
    return present


def make_batch(seed: int = 1, batch_size: int = B, size: tuple = LABEL) -> dict:
    """Labels of three, two, no, three ... classes, with ignored pixels; the third image is wholly ignored."""
    rng = np.random.default_rng(seed)
    label = np.full((batch_size, *size), 255, np.int32)
    for i, classes in enumerate(((0, 1, 3), (2, 3), (), (1, 2, 3))[:batch_size]):
        if classes:
            label[i] = rng.choice(np.array(classes), size)
            label[i, 1:3, 1:4] = 255
    return {"label": label, "present": present_of(label)}


def resize(x: np.ndarray, size: tuple) -> np.ndarray:
    """Bilinear, half-pixel centres, edges repeated: one axis after the other by np.interp."""
    for axis, target in zip((-2, -1), size, strict=True):
        source = x.shape[axis]
        position = (np.arange(target) + 0.5) * source / target - 0.5
        x = np.apply_along_axis(interpolate, axis, x, position)
    return x


def interpolate(row: np.ndarray, position: np.ndarray) -> np.ndarray:
    return np.interp(position, np.arange(len(row)), row)


def reference_ce(logits, label, counts, ce_avg="valid"):
    x = resize(np.asarray(logits, np.float64), label.shape[1:])
    log_sum = np.logaddexp.reduce(x, axis=1)
    total = 0.0
    for k in range(K):
        total += ((log_sum - x[:, k]) * (label == k)).sum()
    pixels = counts[0] if ce_avg == "valid" else counts[2] * label[0].size
    return total / max(1.0, pixels)


def reference_pair(x, target, counted, mask_loss):
    """Mask loss and dice loss of one image and class: x, target, counted (H, W)."""
    if counted.sum() == 0:
        return 0.0, 0.0
    p = 1.0 / (1.0 + np.exp(-np.clip(x, -700, 700)))
    log_p, log_not = -np.logaddexp(0.0, -x), -np.logaddexp(0.0, x)
    if mask_loss == "focal":
        losses = -0.25 * (1 - p) ** 2 * log_p * target - 0.75 * p**2 * log_not * (1 - target)
    else:
        losses = -log_p * target - log_not * (1 - target)
    overlap, sizes = (p * target * counted).sum(), (p * counted).sum() + (target * counted).sum()
    return (losses * counted).sum() / counted.sum(), 1.0 - (2.0 * overlap + 1.0) / (sizes + 1.0)


def reference(
    maps, batch, counts, *, weights=None, mask_loss="focal", mask_targets="present", mask_sup="all_but_finest",
    mask_ignore="exclude", div_norm="half", div_reduce="mean", ce_avg="valid",
):  # fmt: skip
    """The terms in float64, dense: all K masks of every image, those of absent classes weighted by 0 if need be."""
    maps = {name: np.asarray(array, np.float64) for name, array in maps.items()}
    label = batch["label"]
    weights = weights or {"ce": 1.0, "mask": 5.0, "dice": 2.0, "diversity": 0.2}
    supervised = {
        "all_but_finest": [maps["middle"] + maps["coarse"]],
        "total": [maps["finest"] + maps["middle"] + maps["coarse"]],
        "each": [maps["finest"], maps["middle"], maps["coarse"]],
    }[mask_sup]
    pairs = max(1.0, counts[1] if mask_targets == "present" else counts[2] * K)
    mask = dice = 0.0
    for scores in supervised:
        scores = resize(scores, label.shape[1:])
        for i in range(len(label)):
            for k in range(K):
                target, valid = (label[i] == k).astype(float), (label[i] != 255).astype(float)
                weight = float(target.any()) if mask_targets == "present" else 1.0
                counted = np.ones_like(valid) * valid.any() if mask_ignore == "negative" else valid
                losses = reference_pair(scores[i, k], target, counted, mask_loss)
                mask += weight * losses[0] / pairs / len(supervised)
                dice += weight * losses[1] / pairs / len(supervised)
    diversity = 0.0
    for name, (channels, positions) in zip(MAPS[4:], DIVERSE, strict=True):
        d = maps[name].reshape(len(label), channels, positions)
        shares = np.exp(d) / np.exp(d).sum(2, keepdims=True)
        divisor = {"half": channels, "full": 2 * channels, "min": min(channels, positions)}[div_norm]
        level = (1.0 - shares.max(1).sum(1) / divisor).sum() / max(1.0, counts[2])
        diversity += level if div_reduce == "sum" else level / len(DIVERSE)
    terms = {"ce": reference_ce(maps["logits"], label, counts, ce_avg), "mask": mask, "dice": dice}
    terms["diversity"] = diversity
    return {name: weights[name] * value for name, value in terms.items()}


def central_difference(maps, name, index, batch, switches, step=1e-5):
    """Derivative of the summed reference for one element of one map."""
    values = []
    for sign in (1.0, -1.0):
        moved = maps[name].astype(np.float64)
        moved[index] += sign * step
        values.append(sum(reference({**maps, name: moved}, batch, COUNTS, **switches).values()))
    return (values[0] - values[1]) / (2.0 * step)
