"""Layers that the twin's networks share.

Letters: B batch, N tokens, D token width, C channels, H x W map.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Mlp(nn.Module):
    """Linear, exact GELU, Linear: (..., D) -> (..., D)."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.act = nn.GELU()
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.act(self.fc1(x)))


class Attention(nn.Module):
    """Multi-head self-attention (B, N, D) -> (B, N, D), with an optional additive bias over (h, N, N)."""

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        b, n, width = x.shape
        q, k, v = self.qkv(x).view(b, n, 3, self.num_heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=None if bias is None else bias.to(q.dtype))
        return self.proj(mixed.transpose(1, 2).reshape(b, n, width))


def add_residual(x: Tensor, branch: Tensor, noise: Tensor | None, column: int) -> Tensor:
    """x + branch for tokens (B, N, D); keep factors noise[:, column] (drop path) where noise is given."""
    if noise is None:
        return x + branch
    return torch.addcmul(x, branch, noise[:, column, None, None].to(branch.dtype))


def to_tokens(x: Tensor) -> Tensor:
    """(B, C, H, W) -> (B, N, C); a view where the map is channels-last."""
    return x.flatten(2).transpose(1, 2)


def to_map(tokens: Tensor, grid: tuple[int, int]) -> Tensor:
    """(B, N, C) -> (B, C, H, W), a channels-last view of contiguous tokens."""
    return tokens.transpose(1, 2).unflatten(2, grid)
