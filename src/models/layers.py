"""Layers shared by backbones and heads.

Letters: B batch, C channels, H x W map, N tokens, D token width, h attention heads.

Weights start as PyTorch's layers do (uniform, fan-in, a = sqrt 5; norms 1 and 0): the released network was built there.

Randomness (drop path, dropout) is an input of the compiled step, not a state of the network: every cell that drops
something takes `noise`, a tensor (B, n) of keep factors, 0 or 1 / (1 - rate), and says in `noise_rates` (n,) with which
rate each column is drawn. Without noise (evaluation) nothing is dropped.
"""

import math

import mindspore as ms
import numpy as np
from mindspore import nn, ops
from mindspore.common.initializer import HeUniform, Normal, TruncatedNormal, Uniform, initializer

from src import functional
from src.functional import check_choice, mean_positions, spread
from src.models import plain, written

INIT_LINEAR = ("fanin", "trunc02")
INIT_CLASSIFIER = ("fanin", "normal001")
NORMS = ("sync_batch", "batch", "group")
NO_NOISE = np.zeros(0, np.float32)


def linear(in_width: int, out_width: int, bias: bool = True) -> nn.Dense:
    """Linear layer over the last axis: (..., in_width) -> (..., out_width)."""
    bound = 1.0 / math.sqrt(in_width)
    cell = written.Linear if functional.on_cpu() else plain.Linear
    return cell(in_width, out_width, HeUniform(math.sqrt(5)), Uniform(bound), has_bias=bias)


def gelu() -> nn.Cell:
    """Exact GELU."""
    return written.Gelu() if functional.on_cpu() else nn.GELU(approximate=False)


def attention_core(head_width: int, biased: bool = False) -> nn.Cell:
    """See AttentionCore and BiasedAttentionCore."""
    if biased:
        return written.BiasedAttentionCore(head_width) if functional.on_cpu() else plain.BiasedAttentionCore()
    return written.AttentionCore(head_width) if functional.on_cpu() else plain.AttentionCore()


def conv2d(
    in_channels: int, out_channels: int, kernel: int, *, stride: int = 1, groups: int = 1, bias: bool = True,
    same: bool = False, dilation: int = 1,
) -> nn.Conv2d:  # fmt: skip
    """Convolution (B, C, H, W) -> (B, C', H', W') with padding kernel // 2 (none when the stride equals the kernel).

    same: TensorFlow's padding instead, at stride 2 a zero behind an even side and none before it. dilation: pixels
    from one tap of the kernel to the next; the padding grows with it.
    """
    fan_in = in_channels // groups * kernel * kernel
    mode, padding = ("same", 0) if same else ("pad", 0 if stride == kernel else kernel // 2 * dilation)
    return plain.Conv2d(
        in_channels, out_channels, kernel, stride, mode, padding, dilation, group=groups, has_bias=bias,
        weight_init=HeUniform(math.sqrt(5)), bias_init=Uniform(1.0 / math.sqrt(fan_in)),
    )  # fmt: skip


def depthwise3x3(channels: int, bias: bool = True) -> nn.Conv2d:
    """Depthwise 3x3 convolution, padding 1: (B, C, H, W) -> (B, C, H, W)."""
    if functional.on_cpu():
        return written.DepthwiseConv3x3(channels, bias, HeUniform(math.sqrt(5)), Uniform(1.0 / 3.0))
    return conv2d(channels, channels, 3, groups=channels, bias=bias)


def layer_norm(width: int, epsilon: float = 1e-5) -> nn.LayerNorm:
    """LayerNorm over the last axis."""
    if functional.on_cpu():
        return written.LayerNorm(width, epsilon)
    return nn.LayerNorm((width,), epsilon=epsilon)


class LayerNorm2d(nn.Cell):
    """LayerNorm over the channels of each position: (B, C, H, W) -> (B, C, H, W)."""

    def __init__(self, channels: int, epsilon: float = 1e-5) -> None:
        super().__init__()
        self.norm = layer_norm(channels, epsilon)

    def construct(self, x):
        return self.norm(x.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2)


class SyncBatchNorm(nn.BatchNorm2d):
    """BatchNorm2d whose training statistics span every device once `synchronise` has been called.

    Written over AllReduce, because nn.SyncBatchNorm does not run in a CPU group. All devices hold equal shards.
    """

    def __init__(self, channels: int) -> None:
        super().__init__(channels, eps=1e-5, momentum=0.9)
        self.devices = 1

    def synchronise(self, devices: int) -> None:
        """Takes statistics over `devices` devices from now on; the process group must exist."""
        self.devices = devices
        self.all_reduce = ops.AllReduce()

    def construct(self, x):
        if self.devices == 1 or not self.training:
            return super().construct(x)
        mean = self.all_reduce(mean_positions(x).mean(0)) / self.devices  # (C,)
        centred = x - spread(mean.reshape(1, -1, 1, 1), x.shape)
        variance = self.all_reduce(mean_positions(ops.square(centred)).mean(0)) / self.devices
        # As nn.BatchNorm2d: its `momentum` is the share of the new value, and it keeps the unbiased variance.
        count = x.shape[0] * x.shape[2] * x.shape[3] * self.devices
        unbiased = variance * (count / (count - 1))
        ops.assign(self.moving_mean, (1 - self.momentum) * self.moving_mean + self.momentum * mean)
        ops.assign(self.moving_variance, (1 - self.momentum) * self.moving_variance + self.momentum * unbiased)
        scale = (self.gamma * ops.rsqrt(variance + self.eps)).reshape(1, -1, 1, 1)
        return centred * spread(scale, x.shape) + spread(self.beta.reshape(1, -1, 1, 1), x.shape)


def create_norm(name: str, channels: int) -> nn.Cell:
    """Normalisation of a (B, C, H, W) map: `sync_batch`, `batch` (this device's statistics), `group` (gcd(32, C))."""
    check_choice("norm", name, NORMS)
    if name == "group":
        return nn.GroupNorm(math.gcd(32, channels), channels, eps=1e-5)
    return SyncBatchNorm(channels) if name == "sync_batch" else nn.BatchNorm2d(channels, eps=1e-5, momentum=0.9)


def has_batch_norm(network: nn.Cell) -> bool:
    """Whether any layer of the network takes statistics over the batch."""
    return any(isinstance(cell, nn.BatchNorm2d) for _, cell in network.cells_and_names())


def synchronise_norms(network: nn.Cell, devices: int) -> None:
    """Makes every SyncBatchNorm of the network take its statistics over `devices` devices.

    Raises ValueError for plain batch normalisation on several devices: each would keep running statistics of its own.
    """
    if devices == 1:
        return
    for _, cell in network.cells_and_names():
        if isinstance(cell, SyncBatchNorm):
            cell.synchronise(devices)
        elif isinstance(cell, nn.BatchNorm2d):
            raise ValueError(
                f"norm 'batch' on {devices} devices: each keeps running statistics of its own, so that evaluation and "
                "checkpoints differ between them; use model.head.norm=sync_batch (or group)"
            )


def init_linear_layers(cell: nn.Cell, name: str) -> None:
    """Sets how Dense layers start: `fanin` leaves them as built, `trunc02` draws N(0, 0.02), bias 0."""
    check_choice("init_linear", name, INIT_LINEAR)
    if name == "fanin":
        return
    for _, layer in cell.cells_and_names():
        if isinstance(layer, nn.Dense):
            layer.weight.set_data(initializer(TruncatedNormal(0.02), layer.weight.shape, ms.float32))
            if layer.has_bias:
                layer.bias.set_data(initializer("zeros", layer.bias.shape, ms.float32))


def init_pixel_classifier(layer: nn.Conv2d, name: str) -> None:
    """Sets how a 1x1 convolution to classes starts: `fanin` leaves it as built, `normal001` draws N(0, 0.01), bias 0.

    `normal001` is the released form. Logits then start near 0, and so does what the network behind them learns from:
    docs/ablations.md has what that costs in a short training.
    """
    check_choice("init_classifier", name, INIT_CLASSIFIER)
    if name == "normal001":
        layer.weight.set_data(initializer(Normal(0.01), layer.weight.shape, ms.float32))
        layer.bias.set_data(initializer("zeros", layer.bias.shape, ms.float32))


def keep_column(noise, column: int):
    """Keep factors (B, 1, 1) of one noise column, for a residual branch of tokens (B, N, D)."""
    return noise[:, column : column + 1].expand_dims(-1)


def add_residual(x, branch, noise, column: int):
    """x + branch for tokens (B, N, D), with drop path by the noise column when noise is given."""
    if noise is None:
        return x + branch
    return x + branch * spread(keep_column(noise, column), branch.shape)


class Mlp(nn.Cell):
    """Linear, exact GELU, Linear: (..., D) -> (..., D)."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = linear(width, hidden)
        self.fc2 = linear(hidden, width)
        self.gelu = gelu()
        self.recomputed = None

    def construct(self, x):
        if self.recomputed is None:
            return self.fc2(self.gelu(self.fc1(x)))
        fc1, fc2 = self.fc1, self.fc2
        return self.recomputed(x.reshape(-1, x.shape[-1]), fc1.weight, fc1.bias, fc2.weight, fc2.bias).reshape(x.shape)


class Attention(nn.Cell):
    """Multi-head self-attention (B, N, D) -> (B, N, D)."""

    def __init__(self, width: int, num_heads: int, *, biased: bool = False) -> None:
        super().__init__()
        if width % num_heads:
            raise ValueError(f"attention width {width} is not a multiple of num_heads {num_heads}")
        self.num_heads, self.head_width = num_heads, width // num_heads
        self.scale = self.head_width**-0.5
        self.qkv = linear(width, 3 * width)
        self.proj = linear(width, width)
        self.core = attention_core(self.head_width, biased)

    def split_heads(self, x):
        """(B, N, D) -> (B, h, N, d)."""
        b, n, _ = x.shape
        return x.reshape(b, n, self.num_heads, self.head_width).transpose(0, 2, 1, 3)

    def construct(self, x, *biases):
        """x (B, N, D); biases: what the core takes besides queries, keys and values."""
        b, n, width = x.shape
        q, k, v = ops.split(self.qkv(x), width, 2)
        mixed = self.core(self.split_heads(q) * self.scale, self.split_heads(k), self.split_heads(v), *biases)[0]
        return self.proj(mixed.transpose(0, 2, 1, 3).reshape(b, n, width))


def recompute_blocks(blocks) -> None:
    """Makes the gradients of blocks (with `attn` and `mlp`) compute what is inside once more instead of holding it.

    On CPU only the softmax of the attention and the hidden rows of the MLP, the largest arrays: `Cell.recompute`,
    which takes the whole block, saves nothing there.
    """
    for block in blocks:
        if functional.on_cpu():
            block.attn.core.recompute, block.mlp.recomputed = True, written.RecomputedMlp()
        else:
            block.recompute()


def linear_rates(last: float, depth: int) -> np.ndarray:
    """Drop-path rates of `depth` blocks of two branches, growing linearly from 0 to `last`: (2 * depth,) float32."""
    return np.repeat(np.linspace(0.0, last, depth), 2).astype(np.float32)
