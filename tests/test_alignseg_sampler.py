"""The sampler: hand-checked cases T1 to T9 of the AlignSeg spec (section 5), gradients, degenerate sizes."""

from functools import cache

import numpy as np
import pytest
from mindspore import Tensor, nn, ops

from src.models.heads.sampler import Sampler
from tests.network_reference import resize_corners, sample
from tests.running import draw, run

A = np.arange(32, dtype=np.float32).reshape(1, 1, 4, 8)
M = np.arange(9, dtype=np.float32).reshape(1, 1, 3, 3)
RAMP = np.tile(np.arange(8, dtype=np.float32), (1, 1, 4, 1))


def offsets(height: int, width: int, x: float = 0.0, y: float = 0.0) -> np.ndarray:
    return np.stack([np.full((height, width), x), np.full((height, width), y)])[None].astype(np.float32)


sampler_of = cache(Sampler)  # compiled once for all tests of one shape


def sampled(x: np.ndarray, offset: np.ndarray, **options) -> np.ndarray:
    return run(sampler_of(**options), x, offset)


def test_t1_no_offset_changes_nothing():
    np.testing.assert_array_equal(sampled(A, offsets(4, 8)), A)


def test_t2_one_down():
    wanted = np.concatenate([A[:, :, 1:], np.zeros((1, 1, 1, 8))], 2)
    np.testing.assert_allclose(sampled(A, offsets(4, 8, y=1.0)), wanted, atol=5e-5)


def test_t3_one_right():
    found = sampled(A, offsets(4, 8, x=1.0))[0, 0]
    np.testing.assert_allclose(found[0], [1, 2, 3, 4, 5, 6, 7, 0], atol=5e-5)
    np.testing.assert_allclose(found[3], [25, 26, 27, 28, 29, 30, 31, 0], atol=5e-5)


def test_t4_half_right():
    found = sampled(A, offsets(4, 8, x=0.5))[0, 0]
    np.testing.assert_allclose(found[0], [0.5, 1.5, 2.5, 3.5, 4.5, 5.5, 6.5, 3.5], atol=5e-5)
    assert found[3, 7] == pytest.approx(15.5, abs=1e-5)


def test_t5_other_size_is_a_resize():
    found = sampled(M, offsets(5, 7))[0, 0]
    np.testing.assert_allclose(found[0], [0, 1 / 3, 2 / 3, 1, 4 / 3, 5 / 3, 2], atol=5e-5)
    assert found[1, 0] == pytest.approx(1.5, abs=1e-5)
    np.testing.assert_allclose(found[4, [0, 6]], [6, 8], atol=5e-5)
    np.testing.assert_allclose(found, resize_corners(M[0, 0], (5, 7)), atol=5e-5)
    found = sampled(M, offsets(5, 7, x=1.0))[0, 0]  # T5b: a pixel of the result is a third of a cell
    np.testing.assert_allclose(found[0], [1 / 3, 2 / 3, 1, 4 / 3, 5 / 3, 2, 4 / 3], atol=5e-5)


class Slopes(nn.Cell):
    """The result and the gradients of its weighted sum for map and offsets."""

    def __init__(self, **options) -> None:
        super().__init__()
        self.sampler = Sampler(**options)
        self.differentiate = ops.value_and_grad(self.weigh, (0, 1), has_aux=True)

    def weigh(self, x, offset, weight):
        y = self.sampler(x, offset)
        return (y * weight).sum(), y

    def construct(self, x, offset, weight):
        return self.differentiate(x, offset, weight)


slopes_of = cache(Slopes)


def test_t6_gradient_at_the_edge_of_the_void():
    (_, found), (_, gradient) = slopes_of()(Tensor(RAMP), Tensor(offsets(4, 8, x=0.25)), Tensor(np.ones_like(RAMP)))
    np.testing.assert_allclose(found.asnumpy()[0, 0, 2], [*np.arange(7) + 0.25, 5.25], atol=5e-5)
    np.testing.assert_allclose(gradient.asnumpy()[0, 0], np.tile([1.0] * 7 + [-7.0], (4, 1)), atol=1e-4)
    np.testing.assert_allclose(gradient.asnumpy()[0, 1, 1], 0.0, atol=1e-4)


def test_t7_legacy_takes_away_at_the_border():
    found = sampled(A, offsets(4, 8), mode="legacy", align_corners=False)[0, 0]
    wanted = {(0, 0): 0.0, (0, 1): 0.3214, (0, 7): 1.75, (1, 1): 7.3095, (3, 7): 7.75}
    assert {place: float(found[place]) for place in wanted} == pytest.approx(wanted, abs=1e-4)


def test_t7b_legacy_with_corners():
    found = sampled(A, offsets(4, 8, x=1.0), mode="legacy", align_corners=True)[0, 0]
    np.testing.assert_allclose(found[0], [*np.arange(7) + 0.4375, 3.9375], atol=5e-5)


def test_t8_transposed():
    offset = draw(1, 2, 4, 8)
    swapped = np.ascontiguousarray(offset[:, ::-1].transpose(0, 1, 3, 2))
    found = sampled(np.ascontiguousarray(A.transpose(0, 1, 3, 2)), swapped)
    np.testing.assert_allclose(found, sampled(A, offset).transpose(0, 1, 3, 2), atol=1e-4)


@pytest.mark.parametrize("shape", [(1, 1), (1, 5), (4, 1)])
@pytest.mark.parametrize("mode", ["standard", "legacy"])
def test_t9_one_place_is_finite(shape, mode):
    found = sampled(M, offsets(*shape), mode=mode)
    assert found.shape == (1, 1, *shape) and np.isfinite(found).all()
    assert found[0, 0, 0, 0] == pytest.approx(0.0, abs=1e-6)  # a lone place lies on the first pixel
    pixel, moved = Tensor(M[:, :, :1, :1] + 3.0), Tensor(offsets(*shape, x=0.3, y=0.2))
    (_, found), gradients = slopes_of(mode=mode)(pixel, moved, Tensor(np.ones((1, 1, *shape), np.float32)))
    assert all(np.isfinite(array.asnumpy()).all() for array in (found, *gradients))
    assert gradients[0].asnumpy().any()


def test_border_padding_repeats_the_edge():
    found = sampled(A, offsets(4, 8, x=1.5, y=-2.0), padding="border")[0, 0]
    np.testing.assert_allclose(found[0], [1.5, 2.5, 3.5, 4.5, 5.5, 6.5, 7, 7], atol=5e-5)


def places(offset: np.ndarray, size: tuple[int, int], mode: str, align_corners: bool) -> tuple[np.ndarray, np.ndarray]:
    """Positions in pixels of the map, by the formulas of spec sections 4.1 and 4.2."""
    shape, found = offset.shape[2:], []
    for channel, axis in ((0, 1), (1, 0)):
        base = np.linspace(-1.0, 1.0, shape[axis])
        base = base[None, :] if axis == 1 else base[:, None]
        unit = 2.0 / (shape[axis] - 1) if mode == "standard" else 1.0 / size[axis]
        g = base + offset[:, channel].astype(np.float64) * unit
        found.append((g + 1) * (size[axis] - 1) / 2 if align_corners else ((g + 1) * size[axis] - 1) / 2)
    return tuple(found)


@pytest.mark.parametrize(("size", "shape", "mode", "corners", "padding"), [
    ((5, 8), (5, 8), "standard", True, "zeros"), ((3, 3), (4, 7), "standard", True, "border"),
    ((5, 8), (5, 8), "legacy", False, "zeros"), ((3, 2), (4, 7), "legacy", True, "zeros"),
])  # fmt: skip
def test_values_and_gradients_equal_the_formula(size, shape, mode, corners, padding):
    x, offset, weight = draw(2, 3, *size), draw(2, 2, *shape, seed=1), draw(2, 3, *shape, seed=2)

    def reference(x, offset):
        px, py = places(offset, size, mode, corners)
        if padding == "border":
            px, py = np.clip(px, 0, size[1] - 1), np.clip(py, 0, size[0] - 1)
        return sample(x, px, py)

    def value(x, offset):
        return (reference(x, offset) * weight).sum()

    slopes = Slopes(mode=mode, align_corners=corners, padding=padding)
    (_, found), gradients = slopes(Tensor(x), Tensor(offset), Tensor(weight))
    np.testing.assert_allclose(found.asnumpy(), reference(x, offset), atol=2e-6)
    for i, (array, gradient) in enumerate(zip((x, offset), gradients, strict=True)):
        gradient = gradient.asnumpy()
        expected = np.empty(array.shape)
        for index in np.ndindex(*array.shape):
            ends = []
            for shift in (1e-5, -1e-5):
                moved = array.astype(np.float64)
                moved[index] += shift
                ends.append(value(*((moved, offset) if i == 0 else (x, moved))))
            expected[index] = (ends[0] - ends[1]) / 2e-5
        np.testing.assert_allclose(gradient, expected, atol=2e-4 * np.abs(expected).max())


def test_offsets_that_are_not_finite_spoil_their_place_alone():
    """Such a step is left out by the training loop; it must not end the process."""
    offset = offsets(4, 8, x=0.5)
    offset[0, 0, 1, 2], offset[0, 1, 2, 3], offset[0, 0, 3, 4], offset[0, 1, 0, 0] = np.nan, np.inf, -np.inf, 1e30
    (_, found), gradients = slopes_of()(Tensor(A), Tensor(offset), Tensor(np.ones_like(A)))
    found, bad = found.asnumpy()[0, 0], np.zeros((4, 8), bool)
    bad[1, 2] = bad[2, 3] = bad[3, 4] = True
    np.testing.assert_array_equal(np.isnan(found), bad)
    wanted = sampled(A, offsets(4, 8, x=0.5))[0, 0]
    wanted[0, 0] = 0.0  # far out in the void
    np.testing.assert_allclose(found[~bad], wanted[~bad], atol=1e-5)
    assert not np.isfinite(gradients[0].asnumpy()).all()


def test_half_precision_is_sampled_in_single():
    x, offset = draw(1, 2, 4, 200).astype(np.float16), offsets(4, 200, x=0.25)
    found = run(Sampler(), x, offset.astype(np.float16))
    assert found.dtype == np.float16
    wanted = sampled(x.astype(np.float32), offset)
    np.testing.assert_allclose(found.astype(np.float32), wanted, atol=2e-3)


@pytest.mark.parametrize(("options", "message"), [
    ({"mode": "other"}, "sampler 'other' is not known; allowed: standard, legacy"),
    ({"padding": "reflect"}, "sampler_padding 'reflect' is not known; allowed: zeros, border"),
    ({"align_corners": False}, "belongs to sampler 'legacy'"),
])  # fmt: skip
def test_wrong_arguments(options, message):
    with pytest.raises(ValueError, match=message):
        Sampler(**options)
