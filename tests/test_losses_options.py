"""Options of the losses, terms that are off, counts."""

import numpy as np
import pytest
from mindspore import Tensor, nn

from src.losses import LOSSES, batch_counts, create_loss
from tests.losses_reference import COUNTS, MAPS, K, make_batch, make_maps, reference, reference_ce

OFF = {"ce": 0.0, "mask": 0.0, "dice": 0.0, "diversity": 0.0}


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
        ({"name": "class_mask", "x": 1}, ["loss (class_mask): unexpected argument 'x'. It takes weights, mask_loss"]),
        ({"name": "cross_entropy", "mask_loss": "bce"}, ["loss (cross_entropy): unexpected argument 'mask_loss'"]),
        ({"name": "class_mask", "num_classes": 3}, ["unexpected argument 'num_classes'"]),
        ({"name": "class_mask", "weights": {"mas": 1.0}}, ["unknown term 'mas'", "ce, mask, dice, diversity"]),
        ({"name": "class_mask", "weights": {"mask": -1.0}}, ["weights.mask is -1.0", "at least 0"]),
        ({"name": "class_mask", "weights": {"mask": "5"}}, ["weights is {'mask': '5'}, wanted dict[str, float]"]),
        ({"name": "class_mask", "weights": {"mask": float("nan")}}, ["weights is {'mask': nan}", "finite"]),
        ({"name": "class_mask", "weights": OFF}, ["weights are all 0", "ce, mask, dice, diversity"]),
        ({"name": "class_mask", "weights": [1.0, 5.0]}, ["weights is [1.0, 5.0], wanted dict[str, float] or null"]),
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
