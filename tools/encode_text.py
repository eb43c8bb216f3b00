"""Makes a table of text embeddings, .npz, from class names with CLIP's text encoder."""

import argparse
import hashlib
import sys
from pathlib import Path

import numpy as np
from mindspore import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # so that the script runs from any folder

from src import cli, distributed  # noqa: E402
from src.data.classes import TABLES, read_classes  # noqa: E402
from src.engine.weights import assign, read_metadata, read_tensors, weights_file  # noqa: E402
from src.log import progress  # noqa: E402
from src.models.conversion_text import encoder_sizes  # noqa: E402
from src.models.text_encoder import TextEncoder  # noqa: E402
from src.text.names import SPELLINGS, spell  # noqa: E402
from src.text.tables import WIDTHS, TextTable, mean_of_templates, new_meta, write_table  # noqa: E402
from src.text.tokenizer import Tokenizer  # noqa: E402

PREFIX = "text."
BATCH = 16  # texts at a time; the graph is compiled for this number
EPILOG = """\
Neither the weights nor the merge file are part of this repository. Weights: a CLIP checkpoint as .npz or .safetensors,
converted with tools/convert_weights.py --source clip_text. Merge file: bpe_simple_vocab_16e6.txt.gz of OpenAI's CLIP.
With one template the vectors keep their lengths; those of several are normalised, averaged and normalised again.

examples:
  python tools/encode_text.py --weights clip.safetensors --merges bpe_simple_vocab_16e6.txt.gz \\
      --classes "road,sky,zebra crossing" --output street.npz
  python tools/encode_text.py ... --data-set voc_2012 --spelling joined --negatives others --output voc20.npz
"""


def create_parser() -> argparse.ArgumentParser:
    """The arguments."""
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--weights", required=True, metavar="FILE", help="converted text encoder, see below")
    parser.add_argument("--merges", required=True, type=Path, metavar="FILE", help="CLIP's merge file, see below")
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--classes", metavar="NAME,NAME,...", help="class names, between commas")
    data_sets = sorted(file.stem for file in TABLES.glob("*.txt"))
    what.add_argument("--data-set", choices=data_sets, help="the class names of a data set, background left out")
    parser.add_argument("--output", required=True, metavar="FILE.npz", help="table to write, replaced")
    parser.add_argument("--negatives", default="others", metavar="NAME,...", help="words for anything else (others)")
    parser.add_argument("--spelling", choices=SPELLINGS, default="natural", help="`dining table` or `diningtable`")
    parser.add_argument(
        "--template", action="append", metavar="TEXT", help='prompt with one {}, may be repeated (default: "{}")'
    )
    parser.add_argument("--clip-model", choices=sorted(WIDTHS), default="ViT-B/32", help="whose weights they are")
    return parser


def main() -> None:
    """Reads the command line, encodes, writes the table."""
    parser = create_parser()
    args = parser.parse_args()
    templates = args.template or ["{}"]
    wrong = [text for text in templates if text.count("{}") != 1]
    if wrong:
        parser.error(f"argument --template: {wrong[0]!r} needs one {{}} where the name goes")
    output = cli.writable(args.output)
    if output.suffix != ".npz":
        parser.error(f"argument --output: {output} must end in .npz")
    names = read_names(args)
    negatives = [name.strip() for name in args.negatives.split(",") if name.strip()]
    distributed.setup("CPU", "graph")
    tokenizer, file = Tokenizer(args.merges), weights_file(args.weights)
    rows = encode(load_encoder(file), tokenizer, names + negatives, templates)
    meta = new_meta(
        args.clip_model, normalised=len(templates) > 1, source="encoded", templates=templates, spelling=args.spelling,
        source_sha256=hashlib.sha256(file.read_bytes()).hexdigest(), licence="MIT", dim=rows.shape[1],
    )  # fmt: skip
    count = len(names)
    write_table(output, TextTable(tuple(names), rows[:count], tuple(negatives), rows[count:], meta))
    print(f"{output}: {count} names and {len(negatives)} negatives, {rows.shape[1]} numbers each")


def read_names(args: argparse.Namespace) -> list[str]:
    """Class names in the wanted spelling."""
    if args.data_set:
        names = [name for name in read_classes(args.data_set).names if name != "background"]
    else:
        names = [name.strip() for name in args.classes.split(",") if name.strip()]
    return [spell(name, args.spelling) for name in names]


def load_encoder(file: Path) -> TextEncoder:
    """The encoder of a file of converted weights; ValueError where it holds none."""
    tensors = {name.removeprefix(PREFIX): value for name, value in read_tensors(file)[0].items()}
    if read_metadata(file).get("source") != "clip_text":
        remedy = "make it with tools/convert_weights.py --source clip_text"
        raise ValueError(f"{file} is no converted text encoder; {remedy}")
    encoder = TextEncoder(**encoder_sizes(tensors))
    assign(encoder, tensors, file)
    return encoder.set_train(False)


def encode(encoder: TextEncoder, tokenizer: Tokenizer, names: list[str], templates: list[str]) -> np.ndarray:
    """(names, D) float32, the mean over the templates."""
    ids = tokenizer.rows([template.format(name) for template in templates for name in names])
    padded = np.concatenate([ids, np.repeat(ids[:1], -len(ids) % BATCH, 0)])
    rows = []
    with progress(len(padded), "encode") as advance:
        for start in range(0, len(padded), BATCH):
            rows.append(encoder(Tensor(padded[start : start + BATCH])).asnumpy())
            advance(BATCH)
    vectors = np.concatenate(rows)[: len(ids)].reshape(len(templates), len(names), -1)
    return mean_of_templates(vectors)


if __name__ == "__main__":
    cli.run(main)
