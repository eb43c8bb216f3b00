"""The class token loss against a float64 reference, its derivatives, and values worked out by hand."""

from functools import cache

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor, nn

from src.losses import batch_counts, check_outputs, create_loss
from src.models.heads.segvit import SegViTHead
from tests.class_tokens_reference import WEIGHTS, token_reference
from tests.losses_reference import COUNTS, GRID, LABEL, B, K, make_batch, present_of

S = 2  # levels
CASES = [(), ("mask_ignore",), ("weights",)]
OPTIONS = {"mask_ignore": "negative", "weights": {"class": 0.7, "mask": 3.0, "dice": 1.5}}


class Total(nn.Cell):
    """Sum of the terms, and the terms, as a function of plain tensors."""

    def __init__(self, loss):
        super().__init__()
        self.loss = loss

    def construct(self, first_scores, scores, first_mask, mask, label, present, counts):
        outputs = {"class_scores": (first_scores, scores), "token_masks": (first_mask, mask)}
        terms = self.loss(outputs, {"label": label, "present": present}, counts)
        return terms[0] + terms[1] + terms[2], terms


def options_of(case: tuple[str, ...]) -> dict:
    return {name: OPTIONS[name] for name in case}


@cache
def compiled(case: tuple[str, ...]):
    loss = create_loss({"name": "class_tokens", **options_of(case)}, K)
    return loss.terms, ms.value_and_grad(Total(loss), tuple(range(2 * S)), has_aux=True)


def run(outputs: list[np.ndarray], batch: dict, counts=COUNTS, case=()):
    """Terms and gradients of the scores and masks of two levels."""
    arrays = [*outputs, batch["label"], batch["present"], np.asarray(counts, np.float32)]
    names, value_and_grad = compiled(case)
    (total, terms), gradients = value_and_grad(*(Tensor(array) for array in arrays))
    terms = {name: float(value.asnumpy()) for name, value in zip(names, terms, strict=True)}
    assert float(total.asnumpy()) == pytest.approx(sum(terms.values()), rel=1e-6)
    return terms, [gradient.asnumpy() for gradient in gradients]


def draw_outputs(seed: int = 0, batch_size: int = B) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    shapes = [(batch_size, K, K + 1)] * S + [(batch_size, K, *GRID)] * S
    return [(2.0 * rng.standard_normal(shape)).astype(np.float32) for shape in shapes]


def expect(outputs, batch, counts=COUNTS, case=()) -> dict:
    return token_reference(outputs[:S], outputs[S:], batch["label"], counts, **options_of(case))


@pytest.mark.parametrize("case", CASES, ids=str)
def test_terms_and_gradients_equal_the_reference(case):
    outputs, batch, step = draw_outputs(), make_batch(), 1e-5
    terms, gradients = run(outputs, batch, case=case)
    assert terms == pytest.approx(expect(outputs, batch, case=case), rel=1e-5)
    rng = np.random.default_rng(11)
    for i, gradient in enumerate(gradients):
        for flat in rng.choice(gradient.size, 12, replace=False):
            index, sides = np.unravel_index(flat, gradient.shape), []
            for sign in (1.0, -1.0):
                moved = [array.astype(np.float64) for array in outputs]
                moved[i][index] += sign * step
                sides.append(sum(expect(moved, batch, case=case).values()))
            slope = (sides[0] - sides[1]) / (2.0 * step)
            assert gradient[index] == pytest.approx(slope, rel=1e-3, abs=1e-4 * np.abs(gradient).max() + 1e-9), i
        assert np.abs(gradient).max() > 0.0


def test_order_and_room_of_present_do_not_matter():
    outputs, batch = draw_outputs(), make_batch()
    terms, gradients = run(outputs, batch)
    shuffled = {**batch, "present": np.ascontiguousarray(batch["present"][:, ::-1])}
    roomy = {**batch, "present": present_of(batch["label"], K + 1)}
    for other in (shuffled, roomy):
        other_terms, other_gradients = run(outputs, other)
        assert other_terms == pytest.approx(terms, rel=1e-6)
        for one, two in zip(gradients, other_gradients, strict=True):
            np.testing.assert_allclose(one, two, rtol=1e-5, atol=1e-8)


def test_hand_computed_values():
    label = np.full((B, *LABEL), 255, np.int32)
    label[0] = 2
    label[0, :, :2] = 0  # 12 pixels of class 0, 36 of class 2; the other images have no label
    batch, outputs = {"label": label, "present": present_of(label)}, [0.0 * array for array in draw_outputs()]
    # Right answers of probability 4 / 8 instead of 1 / 5.
    outputs[0][0, 0, 0] = outputs[0][0, 2, 2] = outputs[1][0, 1, K] = np.log(4.0)
    terms, _ = run(outputs, batch, (48.0, 2.0, 1.0))
    # Level 1: tokens 0 and 2 are present, weight 1; 1 and 3 absent, weight 0.1. Divisor 2 + 0.1 * (4 - 2).
    first = 2.0 * np.log(2.0) + 0.1 * 2.0 * np.log(5.0)
    second = 2.0 * np.log(5.0) + 0.1 * (np.log(2.0) + np.log(5.0))
    assert terms["class"] == pytest.approx((first + second) / 2.2, rel=5e-6)
    log2 = np.log(2.0)  # p = 1/2 everywhere, as for the ECENet loss; two equal levels
    focal = ((12 * 0.0625 + 36 * 0.1875) + (36 * 0.0625 + 12 * 0.1875)) * log2 / 48
    assert terms["mask"] == pytest.approx(2 * 20.0 * focal / 2.0, rel=1e-6)
    assert terms["dice"] == pytest.approx(2 * ((1.0 - 13.0 / 37.0) + (1.0 - 37.0 / 61.0)) / 2.0, rel=1e-6)


class AbsentInImage(nn.Cell):
    def __init__(self):
        super().__init__()
        self.loss = create_loss({"name": "class_tokens", "weights": {"mask": 0.0, "dice": 0.0}, "absent": "image"}, K)

    def construct(self, scores, present, image_present, counts):
        batch = {"present": present, "image_present": image_present}
        return self.loss({"class_scores": (scores,)}, batch, counts)[0]


def test_a_class_of_the_image_is_no_negative_in_a_crop_without_it():
    """Crop with strokes of classes 0 and 2, image with 0, 1 and 2: token 1 learns nothing, 3 learns that it is none."""
    scores = np.zeros((1, K, K + 1), np.float32)
    scores[0, 1, K] = scores[0, 3, K] = np.log(4.0)  # "no object" has 4 of 8
    present, whole = np.array([[0, 2, -1, -1]], np.int32), np.array([[0, 1, 2, -1]], np.int32)
    arrays = [Tensor(x) for x in (scores, present, whole, np.array([48.0, 2.0, 1.0], np.float32))]
    value, gradient = ms.value_and_grad(AbsentInImage(), 0)(*arrays)
    assert float(value.asnumpy()) == pytest.approx((2.0 * np.log(5.0) + 0.1 * np.log(2.0)) / 2.2, rel=5e-6)
    assert not gradient.asnumpy()[0, 1].any() and gradient.asnumpy()[0, 3].any()


def test_parts_of_a_batch_add_up():
    outputs, batch = draw_outputs(5, 4), make_batch(batch_size=4)
    counts = batch_counts(batch)
    whole, whole_gradients = run(outputs, batch, counts)
    parts = []
    for part in (slice(0, 1), slice(1, 4)):
        share = {name: array[part] for name, array in batch.items()}
        parts.append(run([array[part] for array in outputs], share, counts))
    for name, value in whole.items():
        assert parts[0][0][name] + parts[1][0][name] == pytest.approx(value, rel=1e-6), name
    for i, gradient in enumerate(whole_gradients):
        joined = np.concatenate([gradients[i] for _, gradients in parts])
        np.testing.assert_allclose(joined, gradient, rtol=1e-6, atol=1e-8)


def test_batch_without_valid_pixel_gives_zero():
    label = np.full((B, *LABEL), 255, np.int32)
    for counts in ((0.0, 0.0, 3.0), (0.0, 0.0, 0.0)):
        for case in CASES[:2]:
            terms, gradients = run(draw_outputs(), {"label": label, "present": present_of(label)}, counts, case)
            assert terms == dict.fromkeys(WEIGHTS, 0.0)
            assert not any(gradient.any() for gradient in gradients)


def test_large_and_half_precision_outputs_stay_finite():
    batch = make_batch()
    outputs = [(1e4 * np.sign(array)).astype(np.float16) for array in draw_outputs()]
    terms, gradients = run(outputs, batch)
    assert terms == pytest.approx(expect(outputs, batch), rel=1e-4)
    assert all(np.isfinite(gradient).all() and gradient.dtype == np.float16 for gradient in gradients)


@pytest.mark.parametrize("off", WEIGHTS)
def test_a_term_that_is_off_is_zero(off):
    outputs, batch = draw_outputs(), make_batch()
    loss = create_loss({"name": "class_tokens", "weights": {off: 0.0}}, K)
    arrays = [*outputs, batch["label"], batch["present"], COUNTS]
    _, terms = Total(loss)(*(Tensor(array) for array in arrays))
    values = {name: float(value.asnumpy()) for name, value in zip(loss.terms, terms, strict=True)}
    assert values == pytest.approx({**expect(outputs, batch), off: 0.0}, rel=1e-5)


@pytest.mark.parametrize(("options", "message"), [
    ({"mask_ignore": "other"}, "mask_ignore 'other' is not known; allowed: exclude, negative"),
    ({"weights": {"ce": 1.0}}, "weights: unknown term 'ce'; allowed: class, mask, dice"),
    ({"mask_sup": "total"}, "unexpected argument 'mask_sup'"),
])  # fmt: skip
def test_wrong_options_are_named(options, message):
    with pytest.raises(ValueError, match=rf"loss \(class_tokens\): {message}"):
        create_loss({"name": "class_tokens", **options}, K)


def test_scores_are_not_taken_for_logits():
    head = SegViTHead((16,), ((2, 3),), K)
    for name in ("class_tokens", "partial_cross_entropy"):
        check_outputs(head, create_loss({"name": name}, K))
    with pytest.raises(ValueError, match="of SegViTHead are scores.*use loss class_tokens or partial_cross_entropy"):
        check_outputs(head, create_loss({"name": "cross_entropy"}, K))
