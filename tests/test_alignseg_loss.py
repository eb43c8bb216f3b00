"""The AlignSeg losses: cases T15 and T17 of the spec, float64 references, gradients, counts of a global batch."""

import numpy as np
import pytest
from mindspore import Tensor, nn, ops
from scipy.special import log_softmax

from src.losses import batch_counts, check_outputs, create_loss
from src.losses.alignseg import AlignSegLoss, lovasz_softmax
from src.models.heads.alignseg import AlignSegHead
from src.models.heads.fcn import FCNHead
from tests.losses_reference import make_batch
from tests.network_reference import resize_corners
from tests.running import draw

K, GRID, LABEL = 4, (3, 4), (6, 8)
COUNTS = np.array([200.0, 9.0, 5.0], np.float32)  # of a larger global batch than the one at hand
LOVASZ = {"weights": {"lovasz": 0.8}}
STATIC = {"name": "dfr", "weights": {"consistency": 0.0}, "regulariser": {"kernels": [[1.0, 100.0, 0.06, 0.0]]}}


class Slopes(nn.Cell):
    """The terms and the gradients of their sum for logits and auxiliary."""

    def __init__(self, **options) -> None:
        super().__init__()
        self.loss = AlignSegLoss(K, **options)
        self.differentiate = ops.value_and_grad(self.total, (0, 1), has_aux=True)

    def total(self, logits, auxiliary, label, counts):
        terms = self.loss({"logits": logits, "auxiliary": auxiliary}, {"label": label}, counts)
        return terms[0] + terms[1] + terms[2], terms

    def construct(self, logits, auxiliary, label, counts):
        return self.differentiate(logits, auxiliary, label, counts)


def run(options: dict, *arrays) -> tuple[np.ndarray, list[np.ndarray]]:
    (_, terms), gradients = Slopes(**options)(*map(Tensor, arrays))
    return np.array([float(term.asnumpy()) for term in terms]), [g.asnumpy() for g in gradients]


def log_shares(logits: np.ndarray) -> np.ndarray:
    """(N, K) at the pixels of the label."""
    resized = resize_corners(np.asarray(logits, np.float64), LABEL)
    return log_softmax(resized.transpose(0, 2, 3, 1).reshape(-1, K), 1)


def reference_lovasz(shares: np.ndarray, label: np.ndarray) -> float:
    """Mean over the present classes; shares (N, K), label (N,): differences of 1 - IoU, pixel by pixel."""
    shares, label = shares[label != 255], label[label != 255]
    losses = []
    for k in np.unique(label):
        true = label == k
        errors = np.where(true, 1.0 - shares[:, k], shares[:, k])
        loss, before = 0.0, 0.0
        wrong = np.zeros(len(label), bool)
        for pixel in np.argsort(-errors):
            wrong[pixel] = True
            after = 1.0 - (true & ~wrong).sum() / (true | wrong).sum()
            loss += errors[pixel] * (after - before)
            before = after
        losses.append(loss)
    return float(np.mean(losses))


def reference(logits, auxiliary, label, ce="mean", weights=None, ohem_threshold=0.7, ohem_min_kept=100000):
    weights = {"ce": 1.0, "aux": 0.1, "lovasz": 0.0, **(weights or {})}
    flat = label.reshape(-1)
    valid = flat != 255
    share = valid.sum() / COUNTS[0]

    def true(logs):
        return logs[np.arange(len(flat)), np.where(valid, flat, 0)][valid]

    main = log_shares(logits)
    chosen = np.ones(valid.sum(), bool)
    if ce == "ohem":
        p = np.exp(true(main))
        limit = max(np.sort(p)[min(ohem_min_kept, len(p)) - 1], ohem_threshold)
        chosen = p <= limit
    terms = [-true(main)[chosen].mean() * share, -true(log_shares(auxiliary)).mean() * share]
    terms.append(reference_lovasz(np.exp(main), flat) * share if weights["lovasz"] else 0.0)
    return np.array(terms) * list(weights.values())


OPTIONS = [
    {}, LOVASZ, {"weights": {"ce": 0.0, "aux": 0.0, "lovasz": 1.0}}, {"weights": {"aux": 0.4}, "ce": "ohem"},
    {"ce": "ohem", "ohem_threshold": 0.05, "ohem_min_kept": 20},
    {"ce": "ohem", "ohem_threshold": 0.4, "ohem_min_kept": 3},
]  # fmt: skip


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_terms_and_gradients_equal_the_reference(options):
    logits, auxiliary = 2.0 * draw(3, K, *GRID), 2.0 * draw(3, K, *GRID, seed=1)
    label = make_batch()["label"]  # with ignored pixels; the third image is wholly ignored
    assert label.shape[1:] == LABEL
    terms, gradients = run(options, logits, auxiliary, label, COUNTS)
    np.testing.assert_allclose(terms, reference(logits, auxiliary, label, **options), rtol=1e-4)
    rng = np.random.default_rng(3)
    for i, gradient in enumerate(gradients):
        assert not gradient[2].any()
        for flat in rng.choice(2 * K * 12, 12, replace=False):
            index, ends = np.unravel_index(flat, gradient.shape), []
            for shift in (1e-6, -1e-6):
                arrays = [logits.astype(np.float64), auxiliary.astype(np.float64)]
                arrays[i][index] += shift
                ends.append(reference(*arrays, label, **options).sum())
            expected = (ends[0] - ends[1]) / 2e-6
            assert gradient[index] == pytest.approx(expected, rel=2e-3, abs=1e-4 * np.abs(gradient).max() + 1e-9)


class Lovasz(nn.Cell):
    def construct(self, shares, label, counts):
        return lovasz_softmax(shares, label, shares.shape[1], counts)


def test_t15_lovasz_by_hand():
    shares = np.array([[[0.8, 0.4], [0.2, 0.6]]], np.float32)  # pixels (.8, .2) and (.4, .6)
    label, counts = np.array([[[0, 1]]], np.int32), np.array([2.0, 2.0, 1.0], np.float32)
    # class 0: errors .2 (its own), .4: .4 * 1/2 + .2 * 1/2 = .3; class 1: errors .2, .4 (its own): .4 * 1 + .2 * 0 = .4
    assert float(Lovasz()(Tensor(shares), Tensor(label), Tensor(counts)).asnumpy()) == pytest.approx(0.35, abs=1e-6)
    # An ignored pixel and an absent class change nothing.
    shares = np.concatenate([shares, np.array([[[0.3], [0.3]]], np.float32)], 2)
    shares = np.concatenate([shares, np.array([[[0.0, 0.0, 0.4]]], np.float32)], 1)
    label = np.array([[[0, 1, 255]]], np.int32)
    assert float(Lovasz()(Tensor(shares), Tensor(label), Tensor(counts)).asnumpy()) == pytest.approx(0.35, abs=1e-6)


def test_t17_weights_by_hand():
    # One pixel, K classes: a logit of log(e^c - 1) - log(K - 1) below the others' 0 has a cross entropy of c.
    def level(entropy: float) -> np.ndarray:
        logits = np.zeros((1, K, 1, 1), np.float32)
        logits[0, 0] = np.log(K - 1) - np.log(np.exp(entropy) - 1.0)
        return logits

    label, counts = np.zeros((1, 1, 1), np.int32), np.array([1.0, 1.0, 1.0], np.float32)
    terms, _ = run({}, level(1.0), level(2.0), label, counts)
    np.testing.assert_allclose(terms, [1.0, 0.2, 0.0], rtol=1e-5)
    terms, _ = run(LOVASZ, level(np.log(2.0)), level(2.0), label, counts)  # a share of 1/2: Lovász .5, weighted .4
    np.testing.assert_allclose(terms, [np.log(2.0), 0.2, 0.4], rtol=1e-5)


def test_cross_entropy_of_images_adds_up_to_that_of_the_batch():
    logits, auxiliary, label = draw(2, K, *GRID), draw(2, K, *GRID, seed=1), make_batch(batch_size=2)["label"]
    counts = batch_counts({"label": label, "present": np.zeros((2, 1), np.int32)})
    whole, _ = run({}, logits, auxiliary, label, counts)
    parts = [run({}, logits[i : i + 1], auxiliary[i : i + 1], label[i : i + 1], counts)[0] for i in range(2)]
    np.testing.assert_allclose(sum(parts), whole, rtol=1e-5)


@pytest.mark.parametrize("options", [LOVASZ, {"ce": "ohem", "weights": {"lovasz": 1.0}}], ids=str)
def test_batch_without_valid_pixel_gives_zero(options):
    label = np.full((1, *LABEL), 255, np.int32)
    terms, gradients = run(options, draw(1, K, *GRID), draw(1, K, *GRID), label, np.zeros(3, np.float32))
    np.testing.assert_array_equal(terms, 0.0)
    assert not any(gradient.any() for gradient in gradients)


def test_what_the_head_must_give():
    head = AlignSegHead((8,), (GRID,), K, channels=4, auxiliary=False)
    check_outputs(head, create_loss({"name": "alignseg", "weights": {"aux": 0.0}}, K))
    with pytest.raises(ValueError, match=(
        r"'alignseg' needs auxiliary, which the head does not give \(it gives logits\); set loss.weights.aux to 0, use "
        "loss partial_cross_entropy, or"
    )):  # fmt: skip
        check_outputs(head, create_loss({"name": "alignseg"}, K))


def test_the_loss_resizes_logits_as_evaluation_does():
    ours, other = AlignSegHead((8,), (GRID,), K, channels=4), FCNHead((8,), (GRID,), K, channels=4)
    with pytest.raises(ValueError, match=(
        "'cross_entropy' resizes logits with half-pixel centres, those of AlignSegHead are evaluated corner to corner; "
        "use loss alignseg or"
    )):  # fmt: skip
        check_outputs(ours, create_loss({"name": "cross_entropy"}, K))
    with pytest.raises(ValueError, match="'alignseg' resizes logits corner to corner, those of FCNHead .* half-pixel"):
        check_outputs(other, create_loss({"name": "alignseg", "weights": {"aux": 0.0}}, K))
    for loss, key in (
        ({"name": "partial_cross_entropy"}, "loss.align_corners"),
        (STATIC, "loss.base.align_corners"),
    ):
        with pytest.raises(ValueError, match=f"set {key} to true, or use loss alignseg"):
            check_outputs(ours, create_loss(loss, K))
        check_outputs(other, create_loss(loss, K))
    check_outputs(ours, create_loss({"name": "partial_cross_entropy", "align_corners": True}, K))


@pytest.mark.parametrize(("options", "message"), [
    ({"ce": "hard"}, "ce 'hard' is not known; allowed: mean, ohem"),
    ({"weights": {"lovas": 1.0}}, "unknown term 'lovas'; allowed: ce, aux, lovasz"),
    ({"ce": "ohem", "ohem_threshold": 0.0}, "ohem_threshold is 0.0"),
    ({"ce": "ohem", "ohem_min_kept": 0}, "ohem_min_kept is 0"),
])  # fmt: skip
def test_wrong_options(options, message):
    with pytest.raises(ValueError, match=message):
        AlignSegLoss(K, **options)
