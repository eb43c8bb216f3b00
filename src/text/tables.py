"""Tables of text embeddings on disk (spec sazs, section 4): ours, .npz, and the public .npy files.

Letters: C classes, M negatives, D width of an embedding.
"""

import hashlib
import json
import os
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from src.text.names import find_name, nearest_names

FORMAT = 1
WIDTHS = {"ViT-B/32": 512, "ViT-B/16": 512, "ViT-L/14": 768}  # CLIP model: D
KEYS = ("names", "embeddings", "negative_names", "negatives", "meta")
REQUIRED_META = (
    "format", "clip_model", "templates", "normalised", "spelling", "source", "source_sha256", "source_dtype", "licence",
    "dim", "created_with",
)  # fmt: skip
BACKGROUND = "background"
UNIT_TOLERANCE = 5e-3  # of the norm of rows that were normalised and rounded to float16
NAMES_FILE = "class_names.json"
MIT_FILES = ("cocostuff171_single", "cocostuff171_multi", "voc12_fg20_single")  # of ZegCLIP; the others Apache-2.0
PUBLIC_TEMPLATE = "a photo of a {}"


@dataclass(frozen=True)
class TextTable:
    """Vectors of class names, (C, D) float32, and of words for `anything else`, (M, D); facts about both in meta."""

    names: tuple[str, ...]
    embeddings: np.ndarray
    negative_names: tuple[str, ...] = ()
    negatives: np.ndarray = field(default_factory=lambda: np.zeros((0, 512), np.float32))
    meta: Mapping[str, Any] = field(default_factory=dict)

    @property
    def all_names(self) -> tuple[str, ...]:
        return self.names + self.negative_names

    @property
    def all_rows(self) -> np.ndarray:
        """(C + M, D), in the order of all_names."""
        return np.concatenate([self.embeddings, self.negatives])


def new_meta(clip_model: str, *, normalised: bool, source: str, **facts: Any) -> dict[str, Any]:
    """The facts of a table, those that are not given with their defaults."""
    meta = {
        "format": FORMAT, "clip_model": clip_model, "templates": ["{}"], "normalised": bool(normalised),
        "spelling": "natural", "source": source, "source_sha256": "", "source_dtype": "float32", "licence": "",
        "dim": WIDTHS.get(clip_model, 0), "created_with": f"ecenet-mindspore, table format {FORMAT}",
    }  # fmt: skip
    return {**meta, **facts}


def check_table(table: TextTable, origin: str) -> TextTable:
    """The table, if it keeps to the format; ValueError names origin and everything that is wrong with it."""
    problems = [f"meta lacks {key!r}" for key in REQUIRED_META if key not in table.meta]
    model, rows = table.meta.get("clip_model"), {"embeddings": table.names, "negatives": table.negative_names}
    if table.meta.get("format") != FORMAT:
        problems.append(f"format is {table.meta.get('format')!r}, this version reads {FORMAT}")
    if not isinstance(model, str) or model not in WIDTHS:
        problems.append(f"clip_model {model!r} is not known; allowed: {', '.join(WIDTHS)}")
    width = WIDTHS.get(str(model), table.meta.get("dim"))
    if table.meta.get("dim") != width:
        problems.append(f"dim is {table.meta.get('dim')!r}, {model} gives {width}")
    for name, owners in rows.items():
        array = getattr(table, name)
        if array.dtype != np.float32 or array.shape != (len(owners), width):
            problems.append(f"{name} is {array.dtype} {array.shape}, need float32 {(len(owners), width)}")
        elif not np.isfinite(array).all():
            bad = [owner for owner, row in zip(owners, array, strict=True) if not np.isfinite(row).all()]
            problems.append(f"{name} of {', '.join(bad)} is not finite")
        elif not array.any(1).all():
            bad = [owner for owner, row in zip(owners, array, strict=True) if not row.any()]
            problems.append(f"{name} of {', '.join(bad)} are zeros")
    if table.meta.get("normalised") is True and not problems and not is_normalised(table.all_rows):
        problems.append("meta says normalised, but its rows have other lengths than 1")
    if len(table.names) == 0:
        problems.append("it holds no names")
    doubled = sorted({name for name in table.all_names if table.all_names.count(name) > 1})
    problems += [f"the name {name!r} occurs more than once" for name in doubled]
    templates = table.meta.get("templates", [])
    if not isinstance(templates, list) or not all(isinstance(text, str) for text in templates):
        problems.append(f"templates is {templates!r}, need a list of texts")
    else:
        problems += [f"template {text!r} needs one {{}}" for text in templates if not is_template(text)]
    if problems:
        raise ValueError(f"{origin} is no usable table of text embeddings: {'; '.join(problems)}; make it again")
    return table


def is_template(text: str) -> bool:
    """Whether a prompt has one {} where the name goes, and no other braces."""
    return text.count("{}") == 1 and not set("{}") & set(text.replace("{}", ""))


def write_table(path: Path, table: TextTable) -> None:
    """Writes a checked table, in one move; ValueError for one that does not keep to the format."""
    check_table(table, str(path))
    draft = path.with_name(f".{path.stem}.incomplete.npz")
    try:
        np.savez_compressed(
            draft, names=np.array(table.names, np.str_), embeddings=table.embeddings,
            negative_names=np.array(table.negative_names, np.str_), negatives=table.negatives,
            meta=np.array(json.dumps(dict(table.meta), sort_keys=True)),
        )  # fmt: skip
        os.replace(draft, path)
    finally:
        draft.unlink(missing_ok=True)


def read_table(path: Path) -> TextTable:
    """A table from an .npz of ours or from a public .npy with class_names.json beside it.

    Raises FileNotFoundError, and ValueError that says what is wrong with the file.
    """
    if not path.is_file():
        raise FileNotFoundError(f"there is no table of text embeddings {path}; make one with tools/encode_text.py")
    if path.suffix == ".npy":
        return read_public(path)
    try:
        if not zipfile.is_zipfile(path):  # np.load would take a .npy file by this name
            raise ValueError("it is no .npz file")
        with np.load(path, allow_pickle=False) as file:
            missing = [key for key in KEYS if key not in file.files]
            if missing:
                raise ValueError(f"it lacks {', '.join(missing)}")
            arrays = {key: file[key] for key in KEYS}
        meta = json.loads(str(arrays["meta"]))
        if not isinstance(meta, dict):
            raise ValueError("meta is no mapping")
        for key in ("names", "negative_names"):
            if arrays[key].ndim != 1 or arrays[key].dtype.kind != "U":
                raise ValueError(f"{key} is {arrays[key].dtype} {arrays[key].shape}, no list of texts")
    except (ValueError, OSError, EOFError, zipfile.BadZipFile) as error:
        raise ValueError(
            f"{path} is no table of text embeddings ({error}); make one with tools/encode_text.py"
        ) from error
    names, negative_names = (tuple(map(str, arrays[key])) for key in ("names", "negative_names"))
    return check_table(TextTable(names, arrays["embeddings"], negative_names, arrays["negatives"], meta), str(path))


def read_public(path: Path) -> TextTable:
    """One of the public files of CLIP ViT-B/16 vectors; its names are in class_names.json in the same folder.

    A row `background` becomes the table's negative; the others keep their order.
    """
    listing = path.with_name(NAMES_FILE)
    if not listing.is_file():
        raise FileNotFoundError(f"{path}: its names are read from {listing}, which is not there; copy it, too")
    try:
        named = json.loads(listing.read_text(encoding="utf-8"))["classes"]
        if not isinstance(named, dict):
            raise TypeError("`classes` is no mapping")
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{listing} names no classes ({error!r}); copy it again") from error
    if path.stem not in named:
        raise ValueError(f"{listing} names no classes for {path.name}; it knows {', '.join(sorted(named))}")
    names = tuple(named[path.stem])
    data = path.read_bytes()
    try:
        raw = np.load(path, allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise ValueError(f"{path}: not a readable .npy file of numbers ({error}); copy it again") from error
    if raw.ndim != 2 or len(raw) != len(names):
        raise ValueError(f"{path} has shape {raw.shape}, but {listing} names {len(names)} classes; they must agree")
    rows = raw.astype(np.float32)
    negative = np.array([name == BACKGROUND for name in names])
    meta = new_meta(
        "ViT-B/16", normalised=is_normalised(rows), source=path.name, source_sha256=hashlib.sha256(data).hexdigest(),
        source_dtype=str(raw.dtype), licence="MIT" if path.stem in MIT_FILES else "Apache-2.0",
        templates=[PUBLIC_TEMPLATE] if path.stem.endswith("_single") else [],
    )  # fmt: skip
    kept = tuple(name for name in names if name != BACKGROUND)
    lost = (BACKGROUND,) * int(negative.sum())
    return check_table(TextTable(kept, rows[~negative], lost, rows[negative], meta), str(path))


def is_normalised(rows: np.ndarray) -> bool:
    """Whether all rows have length 1, but for the rounding of float16."""
    return bool(np.abs(np.linalg.norm(rows, axis=1) - 1).max(initial=0) < UNIT_TOLERANCE)


def resolve_names(table: TextTable, wanted: Sequence[str], origin: str = "the table") -> list[int]:
    """Row in `all_rows` of every wanted name, through other spellings and synonyms.

    Raises ValueError that lists all missing names with the nearest known ones, and the names present.
    """
    found = [find_name(name, table.all_names) for name in wanted]
    missing = [name for name, row in zip(wanted, found, strict=True) if row is None]
    if missing:
        told = []
        for name in missing:
            near = nearest_names(name, table.all_names)
            told.append(f"{name!r}" + (f" (nearest: {', '.join(near)})" if near else ""))
        raise ValueError(
            f"{origin} has no embedding for {', '.join(told)}; it holds {', '.join(table.all_names)}. Use one of these "
            "names, another table, or make one with tools/encode_text.py"
        )
    return [row for row in found if row is not None]


def rows_of(table: TextTable, wanted: Sequence[str], origin: str = "the table") -> np.ndarray:
    """The vectors (len(wanted), D) float32 of the wanted names; errors as of `resolve_names`."""
    return table.all_rows[resolve_names(table, wanted, origin)]


def unit_rows(rows: np.ndarray) -> np.ndarray:
    """Rows divided by their lengths, in float64."""
    rows = np.asarray(rows, np.float64)
    return rows / np.linalg.norm(rows, axis=-1, keepdims=True)


def mean_of_templates(rows: np.ndarray) -> np.ndarray:
    """(templates, C, D) -> (C, D) float32: one template stays raw, several are normalised, averaged, normalised."""
    return np.asarray(rows[0] if len(rows) == 1 else unit_rows(unit_rows(rows).mean(0)), np.float32)
