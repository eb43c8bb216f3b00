"""Which classes gain by fusion: a row a class, and how the gain goes with compactness and locality, as CSV and PNG.

python tools/analyse_gains.py --config FILE --before none.json --after select.json --fusion select --table FILE
    --unseen car,fence --output FOLDER
"""

import json
import math
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # so that the script runs from any folder

from src import cli  # noqa: E402
from src.analysis import compactness  # noqa: E402
from src.analysis.compactness import class_compactness  # noqa: E402
from src.analysis.gains import ClassGain, correlations, draw_report, write_report  # noqa: E402
from src.analysis.locality import knn, nearest_seen  # noqa: E402
from src.config import Config, format_config, load_config_with_sources  # noqa: E402
from src.data import load_classes, load_items  # noqa: E402
from src.data.reading import read_item  # noqa: E402
from src.log import progress  # noqa: E402
from src.spectral.fusion import KINDS, describe  # noqa: E402
from src.text.names import find_name  # noqa: E402
from src.text.tables import read_table, rows_of  # noqa: E402

REQUIRED = ("before", "after", "fusion", "table", "unseen", "output")


def main() -> None:
    """Reads the command line, measures, writes gains.csv and gains.png."""
    parser = cli.config_parser(__doc__.splitlines()[0])
    parser.add_argument("--before", metavar="FILE.json", help="scores that eval.py wrote without fusion")
    parser.add_argument("--after", metavar="FILE.json", help="scores with fusion")
    parser.add_argument("--fusion", choices=[kind for kind in KINDS if kind != "none"], help="which fusion that was")
    parser.add_argument("--table", metavar="FILE", help="text embeddings of the classes, .npz or a public .npy")
    parser.add_argument("--unseen", metavar="NAME,...", help="classes that training did not see")
    parser.add_argument("--output", metavar="FOLDER", help="for gains.csv and gains.png")
    parser.add_argument("--compactness", choices=compactness.KINDS, default="polsby", help="measure of masks (polsby)")
    parser.add_argument(
        "--neighbours", type=int, metavar="K",
        help="locality is the mean cosine with the K nearest classes (default: cosine with the nearest seen one)",
    )  # fmt: skip
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of the permutations (0)")
    args = parser.parse_intermixed_args()
    config, sources = load_config_with_sources(args.config, args.overrides)
    if args.print_config:
        print(format_config(config, sources))
        return
    missing = [f"--{name}" for name in REQUIRED if getattr(args, name) is None]
    if missing:
        parser.error(f"the following arguments are required: {', '.join(missing)}")
    files = [cli.writable(str(Path(args.output) / f"gains{suffix}")) for suffix in (".csv", ".png")]
    rows, uses_label = class_rows(config, args), describe(args.fusion)["uses_ground_truth"]
    write_report(files[0], rows, args.fusion, uses_label, args.seed)
    draw_report(files[1], rows, args.fusion, uses_label, args.seed)
    for factor, (value, p) in correlations(rows, args.seed).items():
        print(f"gain with {factor}: Spearman {value:.3f}, p {p:.3f}")
    print(*files, sep="\n")


def class_rows(config: Config, args) -> list[ClassGain]:
    """A row for each class of the data set."""
    names = load_classes(config.data).names
    before, after = (read_scores(Path(file), names) for file in (args.before, args.after))
    wanted = [name.strip() for name in args.unseen.split(",")]
    unseen = [find_name(name, names) for name in wanted]
    if None in unseen or len(set(unseen)) == len(names):
        raise ValueError(f"--unseen {args.unseen}: need some, not all, of {', '.join(names)}")
    vectors = rows_of(read_table(Path(args.table)), names, args.table)
    locality = knn(vectors, args.neighbours) if args.neighbours else nearest_seen(vectors, unseen)
    shapes, images = mean_compactness(config, len(names), args.compactness)
    return [ClassGain(*row) for row in zip(names, before, after, shapes, locality, images, strict=True)]


def read_scores(file: Path, names: tuple[str, ...]) -> list[float]:
    """IoU of each class from the summary of an evaluation, NaN for absent ones; ValueError for other classes."""
    try:
        rows = json.loads(file.read_text(encoding="utf-8"))["classes"]
        scores = {row["name"]: row["iou"] for row in rows}
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{file} holds no scores ({error!r}); give what eval.py --output wrote") from error
    if tuple(scores) != tuple(names):
        raise ValueError(f"{file} has scores of {', '.join(scores)}; the data set of the config has {', '.join(names)}")
    return [math.nan if score is None else score for score in scores.values()]


def mean_compactness(config: Config, num_classes: int, kind: str) -> tuple[list[float], list[int]]:
    """Per class the mean over the evaluation's labels, NaN without any, and the number of images that show it."""
    items, table = load_items(config.data, config.data.val_split), load_classes(config.data).table
    sums, counts = np.zeros(num_classes), np.zeros(num_classes, int)
    with progress(len(items), "compactness") as advance:
        for item in items:
            found = class_compactness(read_item(item, table)["label"], num_classes, kind)
            counts += ~np.isnan(found)
            sums += np.nan_to_num(found)
            advance()
    means = np.divide(sums, counts, out=np.full(num_classes, np.nan), where=counts > 0)
    return means.tolist(), counts.tolist()


if __name__ == "__main__":
    cli.run(main)
