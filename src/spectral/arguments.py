"""The options of eigensegments as arguments of the command lines that make and show them."""

import argparse

from src.spectral.options import FEATURES, SOLVERS, SpectralOptions


def add_options(parser: argparse.ArgumentParser) -> None:
    """One argument for each field of SpectralOptions, and for the network that gives the features."""
    parser.add_argument(
        "--features", choices=FEATURES, default="color",
        help="what tells nodes apart (default color: no network); keys need a Vision Transformer",
    )  # fmt: skip
    parser.add_argument("--weights", metavar="PATH", help="pretrained backbone (default: model.pretrained)")
    parser.add_argument("--allow-finetuned", action="store_true", help="accept weights that were trained on masks")
    parser.add_argument("--patch", type=int, default=16, metavar="PX", help="pixels along a node (16)")
    parser.add_argument(
        "--color-weight", type=float, metavar="X", help="factor of the colour graph (0 with dino_k, else 10)"
    )
    parser.add_argument("--num-eigenvectors", type=int, default=5, metavar="K", help="without the trivial one (5)")
    parser.add_argument("--keep-trivial", action="store_true", help="count and keep the constant one, as the release")
    parser.add_argument("--plain", action="store_true", help="the Laplacian D - W without its normalisation")
    parser.add_argument("--center", action="store_true", help="subtract the mean feature of each image first")
    parser.add_argument("--no-threshold", action="store_true", help="keep negative cosines; there must be none")
    parser.add_argument("--solver", choices=SOLVERS, default="lanczos", help="tried first (lanczos)")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of the solver's start (0)")


def options_of(args: argparse.Namespace) -> SpectralOptions:
    """The options that the arguments give; ValueError for those that do not go together."""
    if args.features == "color" and (args.weights or args.allow_finetuned):
        raise ValueError("--features color takes no network: leave --weights and --allow-finetuned out")
    return SpectralOptions(
        features=args.features, patch=args.patch, color_weight=args.color_weight, normalise=not args.plain,
        threshold=not args.no_threshold, center=args.center, num_eigenvectors=args.num_eigenvectors,
        skip_trivial=not args.keep_trivial, solver=args.solver, seed=args.seed,
    )  # fmt: skip
