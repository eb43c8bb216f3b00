"""Class names as vectors in a network: from a table on disk, or CLIP's text encoder, to the head's `text` parameters.

Letters: K classes, D width of a text vector.
"""

import json
import os
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import mindspore as ms
import numpy as np
from mindspore import Tensor, nn

from src.config import ModelConfig, TextConfig
from src.data.classes import Classes, generate_palette, identity_table
from src.engine import weights
from src.log import progress
from src.models.conversion_text import encoder_sizes
from src.models.heads.text import TEXT, text_parameters
from src.models.text_encoder import TextEncoder
from src.text.names import find_name
from src.text.tables import is_template, mean_of_templates, read_table, rows_of, unit_rows
from src.text.tokenizer import Tokenizer

REPOSITORY = Path(__file__).resolve().parents[1]
PUBLIC_FOLDER = "clip_text_embeddings"  # of the public tables in $ECENET_DATA
PREFIX = "text."  # of the names in a converted text encoder's file
SAME_ENCODER = 0.5  # mean cosine of the same names; prompts of one encoder 0.8 and more, two encoders about 0
BATCH = 16  # texts at a time; the encoder's graph is compiled for this number
Fill = Callable[[nn.Cell], object]


def loader_of(model: ModelConfig, source: str | Path, names: Sequence[str], named: bool) -> tuple[Path, Fill]:
    """The weights file that `source` means, and what gives a network these weights for classes of these names.

    named: the classes are the user's, given by name; else those that the weights were trained for. Raises ValueError
    where the weights are of other classes, or the head does not tell classes by text.
    """
    file = weights.weights_file(source)
    if not named:
        weights.require_classes(file, tuple(names))
        return file, partial(weights.load_weights, path=file)
    if model.text is None:
        raise ValueError(
            f"classes by name need a network whose classes are told by text (model.text); model.head.name "
            f"{model.head['name']} of this config knows the classes of its data set alone"
        )
    return file, partial(load_for_names, model=model, names=tuple(names), path=file)


def load_for_names(network: nn.Cell, model: ModelConfig, names: Sequence[str], path: Path) -> None:
    """Gives a network trained weights, and its classes the vectors of `names`, by `model.text.names` as in training.

    Raises ValueError where the vectors are not of the encoder that the network was trained with.
    """
    known = (*names, *model.text.names)  # the settings may name classes of the training alone
    weights.load_except_classes(network, path)
    give_text(network, model, names, known)
    require_same_encoder(model.text, path)


def require_same_encoder(text: TextConfig, path: Path) -> None:
    """Raises ValueError where the names of the training have other vectors in the table than in the weights.

    Names that the table does not hold are passed over.
    """
    tensors, metadata = weights.read_tensors(path)
    trained = [value for name, value in tensors.items() if name.rpartition(".")[2] == TEXT]
    if weights.CLASSES not in metadata or not trained:
        return
    names = json.loads(metadata[weights.CLASSES])["names"]
    wanted, table = [text.names.get(name, name) for name in names], find_table(text.table)
    if table.suffix != weights.SAFETENSORS:
        held = read_table(table).all_names
        rows = [k for k, name in enumerate(wanted) if find_name(name, held) is not None]
    else:
        rows = list(range(len(names)))
    if not rows:
        return
    found = vectors_of(text, [wanted[k] for k in rows])
    cosine = (unit_rows(found) * unit_rows(trained[0][rows])).sum(1).mean()
    if cosine < SAME_ENCODER:
        raise ValueError(
            f"model.text.table {text.table} is of another text encoder than {path} was trained with (mean cosine of "
            f"{len(rows)} common names {cosine:.2f}); take a table of the same CLIP model"
        )


def read_names(text: str) -> Classes:
    """Classes of `road, sky, zebra crossing`, with colours; ValueError for none, or one twice."""
    names = tuple(name.strip() for name in text.split(","))
    if not all(names) or len(set(names)) < len(names):
        raise ValueError(f"--classes {text!r}: give different names between commas, such as road,sky,zebra crossing")
    return Classes(names, generate_palette(len(names)), identity_table(len(names)))


def give_text(network: nn.Cell, model: ModelConfig, names: Sequence[str], known: Sequence[str] = ()) -> None:
    """Gives a network the vectors of class names, in the order of its classes; nothing where none are told by text.

    known: classes that `model.text.names` may name besides.

    Raises ValueError where the head is told by text and the config names no table, or the other way round, and as
    `text_rows` does.
    """
    owners = text_parameters(network)
    if bool(owners) != (model.text is not None):
        raise ValueError(
            f"model.head.name {model.head['name']} "
            + (
                "tells classes by text: set model.text.table to a table of text embeddings (tools/encode_text.py)"
                if owners
                else "knows no text: leave model.text out, or use pixel_text or text_ecenet"
            )
        )
    if not owners:
        return
    rows = text_rows(model.text, names, known)
    for name, parameter in network.parameters_and_names():
        if name not in owners:
            continue
        if tuple(parameter.shape) != rows.shape:
            raise ValueError(
                f"{model.text.table} gives vectors of {rows.shape[1]} numbers, the head was built for "
                f"{parameter.shape[1]}; set the head's width (pixel_text: width, text_ecenet: text_width)"
            )
        parameter.set_data(Tensor(rows))


def text_rows(text: TextConfig, names: Sequence[str], known: Sequence[str] = ()) -> np.ndarray:
    """Vectors (K, D) float32 of class names by the config, whose `names` may name the `known` classes, too.

    Raises FileNotFoundError without the table, ValueError for a class that it does not hold, which lists the nearest
    ones, for `text.names` of no class, and for two classes of one vector.
    """
    stray = sorted(set(text.names) - set(names) - set(known))
    if stray:
        raise ValueError(f"model.text.names has {', '.join(stray)}, which are no classes; known: {', '.join(names)}")
    rows = vectors_of(text, [text.names.get(name, name) for name in names])
    require_different(rows, names)
    if text.rescale_norm is not None:
        rows = text.rescale_norm * unit_rows(rows)
    return np.ascontiguousarray(rows, np.float32)


def vectors_of(text: TextConfig, wanted: Sequence[str]) -> np.ndarray:
    """Vectors (K, D) of words as the table or the encoder has them; errors as of `text_rows`."""
    path = find_table(text.table)
    if path.suffix == weights.SAFETENSORS:
        if text.merges is None:
            raise ValueError(f"{path} is a text encoder, which needs CLIP's merge file, too: set model.text.merges")
        if not is_template(text.template):
            raise ValueError(f"model.text.template {text.template!r} needs one {{}} for the name, no other braces")
        return encode(load_encoder(path), Tokenizer(Path(text.merges)), wanted, [text.template])
    return rows_of(read_table(path), wanted, str(path))


def require_different(rows: np.ndarray, names: Sequence[str]) -> None:
    """Raises ValueError where two classes have one vector, so that nothing could tell them apart."""
    first: dict[bytes, str] = {}
    for name, row in zip(names, rows, strict=True):
        twin = first.setdefault(row.tobytes(), name)
        if twin != name:
            raise ValueError(f"the classes {twin!r} and {name!r} have one vector: leave one of them out")


def find_table(name: str) -> Path:
    """The file that a config means: as it stands, or among the public tables."""
    data = Path(os.environ.get("ECENET_DATA") or REPOSITORY.parent / "shared" / "data")
    places = [Path(name), data / PUBLIC_FOLDER / name]
    for place in places:
        if place.is_file():
            return place
    raise FileNotFoundError(
        f"model.text.table {name} does not exist; looked for {' and '.join(map(str, places))}; make one with "
        "tools/encode_text.py or set ECENET_DATA"
    )


def load_encoder(file: Path) -> TextEncoder:
    """The encoder of a file of converted weights; ValueError where it holds none."""
    tensors = {name.removeprefix(PREFIX): value for name, value in weights.read_tensors(file)[0].items()}
    if weights.read_metadata(file).get("source") != "clip_text":
        remedy = "make it with tools/convert_weights.py --source clip_text"
        raise ValueError(f"{file} is no converted text encoder; {remedy}")
    encoder = TextEncoder(**encoder_sizes(tensors))
    weights.assign(encoder, tensors, file)
    return encoder.set_train(False)


def encode(encoder: TextEncoder, tokenizer: Tokenizer, names: Sequence[str], templates: Sequence[str]) -> np.ndarray:
    """(names, D) float32, the mean over the templates."""
    ids = tokenizer.rows([template.format(name) for template in templates for name in names])
    padded = np.concatenate([ids, np.repeat(ids[:1], -len(ids) % BATCH, 0)])
    rows = []
    with progress(len(padded), "encode") as advance:
        for start in range(0, len(padded), BATCH):
            rows.append(encoder(Tensor(padded[start : start + BATCH], ms.int32)).asnumpy())
            advance(BATCH)
    vectors = np.concatenate(rows)[: len(ids)].reshape(len(templates), len(names), -1)
    return mean_of_templates(vectors)
