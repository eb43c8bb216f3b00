"""The regulariser against hand-computed values, a float64 double loop, and what it is for (DFR spec, section 12)."""

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor, nn

from src.losses.pairwise import window_offsets
from src.losses.regulariser import Regulariser
from tests.dfr_reference import differences, energy, softmax

E1, E2 = np.exp(-1.0), np.exp(-0.5)
ALWAYS = {"start": 0.0, "beta_ramp": (0.0, 1.0), "stride": 1, "blocks": 1}  # beta is the progress
HAND = {**ALWAYS, "kernels": ((1.0, 1.0, 0.1, 1.0),)}
SCALES = ((1.0, 1.5, 0.3, 0.8),)
TWO = ((0.4, 1.5, 0.3, 0.0), (0.6, 1.5, 0.0, 0.8))
L1 = ((0.4, 0.0, 0.0, 0.3), (0.6, 1.5, 0.3, 0.0))  # one factor each
PLAIN = {**ALWAYS, "kernels": SCALES}
OFFSETS = window_offsets(2, (1, 2))


class Chosen(nn.Cell):
    """Sum over images of the energies of several regularisers, weighted by `choice`, the images by `weights`."""

    def __init__(self, regularisers: list[Regulariser]) -> None:
        super().__init__()
        self.regularisers = nn.CellList(regularisers)

    def construct(self, choice, weights, shares, colours, embedding, cells, inside, progress):
        total = 0.0
        for i in range(len(self.regularisers)):
            each = self.regularisers[i](shares, colours, embedding, cells, inside, progress)
            total = total + choice[i] * (each * weights).sum()
        return total


class Case:
    """value and gradient for the shares, of the regulariser of a name."""

    def __init__(self, **regularisers) -> None:
        self.names = list(regularisers)
        cells = [Regulariser(2, **settings) for settings in regularisers.values()]
        self.call = ms.value_and_grad(Chosen(cells), (2, 3, 4))

    def __call__(self, name, shares, colours, embedding, inside, beta=0.0, cells=None, weights=None):
        choice = np.eye(len(self.names), dtype=np.float32)[self.names.index(name)]
        cells = np.full(inside.shape, 255, np.int32) if cells is None else cells
        weights = np.ones(len(shares), np.float32) if weights is None else weights
        arrays = [choice, weights, shares, colours, embedding, cells, inside, np.float32(beta)]
        value, gradients = self.call(*[Tensor(np.ascontiguousarray(x) if np.ndim(x) else x) for x in arrays])
        return float(value.asnumpy()), [gradient.asnumpy() for gradient in gradients]


@pytest.fixture(scope="module")
def hand():
    """Three cells in a row."""
    soft = {**HAND, "norm": "pixel", "gate": "rrm_soft"}
    window = {**HAND, "impl": "window", "radius": 1}
    return Case(
        mass=HAND, pixel={**HAND, "norm": "pixel"}, sum={**HAND, "norm": "sum"}, soft=soft,
        window=window, window_pixel={**window, "norm": "pixel"},
    )  # fmt: skip


def row(hand, name, shares, colours=(0.0, 0.0, 0.0), embedding=(0.0, 0.0, 0.0), valid=(1, 1, 0), beta=0.0, cells=None):
    """Value and gradient (3, 2) of shares (3, 2) in a row, red values and embeddings of width 1."""
    shares = np.array(shares, np.float32).T.reshape(1, 2, 1, 3)
    colours = np.array([colours, (0,) * 3, (0,) * 3], np.float32).reshape(1, 3, 1, 3)
    embedding = np.array(embedding, np.float32).reshape(1, 1, 1, 3)
    cells = None if cells is None else np.array(cells, np.int32).reshape(1, 1, 1, 3)
    inside = np.array(valid, np.float32).reshape(1, 1, 1, 3)
    value, gradients = hand(name, shares, colours, embedding, inside, beta, cells)
    assert not gradients[1].any() and not gradients[2].any()  # the kernel is a constant
    return value, gradients[0].reshape(2, 3).T


APART = [(1, 0), (0, 1), (0.3, 0.7)]  # the third cell is invalid
SOFT = [(0.8, 0.2), (0.3, 0.7), (0.9, 0.1)]


def test_two_cells(hand):
    assert [row(hand, name, APART)[0] for name in ("pixel", "mass", "sum")] == pytest.approx([E2, 1, 2 * E2], abs=1e-6)
    assert row(hand, "pixel", SOFT)[0] == pytest.approx(0.3760490090, abs=1e-6)
    assert row(hand, "mass", SOFT)[0] == pytest.approx(0.62, abs=1e-6)
    # the identity with the DenseCRF loss of rloss
    assert row(hand, "sum", SOFT)[0] == pytest.approx(3.2130613194 - 1.7209633014 - 0.74, abs=1e-6)
    value, gradient = row(hand, "pixel", SOFT)
    np.testing.assert_allclose(gradient, [(-0.1819592, -0.4245715), (-0.4852245, -0.1213061), (0, 0)], atol=1e-6)
    shares = np.array(SOFT)
    logits = shares * (gradient - (gradient * shares).sum(1, keepdims=True))
    np.testing.assert_allclose(logits[:2], [(0.03881796, -0.03881796), (-0.07642286, 0.07642286)], atol=1e-6)


def test_constant_predictions(hand):
    for name in ("pixel", "mass", "sum"):
        assert row(hand, name, [(1, 0)] * 3, (0.1, 0.5, 0.9), valid=(1, 1, 1))[0] == pytest.approx(0, abs=1e-6)
    assert row(hand, "mass", [(0.5, 0.5)] * 3)[0] == pytest.approx(0.5, abs=1e-6)
    assert row(hand, "pixel", [(0.5, 0.5)] * 3)[0] == pytest.approx(0.3032653299, abs=1e-6)


def test_colour_and_embedding_in_the_kernel(hand):
    red = (0.0, 0.1, 0.4)
    apart = [(1, 0), (0, 1), (0.3, 0.7)]
    assert row(hand, "pixel", apart, red)[0] == pytest.approx(E1, abs=1e-6)
    for beta, wanted in ((0.0, 0.3678794412), (0.5, 0.2865047969), (1.0, 0.2231301601)):
        assert row(hand, "pixel", apart, red, (0, 1, 7), beta=beta)[0] == pytest.approx(wanted, abs=1e-6)


def test_three_cells_dense_and_in_a_window(hand):
    shares, every = [(1, 0), (1, 0), (0, 1)], (1, 1, 1)
    assert row(hand, "pixel", shares, valid=every)[0] == pytest.approx(0.4945772953, abs=1e-6)
    assert row(hand, "mass", shares, valid=every)[0] == pytest.approx(0.5501837823, abs=1e-6)
    assert row(hand, "window_pixel", shares, valid=every)[0] == pytest.approx(0.4043537731, abs=1e-6)
    assert row(hand, "window", shares, valid=every)[0] == pytest.approx(0.5, abs=1e-6)


def test_soft_gate(hand):
    assert row(hand, "soft", SOFT, cells=(0, 255, 255))[0] == pytest.approx(0.2256294054, abs=1e-6)


def test_nothing_valid(hand):
    for name in hand.names:
        value, gradient = row(hand, name, SOFT, valid=(0, 0, 0))
        assert value == 0.0 and not gradient.any()


@pytest.fixture(scope="module")
def grid():
    """Grids of 6 x 7 with K = 4, D = 5."""
    return Case(
        blocks={**PLAIN, "blocks": 3}, unlabelled={**PLAIN, "gate": "unlabelled", "norm": "pixel"},
        l1mean={**PLAIN, "blocks": 2, "kernels": L1, "deep_term": "exp_l1mean"},
    )  # fmt: skip


@pytest.fixture(scope="module")
def more():
    """What takes longer to compile."""
    return Case(
        dense=PLAIN, live={**PLAIN, "kernel_grad": True, "blocks": 2}, two={**PLAIN, "kernels": TWO, "blocks": 2},
        window={**PLAIN, "impl": "window", "radius": 2, "dilations": (1, 2)},
        window_l1mean={**PLAIN, "impl": "window", "radius": 2, "kernels": L1, "deep_term": "exp_l1mean"},
    )  # fmt: skip


@pytest.fixture(scope="module")
def random_case():
    rng = np.random.default_rng(4)
    shares = softmax(rng.normal(size=(4, 2, 6, 7))).transpose(1, 0, 2, 3)
    colours, embedding = rng.random((2, 3, 6, 7)), rng.normal(size=(2, 5, 6, 7)) * 0.5
    inside = (rng.random((2, 1, 6, 7)) > 0.2).astype(float)
    cells = np.where(rng.random((2, 1, 6, 7)) < 0.3, 1, 255).astype(np.int32)
    return shares, colours, embedding, inside, cells


def float32(*arrays):
    return [array.astype(np.float32) for array in arrays]


def reference(case, scales=SCALES, beta=0.7, norm="mass", offsets=None, gate=None, l1mean=False):
    """Sum over images and gradient in float64."""
    shares, colours, embedding, inside, _ = case
    gate = inside if gate is None else gate
    parts = [
        energy(shares[b], colours[b], embedding[b], gate[b, 0], inside[b, 0], scales, beta, norm, offsets, l1mean)
        for b in range(len(shares))
    ]
    return sum(value for value, _ in parts), np.stack([gradient for _, gradient in parts])


@pytest.mark.parametrize(
    ("fixture", "name"),
    [("grid", "blocks"), ("grid", "unlabelled"), ("grid", "l1mean"),
     *[pytest.param("more", name, marks=pytest.mark.slow)
       for name in ("dense", "live", "two", "window", "window_l1mean")]],
)  # fmt: skip
def test_values_and_gradients_equal_the_double_loop(request, random_case, fixture, name):
    shares, colours, embedding, inside, cells = random_case
    settings = {
        "two": {"scales": TWO}, "window": {"offsets": set(OFFSETS)},
        "unlabelled": {"norm": "pixel", "gate": inside * (cells == 255)}, "l1mean": {"scales": L1, "l1mean": True},
        "window_l1mean": {"scales": L1, "l1mean": True, "offsets": set(window_offsets(2, (1,)))},
    }.get(name, {})  # fmt: skip
    case = request.getfixturevalue(fixture)
    value, gradients = case(name, *float32(shares, colours, embedding, inside), beta=0.7, cells=cells)
    wanted, gradient = reference(random_case, **settings)
    assert value == pytest.approx(wanted, rel=1e-5)
    np.testing.assert_allclose(gradients[0], gradient, atol=1e-6)
    assert (np.abs(gradients[1]).max() > 1e-4) == (name == "live") == (np.abs(gradients[2]).max() > 1e-4)


@pytest.mark.slow
def test_kernel_gradient_equals_central_differences(more, random_case):
    """With Z constant, as the loss has it."""
    shares, colours, embedding, inside, cells = random_case
    one = (shares, colours, embedding, inside, cells)
    masses = [
        energy(*(x[b] for x in (shares, colours, embedding)), inside[b, 0], inside[b, 0], SCALES, 0.7)[0]
        / energy(*(x[b] for x in (shares, colours, embedding)), inside[b, 0], inside[b, 0], SCALES, 0.7, "sum")[0]
        for b in range(2)
    ]

    def value(changed):
        return masses[0] * reference((*(x[:1] for x in one[:2]), changed, *(x[:1] for x in one[3:])), norm="sum")[0]

    places = [(0, d, y, x) for d, y, x in ((0, 0, 0), (3, 2, 5), (4, 5, 6), (1, 3, 3))]
    gradients = more("live", *float32(shares, colours, embedding, inside), beta=0.7, cells=cells)[1]
    slopes = differences(value, embedding[:1], places)
    np.testing.assert_allclose([gradients[2][place] for place in places], slopes, atol=1e-5)


def test_logit_gradient_equals_central_differences(grid, random_case):
    _, colours, embedding, inside, cells = random_case
    rng = np.random.default_rng(9)
    logits = rng.normal(size=(1, 4, 6, 7))
    rest = (colours[:1], embedding[:1], inside[:1], cells[:1])

    def value(changed):
        return reference((softmax(changed[0])[None], *rest))[0]

    places = [tuple(int(rng.integers(n)) for n in logits.shape) for _ in range(8)]
    shares = softmax(logits[0])[None]
    both = float32(np.repeat(shares, 2, 0), colours, embedding, inside)
    gradient = grid("blocks", *both, beta=0.7, cells=cells, weights=np.array([1, 0], np.float32))[1][0][:1]
    through = shares * (gradient - (gradient * shares).sum(1, keepdims=True))
    slopes = differences(value, logits, places)
    np.testing.assert_allclose([through[place] for place in places], slopes, rtol=1e-4, atol=1e-7)


def test_permutations(grid, random_case):
    shares, colours, embedding, inside, cells = float32(*random_case[:4]) + [random_case[4]]
    value, gradients = grid("blocks", shares, colours, embedding, inside, 0.7, cells)
    order = [2, 0, 3, 1]
    again, changed = grid("blocks", shares[:, order], colours, embedding, inside, 0.7, cells)
    assert again == pytest.approx(value, rel=1e-6)
    np.testing.assert_allclose(changed[0], gradients[0][:, order], atol=1e-7)
    flipped = [x[..., ::-1] for x in (shares, colours, embedding, inside)]
    again, changed = grid("blocks", *flipped, 0.7, cells[..., ::-1])
    assert again == pytest.approx(value, rel=1e-6)
    np.testing.assert_allclose(changed[0], gradients[0][..., ::-1], atol=1e-7)


def test_padding_with_garbage_changes_nothing(grid, random_case):
    shares, colours, embedding, inside, cells = float32(*random_case[:4]) + [random_case[4]]
    inside = np.ones_like(inside)
    inside[..., 4:] = 0.0
    part = (*(x[..., :4] for x in random_case[:3]), np.ones((2, 1, 6, 4)), cells[..., :4])
    wanted, gradient = reference(part)
    colours, embedding = colours.copy(), embedding.copy()
    colours[..., 4:], embedding[..., 4:] = 50.0, -30.0
    value, gradients = grid("blocks", shares, colours, embedding, inside, 0.7, cells)
    assert value == pytest.approx(wanted, rel=2e-4)  # garbage is far from the mean: round-off of the Gram form
    assert not gradients[0][..., 4:].any()
    np.testing.assert_allclose(gradients[0][..., :4], gradient, atol=1e-4)


@pytest.mark.slow
def test_window_of_the_grid_equals_dense():
    window = {**ALWAYS, "kernels": SCALES, "impl": "window", "radius": 2}
    case, rng = Case(window=window), np.random.default_rng(0)
    shares, colours = softmax(rng.normal(size=(2, 2, 2, 3))).transpose(1, 0, 2, 3), rng.random((2, 3, 2, 3))
    one = (shares, colours, rng.normal(size=(2, 2, 2, 3)), np.ones((2, 1, 2, 3)), np.full((2, 1, 2, 3), 255))
    value, gradients = case("window", *float32(*one[:4]), beta=0.7)
    wanted, gradient = reference(one)
    assert value == pytest.approx(wanted, rel=1e-5)
    np.testing.assert_allclose(gradients[0], gradient, atol=1e-6)
