"""Partial cross entropy and consistency loss against hand-computed values and float64 loops."""

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor, nn

from src.losses import create_loss
from src.losses.consistency import ConsistencyLoss, shallow_consistency
from src.losses.grids import cell_labels, whole_cells
from src.losses.pairwise import window_offsets
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
    {"radius": 1, "tau": 0.6, "pairs": "window"},
]  # fmt: skip
WINDOWS = [
    {"radius": 2, "affinity": "l1mean", "pairs": "window"},
    {"radius": 2, "affinity": "sigmoid_dot", "tau": 0.6, "background": None, "pairs": "window"},
]  # fmt: skip


@pytest.fixture(scope="module")
def pairs():
    return ms.value_and_grad(Pairs(SETTINGS), (1, 2))


@pytest.fixture(scope="module")
def windows():
    return ms.value_and_grad(Pairs(WINDOWS), (1, 2))


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


def compare(pairs, scene, i, progress=1.0, settings=SETTINGS):
    embedding, shares, cells, inside, present, colours = scene
    choice = np.eye(len(settings) + 1, dtype=np.float32)[i]
    floats = [x.astype(np.float32) for x in (embedding, shares, inside, colours)]
    arrays = [choice, floats[0], floats[1], cells.astype(np.int32), floats[2], present.astype(np.int32)]
    value, gradients = pairs(*map(Tensor, arrays), Tensor(progress, ms.float32), Tensor(floats[3]))
    assert not gradients[1].asnumpy().any()  # nothing reaches the decode head
    return float(value.asnumpy()), gradients[0].asnumpy()


def check_against_loop(pairs, scene, i, progress, every):
    """Value and gradient of the losses of `every` setting, of which number i."""
    settings = {"labels": "both", "affinity": "gaussian", "tau": 0.9, "background": 0, **every[i]}
    labels, own = labels_of(scene, settings["labels"], settings["tau"], progress >= 0.1)
    own = 0 * own if "pairs" in settings else own  # in a window scribbles have no longer reach
    options = {"kind": settings["affinity"], "background": settings["background"]}

    def value(embedding):
        return reference.consistency(embedding, labels, own, settings["radius"], **options)

    found, gradient = compare(pairs, scene, i, progress, every)
    assert found == pytest.approx(value(scene[0]), rel=1e-5, abs=1e-7)
    places = [(0, 0, 0, 0), (0, 3, 2, 2), (1, 4, 3, 3), (1, 1, 1, 0)]
    slopes = reference.differences(value, scene[0], places)
    np.testing.assert_allclose([gradient[place] for place in places], slopes, atol=2e-6)
    return found


@pytest.mark.parametrize(("i", "progress"), [(0, 1.0), (0, 0.05), (1, 1.0), (2, 1.0), (2, 0.0), (3, 1.0), (3, 0.05)])
def test_consistency_equals_the_double_loop(pairs, scene, i, progress):
    assert (check_against_loop(pairs, scene, i, progress, SETTINGS) > 0) == (i != 2 or progress > 0)


@pytest.mark.slow
@pytest.mark.parametrize("i", range(len(WINDOWS)))
def test_windows_of_other_affinities_equal_the_double_loop(windows, scene, i):
    assert check_against_loop(windows, scene, i, 1.0, WINDOWS) > 0


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
    assert compare(pairs, scene, len(SETTINGS))[0] == pytest.approx(total / count, rel=1e-5)


def test_window_counts_every_pair_once():
    assert window_offsets(1, (1,)) == ((0, 1), (1, -1), (1, 0), (1, 1))
    assert len(window_offsets(5, (1,))) == 60
    both = window_offsets(2, (1, 2))
    assert len(set(both)) == len(both) == 12 + 12 - 4
