"""A table of text embeddings with drawn vectors."""

import numpy as np

from src.text.tables import TextTable, new_meta, write_table


def write_words(file, names) -> None:
    rows = np.random.default_rng(0).normal(size=(len(names) + 1, 512)).astype(np.float32)
    meta = new_meta("ViT-B/32", normalised=False, source="drawn")
    write_table(file, TextTable(tuple(names), rows[:-1], ("others",), rows[-1:], meta))
