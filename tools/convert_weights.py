"""Converts weights to a .safetensors or .ckpt file of ours, name by name, or lists everything that does not fit."""

import argparse
import sys
import zipfile
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # so that the script runs from any folder

from src.engine.tensor_files import read_safetensors  # noqa: E402
from src.engine.weights import CKPT, SAFETENSORS, read_tensors, weights_file, write_weights  # noqa: E402
from src.models.conversion import IGNORED, SOURCES, convert  # noqa: E402

EPILOG = f"""\
sources:
  checkpoint       weights of ours, unchanged, into the other kind of file: --input takes a checkpoint folder, a run's
                   folder (its best), .safetensors or .ckpt. MindSpore reads the .ckpt with load_checkpoint and
                   load_param_into_net.
  released_ecenet  the authors' ECENet: the head alone, its names with or without the prefix decode_head., or the whole
                   model with its Swin under backbone. (mmsegmentation's names);
                   left out: {", ".join(IGNORED)}
  timm_vit         a plain Vision Transformer with 16 x 16 patches under timm's names; left out: cls_token and its
                   position (unless --class-token), norm.*, head.*. The norms of the taps are in no such file: load the
                   result as pretrained backbone, and they start fresh.
  resnet           a ResNet under torchvision's names, with either kind of block and one or three convolutions in the
                   stem; left out: fc.*, counters
  resnet_bgr       the same, trained on images in the order B, G, R (CSAIL's): its first convolution is turned to RGB
  alignseg         the authors' AlignSeg, backbone and head; B, G, R as above; the norms' |gamma| + 1e-5 becomes gamma.
                   It needs model.head.sampler=legacy.
  mobilenet_v2     MobileNetV2 1.0 with folded norms under torchvision's names; left out: features.18, classifier
  clip_text        CLIP's text encoder under OpenAI's names or those of transformers, for tools/encode_text.py; left
                   out: the image tower and scalars

An .npz file in which some names start with weight/ gives only these.
Names in the output start with backbone. and head. (clip_text: text.), values are float32. For a Vision
Transformer the metadata keep the grid of the position embeddings, so that they are resized when a network of another
image size loads them.
Exit code: 0 written; 1 the weights do not fit, nothing written; 2 wrong use.

examples:
  python tools/convert_weights.py --source timm_vit --input vit_tiny.npz --output weights/vit_tiny.safetensors
  python tools/convert_weights.py --source checkpoint --input output/mine --output mine.ckpt
"""

OURS = "checkpoint"  # the source that is no public one
Loaded = tuple[dict[str, np.ndarray], dict[str, str], tuple[str, ...]]  # weights, metadata, names left out


def main(arguments: list[str] | None = None) -> int:
    """Command line; returns the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--source", required=True, choices=(*SOURCES, OURS), help="whose weights, see below")
    parser.add_argument("--input", required=True, type=Path, help="weights, .npz or .safetensors; of ours see below")
    parser.add_argument("--output", required=True, type=Path, help="file to write, .safetensors or .ckpt, replaced")
    parser.add_argument("--class-token", action="store_true", help="timm_vit: keep the class token and its position")
    args = parser.parse_args(arguments)
    problem = misuse(args)
    if problem:
        parser.error(problem)
    try:
        weights, metadata, dropped = read_ours(args.input) if args.source == OURS else convert_file(args)
    except (ValueError, FileNotFoundError) as error:
        print(error, file=sys.stderr)
        return 1
    write_weights(args.output, weights, metadata)
    size = sum(value.size for value in weights.values())
    print(f"left out ({len(dropped)}): {', '.join(dropped) or 'nothing'}")
    print(f"{args.output}: {len(weights)} parameters, {size} values, {metadata}")
    return 0


def misuse(args: argparse.Namespace) -> str:
    """What is wrong with the arguments; empty when nothing is."""
    if args.source == OURS and not args.input.exists():
        return f"--input {args.input}: no such file or folder"
    if args.source != OURS and args.input.suffix not in (".npz", SAFETENSORS):
        return f"--input {args.input}: need a file that ends in .npz or .safetensors"
    if args.source != OURS and not args.input.is_file():
        return f"--input {args.input}: no such file"
    if args.output.suffix not in (SAFETENSORS, CKPT):
        return f"--output {args.output}: need a name that ends in .safetensors or .ckpt"
    if not args.output.parent.is_dir():
        return f"--output {args.output}: there is no folder {args.output.parent}; make it first"
    if args.output.resolve() == args.input.resolve():
        return f"--output {args.output}: would overwrite the input"
    if args.class_token and args.source != "timm_vit":
        return f"--class-token: {args.source} has none, only timm_vit takes this flag"
    return ""


def read_weights(path: Path) -> dict[str, np.ndarray]:
    """Arrays by name; of an .npz with names under weight/ only these. ValueError when the file is not readable."""
    if path.suffix == ".safetensors":
        return read_safetensors(path)[0]
    try:
        with np.load(path) as file:
            arrays = {name: file[name] for name in file.files}
    except (ValueError, OSError, EOFError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path}: not a readable .npz file of arrays ({error}); fetch it again") from error
    weights = {name.removeprefix("weight/"): array for name, array in arrays.items() if name.startswith("weight/")}
    return weights or arrays


def read_ours(path: Path) -> Loaded:
    """Weights of ours as they are."""
    weights, metadata = read_tensors(weights_file(path))
    return weights, metadata, ()


def convert_file(args: argparse.Namespace) -> Loaded:
    """The public weights of --input converted; ValueError names the file."""
    weights = read_weights(args.input)
    try:
        converted = convert(args.source, weights, class_token=args.class_token)
    except ValueError as error:
        raise ValueError(f"{args.input}: {error}") from error
    metadata = {"source": args.source}
    if converted.grid:
        metadata["position_grid"] = "{}x{}".format(*converted.grid)
    return converted.weights, metadata, converted.dropped


if __name__ == "__main__":
    sys.exit(main())
