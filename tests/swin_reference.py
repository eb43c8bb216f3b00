"""The official Swin Transformer in float64 NumPy, under the names of its repository.

Letters: H x W map, D width, h heads, w side of a window, n = w w.
"""

import numpy as np
from scipy.special import erf, softmax

WIDTH, DEPTHS, HEADS, WINDOW = 8, (2, 2, 1, 1), (1, 2, 2, 4), 3


def official_weights() -> dict[str, np.ndarray]:
    """Random weights of a classifier as its file holds them, constants included."""
    d, n, shapes = WIDTH, WINDOW * WINDOW, {}

    def norm(name: str, width: int) -> None:
        shapes.update({f"{name}.weight": (width,), f"{name}.bias": (width,)})

    def layer(name: str, outputs: int, inputs: int) -> None:
        shapes.update({f"{name}.weight": (outputs, inputs), f"{name}.bias": (outputs,)})

    shapes |= {"patch_embed.proj.weight": (d, 3, 4, 4), "patch_embed.proj.bias": (d,)}
    norm("patch_embed.norm", d)
    for i, (depth, heads) in enumerate(zip(DEPTHS, HEADS, strict=True)):
        for j in range(depth):
            block = f"layers.{i}.blocks.{j}"
            norm(f"{block}.norm1", d)
            shapes[f"{block}.attn.relative_position_bias_table"] = ((2 * WINDOW - 1) ** 2, heads)
            shapes[f"{block}.attn.relative_position_index"] = (n, n)
            if j % 2:
                shapes[f"{block}.attn_mask"] = (4, n, n)
            layer(f"{block}.attn.qkv", 3 * d, d)
            layer(f"{block}.attn.proj", d, d)
            norm(f"{block}.norm2", d)
            layer(f"{block}.mlp.fc1", 4 * d, d)
            layer(f"{block}.mlp.fc2", d, 4 * d)
        if i < 3:
            shapes[f"layers.{i}.downsample.reduction.weight"] = (2 * d, 4 * d)
            norm(f"layers.{i}.downsample.norm", 4 * d)
            d *= 2
    norm("norm", d)
    layer("head", 7, d)
    random = np.random.default_rng(3)
    return {name: random.normal(scale=0.3, size=shape).astype(np.float32) for name, shape in shapes.items()}


def layer_norm(x: np.ndarray) -> np.ndarray:
    return (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5)


def normalise(x: np.ndarray, w: dict, name: str) -> np.ndarray:
    return layer_norm(x) * w[f"{name}.weight"] + w[f"{name}.bias"]


def dense(x: np.ndarray, w: dict, name: str) -> np.ndarray:
    return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]


def attend(x: np.ndarray, region: np.ndarray, w: dict, name: str, heads: int) -> np.ndarray:
    """Attention in one window x (w, w, D); pairs of unlike regions (w, w) get -100; the table is read pair by pair."""
    n, d = WINDOW * WINDOW, x.shape[-1]
    q, k, v = dense(x.reshape(n, d), w, f"{name}.qkv").reshape(n, 3, heads, -1).transpose(1, 2, 0, 3)
    table = w[f"{name}.relative_position_bias_table"]
    bias = np.zeros((heads, n, n))
    for a in range(n):
        for b in range(n):
            dy, dx = a // WINDOW - b // WINDOW, a % WINDOW - b % WINDOW
            bias[:, a, b] = table[(dy + WINDOW - 1) * (2 * WINDOW - 1) + dx + WINDOW - 1]
            bias[:, a, b] -= 100.0 * (region.flat[a] != region.flat[b])
    mixed = softmax(q @ k.transpose(0, 2, 1) / np.sqrt(d // heads) + bias, -1) @ v
    return dense(mixed.transpose(1, 0, 2).reshape(n, d), w, f"{name}.proj").reshape(WINDOW, WINDOW, d)


def attend_in_windows(x: np.ndarray, shift: int, w: dict, name: str, heads: int) -> np.ndarray:
    """x (H, W, D): padded to whole windows, rolled, attended window by window, and all of it undone."""
    height, breadth, _ = x.shape
    padded = np.pad(x, ((0, -height % WINDOW), (0, -breadth % WINDOW), (0, 0)))
    region = np.zeros(padded.shape[:2])
    if shift:
        padded = np.roll(padded, (-shift, -shift), (0, 1))
        parts = (slice(0, -WINDOW), slice(-WINDOW, -shift), slice(-shift, None))
        for i, rows in enumerate(parts):
            for j, columns in enumerate(parts):
                region[rows, columns] = 3 * i + j
    result = np.empty_like(padded)
    for i in range(0, padded.shape[0], WINDOW):
        for j in range(0, padded.shape[1], WINDOW):
            part = np.s_[i : i + WINDOW, j : j + WINDOW]
            result[part] = attend(padded[part], region[part], w, name, heads)
    return np.roll(result, (shift, shift), (0, 1))[:height, :breadth]


def merge(x: np.ndarray, w: dict, name: str) -> np.ndarray:
    """Patch merging: the four tokens of a cell as four blocks of channels, column by column of the cell."""
    x = np.pad(x, ((0, x.shape[0] % 2), (0, x.shape[1] % 2), (0, 0)))
    x = np.concatenate([x[0::2, 0::2], x[1::2, 0::2], x[0::2, 1::2], x[1::2, 1::2]], -1)
    return normalise(x, w, f"{name}.norm") @ w[f"{name}.reduction.weight"].T


def official_forward(weights: dict[str, np.ndarray], image: np.ndarray) -> list[np.ndarray]:
    """Maps (D, H, W) after each stage of one image (3, H, W), behind a norm without scale and offset."""
    w = {name: value.astype(np.float64) for name, value in weights.items()}
    rows, columns = image.shape[1] // 4, image.shape[2] // 4
    cells = image.astype(np.float64).reshape(3, rows, 4, columns, 4)
    x = np.einsum("chiwj,dcij->hwd", cells, w["patch_embed.proj.weight"]) + w["patch_embed.proj.bias"]
    x, maps = normalise(x, w, "patch_embed.norm"), []
    for i, (depth, heads) in enumerate(zip(DEPTHS, HEADS, strict=True)):
        for j in range(depth):
            name, shift = f"layers.{i}.blocks.{j}", WINDOW // 2 if j % 2 else 0
            x = x + attend_in_windows(normalise(x, w, f"{name}.norm1"), shift, w, f"{name}.attn", heads)
            y = dense(normalise(x, w, f"{name}.norm2"), w, f"{name}.mlp.fc1")
            x = x + dense(y * 0.5 * (1 + erf(y / np.sqrt(2))), w, f"{name}.mlp.fc2")
        maps.append(layer_norm(x).transpose(2, 0, 1))
        if i < 3:
            x = merge(x, w, f"layers.{i}.downsample")
    return maps
