"""Partial cross entropy, consistency loss and the whole DFR loss against hand-computed values and float64 loops."""

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor, nn

from src.losses import batch_counts, check_outputs, create_loss
from src.losses.consistency import ConsistencyLoss, shallow_consistency
from src.losses.grids import cell_labels, whole_cells
from tests import dfr_reference as reference

K = 3


class Together(nn.Cell):
    """The terms of several losses for the same outputs, batch and counts, one after the other."""

    def __init__(self, losses) -> None:
        super().__init__()
        self.losses = nn.CellList(losses)

    def construct(self, choice, logits, label, counts):
        batch, total, at = {"label": label}, 0.0, 0
        for loss in self.losses:
            terms = loss({"logits": logits, "auxiliary": logits}, batch, counts)
            for term in terms:
                total = total + choice[at] * term
                at += 1
        return total


PARTIAL = [
    {"weights": {"aux": 0.4}}, {"balance": "bgfg_mean"}, {"balance": "bgfg_sum"},
]  # fmt: skip


@pytest.fixture(scope="module")
def partial_terms():
    losses = [create_loss({"name": "partial_cross_entropy", **options}, K) for options in PARTIAL]
    return ms.value_and_grad(Together(losses), 1)


def partial(partial_terms, term, logits, label):
    """Term `term` of all (two a loss): value and gradient for logits (1, K, 1, 4), label (1, 1, 4)."""
    counts = np.array([(label != 255).sum(), 1, 1], np.float32)
    choice = np.eye(6, dtype=np.float32)[term]
    value, gradient = partial_terms(*map(Tensor, (choice, logits.astype(np.float32), label.astype(np.int32), counts)))
    return float(value.asnumpy()), gradient.asnumpy()


def test_partial_cross_entropy(partial_terms):
    zeros = np.zeros((1, K, 1, 4))
    value, gradient = partial(partial_terms, 0, zeros, np.array([[[0, 255, 255, 2]]]))
    assert value == pytest.approx(np.log(3), abs=4e-6)  # exp on CPU is off by 5e-6
    assert not gradient[..., 1:3].any() and gradient[..., 0].any()
    logits = np.repeat(np.array([2.0, 1.0, 0.0]), 4).reshape(1, K, 1, 4)
    for label, wanted in enumerate((0.4076059644, 1.4076059644, 2.4076059644)):
        labels = np.array([[[label, 255, 255, 255]]])
        assert partial(partial_terms, 0, logits, labels)[0] == pytest.approx(wanted, abs=5e-6)
        assert partial(partial_terms, 1, logits, labels)[0] == pytest.approx(0.4 * wanted, abs=5e-6)
    mixed = np.array([[[0, 0, 0, 2]]])  # mean of class 0: 0.4076, of the others: 2.4076
    assert partial(partial_terms, 2, logits, mixed)[0] == pytest.approx(1.4076059644, abs=5e-6)
    assert partial(partial_terms, 4, logits, mixed)[0] == pytest.approx(2.8152119288, abs=5e-6)
    only = np.array([[[255, 0, 0, 255]]])
    assert partial(partial_terms, 4, logits, only)[0] == pytest.approx(0.4076059644, abs=5e-6)
    for term in range(6):
        value, gradient = partial(partial_terms, term, logits, np.full((1, 1, 4), 255))
        assert value == 0.0 and not gradient.any()


class Cells(nn.Cell):
    def construct(self, label, valid):
        return cell_labels(label, 4), whole_cells(valid, 4)


def test_labels_of_cells():
    rng = np.random.default_rng(0)
    label = np.where(rng.random((2, 16, 12)) < 0.1, rng.integers(0, 3, (2, 16, 12)), 255).astype(np.int32)
    label[0, :4, :4] = 255
    label[0, 1, 2], label[0, 4:8, :4] = 2, 255
    label[0, 0, 4:6] = (0, 1)
    valid = np.ones((2, 16, 12), np.uint8)
    valid[1, :, 7:] = 0
    cells, inside = (x.asnumpy()[:, 0] for x in Cells()(Tensor(label), Tensor(valid)))
    assert (cells[0, 0, 0], cells[0, 1, 0], cells[0, 0, 1]) == (2, 255, 255)
    np.testing.assert_array_equal(cells, [reference.cell_labels(each, 4) for each in label])
    np.testing.assert_array_equal(inside[1], [[1, 0, 0]] * 4)


class Pairs(nn.Cell):
    """Consistency losses of the settings, one of them chosen, and the shallow term last."""

    def __init__(self, settings) -> None:
        super().__init__()
        self.losses = nn.CellList([ConsistencyLoss(3, **each) for each in settings])

    def construct(self, choice, embedding, shares, cells, inside, present, progress, colours):
        total = 0.0
        for i in range(len(self.losses)):
            each = self.losses[i](embedding, shares, cells, inside, present, progress)
            total = total + choice[i] * each
        shallow = shallow_consistency(embedding, colours, inside, 1, 0.5, 2.0, 0.3)
        return total + choice[len(self.losses)] * shallow


SETTINGS = [
    {"radius": 1, "tau": 0.6}, {"radius": 1, "affinity": "l1mean", "labels": "scribble"},
    {"radius": 1, "affinity": "sigmoid_dot", "labels": "prediction", "tau": 0.6, "background": None},
]  # fmt: skip


@pytest.fixture(scope="module")
def pairs():
    return ms.value_and_grad(Pairs(SETTINGS), (1, 2))


@pytest.fixture(scope="module")
def scene():
    """Grids of 4 x 5 of two images: embedding, shares, cells, inside, present, colours."""
    rng = np.random.default_rng(3)
    shares = reference.softmax(2 * rng.normal(size=(3, 2, 4, 5))).transpose(1, 0, 2, 3)
    cells = rng.choice([0, 1, 2, 255], size=(2, 1, 4, 5), p=[0.2, 0.2, 0.1, 0.5])
    inside = np.ones((2, 1, 4, 5))
    inside[1, ..., 4:] = 0
    present = np.array([[0, 1, -1], [0, 1, 2]])
    return rng.normal(size=(2, 5, 4, 5)) * 0.4, shares, cells, inside, present, rng.random((2, 3, 4, 5))


def labels_of(scene, kind, tau, on):
    """Labels (B, h, w) and which of them are scribbles, as section 5 says."""
    _, shares, cells, inside, present, _ = scene
    labels, own = np.full(cells[:, 0].shape, 255), np.zeros(cells[:, 0].shape, int)
    for b, y, x in np.ndindex(labels.shape):
        known = [k for k in present[b] if k >= 0]
        picked = {k: shares[b, k, y, x] for k in known}
        best = max(picked, key=picked.get)
        if not inside[b, 0, y, x]:
            continue
        if kind != "prediction" and cells[b, 0, y, x] != 255:
            labels[b, y, x], own[b, y, x] = cells[b, 0, y, x], 1
        elif kind != "scribble" and on and picked[best] >= tau * sum(picked.values()):
            labels[b, y, x] = best
    return labels, own


def compare(pairs, scene, i, progress=1.0):
    embedding, shares, cells, inside, present, colours = scene
    choice = np.eye(4, dtype=np.float32)[i]
    floats = [x.astype(np.float32) for x in (embedding, shares, inside, colours)]
    arrays = [choice, floats[0], floats[1], cells.astype(np.int32), floats[2], present.astype(np.int32)]
    value, gradients = pairs(*map(Tensor, arrays), Tensor(progress, ms.float32), Tensor(floats[3]))
    assert not gradients[1].asnumpy().any()  # nothing reaches the decode head
    return float(value.asnumpy()), gradients[0].asnumpy()


@pytest.mark.parametrize(("i", "progress"), [(0, 1.0), (0, 0.05), (1, 1.0), (2, 1.0), (2, 0.0)])
def test_consistency_equals_the_double_loop(pairs, scene, i, progress):
    settings = {"labels": "both", "affinity": "gaussian", "tau": 0.9, "background": 0, **SETTINGS[i]}
    labels, own = labels_of(scene, settings["labels"], settings["tau"], progress >= 0.1)
    options = {"kind": settings["affinity"], "background": settings["background"]}

    def value(embedding):
        return reference.consistency(embedding, labels, own, 1, **options)

    found, gradient = compare(pairs, scene, i, progress)
    assert found == pytest.approx(value(scene[0]), rel=1e-5, abs=1e-7)
    assert (found > 0) == (i != 2 or progress > 0)
    places = [(0, 0, 0, 0), (0, 3, 2, 2), (1, 4, 3, 3), (1, 1, 1, 0)]
    slopes = reference.differences(value, scene[0], places)
    np.testing.assert_allclose([gradient[place] for place in places], slopes, atol=2e-6)


def test_a_class_that_is_not_in_the_image_is_never_guessed(scene):
    """Of the reference, which the loss equals: class 2 is absent from the first image."""
    labels, own = labels_of(scene, "both", 0.0, True)
    assert not ((labels[0] == 2) & (own[0] == 0)).any() and ((labels[1] == 2) & (own[1] == 0)).any()


@pytest.mark.parametrize(
    ("labels", "wanted"),
    [((1, 1), 0.3999850819 / 4), ((0, 0), 0.3999850819 / 4), ((0, 1), 1.1096025996 / 2), ((1, 255), 0.0)],
)
def test_one_pair_of_cosine_nine_tenths(pairs, scene, labels, wanted):
    embedding = np.zeros((2, 5, 4, 5))
    embedding[:, 0] = 1.0
    embedding[0, :2, 0, 1] = (0.9, np.sqrt(1 - 0.81))
    cells = np.full((2, 1, 4, 5), 255)
    cells[0, 0, 0, :2] = labels
    found = compare(pairs, (embedding, scene[1], cells, *scene[3:]), 0, progress=0.0)[0]
    assert found == pytest.approx(wanted, abs=2e-6)


@pytest.mark.parametrize(("labels", "wanted"), [((1, 1), 1.9999261122 / 4), ((1, 2), 0.1454018928 / 2)])
def test_one_pair_of_mean_distance_two(pairs, scene, labels, wanted):
    """E = (0, 0) and (1, 3) have a mean distance of 2; here with five channels."""
    embedding = np.zeros((2, 5, 4, 5))
    embedding[0, :, 0, 1] = (1, 3, 2, 0, 4)
    cells = np.full((2, 1, 4, 5), 255)
    cells[0, 0, 0, :2] = labels
    assert compare(pairs, (embedding, scene[1], cells, *scene[3:]), 1)[0] == pytest.approx(wanted, abs=5e-6)


def test_shallow_term_equals_the_double_loop(pairs, scene):
    embedding, _, _, inside, _, colours = scene
    total, count = 0.0, 0
    for b in range(2):
        places = [place for place in np.ndindex(4, 5) if inside[b, 0][place]]
        for i in places:
            for j in places:
                if i != j:
                    apart = ((embedding[b][:, i[0], i[1]] - embedding[b][:, j[0], j[1]]) ** 2).sum()
                    total += reference.kernel(i, j, colours[b], None, ((1.0, 2.0, 0.3, 0.0),), 0.0) * apart / 0.5
                    count += 1
    assert compare(pairs, scene, 3)[0] == pytest.approx(total / count, rel=1e-5)


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
