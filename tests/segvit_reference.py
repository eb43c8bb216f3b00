"""The SegViT head in float64 NumPy, written from the formulas of its specification.

Letters: B batch, K class tokens, S levels, E width, h heads, d = E / h, N positions of a level.
"""

import numpy as np
from scipy.special import expit, softmax

from tests.losses_reference import resize


class KeepFactors:
    """Takes keep factors from noise (B, n) in the order of the columns: levels finest first, layers, parts."""

    def __init__(self, noise: np.ndarray | None, sizes: np.ndarray) -> None:
        self.noise, self.starts = noise, np.cumsum([0, *sizes])

    def open(self, layer: int) -> None:
        self.at = self.starts[layer]

    def __call__(self, x: np.ndarray) -> np.ndarray:
        if self.noise is None:
            return x
        size = x[0].size
        self.at += size
        return x * self.noise[:, self.at - size : self.at].reshape(x.shape)


def linear(p: dict, name: str, x: np.ndarray) -> np.ndarray:
    return x @ p[f"{name}.weight"].T + p[f"{name}.bias"]


def norm(p: dict, name: str, x: np.ndarray) -> np.ndarray:
    centred = x - x.mean(-1, keepdims=True)
    return centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-5) * p[f"{name}.gamma"] + p[f"{name}.beta"]


def attend(p: dict, name: str, tokens, sequence, heads: int, keep: KeepFactors):
    """Attention output (B, K, E), and the scaled similarity averaged over the heads (B, K, N)."""
    q = linear(p, f"{name}.query", tokens)
    k, v = linear(p, f"{name}.key", sequence), linear(p, f"{name}.value", sequence)
    width = q.shape[-1] // heads
    q, k, v = (x.reshape(*x.shape[:2], heads, width).swapaxes(1, 2) for x in (q, k, v))  # (B, h, K or N, d)
    similarity = q @ k.swapaxes(2, 3) / np.sqrt(width)
    read = keep(softmax(similarity, -1)) @ v
    return linear(p, f"{name}.proj", read.swapaxes(1, 2).reshape(tokens.shape)), similarity.mean(1)


def decoder_layer(p: dict, name: str, tokens, level, heads: int, keep: KeepFactors):
    read, _ = attend(p, f"{name}.self_attention", tokens, tokens, heads, keep)
    tokens = norm(p, f"{name}.self_norm", tokens + keep(read))
    read, similarity = attend(p, f"{name}.cross_attention", tokens, level, heads, keep)
    tokens = norm(p, f"{name}.cross_norm", tokens + keep(read))
    hidden = keep(np.maximum(linear(p, f"{name}.expand", tokens), 0.0))
    return norm(p, f"{name}.reduce_norm", tokens + keep(linear(p, f"{name}.reduce", hidden))), similarity


def segvit_reference(p: dict, features, heads: int, layers: int, size: tuple[int, int], noise=None):
    """Prediction (B, K, H, W), class scores and accumulated masks of the levels, coarsest first.

    p: parameters by name; features: S maps (B, C_s, H_s, W_s), finest first; size: (H, W).
    """
    classes, width = p["tokens"].shape
    sizes = [7 * classes * width + heads * classes * (classes + f[0, 0].size) for f in features]
    columns = np.repeat(sizes, layers)
    keep = KeepFactors(noise, columns)
    tokens = np.broadcast_to(p["tokens"], (len(features[0]), classes, width))
    scores, masks, total = [], [], 0.0
    for s in reversed(range(len(features))):
        b, channels, height, length = features[s].shape
        sequence = features[s].astype(np.float64).reshape(b, channels, -1).swapaxes(1, 2)
        level = norm(p, f"norms.{s}", linear(p, f"laterals.{s}", sequence))
        for i in range(s * layers, (s + 1) * layers):
            keep.open(i)
            tokens, similarity = decoder_layer(p, f"layers.{i}", tokens, level, heads, keep)
        total = total + resize(similarity.reshape(b, classes, height, length), features[0].shape[2:])
        masks.append(total)
        scores.append(linear(p, "classifier", tokens))
    share = softmax(scores[-1], -1)[:, :, :classes]
    return np.einsum("bjk,bjhw->bkhw", share, expit(resize(total, size))), scores, masks
