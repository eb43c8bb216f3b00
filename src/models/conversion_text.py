"""Text encoders of CLIP to ours, under OpenAI's names or those of transformers (spec sazs, section 5.1).

Letters: D width.
"""

import re

import numpy as np

from src.models.conversion_matching import Converted, build, count, dimensions, expected_parameters, match
from src.models.text_encoder import TextEncoder

HEAD_WIDTH = 64  # of every published CLIP
IMAGE_TOWER = ("visual.", "vision_model.", "visual_projection.")
SCALARS = ("logit_scale", "input_resolution", "context_length", "vocab_size", "text_model.embeddings.position_ids")
TEXT_MODULES = {
    "": "",  # pos_embed and projection, renamed before
    "blocks.#.ln_1": "blocks.#.norm1",
    "blocks.#.ln_2": "blocks.#.norm2",
    "blocks.#.attn.qkv": "blocks.#.attn.qkv",
    "blocks.#.attn.out_proj": "blocks.#.attn.proj",
    "blocks.#.mlp.c_fc": "blocks.#.mlp.fc1",
    "blocks.#.mlp.c_proj": "blocks.#.mlp.fc2",
    "ln_final": "norm",
}
OPENAI_NAMES = (
    (r"^transformer\.resblocks\.", "blocks."),
    (r"\.attn\.in_proj_(weight|bias)$", r".attn.qkv.\1"),
    (r"^token_embedding\.weight$", "token_embedding"),
    (r"^positional_embedding$", "pos_embed"),
    (r"^text_projection$", "projection"),
)
TRANSFORMERS_NAMES = (
    (r"^text_model\.encoder\.layers\.(\d+)\.layer_norm", r"transformer.resblocks.\1.ln_"),
    (r"^text_model\.encoder\.layers\.(\d+)\.self_attn\.", r"transformer.resblocks.\1.attn."),
    (r"^text_model\.encoder\.layers\.(\d+)\.mlp\.fc1", r"transformer.resblocks.\1.mlp.c_fc"),
    (r"^text_model\.encoder\.layers\.(\d+)\.mlp\.fc2", r"transformer.resblocks.\1.mlp.c_proj"),
    (r"^text_model\.embeddings\.token_embedding\.", "token_embedding."),
    (r"^text_model\.embeddings\.position_embedding\.weight$", "positional_embedding"),
    (r"^text_model\.final_layer_norm\.", "ln_final."),
)


def convert_text(weights: dict[str, np.ndarray], least: float) -> Converted:
    """The text encoder of a CLIP model; image tower and scalars are left out. ValueError lists what does not fit."""
    dropped = tuple(name for name in weights if name.startswith(IMAGE_TOWER) or name in SCALARS)
    kept = {name: value for name, value in weights.items() if name not in dropped}
    if any(name.startswith("text_model.") for name in kept):
        kept = from_transformers(kept)
    renamed = {substitute(name, OPENAI_NAMES): value for name, value in kept.items()}
    expected = expected_parameters("text", build(TextEncoder, **encoder_sizes(renamed)))
    return match(renamed, [("", "text.", TEXT_MODULES)], expected, least)._replace(dropped=dropped)


def encoder_sizes(weights: dict[str, np.ndarray]) -> dict[str, int]:
    """Arguments of the TextEncoder that weights under our names, without `text.`, belong to; ValueError for others."""
    table, positions, projection = dimensions(weights, "token_embedding", "pos_embed", "projection")
    return {
        "vocabulary": table[0], "context": positions[0], "width": table[1], "num_heads": max(table[1] // HEAD_WIDTH, 1),
        "depth": count(weights, r"blocks\.(\d+)\."), "out_width": projection[1],
    }  # fmt: skip


def substitute(name: str, patterns: tuple[tuple[str, str], ...]) -> str:
    """The name with every pattern replaced."""
    for pattern, target in patterns:
        name = re.sub(pattern, target, name)
    return name


def from_transformers(weights: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """OpenAI's names: queries, keys and values in one matrix, the projection not transposed."""
    renamed = {substitute(name, TRANSFORMERS_NAMES): value for name, value in weights.items()}
    if "text_projection.weight" in renamed:
        renamed["text_projection"] = renamed.pop("text_projection.weight").T
    for i in range(count(renamed, r"transformer\.resblocks\.(\d+)\.")):
        place = f"transformer.resblocks.{i}.attn"
        for kind in ("weight", "bias"):
            parts = [f"{place}.{letter}_proj.{kind}" for letter in "qkv"]
            if all(part in renamed for part in parts):
                renamed[f"{place}.in_proj_{kind}"] = np.concatenate([renamed.pop(part) for part in parts])
    return renamed
