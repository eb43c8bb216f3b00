"""Parts of the SegViT head (SegViT spec): attention of class tokens, and the decoder layer around it.

Letters: B batch, K class tokens, E decoder width, h heads, d = E / h, M tokens of a sequence, N positions of a level.
"""

import math

import mindspore as ms
import numpy as np
from mindspore import nn, ops

from src.models.layers import attention_core, layer_norm, linear


class TokenAttention(nn.Cell):
    """Class tokens (B, K, E) attend to a sequence (B, M, E), such as themselves: -> ((B, K, E), similarity (B, K, M)).

    The similarity is that before the softmax, scaled, and averaged over the heads.
    """

    def __init__(self, channels: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads, self.head_width = num_heads, channels // num_heads
        self.scale = self.head_width**-0.5
        self.query, self.key = linear(channels, channels), linear(channels, channels)
        self.value, self.proj = linear(channels, channels), linear(channels, channels)
        self.core, self.dropped_core = attention_core(self.head_width), DroppedAttentionCore()
        self.product = ops.BatchMatMul(transpose_b=True)

    def split_heads(self, x):
        """(B, M, E) -> (B, h, M, d)."""
        b, m, _ = x.shape
        return x.reshape(b, m, self.num_heads, self.head_width).transpose(0, 2, 1, 3)

    def construct(self, tokens, sequence, keep):
        """keep: factors (B, h, K, M) of the softmax, or None."""
        b, k, e = tokens.shape
        query, key = self.query(tokens) * self.scale, self.key(sequence)
        # The mean over heads of the per-head products is one product over all of E, divided by h.
        similarity = self.product(query, key) / self.num_heads
        q, k_heads, v = self.split_heads(query), self.split_heads(key), self.split_heads(self.value(sequence))
        read = self.core(q, k_heads, v)[0] if keep is None else self.dropped_core(q, k_heads, v, keep)[0]
        return self.proj(read.transpose(0, 2, 1, 3).reshape(b, k, e)), similarity


class DroppedAttentionCore(nn.Cell):
    """(softmax(q k^T) * keep) v of q (B, h, K, d), k, v (B, h, M, d), keep (B, h, K, M): (B, h, K, d), and the softmax.

    The gradient is written out, of operators only (see `written.py`): with p the softmax and dp the gradient of p, that
    of the scores is p * (dp - sum(p dp)), and sum(p dp) = sum(out dout) over d. The second output has none.
    """

    def __init__(self) -> None:
        super().__init__()
        self.similarity, self.weigh = ops.BatchMatMul(transpose_b=True), ops.BatchMatMul()
        self.gather = ops.BatchMatMul(transpose_a=True)
        self.product, self.softmax, self.tile = ops.MatMul(), ops.Softmax(-1), ops.Tile()

    def construct(self, q, k, v, keep):
        share = self.softmax(self.similarity(q, k))
        return self.weigh(share * keep, v), share

    def bprop(self, q, k, v, keep, out, dout):
        gradient, share = dout[0], out[1]
        b, heads, n, width = q.shape
        rows = (out[0] * gradient).reshape(b * heads * n, width)
        level = self.product(rows, ops.ones((width, 1), ms.float32)).reshape(b, heads, n, 1)
        dshare = keep * self.similarity(gradient, v) - self.tile(level, (1, 1, 1, v.shape[2]))
        dscore = share * dshare
        return self.weigh(dscore, k), self.gather(dscore, q), self.gather(share * keep, gradient), 0.0 * keep


class TokenDecoderLayer(nn.Cell):
    """Post-norm layer: self-attention, cross attention to a level, ReLU feed-forward of width 4 E.

    Every branch is dropped element by element, as the hidden units of the feed-forward are (rate `dropout`) and the
    softmax of both attentions (`attention_dropout`). The noise columns of what has rate 0 do not exist.

    Args:
        channels, num_heads, num_classes, positions: E, h, K, N.
        dropout, attention_dropout: rates.
        first_column: of this layer's part of the noise.
    """

    def __init__(
        self, channels: int, num_heads: int, num_classes: int, positions: int, dropout: float,
        attention_dropout: float, first_column: int,
    ) -> None:  # fmt: skip
        super().__init__()
        self.self_attention = TokenAttention(channels, num_heads)
        self.self_norm = layer_norm(channels)
        self.cross_attention = TokenAttention(channels, num_heads)
        self.cross_norm = layer_norm(channels)
        self.expand, self.reduce = linear(channels, 4 * channels), linear(4 * channels, channels)
        self.reduce_norm = layer_norm(channels)
        branch = (num_classes, channels)
        self.shapes = (
            (num_heads, num_classes, num_classes), branch, (num_heads, num_classes, positions), branch,
            (num_classes, 4 * channels), branch,
        )  # fmt: skip
        rates = (attention_dropout, dropout, attention_dropout, dropout, dropout, dropout)
        self.sizes = tuple(math.prod(shape) if rate else 0 for shape, rate in zip(self.shapes, rates, strict=True))
        self.starts = tuple(first_column + sum(self.sizes[:i]) for i in range(len(rates)))
        self.noise_rates = np.repeat(np.float32(rates), self.sizes)

    def construct(self, tokens, level, noise):
        """tokens (B, K, E), level (B, N, E), noise (B, n) or None -> tokens, similarity (B, K, N)."""
        read, _ = self.self_attention(tokens, tokens, self.keep(noise, 0))
        tokens = self.self_norm(tokens + self.drop(read, noise, 1))
        read, similarity = self.cross_attention(tokens, level, self.keep(noise, 2))
        tokens = self.cross_norm(tokens + self.drop(read, noise, 3))
        hidden = self.drop(ops.relu(self.expand(tokens)), noise, 4)
        return self.reduce_norm(tokens + self.drop(self.reduce(hidden), noise, 5)), similarity

    def keep(self, noise, part):
        """Keep factors of one part in its shape, or None where nothing is dropped."""
        if noise is None or self.sizes[part] == 0:
            return None
        start = self.starts[part]
        return noise[:, start : start + self.sizes[part]].reshape((noise.shape[0],) + self.shapes[part])

    def drop(self, x, noise, part):
        """x (B, ...) times its keep factors."""
        keep = self.keep(noise, part)
        return x if keep is None else x * keep

    def count_macs(self) -> int:
        """Multiply-accumulates of one image."""
        _, (k, e), (_, _, n) = self.shapes[:3]
        return 14 * k * e * e + 2 * k * k * e + 2 * n * e * e + 2 * k * n * e
