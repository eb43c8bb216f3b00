"""Parts of the ECENet head (spec, sections 3 to 5): class embeddings from masks, attention to them, their update.

Letters: B batch, K classes, E decoder width, h heads, d = E / h, H x W grid of a level, N = H * W,
P = 50 + L^2 length of a pooled mask descriptor.
"""

import math

import numpy as np
from mindspore import Tensor, nn, ops

from src.functional import average_pool_matrix, check_choice
from src.models.layers import attention_core, conv2d, create_norm, depthwise3x3, gelu, layer_norm, linear

EMBED_FROM = ("layout", "pooled_feature")
ATTN_SIGNS = ("reversed", "standard")
Q_ACTS = ("none", "relu")
POOL_GRIDS = (1, 2, 3, 6)


def largest_pool_grid(num_classes: int, ratio: float) -> int:
    """Side L of the largest pooling grid: int(sqrt(K) * ratio), made odd."""
    side = int(math.sqrt(num_classes) * ratio)
    return side + 1 if side % 2 == 0 else side


class MaskDescriptor(nn.Cell):
    """Average pools mask logits (B, K, H, W) to the grids 1, 2, 3, 6 and L; concatenated cells (B, K, P)."""

    def __init__(self, grid: tuple[int, int], sides: tuple[int, ...]) -> None:
        super().__init__()
        self.sides = sides
        self.length = sum(side * side for side in sides)
        self.rows = Tensor(np.concatenate([average_pool_matrix(grid[0], side) for side in sides]))
        self.columns = Tensor(np.concatenate([average_pool_matrix(grid[1], side) for side in sides]).T.copy())

    def construct(self, mask):
        b, k, height, width = mask.shape
        # Rows and columns of all grids at once; the blocks on the diagonal are the grids.
        pooled = ops.matmul(mask.reshape(b * k * height, width), self.columns).reshape(b * k, height, -1)
        pooled = ops.matmul(self.rows, pooled)  # (B * K, sum of sides, sum of sides)
        cells, start = (), 0
        for side in self.sides:
            end = start + side
            cells += (pooled[:, start:end, start:end].reshape(b, k, side * side),)
            start = end
        return ops.concat(cells, -1)


class ClassEmbedding(nn.Cell):
    """Class embeddings (B, K, E) of a mask (B, K, H, W) over a feature map (B, E, H, W).

    `layout` (released) is a linear code of the pooled mask logits: where and how strongly a class responds.
    `pooled_feature`, for ablation only, is a linear map of the features averaged under the softmax of the mask.
    """

    def __init__(self, grid: tuple[int, int], channels: int, sides: tuple[int, ...], embed_from: str) -> None:
        super().__init__()
        check_choice("embed_from", embed_from, EMBED_FROM)
        self.layout = embed_from == "layout"
        if self.layout:
            self.descriptor = MaskDescriptor(grid, sides)
        self.linear = linear(self.descriptor.length if self.layout else channels, channels)

    def construct(self, mask, feature):
        if self.layout:
            return self.linear(self.descriptor(mask))
        b, k, height, width = mask.shape
        weight = ops.softmax(mask.reshape(b, k, height * width), -1)
        return self.linear(ops.matmul(weight, feature.reshape(b, -1, height * width).transpose(0, 2, 1)))

    def count_macs(self, num_classes: int) -> int:
        """Multiply-accumulates of the linear layer for K classes."""
        return num_classes * self.linear.in_channels * self.linear.out_channels


class ClassMask(nn.Cell):
    """First masks (ECE): grouped then plain 1x1 convolution without biases, (B, E, H, W) -> (B, K, H, W)."""

    def __init__(self, channels: int, num_classes: int, num_heads: int) -> None:
        super().__init__()
        self.group = conv2d(channels, channels, 1, groups=num_heads, bias=False)
        self.classify = conv2d(channels, num_classes, 1, bias=False)

    def construct(self, x):
        return self.classify(self.group(x))


class SemanticsAttention(nn.Cell):
    """Pixels attend to class embeddings: map (B, E, H, W), embeddings (B, K, E) -> enhanced map, mask (B, K, H, W).

    Args:
        channels, num_heads: E and h.
        attn_sign: `reversed` (released): a pixel reads most from the class it is least similar to,
            softmax(max(A) - A) = softmax(-A); `standard`: softmax(A).
        q_act: `none`, or `relu` after both convolutions of the query, as the released port executes it.
    """

    def __init__(self, channels: int, num_heads: int, *, attn_sign: str, q_act: str) -> None:
        super().__init__()
        check_choice("attn_sign", attn_sign, ATTN_SIGNS)
        check_choice("q_act", q_act, Q_ACTS)
        self.num_heads, self.head_width = num_heads, channels // num_heads
        self.sign = -1.0 if attn_sign == "reversed" else 1.0
        self.relu_query = q_act == "relu"
        self.norm_pixel, self.norm_class = layer_norm(channels), layer_norm(channels)
        self.query_depthwise = depthwise3x3(channels)
        self.query_pointwise = conv2d(channels, channels, 1)
        self.key_value = linear(channels, 2 * channels, bias=False)
        self.proj = linear(channels, channels)
        self.norm_mlp = layer_norm(channels)
        self.mlp_expand = conv2d(channels, 4 * channels, 1)
        self.mlp_depthwise = depthwise3x3(4 * channels)
        self.mlp_reduce = conv2d(4 * channels, channels, 1)
        self.gelu = gelu()
        self.core = attention_core(self.head_width)
        self.product = ops.BatchMatMul()

    def query(self, tokens, height, width):
        """Normalised pixels (B, N, E) -> queries (B, E, H, W)."""
        b, _, e = tokens.shape
        q = self.query_depthwise(tokens.transpose(0, 2, 1).reshape(b, e, height, width))
        q = self.query_pointwise(ops.relu(q) if self.relu_query else q)
        return ops.relu(q) if self.relu_query else q

    def construct(self, x, embedding):
        b, e, height, width = x.shape
        n, k, heads, d = height * width, embedding.shape[1], self.num_heads, self.head_width
        tokens = x.reshape(b, e, n).transpose(0, 2, 1)  # (B, N, E)
        q = self.query(self.norm_pixel(tokens), height, width).reshape(b, e, n) * d**-0.5
        key, value = ops.split(self.key_value(self.norm_class(embedding)), e, 2)  # (B, K, E) each
        # The mean over heads of the per-head products is one product over all of E, divided by h.
        mask = self.product(key, q) / heads  # (B, K, N)
        key = key.reshape(b, k, heads, d).transpose(0, 2, 1, 3)  # (B, h, K, d)
        value = value.reshape(b, k, heads, d).transpose(0, 2, 1, 3)
        q = q.reshape(b, heads, d, n).transpose(0, 1, 3, 2)  # (B, h, N, d)
        read = self.core(q * self.sign, key, value)[0].transpose(0, 2, 1, 3).reshape(b, n, e)
        tokens = tokens + self.proj(read)
        return self.feed_forward(tokens, height, width), mask.reshape(b, k, height, width)

    def feed_forward(self, tokens, height, width):
        """Residual convolutional MLP: tokens (B, N, E) -> map (B, E, H, W)."""
        b, n, e = tokens.shape
        hidden = self.norm_mlp(tokens).transpose(0, 2, 1).reshape(b, e, height, width)
        hidden = self.gelu(self.mlp_depthwise(self.mlp_expand(hidden)))
        return tokens.transpose(0, 2, 1).reshape(b, e, height, width) + self.mlp_reduce(hidden)

    def count_macs(self, positions: int, num_classes: int) -> int:
        """Multiply-accumulates of one map of N = `positions`."""
        e = self.num_heads * self.head_width
        return positions * (10 * e * e + 45 * e + 2 * num_classes * e) + 2 * num_classes * e * e


class EmbeddingUpdater(nn.Cell):
    """Gated update of class embeddings: old (B, K, E) and new (B, K, E) -> (B, K, E) (spec section 4, Updater)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.dynamic = linear(channels, 2 * channels)
        self.input = linear(channels, channels)
        self.gate = linear(channels, channels)
        self.gate_norm = layer_norm(channels)
        self.dynamic_norm = layer_norm(channels)
        self.output = linear(channels, channels)
        self.output_norm = layer_norm(channels)

    def construct(self, old, new):
        scale, shift = ops.split(self.dynamic(new), old.shape[2], 2)
        update = ops.sigmoid(self.gate_norm(self.gate(self.input(old) * scale)))
        return ops.relu(self.output_norm(self.output(update * self.dynamic_norm(shift) + old)))


class GhostUpsample(nn.Cell):
    """Doubles a map: (B, E, H, W) -> (B, E, 2H, 2W), half of the channels from a depthwise convolution (section 5)."""

    def __init__(self, channels: int, norm: str) -> None:
        super().__init__()
        self.primary = conv2d(channels, 2 * channels, 1, bias=False)
        self.primary_norm = create_norm(norm, 2 * channels)
        self.cheap = depthwise3x3(2 * channels, bias=False)
        self.cheap_norm = create_norm(norm, 2 * channels)

    def construct(self, x):
        b, e, height, width = x.shape
        primary = ops.relu(self.primary_norm(self.primary(x)))
        cheap = ops.relu(self.cheap_norm(self.cheap(primary)))
        blocks = ops.concat((primary, cheap), 1).reshape(b, e, 2, 2, height, width)  # pixel shuffle by hand
        return blocks.transpose(0, 1, 4, 2, 5, 3).reshape(b, e, 2 * height, 2 * width)


class PyramidNeck(nn.Cell):
    """Four maps of one grid -> strides 1/4, 1/2, 1 and 2 of it (preset `pyr`): all (B, D, H, W) in, D kept."""

    def __init__(self, channels: int, norm: str) -> None:
        super().__init__()
        self.up4_first = nn.Conv2dTranspose(channels, channels, 2, 2, "valid", has_bias=True)
        self.up4_norm = create_norm(norm, channels)
        self.up4_second = nn.Conv2dTranspose(channels, channels, 2, 2, "valid", has_bias=True)
        self.up2 = nn.Conv2dTranspose(channels, channels, 2, 2, "valid", has_bias=True)
        self.down = nn.MaxPool2d(2, 2, pad_mode="valid")
        self.gelu = gelu()

    def construct(self, features):
        x4 = self.gelu(self.up4_norm(self.up4_first(features[0])))
        return self.up4_second(x4), self.up2(features[1]), features[2], self.down(features[3])
