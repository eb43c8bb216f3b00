"""The whole DFR loss against float64 references: its terms, schedules, bad batches and wrong settings."""

import re

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor, nn
from ruamel.yaml import YAML

from src.losses import batch_counts, check_fit, check_outputs, create_loss
from src.losses.regulariser import Regulariser
from tests import dfr_reference as reference
from tests.conftest import ROOT

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


class Scores(nn.Cell):
    """Partial cross entropy and regulariser of a head whose logits are scores, as SegViT's."""

    def __init__(self, loss) -> None:
        super().__init__()
        self.loss = loss

    def construct(self, logits, image, label, valid, image_present, progress, counts):
        batch = {
            "image": image, "label": label, "valid": valid, "image_present": image_present, "progress": progress,
        }  # fmt: skip
        terms = self.loss({"logits": logits, "class_scores": (logits,)}, batch, counts)
        return terms[0] + 10.0 * terms[2], terms


def test_scores_count_by_their_share_of_the_sum(batch):
    """Shares are q / sum q: of (0.6, 0.3, 0.1) the logarithms' softmax, not that of the scores themselves."""
    settings = {"stride": 4, "kernels": [[1.0, 9.0, 0.3, 0.0]], "blocks": 2, "start": 0.0}
    weights = {"regulariser": 1.5, "consistency": 0.0}
    loss = create_loss({"name": "dfr", "weights": weights, "regulariser": settings}, K)
    scores = np.random.default_rng(5).uniform(0.05, 1.2, (2, K, 16, 24))
    counts = np.array([(batch["label"] != 255).sum(), 5, 2], np.float32)
    arrays = [batch["image"], batch["label"], batch["valid"], batch["present"], np.ones(1, np.float32), counts]
    call = ms.value_and_grad(Scores(loss), 0, has_aux=True)
    (_, terms), gradient = call(*map(Tensor, (scores.astype(np.float32), *arrays)))

    def value(q):
        shares = q / q.sum(1, keepdims=True)
        b, y, x = np.nonzero(batch["label"] != 255)
        ce = -np.log(shares[b, batch["label"][b, y, x], y, x]).mean()
        inside = (reference.pool(batch["valid"], 4) > 0.999).astype(float)
        pooled, colours = reference.pool(shares, 4), reference.pool(batch["image"] / 255, 4)
        parts = zip(pooled, colours, pooled, inside, inside, strict=True)
        energies = [reference.energy(*part, ((1.0, 9.0 / 4, 0.3, 0.0),), 0.0)[0] for part in parts]
        return ce, 1.5 * sum(energies) / 2

    assert [float(terms[i].asnumpy()) for i in (0, 2)] == pytest.approx(value(scores), rel=2e-5)
    y, x = np.argwhere(batch["label"][0] != 255)[0]
    places = [(0, batch["label"][0, y, x], y, x), (1, 2, 7, 3)]
    slopes = reference.differences(lambda q: value(q)[0] + 10.0 * value(q)[1], scores, places)
    np.testing.assert_allclose([gradient.asnumpy()[place] for place in places], slopes, rtol=1e-3, atol=1e-6)


def test_what_the_loss_needs():
    plain = nn.Cell()
    plain.outputs = ("logits",)
    with pytest.raises(ValueError, match="needs embedding, which the head does not give"):
        check_outputs(plain, create_loss({"name": "dfr"}, K))
    static = {"name": "dfr", "weights": {"consistency": 0.0}, "regulariser": {"kernels": [[1.0, 100.0, 0.06, 0.0]]}}
    check_outputs(plain, create_loss(static, K))
    for source in ("decoder", "coarsest"):
        chosen = create_loss({**static, "regulariser": {"deep_source": source}}, K)
        assert chosen.needs == ("logits", source)
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
        ({"base": "cross_entropy"}, "loss.base is 'cross_entropy'; give a mapping"),
        ({"base": None}, "loss.base is None; give a mapping"), ({"base": {}}, "has no name.*partial_cross_entropy"),
        ({"base": {"name": "dfr"}}, "loss.base is 'dfr' itself"),
        ({"regulariser": None}, "loss.regulariser is None; give a mapping"),
        ({"regulariser": {"kernels": [[1.0, float("nan"), 0.1, 0.5]]}}, "loss.regulariser: kernels is .*, finite"),
        ({"regulariser": {"kernels": [[float("inf"), 9.0, 0.1, 0.5]]}}, "loss.regulariser: kernels is .*, finite"),
        ({"regulariser": {"start": float("nan")}}, "start is nan, wanted float, finite"),
        ({"consistency": {"sigma": float("inf")}}, "loss.consistency: sigma is inf, wanted float, finite"),
        ({"weights": {"regulariser": float("nan")}}, "weights is .*, finite"),
    ],
)  # fmt: skip
def test_wrong_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        create_loss({"name": "dfr", **options}, K)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"regulariser": {"stride": 7}}, r"data.crop_size \[16, 24\] .* 7 pixels \(loss.regulariser.stride\)"),
        ({"consistency": {"stride": 16}}, r"cells of 16 pixels \(loss.consistency.stride\)"),
        ({"regulariser": {"blocks": 7}}, "loss.regulariser: blocks is 7, but the grid has 6 positions"),
        (
            {"regulariser": {"impl": "window", "radius": 1, "dilations": [3]}},
            "no offset of the window .* fits into a grid of 2 x 3",
        ),
    ],
)
def test_crops_that_do_not_fit_are_refused_before_compiling(settings, message):
    fitting = {"consistency": {"stride": 8}, "regulariser": {"blocks": 6}}
    check_fit(create_loss({"name": "dfr", **fitting}, K), (16, 24), True)
    with pytest.raises(ValueError, match=message):
        check_fit(create_loss({"name": "dfr", **fitting, **settings}, K), (16, 24), True)
    window = {"impl": "window", "radius": 1, "dilations": [2, 3]}  # two cells apart there are pairs
    check_fit(create_loss({"name": "dfr", **fitting, "regulariser": window}, K), (16, 24), True)


@pytest.mark.parametrize(
    ("base", "mends"),
    [
        ({"name": "class_tokens"}, "absent: image"),
        ({"name": "class_tokens", "absent": "image", "mask_ignore": "negative"}, "mask_ignore: exclude"),
        ({"name": "class_mask", "mask_ignore": "negative"}, "mask_ignore: exclude"),
    ],
)
def test_losses_that_need_full_labels_are_refused_for_strokes(base, mends):
    for settings in (base, {"name": "dfr", "base": base}):
        check_fit(create_loss(settings, K), (32, 48), False)
        with pytest.raises(ValueError, match=f"the labels are strokes.*set {mends} in"):
            check_fit(create_loss(settings, K), (32, 48), True)
    for good in ({"name": "class_tokens", "absent": "image"}, {"name": "class_mask"}):
        check_fit(create_loss({"name": "dfr", "base": good}, K), (32, 48), True)


def test_losses_of_the_docs_build():
    text = (ROOT / "docs" / "dfr.md").read_text(encoding="utf-8")
    found = YAML(typ="safe").load(re.search(r"```yaml\n(.*?)```", text, re.S).group(1))
    assert list(found) == ["gatedcrf", "lineage_a2gnn"]
    needed = [create_loss(settings, 21).needs for settings in found.values()]
    assert needed == [("logits",), ("logits", "embedding")]


def test_counts_of_scribbles():
    label = np.array([[[0, 255], [255, 255]]])
    np.testing.assert_array_equal(batch_counts({"label": label, "present": np.array([[0, -1]])}), [1, 1, 1])


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"impl": "sparse"}, "impl 'sparse'"), ({"gate": "open"}, "gate 'open'"), ({"norm": "max"}, "norm 'max'"),
        ({"deep_term": "l1"}, "deep_term 'l1'"), ({"deep_source": "f32"}, "deep_source 'f32' is not known"),
        ({"stride": 0}, "stride is 0"), ({"blocks": 0}, "blocks is 0"), ({"kernels": ()}, "kernels"),
        ({"kernels": ((1.0, 0.0, 0.0, 0.0),)}, "a sigma above 0"), ({"beta_ramp": (0.5, 0.1)}, "ascending"),
        ({"impl": "window", "radius": 0}, "radius is 0"), ({"start": 2.0}, "start 2.0"),
    ],
)  # fmt: skip
def test_settings_without_a_meaning_are_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        Regulariser(2, **wrong)
