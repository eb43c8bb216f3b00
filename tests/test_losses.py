"""Losses against a dense float64 reference, its derivatives, and values worked out by hand."""

from functools import cache

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor, nn

from src.losses import batch_counts, create_loss
from tests.losses_reference import (
    COUNTS,
    LABEL,
    MAPS,
    B,
    K,
    central_difference,
    make_batch,
    make_maps,
    present_of,
    reference,
)

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


@cache
def compiled(switches: tuple):
    """Names of the terms and value_and_grad of class_mask with these options; a graph for each shape that it meets."""
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
    assert terms["ce"] == pytest.approx(np.log(4.0), rel=3e-6)  # the exponential on CPU is exact to 5e-6
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


def test_parts_of_a_batch_add_up():
    maps, batch = make_maps(5, batch_size=4), make_batch(batch_size=4)
    counts = batch_counts(batch)
    whole, whole_gradients = run({}, maps, batch, counts)
    parts = []
    for part in (slice(0, 1), slice(1, 4)):
        share = {name: array[part] for name, array in batch.items()}
        parts.append(run({}, {name: array[part] for name, array in maps.items()}, share, counts))
    for name, value in whole.items():
        assert parts[0][0][name] + parts[1][0][name] == pytest.approx(value, rel=1e-6), name
    for name in MAPS:
        joined = np.concatenate([gradients[name] for _, gradients in parts])
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
