"""The published Vision Transformer in float64 NumPy, under timm's names and under those of AugReg's JAX files."""

import numpy as np
from scipy.special import erf, softmax

WIDTH, DEPTH, HEADS = 16, 2, 2


def timm_weights(grid: int = 2) -> dict[str, np.ndarray]:
    """Random weights of a Vision Transformer under timm's names, last norm and classifier included."""
    d, random = WIDTH, np.random.default_rng(0)
    shapes = {
        "cls_token": (1, 1, d), "pos_embed": (1, 1 + grid * grid, d), "norm.weight": (d,), "norm.bias": (d,),
        "patch_embed.proj.weight": (d, 3, 16, 16), "patch_embed.proj.bias": (d,),
        "head.weight": (7, d), "head.bias": (7,),
    }  # fmt: skip
    layers = {"attn.qkv": (3 * d, d), "attn.proj": (d, d), "mlp.fc1": (4 * d, d), "mlp.fc2": (d, 4 * d)}
    for i in range(DEPTH):
        for name, shape in {**layers, "norm1": (d,), "norm2": (d,)}.items():
            shapes |= {f"blocks.{i}.{name}.weight": shape, f"blocks.{i}.{name}.bias": shape[:1]}
    return {name: random.normal(scale=0.2, size=shape).astype(np.float32) for name, shape in shapes.items()}


def layer_norm(x, w, name):
    centred = x - x.mean(-1, keepdims=True)
    return centred / np.sqrt(x.var(-1, keepdims=True) + 1e-6) * w[f"{name}.weight"] + w[f"{name}.bias"]


def timm_forward(
    w: dict[str, np.ndarray], image: np.ndarray, class_token: bool, depth: int = DEPTH, heads: int = HEADS
) -> list[np.ndarray]:
    """Tokens after each block, written from timm's definition: patch convolution, class token first, fused qkv."""
    w = {name: value.astype(np.float64) for name, value in w.items()}
    h, breadth = image.shape[2] // 16, image.shape[3] // 16
    patches = image.astype(np.float64).reshape(1, 3, h, 16, breadth, 16)
    x = np.einsum("bchiwj,dcij->bhwd", patches, w["patch_embed.proj.weight"]).reshape(1, h * breadth, -1)
    x = x + w["patch_embed.proj.bias"]
    x = np.concatenate([w["cls_token"], x], 1) + w["pos_embed"] if class_token else x + w["pos_embed"][:, 1:]
    result = []
    for i in range(depth):
        name = f"blocks.{i}"
        qkv = layer_norm(x, w, f"{name}.norm1") @ w[f"{name}.attn.qkv.weight"].T + w[f"{name}.attn.qkv.bias"]
        q, k, v = qkv.reshape(1, x.shape[1], 3, heads, -1).transpose(2, 0, 3, 1, 4)  # (1, heads, N, d) each
        mixed = softmax(q @ k.swapaxes(-1, -2) / np.sqrt(q.shape[-1]), -1) @ v
        mixed = mixed.transpose(0, 2, 1, 3).reshape(x.shape)
        x = x + mixed @ w[f"{name}.attn.proj.weight"].T + w[f"{name}.attn.proj.bias"]
        y = layer_norm(x, w, f"{name}.norm2") @ w[f"{name}.mlp.fc1.weight"].T + w[f"{name}.mlp.fc1.bias"]
        y = y * 0.5 * (1 + erf(y / np.sqrt(2)))
        x = x + y @ w[f"{name}.mlp.fc2.weight"].T + w[f"{name}.mlp.fc2.bias"]
        result.append(x[:, int(class_token) :])
    return result


def augreg_weights(grid: int = 2) -> dict[str, np.ndarray]:
    """Random weights under the names and in the layout of the JAX files, classifier included."""
    d, random = WIDTH, np.random.default_rng(2)
    shapes = {
        "cls": (1, 1, d), "embedding/kernel": (16, 16, 3, d), "embedding/bias": (d,), "head/kernel": (d, 7),
        "head/bias": (7,), "pre_logits/kernel": (d, d), "pre_logits/bias": (d,),
        "Transformer/posembed_input/pos_embedding": (1, 1 + grid * grid, d),
        "Transformer/encoder_norm/scale": (d,), "Transformer/encoder_norm/bias": (d,),
    }  # fmt: skip
    per_head = (HEADS, d // HEADS)
    for i in range(DEPTH):
        block = f"Transformer/encoderblock_{i}"
        attention, mlp = f"{block}/MultiHeadDotProductAttention_1", f"{block}/MlpBlock_3"
        for part in ("query", "key", "value"):
            shapes |= {f"{attention}/{part}/kernel": (d, *per_head), f"{attention}/{part}/bias": per_head}
        shapes |= {f"{attention}/out/kernel": (*per_head, d), f"{attention}/out/bias": (d,)}
        shapes |= {f"{mlp}/Dense_0/kernel": (d, 4 * d), f"{mlp}/Dense_0/bias": (4 * d,)}
        shapes |= {f"{mlp}/Dense_1/kernel": (4 * d, d), f"{mlp}/Dense_1/bias": (d,)}
        shapes |= {f"{block}/LayerNorm_{n}/{kind}": (d,) for n in (0, 2) for kind in ("scale", "bias")}
    return {name: random.normal(scale=0.2, size=shape).astype(np.float32) for name, shape in shapes.items()}


def augreg_forward(w: dict[str, np.ndarray], image: np.ndarray) -> list[np.ndarray]:
    """Tokens after each block from the JAX definition: inputs of a layer come first, heads are an axis."""
    w = {name: value.astype(np.float64) for name, value in w.items()}

    def norm(x, name):
        return layer_norm(x, {f"{name}.weight": w[f"{name}/scale"], f"{name}.bias": w[f"{name}/bias"]}, name)

    h, breadth = image.shape[2] // 16, image.shape[3] // 16
    patches = image.astype(np.float64).transpose(0, 2, 3, 1).reshape(1, h, 16, breadth, 16, 3)
    x = np.einsum("bhiwjc,ijcd->bhwd", patches, w["embedding/kernel"]).reshape(1, h * breadth, -1)
    x = np.concatenate([w["cls"], x + w["embedding/bias"]], 1) + w["Transformer/posembed_input/pos_embedding"]
    result = []
    for i in range(DEPTH):
        name = f"Transformer/encoderblock_{i}"
        attention = f"{name}/MultiHeadDotProductAttention_1"
        y = norm(x, f"{name}/LayerNorm_0")
        q, k, v = (
            np.einsum("bnd,dhe->bhne", y, w[f"{attention}/{part}/kernel"]) + w[f"{attention}/{part}/bias"][:, None]
            for part in ("query", "key", "value")
        )
        mixed = softmax(np.einsum("bhne,bhme->bhnm", q, k) / np.sqrt(q.shape[-1]), -1) @ v
        x = x + np.einsum("bhne,hed->bnd", mixed, w[f"{attention}/out/kernel"]) + w[f"{attention}/out/bias"]
        mlp = f"{name}/MlpBlock_3"
        y = norm(x, f"{name}/LayerNorm_2") @ w[f"{mlp}/Dense_0/kernel"] + w[f"{mlp}/Dense_0/bias"]
        y = y * 0.5 * (1 + erf(y / np.sqrt(2)))
        x = x + y @ w[f"{mlp}/Dense_1/kernel"] + w[f"{mlp}/Dense_1/bias"]
        result.append(x)
    return result
