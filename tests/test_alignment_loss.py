"""The loss of SAZS against values worked out by hand (spec sazs, sections 3, 9 and 12), in graph mode."""

from functools import cache

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor, nn, ops
from scipy.special import log_softmax

from src.losses import check_outputs, create_loss
from src.losses.alignment import AlignmentLoss, balanced_cross_entropy, edge_attention
from src.losses.shape import shape_difference
from src.models.heads.fcn import FCNHead
from tests.running import draw

ONE = np.array([1.0, 1.0, 1.0], np.float32)  # counts: one image
FULL = {"weights": {"align": 1.0, "bce": 0.3, "att": 0.1, "shape": 0.3}}


class Slopes(nn.Cell):
    """The terms and the gradients of their sum for logits and boundary."""

    def __init__(self, classes: int, **options) -> None:
        super().__init__()
        self.loss = AlignmentLoss(classes, **options)
        self.differentiate = ops.value_and_grad(self.total, (0, 1), has_aux=True)

    def total(self, logits, boundary, label, present, counts):
        outputs = {"logits": logits, "boundary": boundary}
        terms = self.loss(outputs, {"label": label, "present": present}, counts)
        return terms[0] + terms[1] + terms[2] + terms[3], terms

    def construct(self, logits, boundary, label, present, counts):
        return self.differentiate(logits, boundary, label, present, counts)


def run(cell: Slopes, logits, label, present=((-1,),), boundary=None, counts=ONE) -> tuple[np.ndarray, list]:
    boundary = np.zeros((len(logits), 1, *logits.shape[2:]), np.float32) if boundary is None else boundary
    arrays = (logits, boundary, np.asarray(label, np.int32), np.asarray(present, np.int32), np.asarray(counts))
    (_, terms), gradients = cell(*(Tensor(array) for array in arrays))
    return np.array([float(term.asnumpy()) for term in terms]), [g.asnumpy() for g in gradients]


class Call(nn.Cell):
    """A function of tensors, and the gradient of its value for the first of them."""

    def __init__(self, function) -> None:
        super().__init__()
        self.differentiate = ms.value_and_grad(function)

    def construct(self, *arrays):
        return self.differentiate(*arrays)


call = cache(Call)  # compiled once for all tests of a function


def value_and_slope(function, *arrays) -> tuple[float, np.ndarray]:
    value, gradient = call(function)(*(Tensor(np.asarray(array)) for array in arrays))
    return float(value.asnumpy()), gradient.asnumpy()


def test_case_16_log_shares_by_hand():
    cell = Slopes(2, weights={"bce": 0.0, "att": 0.0})
    for logits, expected in (((1.0, 3.0), (2.126928, 0.126928)), ((0.2 / 0.07, 0.3 / 0.07), (1.643401, 0.214830))):
        logits = np.array(logits, np.float32).reshape(1, 2, 1, 1)
        for k in (0, 1):
            terms, _ = run(cell, logits, [[[k]]])
            np.testing.assert_allclose(terms, [expected[k], 0, 0, 0], atol=5e-6)
            swapped, _ = run(cell, logits[:, ::-1].copy(), [[[1 - k]]])  # case 17: the anchors change places
            assert swapped[0] == terms[0]


def test_binary_takes_class_0_and_the_one_asked_for():
    """Case 24, too: void counts as class 0 as published, or not at all."""
    logits = draw(2, 4, 2, 2)
    label = np.array([[[0, 3], [3, 255]], [[1, 1], [0, 0]]]).repeat(2, 1).repeat(2, 2)
    label[:, 1::2] = 2  # pixels that the grid does not read
    present = [[3, 0], [1, 3]]  # the first is asked for, whatever else the crop shows

    def expect(void: bool) -> float:
        losses = []
        for b, asked in ((0, 3), (1, 1)):
            pair = log_softmax(logits[b, [0, asked]].astype(np.float64), 0)
            for i, j in np.ndindex(2, 2):
                value = label[b, 2 * i, 2 * j]
                if value != 255 or void:
                    losses.append(-pair[int(value == asked), i, j])
        return float(np.mean(losses))

    counts = np.array([1.0, 1.0, 4.0], np.float32)  # 2 of the 4 images of a step
    for ignored in (True, False):
        cell = Slopes(4, protocol="binary", ignore_void=ignored, weights={"bce": 0.0, "att": 0.0})
        terms, (gradient, _) = run(cell, logits, label, present, counts=counts)
        assert terms[0] == pytest.approx(0.5 * expect(not ignored), rel=1e-5)
        reached = np.abs(gradient).max((2, 3)) > 0
        assert reached.tolist() == [[True, False, False, True], [True, True, False, False]]


def test_ignored_pixels_and_resolutions_of_many_classes():
    logits, label = draw(1, 3, 2, 2), np.full((1, 4, 4), 255)
    label[0, 0, 0], label[0, 2, 2], label[0, 3, 3] = 2, 1, 0
    shares = log_softmax(logits[0].astype(np.float64), 0)
    terms, _ = run(Slopes(3, weights={"bce": 0.0, "att": 0.0}), logits, label)
    assert terms[0] == pytest.approx(-(shares[2, 0, 0] + shares[1, 1, 1]) / 2, rel=1e-5)
    cell = Slopes(3, resolution="label", weights={"bce": 0.0, "att": 0.0})
    terms, _ = run(cell, logits.repeat(2, 2).repeat(2, 3), label, counts=np.array([3.0, 1.0, 1.0], np.float32))
    expected = -(shares[2, 0, 0] + shares[1, 1, 1] + shares[0, 1, 1]) / 3
    assert terms[0] == pytest.approx(expected, rel=1e-5)


def balanced(boundary, target):
    return balanced_cross_entropy(boundary, target, ops.ones_like(target))


def test_balanced_cross_entropy_by_hand():
    target = np.array([[[1.0, 0.0], [0.0, 0.0]]], np.float32)
    value, slope = value_and_slope(balanced, np.zeros((1, 2, 2), np.float32), target)
    assert value == pytest.approx(0.25993, abs=5e-6)
    np.testing.assert_allclose(slope.ravel() * 4, [-0.375, 0.125, 0.125, 0.125], atol=1e-6)
    value, slope = value_and_slope(balanced, np.array([[[-200.0, 200.0], [0.0, 0.0]]], np.float32), target)
    assert value == pytest.approx((0.75 * 200 + 0.25 * 200 + 0.5 * np.log(2)) / 4) and np.isfinite(slope).all()


def attention(log_shares, label, boundary):
    return edge_attention(log_shares, label, boundary, 2)


def test_edge_attention_by_hand():
    p = np.array([0.2, 0.6, 0.5, 0.5])
    log_shares = np.log(np.stack([np.r_[0.8, p[1:]], np.r_[0.2, 1 - p[1:]]])[None]).astype(np.float32)  # class 0, 1
    label, boundary = np.array([[[1, 0], [0, 0]]], np.int32), np.full((1, 1, 2, 2), 0.81, np.float32)
    value, _ = value_and_slope(attention, log_shares, label, boundary)
    assert value == pytest.approx(0.94326, abs=5e-6)
    boundary[0, 0, 0, 0] = 0.8  # the threshold itself is not above it
    value, slope = value_and_slope(attention, log_shares, label, boundary)
    assert value == pytest.approx(-np.log(p[1:]).mean(), abs=1e-6)
    value, slope = value_and_slope(attention, log_shares, label, 0 * boundary)  # nothing kept: 0 and a finite gradient
    assert value == 0.0 and not slope.any()
    two = [np.concatenate([array] * 2) for array in (log_shares, label, boundary)]
    assert value_and_slope(attention, *two)[0] == pytest.approx(2 * -np.log(p[1:]).mean(), abs=1e-6)  # summed


def test_edge_attention_sends_nothing_to_the_boundary_and_can_be_a_mean():
    logits, label, boundary = draw(2, 3, 2, 2), np.ones((2, 4, 4)), np.full((2, 1, 2, 2), 2.0, np.float32)
    counts, weights = np.array([1.0, 1.0, 2.0], np.float32), {"align": 0.0, "bce": 0.0, "att": 1.0}
    mean, (slope, none) = run(Slopes(3, weights=weights), logits, label, boundary=boundary, counts=counts)
    total, _ = run(Slopes(3, weights=weights, att_reduce="sum"), logits, label, boundary=boundary, counts=counts)
    assert slope.any() and not none.any() and total[2] == pytest.approx(2 * mean[2], rel=1e-6)


def one_tile(share, target):
    return shape_difference(share, target, (1, 1), 224)


def blob(*parts: tuple[int, int, int, int]) -> np.ndarray:
    """224 x 224 of 0 with rectangles (top, left, bottom, right) of 1."""
    q = np.zeros((1, 224, 224), np.float32)
    for top, left, bottom, right in parts:
        q[0, top:bottom, left:right] = 1.0
    return q


def test_moments_by_hand():
    target = blob((40, 60, 80, 160))
    value, slope = value_and_slope(one_tile, target, target)
    assert value == pytest.approx(0.0, abs=2e-6) and np.isfinite(slope).all()
    value, slope = value_and_slope(one_tile, target, blob((40, 62, 80, 162)))  # 2 pixels to the right
    assert value == pytest.approx(2 / 112, abs=2e-6) and np.isfinite(slope).all()
    value, _ = value_and_slope(one_tile, blob((92, 92, 132, 132)), blob((72, 72, 152, 152)))  # sides of 40 and 80
    assert value == pytest.approx(0.5, abs=1e-3)
    flat, tall = blob((102, 62, 122, 162)), blob((62, 102, 162, 122))  # 100 x 20 turned by a right angle
    elongated = (100**2 - 20**2) / (100**2 + 20**2 - 2)  # variances of n equal pixels: (n^2 - 1) / 12
    value, _ = value_and_slope(one_tile, flat, tall)
    assert value == pytest.approx(np.pi / 2 * elongated**2, rel=1e-3)
    value, slope = value_and_slope(one_tile, 0 * flat, tall)
    assert value == 0.0 and not slope.any()  # a tile without mass does not count


def test_moments_are_those_of_resized_tiles_and_have_their_slopes():
    rng = np.random.default_rng(0)
    share, target = (rng.random((2, 8, 12)).astype(np.float32) for _ in range(2))
    value, slope = value_and_slope(shape_difference, share, target)
    moved, direction = 1e-3, np.sign(slope)
    ends = [value_and_slope(shape_difference, share + s * moved * direction, target)[0] for s in (1, -1)]
    assert (ends[0] - ends[1]) / (2 * moved) == pytest.approx(np.abs(slope).sum(), rel=2e-2)
    big = [np.kron(q, np.ones((1, 84, 112), np.float32)) for q in (share, target)]  # 672 x 1344: nothing to resize
    shifted = value_and_slope(shape_difference, *big)[0]
    assert shifted != pytest.approx(value, rel=1e-3)  # blocks, not bilinear: other tiles
    same = value_and_slope(shape_difference, np.ones((1, 8, 12), np.float32), np.ones((1, 8, 12), np.float32))[0]
    assert same == pytest.approx(0.0, abs=2e-6)


def test_all_terms_together_and_halves_of_a_batch():
    """Boundary terms are means over images: two devices with equal halves give the whole where labels repeat."""
    logits, boundary = draw(1, 3, 4, 8).repeat(2, 0), 2 * draw(1, 1, 4, 8, seed=1).repeat(2, 0)
    label = np.zeros((2, 16, 32), np.int32)
    label[:, 4:10, 6:20], label[:, :, 28:] = 1, 2
    cell, counts = Slopes(3, **FULL), np.array([1.0, 1.0, 2.0], np.float32)
    whole, slopes = run(cell, logits, label, boundary=boundary, counts=counts)
    part, _ = run(cell, logits[:1], label[:1], boundary=boundary[:1], counts=counts)
    assert (whole > 0).all() and all(np.isfinite(slope).all() and slope.any() for slope in slopes)
    np.testing.assert_allclose(2 * part, whole, rtol=1e-5)
    ignored = np.full((2, 16, 32), 255, np.int32)
    nothing, slopes = run(cell, logits, ignored, boundary=boundary, counts=counts)
    assert not nothing.any() and not any(slope.any() for slope in slopes)


def test_boundaries_of_the_class_that_is_asked_for():
    logits, boundary, present = draw(1, 4, 4, 8), 2 * draw(1, 1, 4, 8, seed=1), [[1, 0, 3]]
    label = np.zeros((1, 16, 32), np.int32)
    label[:, 4:10, 6:20], label[:, :, 28:], label[:, 14:] = 1, 3, 255
    options = {"protocol": "binary", "weights": {"att": 0.0, "shape": 0.3}}
    seen = Slopes(4, edge_scope="seen", **options)
    target, _ = run(Slopes(4, edge_scope="target", **options), logits, label, present, boundary)
    alone, _ = run(seen, logits, np.where(label == 3, 0, label), present, boundary)
    every, _ = run(seen, logits, label, present, boundary)
    np.testing.assert_array_equal(target, alone)
    assert every[1] != target[1] and every[3] != target[3] and every[0] == target[0]


def test_what_the_head_must_give():
    head = FCNHead((8,), ((2, 2),), 3, channels=4)
    check_outputs(head, create_loss({"name": "alignment", "weights": {"bce": 0.0, "att": 0.0}}, 3))
    with pytest.raises(ValueError, match="loss 'alignment' needs boundary, which the head does not give"):
        check_outputs(head, create_loss({"name": "alignment"}, 3))


@pytest.mark.parametrize(("options", "message"), [
    ({"protocol": "pairs"}, "protocol 'pairs' is not known; allowed: multiclass, binary"),
    ({"ignore_void": False}, "ignore_void false needs protocol binary"),
    ({"protocol": "binary", "resolution": "label"}, "resolution 'label' needs protocol multiclass"),
    ({"edge_scope": "own"}, "edge_scope 'own' is not known; allowed: all, seen, target"),
    ({"edge_radius": 0}, "edge_radius is 0; give at least 1"),
    ({"edge_scope": "target"}, "edge_scope 'target' needs protocol binary"),
    ({"weights": {"dice": 1.0}}, "unknown term 'dice'; allowed: align, bce, att, shape"),
])  # fmt: skip
def test_wrong_options(options, message):
    with pytest.raises(ValueError, match=message):
        AlignmentLoss(3, **options)
