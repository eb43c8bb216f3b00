"""SegViT decode head (SegViT spec): learned class tokens attend to the features, their similarity is the mask.

B. Zhang et al., "SegViT: Semantic Segmentation with Plain Vision Transformers", NeurIPS 2022.

Letters: B batch, K classes and class tokens, S levels, finest first, E decoder width, h heads, H_s x W_s grid of level
s, N_s = H_s * W_s, H_o x W_o output grid.
"""

from collections.abc import Mapping

import mindspore as ms
import numpy as np
from mindspore import Parameter, nn, ops
from mindspore.common.initializer import Normal, initializer

from src.functional import resize_bilinear
from src.models.heads.segvit_parts import TokenDecoderLayer
from src.models.layers import init_linear_layers, layer_norm, linear

HEAD_WIDTH = 32  # of the published models: half of the plain ViTs' 64, as E is half of their width


class SegViTHead(nn.Cell):
    """Class tokens are decoded level by level, coarsest (deepest) first; their masks add up over the levels.

    The prediction is the published one: masks are resized to the image before their sigmoid, so `logits` has the
    image's size and holds scores of at least 0, sums of probabilities. Training with `class_tokens` does not read it.
    Where the sides of an image are no multiples of `stride`, masks are resized to the next multiples.

    Departures from the release: fresh weights of the self-attention's inputs are drawn as all the others (truncated
    normal, 0.02), and `attention_dropout` can be left out.

    Args:
        in_channels, grids: channels C_s and grids (H_s, W_s) of the S levels, finest first.
        num_classes: K.
        channels: E; None: half of the coarsest level's (published).
        num_heads: h; None: E / 32, which for the channels above are those of a plain ViT (published).
        num_layers: decoder layers of a level.
        dropout: rate of the elements of every branch and hidden layer. It needs 7 K E noise columns a layer.
        attention_dropout: rate of the elements of both attentions' softmax; h K (K + N_s) noise columns a layer. With
            many classes those are millions for an image, drawn on the host for each step: then set 0.
        stride: side of a cell of the finest grid in pixels; None: 16 for levels of one grid, as a plain ViT's, else 4,
            as Swin's. At 1 the sigmoid comes before the resizing: cheaper, but not what is published.
    """

    outputs: tuple[str, ...] = ("logits", "class_scores", "token_masks")

    def __init__(
        self, in_channels: tuple[int, ...], grids: tuple[tuple[int, int], ...], num_classes: int, *,
        channels: int | None = None, num_heads: int | None = None, num_layers: int = 3, dropout: float = 0.1,
        attention_dropout: float = 0.1, stride: int | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        channels = in_channels[-1] // 2 if channels is None else channels
        num_heads = max(1, channels // HEAD_WIDTH) if num_heads is None else num_heads
        if stride is None:
            stride = 16 if len(set(grids)) == 1 else 4
        check_sizes(channels=channels, num_heads=num_heads, num_layers=num_layers, stride=stride)
        self.in_channels, self.grids, self.num_classes = tuple(in_channels), tuple(map(tuple, grids)), num_classes
        self.levels, self.channels, self.num_layers = len(in_channels), channels, num_layers
        self.output_grid = tuple(stride * side for side in self.grids[0])
        self.tokens = Parameter(initializer(Normal(1.0), (num_classes, channels), ms.float32))
        self.laterals = nn.CellList([linear(c, channels) for c in in_channels])
        self.norms = nn.CellList([layer_norm(channels) for _ in in_channels])
        self.create_layers(num_heads, dropout, attention_dropout)
        self.classifier = linear(channels, num_classes + 1)
        init_linear_layers(self, "trunc02")
        self.select = ops.BatchMatMul(transpose_a=True)

    def create_layers(self, num_heads: int, dropout: float, attention_dropout: float) -> None:
        """The decoder layers of all levels, finest level first, and their rates of noise."""
        layers, rates = [], [np.zeros(0, np.float32)]
        for height, width in self.grids:
            for _ in range(self.num_layers):
                first_column = sum(map(len, rates))
                layers.append(
                    TokenDecoderLayer(
                        self.channels, num_heads, self.num_classes, height * width, dropout, attention_dropout,
                        first_column,
                    )
                )  # fmt: skip
                rates.append(layers[-1].noise_rates)
        self.layers = nn.CellList(layers)
        self.noise_rates = np.concatenate(rates)

    def construct(self, features, noise=None):
        """S maps (B, C_s, H_s, W_s), noise (B, n) or None -> dict of

        logits (B, K, H_o, W_o), see above; class_scores: S tensors (B, K tokens, K + 1), "no object" last; token_masks:
        S mask logits (B, K, H_1, W_1), each the sum up to its level; both coarsest level first.
        """
        tokens = ops.tile(self.tokens.expand_dims(0), (features[0].shape[0], 1, 1))
        class_scores, token_masks = (), ()
        for s in range(self.levels - 1, -1, -1):
            tokens, mask = self.decode(s, tokens, features[s], noise)
            mask = resize_bilinear(mask, self.grids[0])
            if s < self.levels - 1:
                mask = token_masks[-1] + mask
            token_masks += (mask,)
            class_scores += (self.classifier(tokens),)
        logits = self.predict(class_scores[-1], token_masks[-1])
        return {"logits": logits, "class_scores": class_scores, "token_masks": token_masks}

    def decode(self, s, tokens, feature, noise):
        """Tokens (B, K, E) after level s, and its mask logits (B, K, H_s, W_s)."""
        b, channels, height, width = feature.shape
        level = self.laterals[s](feature.reshape(b, channels, height * width).transpose(0, 2, 1))
        level = self.norms[s](level)  # (B, N_s, E)
        similarity = None
        for i in range(s * self.num_layers, (s + 1) * self.num_layers):
            tokens, similarity = self.layers[i](tokens, level, noise)
        return tokens, similarity.reshape(b, self.num_classes, height, width)

    def predict(self, scores, mask):
        """Scores (B, K tokens, K + 1) and mask logits (B, K tokens, H_1, W_1) -> (B, K, H_o, W_o)."""
        share = ops.sigmoid(resize_bilinear(mask, self.output_grid))
        b, k, height, width = share.shape
        confidence = ops.softmax(scores, -1)[:, :, :k]
        return self.select(confidence, share.reshape(b, k, height * width)).reshape(b, k, height, width)

    def class_parameters(self, shapes: Mapping[str, tuple[int, ...]]) -> tuple[str, ...]:
        """Names of the parameters to start afresh where weights of `shapes`, by name, are of other classes."""
        names = (name for name, _ in self.parameters_and_names())
        return tuple(name for name in names if name == "tokens" or name.startswith("classifier."))

    def count_macs(self) -> int:
        """Multiply-accumulates of one image: layers, attention products, and the prediction's product."""
        k, e = self.num_classes, self.channels
        pairs = zip(self.in_channels, self.grids, strict=True)
        total = sum(c * e * height * width for c, (height, width) in pairs)
        total += sum(layer.count_macs() for layer in self.layers) + k * e * (k + 1)
        return total + k * k * self.output_grid[0] * self.output_grid[1]


def check_sizes(**sizes: int) -> None:
    """Raises ValueError for channels, num_heads, num_layers or stride that no head has."""
    for name, value in sizes.items():
        if value < 1:
            raise ValueError(f"{name} is {value}; give at least 1")
    channels, num_heads = sizes["channels"], sizes["num_heads"]
    if channels % num_heads:
        raise ValueError(f"channels {channels} is not a multiple of num_heads {num_heads}; set both, e.g. to 96 and 3")
