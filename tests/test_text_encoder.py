"""CLIP's text encoder against a float64 reference, its conversion, the tool that makes tables."""

import os
from pathlib import Path

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor
from mindspore.nn.utils import no_init_parameters
from scipy.special import expit, softmax

from src.class_text import text_rows
from src.config import TextConfig
from src.engine.weights import assign, read_tensors, write_weights
from src.models.conversion import convert
from src.models.conversion_text import encoder_sizes
from src.models.text_encoder import TextEncoder
from src.text.tables import read_table, rows_of, unit_rows
from tests.clip_merges import write_merges
from tests.commands import refuse, succeed

WIDTH, DEPTH, CONTEXT, OUT, HEADS = 128, 2, 7, 24, 2  # heads of 64, as every published CLIP


def openai_weights(vocabulary=30, context=CONTEXT, out=OUT) -> dict[str, np.ndarray]:
    """Random weights under OpenAI's names, with an image tower and scalars."""
    random, d = np.random.default_rng(1), WIDTH
    shapes = {
        "token_embedding.weight": (vocabulary, d), "positional_embedding": (context, d), "ln_final.weight": (d,),
        "ln_final.bias": (d,), "text_projection": (d, out), "visual.conv1.weight": (4, 3, 2, 2), "logit_scale": (),
    }  # fmt: skip
    layers = {"attn.out_proj": (d, d), "mlp.c_fc": (4 * d, d), "mlp.c_proj": (d, 4 * d), "ln_1": (d,), "ln_2": (d,)}
    for i in range(DEPTH):
        place = f"transformer.resblocks.{i}"
        shapes |= {f"{place}.attn.in_proj_weight": (3 * d, d), f"{place}.attn.in_proj_bias": (3 * d,)}
        for name, shape in layers.items():
            shapes |= {f"{place}.{name}.weight": shape, f"{place}.{name}.bias": shape[:1]}
    return {name: random.normal(scale=0.2, size=shape).astype(np.float32) for name, shape in shapes.items()}


def transformers_weights(weights: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The same weights under the names of transformers."""
    renamed = {
        "text_model.embeddings.token_embedding.weight": weights["token_embedding.weight"],
        "text_model.embeddings.position_embedding.weight": weights["positional_embedding"],
        "text_model.embeddings.position_ids": np.arange(CONTEXT)[None],
        "text_model.final_layer_norm.weight": weights["ln_final.weight"],
        "text_model.final_layer_norm.bias": weights["ln_final.bias"],
        "text_projection.weight": weights["text_projection"].T,
        "vision_model.post_layernorm.weight": np.ones(3), "visual_projection.weight": np.ones((2, 2)),
        "logit_scale": weights["logit_scale"],
    }  # fmt: skip
    pairs = {"attn.out_proj": "self_attn.out_proj", "mlp.c_fc": "mlp.fc1", "mlp.c_proj": "mlp.fc2",
             "ln_1": "layer_norm1", "ln_2": "layer_norm2"}  # fmt: skip
    for i in range(DEPTH):
        theirs, ours = f"transformer.resblocks.{i}", f"text_model.encoder.layers.{i}"
        for kind in ("weight", "bias"):
            renamed |= {f"{ours}.{b}.{kind}": weights[f"{theirs}.{a}.{kind}"] for a, b in pairs.items()}
            for letter, part in zip("qkv", np.split(weights[f"{theirs}.attn.in_proj_{kind}"], 3), strict=True):
                renamed[f"{ours}.self_attn.{letter}_proj.{kind}"] = part
    return renamed


def normalise(x, w, name):
    centred = x - x.mean(-1, keepdims=True)
    return centred / np.sqrt(x.var(-1, keepdims=True) + 1e-5) * w[f"{name}.weight"] + w[f"{name}.bias"]


def reference(weights: dict[str, np.ndarray], ids: list[int]) -> np.ndarray:
    """The embedding of one text in float64, token by token: nothing after the end token can matter, so it is cut."""
    w = {name: value.astype(np.float64) for name, value in weights.items()}
    ids = ids[: int(np.argmax(ids)) + 1]
    x = w["token_embedding.weight"][ids] + w["positional_embedding"][: len(ids)]
    later = np.triu(np.ones((len(ids), len(ids)), bool), 1)
    for i in range(DEPTH):
        place = f"transformer.resblocks.{i}"
        qkv = normalise(x, w, f"{place}.ln_1") @ w[f"{place}.attn.in_proj_weight"].T + w[f"{place}.attn.in_proj_bias"]
        heads = []
        for h in range(HEADS):
            q, k, v = (part[:, h * 64 : (h + 1) * 64] for part in np.split(qkv, 3, 1))
            heads.append(softmax(np.where(later, -np.inf, q @ k.T / 8), -1) @ v)
        x = x + np.concatenate(heads, 1) @ w[f"{place}.attn.out_proj.weight"].T + w[f"{place}.attn.out_proj.bias"]
        hidden = normalise(x, w, f"{place}.ln_2") @ w[f"{place}.mlp.c_fc.weight"].T + w[f"{place}.mlp.c_fc.bias"]
        hidden = hidden * expit(1.702 * hidden)
        x = x + hidden @ w[f"{place}.mlp.c_proj.weight"].T + w[f"{place}.mlp.c_proj.bias"]
    return normalise(x, w, "ln_final")[-1] @ w["text_projection"]


def stripped(converted) -> dict[str, np.ndarray]:
    return {name.removeprefix("text."): value for name, value in converted.weights.items()}


def test_parameter_count_of_the_published_encoder():
    with no_init_parameters():
        network = TextEncoder()
    assert sum(int(np.prod(p.shape)) for p in network.get_parameters()) == 63_428_096


def test_the_encoder_equals_the_reference():
    weights = openai_weights()
    ours = stripped(convert("clip_text", weights))
    network = TextEncoder(**encoder_sizes(ours))
    assign(network, ours, "converted")
    ids = [[28, 3, 4, 29, 0, 0, 0], [28, 7, 29, 0, 0, 0, 0], [28, 3, 4, 5, 6, 7, 29]]
    found = network.set_train(False)(Tensor(ids, ms.int32)).asnumpy()
    wanted = np.stack([reference(weights, row) for row in ids])
    assert np.abs(wanted).max() > 1
    np.testing.assert_allclose(found, wanted, atol=2e-5 * np.abs(wanted).max())


def test_both_kinds_of_names_convert_to_the_same():
    weights = openai_weights()
    first, second = convert("clip_text", weights), convert("clip_text", transformers_weights(weights))
    assert sorted(first.dropped) == ["logit_scale", "visual.conv1.weight"] and len(second.dropped) == 4
    assert first.weights.keys() == second.weights.keys() and len(first.weights) == 5 + 12 * DEPTH
    for name, value in first.weights.items():
        np.testing.assert_array_equal(value, second.weights[name])


def test_weights_that_do_not_fit_are_listed():
    weights = openai_weights()
    weights["extra.weight"] = weights.pop("transformer.resblocks.1.ln_2.bias")
    with pytest.raises(ValueError, match=r"unexpected \(1\):\n  extra") as caught:
        convert("clip_text", weights)
    assert "missing (1):\n  text.blocks.1.norm2.beta (128,)" in str(caught.value)
    with pytest.raises(ValueError, match="token_embedding, pos_embed, projection not in the file"):
        convert("clip_text", {"visual.conv1.weight": np.ones((2, 2))})


def test_the_tool_makes_a_table(tmp_path):
    weights = openai_weights(vocabulary=49408, context=77, out=512)
    write_weights(tmp_path / "w.safetensors", convert("clip_text", weights).weights, {"source": "clip_text"})
    merges = write_merges(tmp_path / "bpe.gz")
    common = ("--weights", tmp_path / "w.safetensors", "--merges", merges, "--output", tmp_path / "t.npz")
    said = succeed("tools/encode_text.py", *common, "--classes", "diningtable, cat", "--licence", "mine")
    assert "2 names and 1 negatives, 512 numbers each" in said
    table = read_table(tmp_path / "t.npz")
    assert table.names == ("dining table", "cat") and table.negative_names == ("others",)
    assert not table.meta["normalised"] and table.meta["spelling"] == "natural"
    assert table.meta["licence"] == "mine"
    wanted = np.stack([reference(weights, [49406, *ids, 49407]) for ids in ([8658, 2175], [2368], [3326])])
    np.testing.assert_allclose(table.all_rows, wanted, atol=5e-5 * np.abs(wanted).max())
    text = TextConfig(table=str(tmp_path / "w.safetensors"), merges=str(merges))  # a network's text without a table
    np.testing.assert_array_equal(text_rows(text, ("cat", "dining table")), table.embeddings[::-1])
    with pytest.raises(ValueError, match="needs CLIP's merge file, too: set model.text.merges"):
        text_rows(TextConfig(table=text.table), ("cat",))
    with pytest.raises(ValueError, match="model.text.template 'photo' needs one {}"):
        text_rows(text.model_copy(update={"template": "photo"}), ("cat",))
    assert "needs one {}" in refuse("tools/encode_text.py", *common, "--classes", "cat", "--template", "photo")
    assert "no other braces" in refuse("tools/encode_text.py", *common, "--classes", "cat", "--template", "a {} {x}")
    assert "cat, Cat are one name" in refuse("tools/encode_text.py", *common, "--classes", "cat,Cat")
    assert "others, others are one name" in refuse("tools/encode_text.py", *common, "--classes", "others")
    assert "no name is given" in refuse("tools/encode_text.py", *common, "--classes", " , ")
    wide = refuse("tools/encode_text.py", *common, "--classes", "cat", "--clip-model", "ViT-L/14")
    assert "gives vectors of 512 numbers, ViT-L/14 of 768: set --clip-model" in wide
    write_weights(tmp_path / "w.safetensors", {"head.x": np.ones(3, np.float32)}, {})
    assert "no converted text encoder" in refuse("tools/encode_text.py", *common, "--classes", "cat")


def test_published_weights_give_the_published_vectors(data_root, tmp_path):
    """Spec section 5.1: `a photo of a NAME` with ViT-B/16 against the public rows."""
    folder = Path(os.environ.get("ECENET_CLIP", data_root / "clip"))
    weights, merges = folder / "clip_vit_b16_text.safetensors", folder / "bpe_simple_vocab_16e6.txt.gz"
    public = data_root / "clip_text_embeddings" / "voc12_fg20_single.npy"
    for file in (weights, merges, public):
        if not file.is_file():
            pytest.skip(f"no {file}; ECENET_CLIP names the folder with CLIP's converted text encoder and merge file")
    assert read_tensors(weights)[1]["source"] == "clip_text"
    succeed(
        "tools/encode_text.py", "--weights", weights, "--merges", merges, "--data-set", "voc_2012", "--spelling",
        "joined", "--template", "a photo of a {}", "--clip-model", "ViT-B/16", "--output", tmp_path / "t.npz",
    )  # fmt: skip
    made, wanted = read_table(tmp_path / "t.npz"), read_table(public)
    cosines = (unit_rows(made.embeddings) * unit_rows(rows_of(wanted, made.names))).sum(1)
    assert cosines.min() >= 0.999
