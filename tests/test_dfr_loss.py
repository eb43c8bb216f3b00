"""The whole DFR loss against float64 references: its terms, schedules, bad batches and wrong settings."""

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor, nn

from src.losses import batch_counts, check_outputs, create_loss
from src.losses.regulariser import Regulariser
from tests import dfr_reference as reference

K = 3

# The whole loss at crops of 16 x 24 with strides of 4 and 8.
WHOLE = {
    "name": "dfr", "weights": {"regulariser": 1.5, "consistency": 0.5},
    "regulariser": {"stride": 4, "kernels": [[1.0, 9.0, 0.3, 0.8]], "blocks": 2, "start": 0.2, "beta_ramp": [0.2, 0.8]},
    "consistency": {"stride": 8, "radius": 1, "tau": 0.5, "pseudo_start": 0.6},
}  # fmt: skip


class Whole(nn.Cell):
    def __init__(self, loss) -> None:
        super().__init__()
        self.loss = loss

    def construct(self, choice, logits, embedding, image, label, valid, image_present, progress, counts):
        batch = {
            "image": image, "label": label, "valid": valid, "image_present": image_present, "progress": progress,
        }  # fmt: skip
        terms = self.loss({"logits": logits, "embedding": embedding}, batch, counts)
        total = 0.0
        for i in range(len(terms)):
            total = total + choice[i] * terms[i]
        return total


@pytest.fixture(scope="module")
def whole():
    loss = create_loss(WHOLE, K)
    assert loss.terms == ("ce", "aux", "regulariser", "consistency", "shallow")
    return ms.value_and_grad(Whole(loss), (1, 2))


@pytest.fixture(scope="module")
def batch():
    rng = np.random.default_rng(1)
    label = np.where(rng.random((2, 16, 24)) < 0.06, rng.integers(0, K, (2, 16, 24)), 255).astype(np.int32)
    valid = np.ones((2, 16, 24), np.uint8)
    valid[1, :, 18:] = 0
    label[1, :, 18:] = 255
    return {
        "logits": rng.normal(size=(2, K, 8, 12)), "embedding": rng.normal(size=(2, 5, 4, 6)),
        "image": rng.integers(0, 256, (2, 3, 16, 24)).astype(np.uint8), "label": label, "valid": valid,
        "present": np.array([[0, 1, 2], [0, 1, -1]], np.int32),
    }  # fmt: skip


def run(whole, batch, term, progress, images=2):
    choice = np.eye(5, dtype=np.float32)[term]
    counts = np.array([(batch["label"] != 255).sum(), 5, images], np.float32)
    arrays = [
        choice, batch["logits"].astype(np.float32), batch["embedding"].astype(np.float32), batch["image"],
        batch["label"], batch["valid"], batch["present"], np.array([progress], np.float32), counts,
    ]  # fmt: skip
    value, gradients = whole(*map(Tensor, arrays))
    return float(value.asnumpy()), gradients[0].asnumpy(), gradients[1].asnumpy()


def unit(x):
    return x / np.sqrt((x**2).sum(1, keepdims=True) + 1e-6)


def regulariser_value(batch, logits, beta):
    shares = reference.pool(reference.softmax(logits.transpose(1, 0, 2, 3)).transpose(1, 0, 2, 3), 2)
    colours = reference.pool(batch["image"] / 255, 4)
    inside = (reference.pool(batch["valid"], 4) > 0.999).astype(float)
    deep, scales = unit(batch["embedding"]), ((1.0, 9.0 / 4, 0.3, 0.8),)
    parts = zip(shares, colours, deep, inside, inside, strict=True)
    values = [reference.energy(*part, scales, beta)[0] for part in parts]
    return 1.5 * sum(values) / 2


@pytest.mark.parametrize(("progress", "beta"), [(0.1, None), (0.2, 0.0), (0.5, 0.5), (0.9, 1.0)])
def test_regulariser_of_a_batch(whole, batch, progress, beta):
    value, logits, embedding = run(whole, batch, 2, progress)
    wanted = 0.0 if beta is None else regulariser_value(batch, batch["logits"], beta)
    assert value == pytest.approx(wanted, rel=1e-5)
    assert logits.any() == (beta is not None) and not embedding.any()
    if beta:
        places = [(0, 0, 0, 0), (0, 2, 5, 7), (1, 1, 7, 3)]
        slopes = reference.differences(lambda x: regulariser_value(batch, x, beta), batch["logits"], places)
        np.testing.assert_allclose([logits[place] for place in places], slopes, rtol=1e-3, atol=1e-6)


def test_consistency_of_a_batch(whole, batch):
    value, logits, embedding = run(whole, batch, 3, 0.5)  # guesses do not count yet
    cells = np.stack([reference.cell_labels(each, 8) for each in batch["label"]])
    cells[reference.pool(batch["valid"], 8) < 0.999] = 255
    wanted = 0.5 * reference.consistency(unit(reference.pool(batch["embedding"], 2)), cells, cells != 255, 1)
    assert wanted > 0 and value == pytest.approx(wanted, rel=1e-4)
    assert not logits.any() and embedding.any()
    assert run(whole, batch, 3, 0.9)[0] != pytest.approx(wanted, rel=1e-3)


def test_terms_of_parts_add_up_to_the_global_batch(whole, batch):
    """The regulariser is a mean over the images of the global batch, so half the count doubles it."""
    assert run(whole, batch, 2, 0.5, images=1)[0] == pytest.approx(2 * run(whole, batch, 2, 0.5)[0], rel=1e-6)


def test_an_image_without_a_stroke_and_one_without_a_pixel(whole, batch):
    bare = {**batch, "label": np.full_like(batch["label"], 255), "present": np.full((2, 3), -1, np.int32)}
    assert run(whole, bare, 0, 1.0)[0] == run(whole, bare, 3, 1.0)[0] == 0.0
    assert run(whole, bare, 2, 1.0)[0] == pytest.approx(run(whole, batch, 2, 1.0)[0])  # reads no labels
    empty = {**bare, "valid": np.zeros_like(batch["valid"])}
    for term in range(5):
        value, logits, embedding = run(whole, empty, term, 1.0)
        assert value == 0.0 and not logits.any() and not embedding.any()


def test_padding_is_not_unlabelled(whole, batch):
    padded = {**batch, "valid": np.where(np.arange(24) < 12, 1, 0).repeat(1).astype(np.uint8)[None, None].repeat(16, 1)}
    padded["valid"] = np.ascontiguousarray(padded["valid"].repeat(2, 0))
    logits = run(whole, padded, 2, 1.0)[1]
    assert logits[..., :6].any() and not logits[..., 6:].any()


def test_what_the_loss_needs():
    plain = nn.Cell()
    plain.outputs = ("logits",)
    with pytest.raises(ValueError, match="needs embedding, which the head does not give"):
        check_outputs(plain, create_loss({"name": "dfr"}, K))
    static = {"name": "dfr", "weights": {"consistency": 0.0}, "regulariser": {"kernels": [[1.0, 100.0, 0.06, 0.0]]}}
    check_outputs(plain, create_loss(static, K))
    with_masks = create_loss({"name": "dfr", "base": {"name": "class_mask"}}, K)
    assert set(with_masks.needs) == {"logits", "masks", "finest_mask", "diverse", "embedding"}
    assert with_masks.terms[:4] == ("ce", "mask", "dice", "diversity")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"base": {"name": "cross_entropi"}}, "unknown loss 'cross_entropi'"),
        ({"regulariser": {"strid": 4}}, r"loss.regulariser: unexpected argument 'strid'; did you mean 'stride'"),
        ({"consistency": {"background": 3}}, "loss.consistency: background is 3; give a class, 0 to 2, or null"),
        ({"consistency": {"labels": "all"}}, "loss.consistency: labels 'all'"),
        ({"consistency": {"tau": 2.0}}, "tau 2.0"), ({"weights": {"dfr": 1.0}}, "unknown term 'dfr'"),
    ],
)  # fmt: skip
def test_wrong_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        create_loss({"name": "dfr", **options}, K)


def test_counts_of_scribbles():
    label = np.array([[[0, 255], [255, 255]]])
    np.testing.assert_array_equal(batch_counts({"label": label, "present": np.array([[0, -1]])}), [1, 1, 1])


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"impl": "sparse"}, "impl 'sparse'"), ({"gate": "open"}, "gate 'open'"), ({"norm": "max"}, "norm 'max'"),
        ({"stride": 0}, "stride is 0"), ({"blocks": 0}, "blocks is 0"), ({"kernels": ()}, "kernels"),
        ({"kernels": ((1.0, 0.0, 0.0, 0.0),)}, "a sigma above 0"), ({"beta_ramp": (0.5, 0.1)}, "ascending"),
        ({"impl": "window", "radius": 0}, "radius is 0"), ({"start": 2.0}, "start 2.0"),
    ],
)  # fmt: skip
def test_settings_without_a_meaning_are_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        Regulariser(2, **wrong)
