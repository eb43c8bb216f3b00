"""CLIP's text encoder (spec sazs, section 5.1), for making tables of text embeddings; it is never trained here.

Letters: B texts, N tokens of a text (context), D width.
"""

import mindspore as ms
import numpy as np
from mindspore import Parameter, Tensor, nn, ops
from mindspore.common.initializer import Normal, initializer

from src.functional import one_hot, spread
from src.models.layers import Attention, layer_norm, linear

MASKED = -1e9  # score of a later token; an infinity would make NaN of a row without any other
QUICK = 1.702


class TextMlp(nn.Cell):
    """Linear, x * sigmoid(1.702 x), linear: (..., D) -> (..., D)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.fc1 = linear(width, 4 * width)
        self.fc2 = linear(4 * width, width)

    def construct(self, x):
        hidden = self.fc1(x)
        return self.fc2(hidden * ops.sigmoid(QUICK * hidden))


class TextBlock(nn.Cell):
    """Pre-norm transformer block on tokens (B, N, D) that see none after themselves."""

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.norm1 = layer_norm(width)
        self.attn = Attention(width, num_heads, biased=True)
        self.norm2 = layer_norm(width)
        self.mlp = TextMlp(width)

    def construct(self, x, bias, mask):
        x = x + self.attn(self.norm1(x), bias, mask)
        return x + self.mlp(self.norm2(x))


class TextEncoder(nn.Cell):
    """Rows of token ids -> embeddings, not normalised. The defaults are CLIP ViT-B/32's and ViT-B/16's.

    Args:
        vocabulary: number of token ids.
        context: N, ids in a row.
        width, num_heads, depth: of the transformer.
        out_width: of the embeddings.
    """

    def __init__(
        self, vocabulary: int = 49408, context: int = 77, width: int = 512, num_heads: int = 8, depth: int = 12,
        out_width: int = 512,
    ) -> None:  # fmt: skip
        super().__init__()
        self.token_embedding = Parameter(initializer(Normal(0.02), (vocabulary, width)))
        self.pos_embed = Parameter(initializer(Normal(0.01), (context, width)))
        self.blocks = nn.CellList([TextBlock(width, num_heads) for _ in range(depth)])
        self.norm = layer_norm(width)
        self.projection = Parameter(initializer(Normal(width**-0.5), (width, out_width)))
        self.depth, self.context = depth, context
        causal = np.triu(np.full((1, 1, context, context), MASKED, np.float32), 1)
        self.mask, self.bias = Tensor(causal), Tensor(np.zeros((num_heads, context, context), np.float32))

    def construct(self, ids):
        """ids (B, N) int32, the end token being the largest of its row -> (B, out_width) float32."""
        x = ops.gather(self.token_embedding, ids, 0)
        x = x + spread(self.pos_embed.expand_dims(0), x.shape)
        for i in range(self.depth):
            x = self.blocks[i](x, self.bias, self.mask)
        end = one_hot(ops.argmax(ids, -1), self.context).expand_dims(1)  # (B, 1, N)
        last = ops.BatchMatMul()(end, self.norm(x).astype(ms.float32))
        return ops.matmul(last.reshape(ids.shape[0], -1), self.projection)
