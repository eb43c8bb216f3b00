"""Makes a table of text embeddings, .npz, from class names with CLIP's text encoder."""

import argparse
import hashlib
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # so that the script runs from any folder

from src import cli, distributed  # noqa: E402
from src.class_text import encode, load_encoder  # noqa: E402
from src.data.classes import TABLES, read_classes  # noqa: E402
from src.engine.weights import weights_file  # noqa: E402
from src.text.names import SPELLINGS, joined, spell  # noqa: E402
from src.text.tables import WIDTHS, TextTable, is_template, new_meta, write_table  # noqa: E402
from src.text.tokenizer import Tokenizer  # noqa: E402

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
    parser.add_argument("--licence", default="MIT", help="of the weights, kept in the table (MIT, OpenAI's)")
    return parser


def main() -> None:
    """Reads the command line, encodes, writes the table."""
    parser = create_parser()
    args = parser.parse_args()
    templates = args.template or ["{}"]
    wrong = [text for text in templates if not is_template(text)]
    if wrong:
        parser.error(f"argument --template: {wrong[0]!r} needs one {{}} where the name goes, no other braces")
    output = cli.writable(args.output)
    if output.suffix != ".npz":
        parser.error(f"argument --output: {output} must end in .npz")
    names = read_names(args)
    negatives = [name.strip() for name in args.negatives.split(",") if name.strip()]
    keys = [joined(name) for name in names + negatives]
    doubled = [name for name in names + negatives if keys.count(joined(name)) > 1]
    if not names or doubled:
        what = f"{', '.join(doubled)} are one name, --negatives among them" if doubled else "no name is given"
        raise ValueError(f"--classes: {what}; give different names between commas")
    distributed.setup("CPU", "graph")
    tokenizer, file = Tokenizer(args.merges), weights_file(args.weights)
    encoder = load_encoder(file)
    width = encoder.projection.shape[1]
    if width != WIDTHS[args.clip_model]:
        raise ValueError(
            f"{file} gives vectors of {width} numbers, {args.clip_model} of {WIDTHS[args.clip_model]}: "
            "set --clip-model to the model that the weights are of"
        )
    rows = encode(encoder, tokenizer, names + negatives, templates)
    meta = new_meta(
        args.clip_model, normalised=len(templates) > 1, source="encoded", templates=templates, spelling=args.spelling,
        source_sha256=hashlib.sha256(file.read_bytes()).hexdigest(), licence=args.licence, dim=rows.shape[1],
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


if __name__ == "__main__":
    cli.run(main)
