"""Classes told by text: what stands in for a classifier where a class is a vector (SAZS spec, section 3).

The vectors of the class names are parameters named `text`, which are not trained: they travel with the weights, and
are all that depends on which classes there are (`class_parameters`).

Letters: B batch, K classes, D width of a text vector, C channels, N positions, h x w grid.
"""

import math
from collections.abc import Mapping

import mindspore as ms
from mindspore import Parameter, nn, ops
from mindspore.common.initializer import Normal, initializer

from src.functional import spread
from src.models.layers import conv2d, linear

TEXT = "text"  # how the names of parameters that hold vectors of class names end


class Similarity(nn.Cell):
    """Inner products of vectors with the text of every class: (B, D, N) -> (B, K, N), divided by the temperature.

    Args:
        num_classes, width: K and D.
        normalise: divide vectors and text by their lengths first, so that products are cosines (LSeg).
        temperature: 1 and no normalisation are published, 0.07 goes with cosines.
    """

    def __init__(self, num_classes: int, width: int, normalise: bool, temperature: float) -> None:
        super().__init__()
        if not (temperature > 0.0 and math.isfinite(temperature)):
            raise ValueError(f"temperature is {temperature}; give a number above 0 (published: 1.0, with cosines 0.07)")
        self.normalise, self.temperature = normalise, temperature
        # Replaced by the class names' own before training; drawn, so that no map of a fresh network is constant.
        self.text = Parameter(initializer(Normal(1.0), (num_classes, width)), requires_grad=False)
        self.product = ops.BatchMatMul()

    def construct(self, x):
        text = self.text.expand_dims(0)  # (1, K, D)
        if self.normalise:
            text = text * spread(inverse_lengths(text.transpose(0, 2, 1)).transpose(0, 2, 1), text.shape)
        similarity = self.product(ops.tile(text, (x.shape[0], 1, 1)), x)
        if self.normalise:
            similarity = similarity * spread(inverse_lengths(x), similarity.shape)
        return similarity / self.temperature


def inverse_lengths(x):
    """1 / length of the vectors along axis 1: (B, D, N) -> (B, 1, N), as a product: reductions are slow on CPU."""
    b, width, _ = x.shape
    return ops.rsqrt(ops.BatchMatMul()(ops.ones((b, 1, width), ms.float32), x * x) + 1e-12)


class TextConv(nn.Cell):
    """1x1 convolution to the text's width, then `Similarity`: map (B, C, h, w) -> (B, K, h, w)."""

    def __init__(
        self, channels: int, num_classes: int, width: int, normalise: bool, temperature: float, bias: bool = True
    ) -> None:
        super().__init__()
        self.project = conv2d(channels, width, 1, bias=bias)
        self.similarity = Similarity(num_classes, width, normalise, temperature)

    def construct(self, x):
        b, _, height, width = x.shape
        return self.similarity(self.project(x).reshape(b, -1, height * width)).reshape(b, -1, height, width)


class TextLinear(nn.Cell):
    """Linear layer to the text's width, then `Similarity`: vectors (B, N, C) -> (B, N, K)."""

    def __init__(self, channels: int, num_classes: int, width: int, normalise: bool, temperature: float) -> None:
        super().__init__()
        self.project = linear(channels, width)
        self.similarity = Similarity(num_classes, width, normalise, temperature)

    def construct(self, x):
        return self.similarity(self.project(x).transpose(0, 2, 1)).transpose(0, 2, 1)


class TextEmbedding(nn.Cell):
    """Class embeddings (B, K, C) as a linear map of the text alone; takes a mask and a feature map (B, C, h, w)."""

    def __init__(self, num_classes: int, width: int, channels: int) -> None:
        super().__init__()
        self.text = Parameter(initializer(Normal(1.0), (num_classes, width)), requires_grad=False)
        self.linear = linear(width, channels)

    def construct(self, mask, feature):
        unit = self.text.expand_dims(0)
        unit = unit * spread(inverse_lengths(unit.transpose(0, 2, 1)).transpose(0, 2, 1), unit.shape)
        return ops.tile(self.linear(unit), (feature.shape[0], 1, 1))

    def count_macs(self, num_classes: int) -> int:
        """Multiply-accumulates of the linear layer for K classes."""
        return num_classes * self.linear.in_channels * self.linear.out_channels


class PixelTextHead(nn.Cell):
    """A pixel encoder, whose vectors are compared with the text of every class; and their boundaries.

    Args:
        encoder: a head of D classes: what it calls logits (B, D, h, w) are the pixels' vectors.
        num_classes, width: K and D.
        normalise, temperature: see `Similarity`. Published for two classes: false and 1; for many true and 0.07.
        boundary: 1x1 convolution to one boundary logit beside it, for the loss alone.
    """

    def __init__(
        self, encoder: nn.Cell, num_classes: int, width: int, *, normalise: bool = True, temperature: float = 0.07,
        boundary: bool = True,
    ) -> None:  # fmt: skip
        super().__init__()
        self.encoder, self.num_classes, self.width, self.has_boundary = encoder, num_classes, width, boundary
        self.similarity = Similarity(num_classes, width, normalise, temperature)
        if boundary:
            self.boundary = conv2d(width, 1, 1)
        self.outputs = ("logits", "boundary") if boundary else ("logits",)
        self.noise_rates = encoder.noise_rates
        self.align_corners = getattr(encoder, "align_corners", False)
        self.channels = encoder.channels
        self.output_grid = encoder.output_grid if hasattr(encoder, "output_grid") else encoder.grids[0]

    def construct(self, features, noise=None):
        """S maps (B, C_s, H_s, W_s), noise (B, n) or None -> dict of logits (B, K, h, w) and boundary (B, 1, h, w)."""
        pixels = self.encoder(features, noise)["logits"]
        b, _, height, width = pixels.shape
        logits = self.similarity(pixels.reshape(b, -1, height * width)).reshape(b, -1, height, width)
        if self.has_boundary:
            return {"logits": logits, "boundary": self.boundary(pixels)}
        return {"logits": logits}

    def class_parameters(self, shapes: Mapping[str, tuple[int, ...]]) -> tuple[str, ...]:
        """Names of the parameters to start afresh where weights of `shapes`, by name, are of other classes."""
        return text_parameters(self)

    def count_macs(self) -> int:
        """Multiply-accumulates of one image, the boundaries left out."""
        height, width = self.output_grid
        return self.encoder.count_macs() + height * width * self.width * self.num_classes


def text_parameters(cell: nn.Cell) -> tuple[str, ...]:
    """Names of the parameters that hold the vectors of class names."""
    return tuple(name for name, _ in cell.parameters_and_names() if name.rpartition(".")[2] == TEXT)
