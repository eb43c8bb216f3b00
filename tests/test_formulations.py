"""Every formulation for CPU (written.py, spread, products in place of sums) equals the plain one, with its gradients.

Letters: B batch, M rows, D width, h heads, N queries, K keys or classes, d width of a head, G windows, H x W map.
"""

import mindspore as ms
import numpy as np
import pytest
from mindspore import Parameter, Tensor, nn, ops
from scipy.special import log_softmax
from scipy.stats import norm

from src import functional
from src.functional import mean_positions, spread
from src.losses.class_mask import PositionSoftmax
from src.losses.cross_entropy import LogSoftmax
from src.models import plain, written
from tests.running import draw, randomise

OUTPUT, GRADIENT = 1e-5, 1e-4  # largest differences allowed, as shares of the largest value


class Slopes(nn.Cell):
    """Output of a cell, of a tuple the first, and the gradients of sum(output * weight).

    Gradients for the first `count` inputs, then for the parameters in the order of `trainable_params`.
    """

    def __init__(self, cell: nn.Cell, count: int, first: bool = False) -> None:
        super().__init__(auto_prefix=False)
        self.cell, self.first = cell, first
        parameters = ms.ParameterTuple(cell.trainable_params())
        positions = tuple(range(1, count + 1))
        self.differentiate = ops.value_and_grad(self.weigh, positions, parameters or None, has_aux=True)

    def weigh(self, weight, *inputs):
        output = self.cell(*inputs)
        if self.first:
            output = output[0]
        return (output * weight).sum(), output

    def construct(self, weight, *inputs):
        (_, output), gradients = self.differentiate(weight, *inputs)
        return output, gradients


def flatten(values) -> list[np.ndarray]:
    """Arrays of nested tuples: MindSpore gives the gradient of a single input without a tuple."""
    if isinstance(values, tuple):
        return [array for value in values for array in flatten(value)]
    return [values.asnumpy()]


def slopes(cell: nn.Cell, weight, *inputs, constants=(), first: bool = False) -> tuple[np.ndarray, list[np.ndarray]]:
    """Output and gradients of a cell; constants are further inputs, whose gradients nobody asks for."""
    graph = Slopes(cell, len(inputs), first)
    output, *gradients = flatten(graph(*[Tensor(x) for x in (weight, *inputs, *constants)]))
    return output, gradients


def difference(found: np.ndarray, wanted: np.ndarray) -> float:
    """Largest difference as a share of the largest wanted value."""
    assert found.shape == wanted.shape
    return float(np.abs(found.astype(np.float64) - wanted).max() / np.abs(wanted).max())


def check(found, wanted, output: float = OUTPUT, gradient: float = GRADIENT) -> None:
    """Compares what `slopes` returns."""
    assert difference(found[0], wanted[0]) < output
    shares = [difference(a, b) for a, b in zip(found[1], wanted[1], strict=True)]
    assert max(shares) < gradient, shares


def share_parameters(cell: nn.Cell, other: nn.Cell) -> None:
    """Random parameters, alike in both cells, which must have the same names and shapes."""
    randomise(cell)
    shapes = [{name: p.shape for name, p in each.parameters_dict().items()} for each in (cell, other)]
    assert shapes[0] == shapes[1]
    assert ms.load_param_into_net(other, cell.parameters_dict()) == ([], [])


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("rows", [(5,), (3, 5)])
def test_linear(bias, rows):
    found, wanted = written.Linear(7, 24, has_bias=bias), nn.Dense(7, 24, has_bias=bias)
    share_parameters(found, wanted)
    weight, x = draw(*rows, 24), draw(*rows, 7, seed=1)
    check(slopes(found, weight, x), slopes(wanted, weight, x))


def layer_norm_reference(weight, x, gamma, beta, epsilon):
    """Output and gradients of sum(output * weight) for x, gamma and beta in float64, by the chain rule."""
    weight, x = weight.astype(np.float64).reshape(-1, x.shape[-1]), x.astype(np.float64).reshape(-1, x.shape[-1])
    inverse = 1.0 / np.sqrt(x.var(-1, keepdims=True) + epsilon)
    normal = (x - x.mean(-1, keepdims=True)) * inverse
    g = weight * gamma
    dx = inverse * (g - g.mean(-1, keepdims=True) - normal * (g * normal).mean(-1, keepdims=True))
    return normal * gamma + beta, dx, (weight * normal).sum(0), weight.sum(0)


@pytest.mark.parametrize(
    ("shape", "mean", "spread_of_row", "epsilon"),
    [((3, 5, 7), 0.0, 1.0, 1e-5), ((2, 3, 5, 24), 30.0, 1.0, 1e-6), ((15, 24), 30.0, 0.05, 1e-5),
     ((5, 7), -2.0, 1e-3, 1e-6)],
)  # fmt: skip
def test_layer_norm(shape, mean, spread_of_row, epsilon):
    found, wanted = written.LayerNorm(shape[-1], epsilon), nn.LayerNorm((shape[-1],), epsilon=epsilon)
    share_parameters(found, wanted)
    weight, x = draw(*shape), mean + spread_of_row * draw(*shape, seed=1)
    result, plain_result = slopes(found, weight, x), slopes(wanted, weight, x)
    check(result, plain_result)
    reference = layer_norm_reference(weight, x, found.gamma.asnumpy(), found.beta.asnumpy(), epsilon)
    found_all = [result[0], *result[1]]
    output, *gradients = [value.reshape(each.shape) for value, each in zip(reference, found_all, strict=True)]
    # A mean rounded to float32 is off by a share of the spread, and with it all results.
    rounding = 4.0 * np.finfo(np.float32).eps * abs(mean) / spread_of_row
    check(result, (output, gradients), OUTPUT + rounding, GRADIENT + rounding)


def test_gelu_is_exact():
    x = np.concatenate([np.linspace(-12.0, 12.0, 4801), [1e4, -1e4, 0.0]]).astype(np.float32)
    output, (gradient,) = slopes(written.Gelu(), np.ones_like(x), x)
    exact, allowed = x.astype(np.float64), 2e-6 * np.maximum(1.0, np.abs(x))
    assert (np.abs(output - exact * norm.cdf(exact)) <= allowed).all()
    assert (np.abs(gradient - (norm.cdf(exact) + exact * norm.pdf(exact))) <= 4 * allowed).all()
    assert output[-1] == 0.0 and gradient[-1] == 0.5


def test_gelu_against_plain():
    weight, x = draw(3, 5, 7), 3.0 * draw(3, 5, 7, seed=1)
    check(slopes(written.Gelu(), weight, x), slopes(nn.GELU(approximate=False), weight, x))


@pytest.mark.parametrize(("b", "h", "n", "k", "d"), [(3, 2, 15, 5, 7), (2, 3, 5, 15, 24), (2, 1, 5, 5, 7)])
def test_attention(b, h, n, k, d):
    weight, q, keys, values = (draw(b, h, m, d, seed=i) for i, m in enumerate((n, n, k, k)))
    found = slopes(written.AttentionCore(d), weight, q, keys, values, first=True)
    check(found, slopes(plain.AttentionCore(), weight, q, keys, values, first=True))


@pytest.mark.parametrize(("b", "g", "h"), [(3, 4, 2), (2, 1, 3)])
def test_attention_of_windows(b, g, h):
    n, d = 5, 7
    weight, q, k, v = (draw(b * g, h, n, d, seed=i) for i in range(4))
    region = np.random.default_rng(0).integers(0, 2, (g, 1, n))
    mask = np.where(region[..., None] != region[..., None, :], -100.0, 0.0).astype(np.float32)
    assert (mask < 0.0).any()
    inputs = weight, q, k, v, draw(h, n, n, seed=5)
    found = slopes(written.BiasedAttentionCore(d), *inputs, constants=[mask], first=True)
    check(found, slopes(plain.BiasedAttentionCore(), *inputs, constants=[mask], first=True))


def test_log_softmax_over_classes():
    weight, x = draw(3, 7, 15), 5.0 * draw(3, 7, 15, seed=1) + 30.0
    output = log_softmax(x.astype(np.float64), 1)
    gradient = weight - np.exp(output) * weight.sum(1, keepdims=True, dtype=np.float64)
    check(slopes(LogSoftmax(), weight, x), (output, [gradient]))


def test_softmax_over_positions():
    weight, x = draw(3, 7, 15), 5.0 * draw(3, 7, 15, seed=1)
    output = np.exp(log_softmax(x.astype(np.float64), -1))
    gradient = output * (weight - (output * weight).sum(-1, keepdims=True))
    check(slopes(PositionSoftmax(), weight, x), (output, [gradient]))


class Spread(nn.Cell):
    def construct(self, x, like):
        return spread(x, like.shape) * like


class SpreadShape(nn.Cell):
    def construct(self, x, like):
        return ops.zeros(spread(x, like.shape).shape, ms.float32)


@pytest.mark.parametrize("broadcasts", [False, True])
@pytest.mark.parametrize("shape", [(3, 1, 1), (1, 5, 7), (1, 1, 7), (3, 5, 7), (1, 5, 1)])
def test_spread(shape, broadcasts, monkeypatch):
    if broadcasts:  # as on GPU and Ascend
        monkeypatch.setattr(functional, "on_cpu", lambda: False)
    weight, x, like = draw(3, 5, 7), draw(*shape, seed=1), draw(3, 5, 7, seed=2)
    axes = tuple(i for i in range(3) if shape[i] == 1)
    gradient = (weight.astype(np.float64) * like).sum(axes, keepdims=True)
    check(slopes(Spread(), weight, x, like), (x * like, [gradient, weight * x]))
    assert SpreadShape()(Tensor(x), Tensor(like)).shape == (shape if broadcasts else like.shape)


class MeanPositions(nn.Cell):
    def construct(self, x):
        return mean_positions(x)


def test_mean_positions():
    weight, x = draw(3, 7), draw(3, 7, 5, 3, seed=1) + 2.0
    gradient = np.broadcast_to((weight / 15.0)[..., None, None], x.shape)
    check(slopes(MeanPositions(), weight, x), (x.astype(np.float64).mean((2, 3)), [gradient]))


class BiasedRows(nn.Cell):
    """A bias that only part of the rows use, so that its gradient is no plain sum of the weight."""

    def __init__(self) -> None:
        super().__init__()
        self.bias = Parameter(draw(7, seed=3))
        self.add_bias = written.AddBias()

    def construct(self, x):
        return self.add_bias(x[1:4], self.bias) * x[1:4]


def test_bias():
    weight, x = draw(3, 7), draw(5, 7, seed=1)
    dx = np.zeros((5, 7))
    bias, rows = draw(7, seed=3).astype(np.float64), x[1:4].astype(np.float64)
    dx[1:4] = weight * (2.0 * rows + bias)
    check(slopes(BiasedRows(), weight, x), ((rows + bias) * rows, [dx, (weight * rows).sum(0)]))


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(("b", "h", "w"), [(3, 5, 7), (2, 1, 4), (1, 6, 1)])
def test_depthwise_convolution(b, h, w, bias):
    found = written.DepthwiseConv3x3(6, bias, "normal", "normal")
    wanted = nn.Conv2d(6, 6, 3, 1, "pad", 1, group=6, has_bias=bias)
    share_parameters(found, wanted)
    weight, x = draw(b, 6, h, w), draw(b, 6, h, w, seed=1)
    check(slopes(found, weight, x), slopes(wanted, weight, x))


def test_shapes_that_do_not_spread():
    with pytest.raises(ValueError, match="does not spread"):
        SpreadShape()(Tensor(draw(2, 1, 1)), Tensor(draw(4, 3, 3)))
