"""CLIP's tokenizer: byte-level pair encoding (spec sazs, section 5.2), from the merge file that OpenAI published."""

import gzip
import html
import unicodedata
from collections.abc import Sequence
from pathlib import Path

import numpy as np

CONTEXT = 77
MERGES = 48894  # lines 1 to 48894 of the file; line 0 is a comment
START, END = 49406, 49407
WORD_END = "</w>"
CONTRACTIONS = ("'s", "'t", "'re", "'ve", "'m", "'ll", "'d")
Pair = tuple[str, str]


def byte_symbols() -> dict[int, str]:
    """A visible character for each of the 256 bytes, in the order of the vocabulary: Latin-1 where it is visible."""
    visible = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = [byte for byte in range(256) if byte not in visible]
    return {**{byte: chr(byte) for byte in visible}, **{byte: chr(256 + i) for i, byte in enumerate(hidden)}}


def split_pieces(text: str) -> list[str]:
    """Contractions, runs of letters, single digits and runs of other symbols; white space separates."""
    pieces, place = [], 0
    while place < len(text):
        if text[place].isspace():
            place += 1
            continue
        contraction = next((part for part in CONTRACTIONS if text.startswith(part, place)), None)
        stop = place + len(contraction) if contraction else _end_of_run(text, place)
        pieces.append(text[place:stop])
        place = stop
    return pieces


def _kind(letter: str) -> str:
    """L letter, N number, S symbol, or a space."""
    if letter.isspace():
        return " "
    major = unicodedata.category(letter)[0]
    return major if major in "LN" else "S"


def _end_of_run(text: str, place: int) -> int:
    kind, stop = _kind(text[place]), place + 1
    while kind != "N" and stop < len(text) and _kind(text[stop]) == kind:
        stop += 1
    return stop


class Tokenizer:
    """Texts to rows of ids.

    Args:
        path: bpe_simple_vocab_16e6.txt.gz of OpenAI's CLIP (MIT).

    Raises FileNotFoundError, and ValueError for a file without the published number of merges.
    """

    def __init__(self, path: Path) -> None:
        merges = read_merges(path)
        self.symbols = byte_symbols()
        tokens = [*self.symbols.values(), *(symbol + WORD_END for symbol in self.symbols.values())]
        tokens += ["".join(pair) for pair in merges]
        self.ids = {token: i for i, token in enumerate(tokens)}
        self.ranks = {pair: i for i, pair in enumerate(merges)}

    def encode(self, text: str) -> list[int]:
        """Ids of a text, without start and end."""
        clean = html.unescape(html.unescape(text)).lower()
        return [self.ids[token] for piece in split_pieces(clean) for token in self.merge(piece)]

    def merge(self, piece: str) -> list[str]:
        """The tokens of one piece: its bytes, neighbours merged as long as a merge is known, lowest rank first."""
        parts = [self.symbols[byte] for byte in piece.encode("utf-8")]
        parts[-1] += WORD_END
        while len(parts) > 1:
            pairs = list(zip(parts, parts[1:], strict=False))
            best = min(pairs, key=lambda pair: self.ranks.get(pair, MERGES))
            if best not in self.ranks:
                break
            parts = merge_pair(parts, best)
        return parts

    def rows(self, texts: Sequence[str]) -> np.ndarray:
        """(len(texts), 77) int32: start, ids, end, zeros. ValueError for a text that is too long."""
        rows = np.zeros((len(texts), CONTEXT), np.int32)
        for row, text in zip(rows, texts, strict=True):
            ids = [START, *self.encode(text), END]
            if len(ids) > CONTEXT:
                raise ValueError(f"{text!r} has {len(ids)} tokens with start and end, allowed: {CONTEXT}; shorten it")
            row[: len(ids)] = ids
        return rows


def merge_pair(parts: list[str], pair: Pair) -> list[str]:
    """Every neighbouring pair replaced by one part, from the left."""
    merged, place = [], 0
    while place < len(parts):
        together = tuple(parts[place : place + 2]) == pair
        merged.append("".join(pair) if together else parts[place])
        place += 2 if together else 1
    return merged


def read_merges(path: Path) -> list[Pair]:
    """The merges of the file in their order; errors as of `Tokenizer`."""
    if not path.is_file():
        raise FileNotFoundError(f"there is no merge file {path}; fetch bpe_simple_vocab_16e6.txt.gz of OpenAI's CLIP")
    try:
        lines = gzip.decompress(path.read_bytes()).decode("utf-8").split("\n")
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is no readable .gz file of text ({error}); fetch it again") from error
    pairs = [tuple(line.split()) for line in lines[1 : MERGES + 1]]
    if len(pairs) < MERGES or any(len(pair) != 2 for pair in pairs):
        raise ValueError(f"{path} does not hold {MERGES} merges, two parts a line; need bpe_simple_vocab_16e6.txt.gz")
    return pairs
