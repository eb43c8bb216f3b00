"""Losses against a dense float64 reference, its finite differences, and values worked out by hand.

Letters: B batch, K classes, M classes at most in one image, h x w output grid, H x W label.
"""

import os

os.environ.setdefault("ONEDNN_MAX_CPU_ISA", "AVX2")

from functools import lru_cache

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor, nn

from src.losses import LOSSES, batch_counts, create_loss

ms.set_context(mode=ms.GRAPH_MODE)
ms.set_device("CPU")

B, K, M = 3, 4, 3
LABEL, GRID = (6, 8), (3, 4)
COUNTS = np.array([200.0, 9.0, 5.0], np.float32)  # of a larger global batch than the one at hand
MAPS = ("logits", "finest", "middle", "coarse", "diverse_1", "diverse_2")
DIVERSE = ((3, 4), (6, 4))  # channels, positions; the second has more channels than positions
OFF = {"ce": 0.0, "mask": 0.0, "dice": 0.0, "diversity": 0.0}

SWITCHES = [
    {},
    {"mask_loss": "bce"},
    {"mask_targets": "all"},
    {"mask_sup": "total"},
    {"mask_sup": "each", "ce_avg": "all"},
    {"mask_ignore": "negative", "div_norm": "full"},
    {"mask_targets": "all", "mask_ignore": "negative", "mask_loss": "bce", "mask_sup": "each"},
    {"div_norm": "min", "div_reduce": "sum", "weights": {"ce": 0.7, "mask": 3.0, "dice": 1.5, "diversity": 0.6}},
]


class Total(nn.Cell):
    """Sum of the terms, and the terms, as a function of plain tensors."""

    def __init__(self, loss):
        super().__init__()
        self.loss = loss

    def construct(self, logits, finest, middle, coarse, diverse_1, diverse_2, label, present, counts):
        outputs = {
            "logits": logits, "finest_mask": (finest,), "masks": (middle, coarse), "diverse": (diverse_1, diverse_2),
        }  # fmt: skip
        terms = self.loss(outputs, {"label": label, "present": present}, counts)
        total = terms[0]
        for term in terms[1:]:
            total = total + term
        return total, terms


@lru_cache(maxsize=None)
def compiled(switches: tuple):
    """Names of the terms and value_and_grad of class_mask with these options; one graph for each shape that it meets."""
    loss = create_loss({"name": "class_mask", **dict(switches)}, K)
    return loss.terms, ms.value_and_grad(Total(loss), tuple(range(len(MAPS))), has_aux=True)


def run(switches: dict, maps: dict, batch: dict, counts=COUNTS):
    """Terms and gradients of the loss, as NumPy arrays."""
    key = tuple((name, Frozen(value) if isinstance(value, dict) else value) for name, value in switches.items())
    arrays = [maps[name] for name in MAPS] + [batch["label"], batch["present"], np.asarray(counts, np.float32)]
    names, value_and_grad = compiled(key)
    (total, terms), gradients = value_and_grad(*(Tensor(array) for array in arrays))
    terms = {name: float(value.asnumpy()) for name, value in zip(names, terms, strict=True)}
    assert float(total.asnumpy()) == pytest.approx(sum(terms.values()), rel=1e-6)
    return terms, {name: gradient.asnumpy() for name, gradient in zip(MAPS, gradients, strict=True)}


class Frozen(dict):
    """A mapping that can be a key of the cache of graphs."""

    def __hash__(self):
        return hash(tuple(self.items()))


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


@pytest.mark.parametrize("switches", SWITCHES, ids=str)
def test_terms_equal_dense_reference(switches):
    maps, batch = make_maps(0), make_batch()
    terms, _ = run(switches, maps, batch)
    expected = reference(maps, batch, COUNTS, **switches)
    assert terms.keys() == expected.keys()
    for name, value in expected.items():
        assert terms[name] == pytest.approx(value, rel=1e-5), name


@pytest.mark.parametrize("switches", SWITCHES, ids=str)
def test_gradients_equal_finite_differences(switches):
    maps, batch = make_maps(0), make_batch()
    _, gradients = run(switches, maps, batch)
    rng = np.random.default_rng(11)
    for name, gradient in gradients.items():
        for flat in rng.choice(gradient.size, 16, replace=False):
            index = np.unravel_index(flat, gradient.shape)
            expected = central_difference(maps, name, index, batch, switches)
            assert gradient[index] == pytest.approx(expected, rel=1e-3, abs=1e-4 * np.abs(gradient).max() + 1e-9), name
    supervised = ("middle", "coarse", "finest")[: 2 if switches.get("mask_sup", "all_but_finest")[0] == "a" else 3]
    for name in MAPS:
        assert (np.abs(gradients[name]).max() > 0.0) == (name in (*supervised, "logits", *MAPS[4:])), name


def test_order_and_room_of_present_do_not_matter():
    maps, batch = make_maps(0), make_batch()
    shuffled = {**batch, "present": np.ascontiguousarray(batch["present"][:, ::-1])}
    roomy = {**batch, "present": present_of(batch["label"], K + 1)}
    terms, gradients = run({}, maps, batch)
    for other in (shuffled, roomy):
        other_terms, other_gradients = run({}, maps, other)
        assert other_terms == pytest.approx(terms, rel=1e-6)
        np.testing.assert_allclose(other_gradients["coarse"], gradients["coarse"], rtol=1e-5, atol=1e-9)


def test_hand_computed_values():
    maps = {name: np.zeros_like(array) for name, array in make_maps(0).items()}
    label = np.full((B, *LABEL), 255, np.int32)
    label[0] = 2
    label[0, :, :2] = 0  # 12 pixels of class 0, 36 of class 2
    terms, _ = run({}, maps, {"label": label, "present": present_of(label)}, (48.0, 2.0, 3.0))
    assert terms["ce"] == pytest.approx(np.log(4.0), rel=1e-6)
    log2 = np.log(2.0)  # p = 1/2 everywhere: focal 0.25 * 0.25 * log 2 on the class, 0.75 * 0.25 * log 2 elsewhere
    focal_0, focal_2 = (12 * 0.0625 + 36 * 0.1875) * log2 / 48, (36 * 0.0625 + 12 * 0.1875) * log2 / 48
    assert terms["mask"] == pytest.approx(5.0 * (focal_0 + focal_2) / 2.0, rel=1e-6)
    dice_0, dice_2 = 1.0 - 13.0 / 37.0, 1.0 - 37.0 / 61.0  # 2 * 6 + 1 of 24 + 12 + 1; 2 * 18 + 1 of 24 + 36 + 1
    assert terms["dice"] == pytest.approx(2.0 * (dice_0 + dice_2) / 2.0, rel=1e-6)
    # Equal maps: every channel is 1/4 everywhere, so the maxima sum to 1: 1 - 1/3 and 1 - 1/6.
    assert terms["diversity"] == pytest.approx(0.2 * (2.0 / 3.0 + 5.0 / 6.0) / 2.0, rel=1e-6)


def test_diversity_is_zero_where_channels_peak_apart():
    maps = make_maps(0)
    maps["diverse_1"][:] = 100.0 * np.eye(4)[:3].reshape(3, 2, 2)  # three channels, three positions
    maps["diverse_2"][:] = 100.0 * np.eye(4)[[0, 1, 2, 3, 0, 1]].reshape(6, 2, 2)  # 4 positions for 6 channels
    terms, _ = run({}, maps, make_batch(), (1.0, 1.0, float(B)))
    assert terms["diversity"] == pytest.approx(0.2 * (0.0 + 1.0 - 4.0 / 6.0) / 2.0, abs=1e-6)


def test_halves_of_a_batch_add_up():
    maps, batch = make_maps(5, batch_size=4), make_batch(batch_size=4)
    counts = batch_counts(batch)
    whole, whole_gradients = run({}, maps, batch, counts)
    halves = []
    for part in (slice(0, 2), slice(2, 4)):
        share = {name: array[part] for name, array in batch.items()}
        halves.append(run({}, {name: array[part] for name, array in maps.items()}, share, counts))
    for name, value in whole.items():
        assert halves[0][0][name] + halves[1][0][name] == pytest.approx(value, rel=1e-6), name
    for name in MAPS:
        joined = np.concatenate([gradients[name] for _, gradients in halves])
        np.testing.assert_allclose(joined, whole_gradients[name], rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("switches", [{}, {"mask_targets": "all"}], ids=str)
@pytest.mark.parametrize("scale", [1, 4])
def test_ignored_pixels_influence_nothing(switches, scale):
    grid = (6, 6)
    size = (6 * scale, 6 * scale)
    label = np.random.default_rng(3).integers(0, 3, (2, *size)).astype(np.int32)
    ignored = slice(2, 4) if scale == 1 else slice(4, 20)  # at 4x the cells 2 and 3 reach the rows 6 to 17
    label[:, ignored, ignored] = 255
    batch = {"label": label, "present": present_of(label)}
    maps = make_maps(7, 2, grid)
    changed = {name: array.copy() for name, array in maps.items()}
    for name in MAPS[:4]:
        changed[name][:, :, 2:4, 2:4] = 50.0 * np.random.default_rng(8).standard_normal((2, K, 2, 2))
    (terms, gradients), (other_terms, other_gradients) = run(switches, maps, batch), run(switches, changed, batch)
    assert terms == other_terms
    for name in MAPS:
        np.testing.assert_array_equal(gradients[name], other_gradients[name])
    for name in ("logits", "middle", "coarse"):
        assert not gradients[name][:, :, 2:4, 2:4].any()
        assert gradients[name][:, :3, :2].all()  # the labels hold the classes 0 to 2


@pytest.mark.parametrize("switches", SWITCHES, ids=str)
def test_batch_without_valid_pixel_gives_zero(switches):
    label = np.full((B, *LABEL), 255, np.int32)
    batch = {"label": label, "present": present_of(label)}
    assert batch_counts(batch).tolist() == [0.0, 0.0, 3.0]
    for counts in (batch_counts(batch), np.zeros(3)):
        terms, gradients = run(switches, make_maps(0), batch, counts)
        assert (terms["ce"], terms["mask"], terms["dice"]) == (0.0, 0.0, 0.0)
        assert not any(gradients[name].any() for name in MAPS[:4])
        assert all(np.isfinite(gradients[name]).all() for name in MAPS[4:])
        assert np.isfinite(terms["diversity"])


@pytest.mark.parametrize("switches", SWITCHES[:3], ids=str)
def test_large_logits_stay_finite(switches):
    maps, batch = make_maps(0), make_batch()
    maps = {name: 1e4 * np.sign(array) for name, array in maps.items()}
    maps["coarse"] *= 0.0
    terms, gradients = run(switches, maps, batch)
    calm = {name: maps[name] if name in MAPS[:4] else 1e-4 * maps[name] for name in MAPS}  # exp(1e4) overflows there
    expected = reference(calm, batch, COUNTS, **switches)
    for name in ("ce", "mask", "dice"):
        assert terms[name] == pytest.approx(expected[name], rel=1e-5), name
    assert np.isfinite(terms["diversity"])
    for name in MAPS:
        assert np.isfinite(gradients[name]).all(), name


def test_half_precision_maps_are_computed_in_float32():
    maps, batch = make_maps(0), make_batch()
    half = {name: array.astype(np.float16) for name, array in maps.items()}
    terms, gradients = run({}, half, batch)
    assert terms == pytest.approx(reference(half, batch, COUNTS), rel=1e-5)
    assert gradients["logits"].dtype == np.float16


class Terms(nn.Cell):
    """The terms for outputs of a network without Feature Reconstruction."""

    def __init__(self, loss):
        super().__init__()
        self.loss = loss

    def construct(self, logits, finest, middle, coarse, label, present, counts):
        outputs = {"logits": logits, "finest_mask": (finest,), "masks": (middle, coarse), "diverse": ()}
        return self.loss(outputs, {"label": label, "present": present}, counts)


def run_without_diverse(loss: dict, maps: dict, batch: dict) -> dict:
    arrays = [maps[name] for name in MAPS[:4]] + [batch["label"], batch["present"], COUNTS]
    loss = create_loss(loss, K)
    terms = Terms(loss)(*(Tensor(array) for array in arrays))
    return {name: float(value.asnumpy()) for name, value in zip(loss.terms, terms, strict=True)}


def test_terms_that_are_off_are_zero():
    maps, batch = make_maps(0), make_batch()
    expected = {**reference(maps, batch, COUNTS), "diversity": 0.0}
    for loss, off in (
        ({"name": "class_mask"}, ()),
        ({"name": "class_mask", "weights": {"mask": 0.0}}, ("mask",)),
        ({"name": "class_mask", "weights": {**OFF, "mask": 5.0}}, ("ce", "dice")),
    ):
        terms = run_without_diverse(loss, maps, batch)
        assert terms == pytest.approx({**expected, **dict.fromkeys(off, 0.0)}, rel=1e-5)


def test_cross_entropy_loss_is_the_term_of_class_mask():
    maps, batch = make_maps(0), make_batch()
    terms = run_without_diverse({"name": "cross_entropy"}, maps, batch)
    assert terms == pytest.approx({"ce": reference_ce(maps["logits"], batch["label"], COUNTS)}, rel=1e-5)
    terms = run_without_diverse({"name": "cross_entropy", "weights": {"ce": 3.0}, "ce_avg": "all"}, maps, batch)
    assert terms["ce"] == pytest.approx(3.0 * reference_ce(maps["logits"], batch["label"], COUNTS, "all"), rel=1e-5)


def test_batch_counts_by_hand():
    label = np.array([[[0, 255], [1, 1]], [[255, 255], [255, 2]]], np.int32)
    present = np.array([[0, 1, -1], [2, -1, -1]], np.int32)
    counts = batch_counts({"label": label, "present": present})
    assert counts.dtype == np.float32
    assert counts.tolist() == [4.0, 3.0, 2.0]


@pytest.mark.parametrize(
    ("loss", "words"),
    [
        ({"name": "class_masks"}, ["unknown loss 'class_masks'", "class_mask", "cross_entropy"]),
        ({"name": "class_mask", "x": 1}, ["loss (class_mask): unexpected argument 'x'; allowed: weights, mask_loss"]),
        ({"name": "cross_entropy", "mask_loss": "bce"}, ["loss (cross_entropy): unexpected argument 'mask_loss'"]),
        ({"name": "class_mask", "num_classes": 3}, ["unexpected argument 'num_classes'"]),
        ({"name": "class_mask", "weights": {"mas": 1.0}}, ["unknown term 'mas'", "ce, mask, dice, diversity"]),
        ({"name": "class_mask", "weights": {"mask": -1.0}}, ["weights.mask is -1.0", "at least 0"]),
        ({"name": "class_mask", "weights": {"mask": "5"}}, ["weights.mask is '5'"]),
        ({"name": "class_mask", "weights": {"mask": float("nan")}}, ["weights.mask is nan"]),
        ({"name": "class_mask", "weights": OFF}, ["weights are all 0", "ce, mask, dice, diversity"]),
        ({"name": "class_mask", "weights": [1.0, 5.0]}, ["[1.0, 5.0] is not a mapping", "'dice': 2.0"]),
    ],
    ids=str,
)
def test_wrong_options_are_named(loss, words):
    with pytest.raises(ValueError) as caught:
        create_loss(loss, K)
    assert all(word in str(caught.value) for word in words), str(caught.value)


@pytest.mark.parametrize(
    ("option", "allowed"),
    [
        ("mask_loss", "focal, bce"),
        ("mask_targets", "present, all"),
        ("mask_sup", "all_but_finest, total, each"),
        ("mask_ignore", "exclude, negative"),
        ("div_norm", "half, full, min"),
        ("div_reduce", "mean, sum"),
        ("ce_avg", "valid, all"),
    ],
)
def test_unknown_switch_value_names_the_allowed(option, allowed):
    message = f"loss (class_mask): {option} 'other' is not known; allowed: {allowed}"
    with pytest.raises(ValueError) as caught:
        create_loss({"name": "class_mask", option: "other"}, K)
    assert str(caught.value) == message


def test_every_loss_is_built_by_name():
    for name in LOSSES:
        assert isinstance(create_loss({"name": name}, K), nn.Cell)
