"""Makes the eigensegments of a split's images and stores them, in several processes; what is stored is kept.

python tools/compute_segments.py --config FILE --cache FOLDER [--split val] [--features color] [key=value ...]

The files lie in FOLDER/<hash of the settings and weights>/<image>.npz; settings.json there says what the hash stands
for. Two runs give the same bytes.
"""

import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # so that the script runs from any folder

from src import cli  # noqa: E402
from src.config import Config, format_config, load_config_with_sources  # noqa: E402
from src.log import get_console  # noqa: E402
from src.spectral.arguments import add_options, options_of  # noqa: E402
from src.spectral.cache import Cache, Job, make_all  # noqa: E402
from src.spectral.options import SpectralOptions  # noqa: E402


def main() -> None:
    """Reads the command line, makes what is missing, says what was made."""
    parser = cli.config_parser(__doc__.splitlines()[0])
    parser.add_argument("--cache", metavar="FOLDER", help="where the eigensegments go")
    parser.add_argument("--split", default="val", help="train, val or another split of the data (val)")
    parser.add_argument("--images", type=cli.positive, metavar="N", help="the first N images only")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, metavar="N", help="processes (one a core)")
    add_options(parser)
    args = parser.parse_intermixed_args()
    config, sources = load_config_with_sources(args.config, args.overrides)
    if args.print_config:
        print(format_config(config, sources))
        return
    if not args.cache:
        parser.error("the following arguments are required: --cache")
    options = options_of(args)
    features, network = feature_maker(config, args.weights, options, args.allow_finetuned)
    cache = Cache(Path(args.cache), options, network)
    made, total, residual = compute(config, cache, features, args.split, args.images, args.workers)
    get_console().print(
        f"{cache.folder}: {made} made, {total - made} there already, largest residual {residual:.1e}", soft_wrap=True
    )


def feature_maker(config: Config, weights: str | None, options: SpectralOptions, allow_finetuned: bool) -> tuple:
    """(what makes the features of an image, or None; facts of its network)."""
    if options.features == "color":
        return None, {}
    source = weights or config.model.pretrained
    if not source:
        raise ValueError(f"--features {options.features} needs pretrained weights: --weights PATH or model.pretrained")
    # Here, not above: the processes import this file, too, and need no network.
    from src import distributed
    from src.spectral_features import FeatureMaker

    distributed.setup(config.device.target, config.device.mode)
    maker = FeatureMaker(config.model, source, options, allow_finetuned)
    return maker, maker.facts


def compute(config: Config, cache: Cache, features, split: str, images: int | None, workers: int) -> tuple:
    """Makes the segments of the first images of a split: (how many were made, of how many, largest residual)."""
    from src.data import load_classes, load_items
    from src.data.reading import read_item

    items, table = load_items(config.data, split), load_classes(config.data).table
    total = len(items) if images is None else min(images, len(items))
    jobs = (Job(f"{split}/{item.name}", read_item(item, table)["image"], features) for item in items[:total])
    made, residual = make_all(cache, jobs, total, workers)
    return made, total, residual


if __name__ == "__main__":
    cli.run(main)
