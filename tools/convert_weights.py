"""Converts weights to a .safetensors or .ckpt file of ours, name by name, or lists everything that does not fit."""

import argparse
import json
import re
import sys
import zipfile
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # so that the script runs from any folder

from src.engine.torch_files import read_pth  # noqa: E402
from src.engine.weights import CKPT, MISSING, SAFETENSORS, read_tensors, weights_file, write_weights  # noqa: E402
from src.models.conversion import convert, resize  # noqa: E402
from src.models.conversion_matching import Converted  # noqa: E402
from src.models.conversion_names import IGNORED, SOURCES, SWINS, VIT_EXTRAS  # noqa: E402

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
  deit_vit         the same of DeiT, with or without distillation; left out besides: dist_token and its position
  augreg_vit       the same of AugReg, the .npz of JAX: kernels are turned, queries, keys and values joined
  dino_vit         the same of DINO, names with or without module. and backbone.
  mae_vit          the same of MAE, pretrained or tuned; left out besides: decoder_*, mask_token, fc_norm.*
  swin             the official Swin Transformer, or a network on it; its patch merging is put into our order; left
                   out: norm.*, head.*, heads of mmsegmentation, constants. Norms of stages start fresh where absent.
  mm_swin          the same under mmsegmentation's names, alone or under backbone., whose patch merging is ours
  resnet           a ResNet under torchvision's names, with either kind of block and one or three convolutions in the
                   stem; left out: fc.*, counters
  resnet_bgr       the same, trained on images in the order B, G, R (CSAIL's): its first convolution is turned to RGB
  alignseg         the authors' AlignSeg, backbone and head; B, G, R as above; the norms' |gamma| + 1e-5 becomes gamma.
                   It needs model.head.sampler=legacy.
  mobilenet_v2     MobileNetV2 1.0 with folded norms under torchvision's names; left out: features.18, classifier
  clip_text        CLIP's text encoder under OpenAI's names or those of transformers, for tools/encode_text.py; left
                   out: the image tower and scalars

An .npz file in which some names start with weight/ gives only these. A .pth file is read without PyTorch; anything in
it but tensors and plain containers is refused. Names in the output start with backbone. and head. (clip_text: text.),
values are float32. For a Vision Transformer the metadata keep the grid of the position embeddings. These, and the
tables of biases of a Swin's windows, are resized when a network of another size loads them, or here with --grid and
--window.
Exit code: 0 written; 1 the weights do not fit, nothing written; 2 wrong use.

examples:
  python tools/convert_weights.py --source timm_vit --input vit_tiny.npz --output weights/vit_tiny.safetensors
  python tools/convert_weights.py --source checkpoint --input output/mine --output mine.ckpt
"""

OURS = "checkpoint"  # the source that is no public one
RELEASED_FACTS = {"alignseg": {"sampler": "legacy"}}  # settings without which the weights of a source do not work
NPZ, PTH = ".npz", (".pth", ".pt")
READABLE = (NPZ, SAFETENSORS, CKPT, *PTH)


def main(arguments: list[str] | None = None) -> int:
    """Command line; returns the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--source", required=True, choices=(*SOURCES, OURS), help="whose weights, see below")
    parser.add_argument("--input", required=True, type=Path, help=f"weights, {', '.join(READABLE)}; of ours see below")
    parser.add_argument("--output", required=True, type=Path, help="file to write, .safetensors or .ckpt, replaced")
    parser.add_argument("--class-token", action="store_true", help="*_vit: keep the class token and its position")
    parser.add_argument("--key", help="entry of a .pth file that holds the weights, where it has several; a.b: b in a")
    parser.add_argument(
        "--least", type=float, default=1.0, metavar="SHARE",
        help="share of the network's numbers that the file must give; 1 (default): all, and no unknown name",
    )  # fmt: skip
    parser.add_argument("--grid", type=grid, metavar="HxW", help="*_vit: resize position embeddings to these patches")
    parser.add_argument("--window", type=int, metavar="W", help="Swin: resize tables of biases to windows of this side")
    args = parser.parse_args(arguments)
    problem = misuse(args)
    if problem:
        parser.error(problem)
    try:
        weights, metadata = read_tensors(weights_file(args.input)) if args.source == OURS else convert_file(args)
        require_finite(args.input, weights)
    except (ValueError, FileNotFoundError) as error:
        print(error, file=sys.stderr)
        return 1
    write_weights(args.output, weights, metadata)
    size = sum(value.size for value in weights.values())
    print(f"{args.output}: {len(weights)} parameters, {size} values, {metadata}")
    return 0


def grid(text: str) -> tuple[int, int]:
    """32x48 -> (32, 48)."""
    found = re.fullmatch(r"([1-9]\d*)x([1-9]\d*)", text)
    if not found:
        raise argparse.ArgumentTypeError(f"{text!r} is not HEIGHTxWIDTH in patches, such as 32x32")
    return int(found[1]), int(found[2])


def misuse(args: argparse.Namespace) -> str:
    """What is wrong with the arguments; empty when nothing is."""
    if args.source == OURS and not args.input.exists():
        return f"--input {args.input}: no such file or folder"
    if args.source == OURS and args.input.is_file() and args.input.suffix not in (SAFETENSORS, CKPT):
        return (
            f"--input {args.input}: --source {OURS} is for weights that this project wrote: the folder of a run or "
            f"of a checkpoint, {SAFETENSORS} or {CKPT}; others' files take the source that tells whose they are: "
            f"{', '.join(SOURCES)}"
        )
    if args.source != OURS and args.input.suffix not in READABLE:
        return f"--input {args.input}: need a file that ends in {', '.join(READABLE[:-1])} or {READABLE[-1]}"
    if args.source != OURS and not args.input.is_file():
        return f"--input {args.input}: no such file"
    if args.output.suffix not in (SAFETENSORS, CKPT):
        return f"--output {args.output}: need a name that ends in .safetensors or .ckpt"
    if not args.output.parent.is_dir():
        return f"--output {args.output}: there is no folder {args.output.parent}; make it first"
    if args.output.resolve() == args.input.resolve():
        return f"--output {args.output}: would overwrite the input"
    return misuse_of_options(args)


def misuse_of_options(args: argparse.Namespace) -> str:
    """What is wrong with the options that not every source takes."""
    vits, swins = ", ".join(VIT_EXTRAS), f"{', '.join(SWINS)} and released_ecenet"
    if args.class_token and args.source not in VIT_EXTRAS:
        return f"--class-token: {args.source} has none, only {vits} take this flag"
    if args.grid and args.source not in VIT_EXTRAS:
        return f"--grid: {args.source} has no position embeddings, only {vits} take it"
    if args.window is not None and args.source not in (*SWINS, "released_ecenet"):
        return f"--window: {args.source} has no windows, only {swins} take it"
    if args.window is not None and args.window < 2:
        return f"--window {args.window}: need at least 2"
    if args.key and args.input.suffix not in PTH:
        return f"--key: {args.input} has no entries, only {' and '.join(PTH)} files do"
    if not 0 < args.least <= 1:
        return f"--least {args.least}: need a share above 0, up to 1"
    return ""


def read_weights(path: Path, key: str | None = None) -> dict[str, np.ndarray]:
    """Arrays by name; of an .npz with names under weight/ only these. ValueError when the file is not readable."""
    if path.suffix in PTH:
        return read_pth(path, key)
    if path.suffix != NPZ:
        return read_tensors(path)[0]
    try:
        with np.load(path) as file:
            arrays = {name: file[name] for name in file.files}
    except (ValueError, OSError, EOFError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path}: not a readable .npz file of arrays ({error}); fetch it again") from error
    weights = {name.removeprefix("weight/"): array for name, array in arrays.items() if name.startswith("weight/")}
    return weights or arrays


def convert_file(args: argparse.Namespace) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """The public weights of --input converted, and their metadata; prints the report. ValueError names the file."""
    weights = read_weights(args.input, args.key)
    try:
        converted = convert(args.source, weights, class_token=args.class_token, least=args.least)
        resized = resize(converted, args.grid, args.window)
    except ValueError as error:
        raise ValueError(f"{args.input}: {error}") from error
    print("\n".join(report(converted, resized, args.least)))
    metadata = {"source": args.source, **RELEASED_FACTS.get(args.source, {})}
    if resized.grid:
        metadata["position_grid"] = "{}x{}".format(*resized.grid)
    if resized.missing:
        metadata[MISSING] = json.dumps(resized.missing)
    return resized.weights, metadata


def require_finite(path: Path, weights: dict[str, np.ndarray]) -> None:
    """Raises ValueError that lists the tensors with NaN or infinity."""
    counts = {name: value.size - np.isfinite(value).sum() for name, value in weights.items()}
    bad = [f"{name} ({number} of {weights[name].size})" for name, number in counts.items() if number]
    if bad:
        raise ValueError(
            f"{path}: nothing was written, numbers that are NaN or infinite are in {len(bad)} tensors:\n  "
            + "\n  ".join(bad) + "\ndownload or save the file again, or take weights from before training went bad"
        )  # fmt: skip


def report(converted: Converted, resized: Converted, least: float) -> list[str]:
    """Lines that say what became of every name: as it was, turned, resized, left out, missing, unexpected."""
    changes = [
        f"{name} {value.shape} -> {resized.weights[name].shape}"
        for name, value in converted.weights.items() if value.shape != resized.weights[name].shape
    ]  # fmt: skip
    kinds = {
        "loaded": list(converted.weights), "transposed or reshaped": converted.rearranged, "resized": changes,
        "left out": converted.dropped, "missing": converted.missing, "unexpected": converted.unexpected,
    }  # fmt: skip
    lines = [f"{kind} ({len(names)}): {', '.join(names) or 'nothing'}" for kind, names in kinds.items()]
    lines[0] = f"loaded ({len(converted.weights)}): {converted.share:.1%} of the network's numbers, {least:.1%} wanted"
    return lines


if __name__ == "__main__":
    sys.exit(main())
