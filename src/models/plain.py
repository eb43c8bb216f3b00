"""The plain formulations of what `written.py` writes out for CPU: for Ascend and GPU, and to test against.

Their products can be taken in a 16-bit type, see `multiply_in`: operands are cast, the result is float32 again. So
everything between products, softmaxes and norms among it, stays float32, and so do parameters and their gradients; and
products that are no part of a cell below: masks from class embeddings, resizing, attention with dropout (SegViT),
transposed convolutions (preset `pyr`).
"""

import mindspore as ms
from mindspore import nn, ops


def product_in(half, product, a, b):
    """product(a, b), taken in the 16-bit type `half` unless it is None; float32."""
    if half is None:
        return product(a, b)
    return product(a.astype(half), b.astype(half)).astype(ms.float32)


class Linear(nn.Dense):
    """nn.Dense whose product can be taken in a 16-bit type."""

    half = None

    def construct(self, x):
        """(..., in_channels) -> (..., out_channels)."""
        y = product_in(self.half, self.matmul, x.reshape(-1, self.in_channels), self.weight)
        if self.has_bias:
            y = self.bias_add(y, self.bias)
        return y.reshape(x.shape[:-1] + (self.out_channels,))


class Conv2d(nn.Conv2d):
    """nn.Conv2d whose products can be taken in a 16-bit type."""

    half = None

    def construct(self, x):
        y = product_in(self.half, self.conv2d, x, self.weight)
        return self.bias_add(y, self.bias) if self.has_bias else y


class AttentionCore(nn.Cell):
    """softmax(q k^T) v of queries, keys and values (B, h, N, d) -> ((B, h, N, d), softmax)."""

    half = None

    def __init__(self) -> None:
        super().__init__()
        self.similarity = ops.BatchMatMul(transpose_b=True)
        self.weigh = ops.BatchMatMul()

    def construct(self, q, k, v):
        share = ops.softmax(product_in(self.half, self.similarity, q, k), -1)
        return product_in(self.half, self.weigh, share, v), share


class BiasedAttentionCore(AttentionCore):
    """AttentionCore of windows (B G, h, N, d) whose scores get a bias (h, N, N) and a constant mask (G, 1, N, N)."""

    def construct(self, q, k, v, bias, mask):
        bias = bias + mask
        if mask.shape[0] > 1:
            bias = ops.tile(bias, (q.shape[0] // mask.shape[0], 1, 1, 1))
        share = ops.softmax(product_in(self.half, self.similarity, q, k) + bias, -1)
        return product_in(self.half, self.weigh, share, v), share


HALVED = (Linear, Conv2d, AttentionCore)


def multiply_in(network: nn.Cell, half) -> None:
    """Makes linear layers, convolutions and attention of a network take their products in `half`, None for float32."""
    for _, cell in network.cells_and_names():
        if isinstance(cell, HALVED):
            cell.half = half
