"""Bias, LayerNorm, GELU and attention with gradients written out for MindSpore's CPU kernels.

What is slow there, and avoided: sums along an axis (one thread; products with ones take their place), erf, the kernels
of the gradients of GELU, softmax, LayerNorm and bias, and element-wise operators that broadcast (`functional.spread`
says why). docs/performance.md has the times.

MindSpore starts an operator as soon as its inputs are there: what a gradient takes from the forward alone would be
computed, and held, during the forward. `ops.Depend` on the incoming gradient keeps it back.

A `bprop` consists of operators only, `ops.Tile` and not `ops.tile`: one that calls Python functions spoils later
compilations of a process (2.10).

Letters: M rows, D width, B batch, h heads, N tokens, d width of a head, G windows of a map.
"""

import mindspore as ms
import numpy as np
from mindspore import Tensor, nn, ops

INVERSE_ROOT_2PI = 0.3989422804014327
# The normal distribution Phi(x) = sigmoid(x p(x^2)): p of the least largest error of x Phi(x), 1.3e-6 of max(1, |x|);
# beyond |x| = 6.5 the sigmoid is 0 or 1. Two degrees more reach float32's rounding, and cost a quarter more passes over
# the tensor. Not by tanh, whose kernel on CPU is off by up to 1e-4.
P0, P1, P2, P3, P4 = 1.59571381, 0.0728252, -1.9367491e-4, -7.058004e-5, 2.71524628e-6


class AddBias(nn.Cell):
    """Rows (M, D) plus a bias (D,)."""

    def __init__(self) -> None:
        super().__init__()
        self.add = ops.BiasAdd()
        self.product = ops.MatMul()

    def construct(self, x, bias):
        return self.add(x, bias)

    def bprop(self, x, bias, out, dout):
        return dout, self.product(ops.ones((1, dout.shape[0]), ms.float32), dout).reshape(bias.shape)


class Linear(nn.Dense):
    """nn.Dense, whose bias gets its gradient as a product."""

    def __init__(self, *args, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        self.product = ops.MatMul(transpose_b=True)
        self.add_bias = AddBias()

    def construct(self, x):
        """(..., in_channels) -> (..., out_channels)."""
        y = self.product(x.reshape(-1, self.in_channels), self.weight)
        if self.has_bias:
            y = self.add_bias(y, self.bias)
        return y.reshape(x.shape[:-1] + (self.out_channels,))


class Gelu(nn.Cell):
    """GELU x Phi(x) of a tensor of any shape, not its tanh form.

    Off by at most 2e-6 of max(1, |x|), the gradient by 8e-6.
    """

    def __init__(self) -> None:
        super().__init__()
        self.with_factor = GeluWithFactor()

    def construct(self, x):
        return self.with_factor(x)[0]


def normal_share(x):
    """Phi(x), the share of a normal distribution below x, of a tensor of any shape; see Gelu for its error."""
    square = x * x
    return ops.sigmoid(x * ((((P4 * square + P3) * square + P2) * square + P1) * square + P0))


def normal_density(x):
    """Derivative of Phi(x), of a tensor of any shape."""
    return INVERSE_ROOT_2PI * ops.exp(-0.5 * (x * x))


class GeluWithFactor(nn.Cell):
    """x Phi(x), and for the gradient Phi(x)."""

    def __init__(self) -> None:
        super().__init__()
        self.depend = ops.Depend()

    def construct(self, x):
        factor = normal_share(x)
        return x * factor, factor

    def bprop(self, x, out, dout):
        x = self.depend(x, dout[0])
        return (dout[0] * (out[1] + x * normal_density(x)),)


class RecomputedMlp(nn.Cell):
    """Linear, GELU, Linear of rows (M, D) with weights (H, D), (D, H): the gradient holds no hidden row, but computes
    them once more."""

    def __init__(self) -> None:
        super().__init__()
        self.product, self.forward = ops.MatMul(), ops.MatMul(transpose_b=True)
        self.gather, self.add, self.depend = ops.MatMul(transpose_a=True), ops.BiasAdd(), ops.Depend()

    def construct(self, x, weight1, bias1, weight2, bias2):
        hidden = self.add(self.forward(x, weight1), bias1)
        return self.add(self.forward(hidden * normal_share(hidden), weight2), bias2)

    def bprop(self, x, weight1, bias1, weight2, bias2, out, dout):
        x = self.depend(x, dout)
        hidden = self.add(self.forward(x, weight1), bias1)
        factor = normal_share(hidden)
        slope = factor + hidden * normal_density(hidden)
        dhidden = self.product(dout, weight2) * slope
        ones = ops.ones((1, dout.shape[0]), ms.float32)
        dbias1, dbias2 = self.product(ones, dhidden).reshape(bias1.shape), self.product(ones, dout).reshape(bias2.shape)
        dweight2 = self.gather(dout, hidden * factor)
        return self.product(dhidden, weight1), self.gather(dhidden, x), dbias1, dweight2, dbias2


class LayerNorm(nn.LayerNorm):
    """nn.LayerNorm over the last axis, of width D."""

    def __init__(self, width: int, epsilon: float) -> None:
        super().__init__((width,), epsilon=epsilon)
        self.width = width
        self.normalise = NormaliseRows(epsilon)

    def construct(self, x):
        return self.normalise(x.reshape(-1, self.width), self.gamma, self.beta)[0].reshape(x.shape)


class NormaliseRows(nn.Cell):
    """LayerNorm of rows (M, D) with gamma, beta (D,): the result, and for the gradient means and variances (M, 1)."""

    def __init__(self, epsilon: float) -> None:
        super().__init__()
        self.epsilon = epsilon
        self.norm = ops.LayerNorm(1, 1, epsilon)
        self.product, self.tile, self.depend = ops.MatMul(), ops.Tile(), ops.Depend()

    def construct(self, x, gamma, beta):
        return self.norm(x, gamma, beta)

    def bprop(self, x, gamma, beta, out, dout):
        gradient = dout[0]
        x, gamma = self.depend(x, gradient), self.depend(gamma, gradient)
        inverse = ops.rsqrt(self.depend(out[2], gradient) + self.epsilon)
        rows, width = x.shape
        centred = x - self.tile(self.depend(out[1], gradient), (1, width))
        product = gradient * centred
        weight = gamma.reshape(-1, 1) * (1.0 / width)
        mean = self.product(gradient, weight)  # of gradient * gamma
        slope = inverse * inverse * self.product(product, weight)
        scaled = gradient * self.tile(gamma.reshape(1, -1), (rows, 1))
        rest = scaled - self.tile(mean, (1, width)) - centred * self.tile(slope, (1, width))
        dgamma = self.product(inverse.reshape(1, -1), product)
        dbeta = self.product(ops.ones((1, rows), ms.float32), gradient)
        return self.tile(inverse, (1, width)) * rest, dgamma.reshape(gamma.shape), dbeta.reshape(beta.shape)


class DepthwiseConv3x3(nn.Conv2d):
    """Depthwise 3 x 3 convolution with padding 1, (B, C, H, W) -> (B, C, H, W); parameters as nn.Conv2d has them.

    MindSpore's gradient of the weights takes up to ten times as long as the forward and varies with the map's width.
    """

    def __init__(self, channels: int, bias: bool, weight_init, bias_init) -> None:
        super().__init__(
            channels, channels, 3, 1, "pad", 1, group=channels, has_bias=bias, weight_init=weight_init,
            bias_init=bias_init,
        )  # fmt: skip
        self.convolve = ConvolveDepthwise3x3(channels)

    def construct(self, x):
        y = self.convolve(x, self.weight)
        return self.bias_add(y, self.bias) if self.has_bias else y


class ConvolveDepthwise3x3(nn.Cell):
    """Depthwise 3 x 3 convolution of a map (B, C, H, W) with weights (C, 1, 3, 3).

    The gradient of the map is the convolution with the weights in reverse order. That of the weight of tap (i, j) is
    the sum of the map, moved by (1 - i, 1 - j), times the gradient. Maps are padded by a row above and below and a
    column behind, which serves as the column before the next row, too: so every move is one slice of a flat map.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.convolve = ops.Conv2D(channels, 3, pad_mode="pad", pad=1, group=channels)
        self.reverse = Tensor(np.eye(9, dtype=np.float32)[::-1].copy())
        self.product, self.slice, self.depend = ops.MatMul(), ops.Slice(), ops.Depend()
        self.join_rows, self.join_columns = ops.Concat(1), ops.Concat(2)

    def construct(self, x, weight):
        return self.convolve(x, weight)

    def bprop(self, x, weight, out, dout):
        x = self.depend(x, dout)
        b, c, height, width = x.shape
        reversed_weight = self.product(weight.reshape(c, 9), self.reverse).reshape(c, 1, 3, 3)
        maps, row = b * c, width + 1
        size = height * row
        column = ops.zeros((maps, height, 1), x.dtype)
        edge = ops.zeros((maps, row + 1), x.dtype)
        flat = self.join_columns((x.reshape(maps, height, width), column)).reshape(maps, size)
        flat = self.join_rows((edge, flat, edge))
        gradient = self.join_columns((dout.reshape(maps, height, width), column)).reshape(maps, size)
        one = ops.ones((size, 1), x.dtype)
        sums = ()
        for tap in range(9):
            moved = self.slice(flat, (0, tap // 3 * row + tap % 3), (maps, size))
            sums += (self.product(moved * gradient, one),)
        taps = self.join_rows(sums).reshape(b, c * 9)
        dweight = self.product(ops.ones((1, b), x.dtype), taps).reshape(c, 1, 3, 3)
        return self.convolve(dout, reversed_weight), dweight


class AttentionCore(nn.Cell):
    """softmax(q k^T) v of queries, keys and values (B, h, N, d) -> (B, h, N, d), and for the gradient the softmax.

    The gradient of the scores, p * (dp - sum(p dp)), takes one element-wise operator on arrays of the scores' size:
    sum(p dp) = sum(out dout), and the difference is the product of [dout, -sum(out dout)] and [v, 1].

    With `recompute` the gradient computes the softmax once more, so that it is not held since the forward.
    """

    recompute = False

    def __init__(self, head_width: int) -> None:
        super().__init__()
        self.similarity = ops.BatchMatMul(transpose_b=True)
        self.weigh = ops.BatchMatMul()
        self.gather = ops.BatchMatMul(transpose_a=True)
        self.product, self.softmax, self.join = ops.MatMul(), ops.Softmax(-1), ops.Concat(-1)
        self.depend = ops.Depend()
        self.minus = Tensor(np.full((head_width, 1), -1.0, np.float32))

    def construct(self, q, k, v):
        share = self.softmax(self.similarity(q, k))
        return self.weigh(share, v), share

    def bprop(self, q, k, v, out, dout):
        gradient = dout[0]
        share = self.softmax(self.similarity(self.depend(q, gradient), k)) if self.recompute else out[1]
        b, heads, n, width = q.shape
        level = self.product((out[0] * gradient).reshape(b * heads * n, width), self.minus).reshape(b, heads, n, 1)
        one = ops.ones((b, heads, v.shape[2], 1), ms.float32)
        dscore = share * self.similarity(self.join((gradient, level)), self.join((self.depend(v, gradient), one)))
        return self.weigh(dscore, k), self.gather(dscore, q), self.gather(share, gradient)


class BiasedAttentionCore(AttentionCore):
    """AttentionCore of windows (B G, h, N, d) whose scores get a bias (h, N, N) and a constant mask (G, 1, N, N)."""

    def __init__(self, head_width: int) -> None:
        super().__init__(head_width)
        self.tile = ops.Tile()

    def construct(self, q, k, v, bias, mask):
        windows, heads = mask.shape[0], bias.shape[0]
        shift = self.tile(bias.expand_dims(0), (windows, 1, 1, 1)) + self.tile(mask, (1, heads, 1, 1))
        share = self.softmax(self.similarity(q, k) + self.tile(shift, (q.shape[0] // windows, 1, 1, 1)))
        return self.weigh(share, v), share

    def bprop(self, q, k, v, bias, mask, out, dout):
        gradient, share = dout[0], out[1]
        b, heads, n, width = q.shape
        if self.recompute:
            windows, late = mask.shape[0], self.depend(bias, gradient).expand_dims(0)
            shift = self.tile(late, (windows, 1, 1, 1)) + self.tile(mask, (1, heads, 1, 1))
            scores = self.similarity(self.depend(q, gradient), k)
            share = self.softmax(scores + self.tile(shift, (b // windows, 1, 1, 1)))
        level = self.product((out[0] * gradient).reshape(b * heads * n, width), self.minus).reshape(b, heads, n, 1)
        one = ops.ones((b, heads, n, 1), ms.float32)
        dscore = share * self.similarity(self.join((gradient, level)), self.join((self.depend(v, gradient), one)))
        dbias = self.product(ops.ones((1, b), ms.float32), dscore.reshape(b, heads * n * n)).reshape(bias.shape)
        return self.weigh(dscore, k), self.gather(dscore, q), self.gather(share, gradient), dbias, 0.0 * mask
