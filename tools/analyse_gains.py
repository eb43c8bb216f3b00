"""Which classes gain by fusion: a row a class, and how the gain goes with compactness and locality, as CSV and PNG.

python tools/analyse_gains.py --config FILE --before X_none.json --after X_select.json --output FOLDER

The config is that of the training, the two files are those that tools/evaluate_zero_shot.py writes beside its table.
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
from src.analysis.gains import ORACLE_NOTE, ClassGain, correlations, draw_report, write_report  # noqa: E402
from src.analysis.locality import knn, nearest_seen  # noqa: E402
from src.class_text import find_table  # noqa: E402
from src.config import Config, DataConfig, format_config, load_config_with_sources  # noqa: E402
from src.data import load_classes, load_items  # noqa: E402
from src.data.reading import read_item  # noqa: E402
from src.log import progress  # noqa: E402
from src.spectral.fusion import KINDS, NEED_LABEL, describe  # noqa: E402
from src.text.names import find_name  # noqa: E402
from src.text.tables import read_table, rows_of  # noqa: E402

REQUIRED = ("before", "after", "output")
BACKGROUND = "background"  # of the folds: all else, which is no neighbour of a class


def main() -> None:
    """Reads the command line, measures, writes gains.csv and gains.png."""
    parser = cli.config_parser(__doc__.splitlines()[0])
    parser.add_argument("--before", metavar="FILE.json", help="scores without fusion")
    parser.add_argument("--after", metavar="FILE.json", help="scores with fusion")
    parser.add_argument("--fusion", choices=[kind for kind in KINDS if kind != "none"], help="where no file says it")
    parser.add_argument("--table", metavar="FILE", help="text embeddings of the classes (default: model.text.table)")
    parser.add_argument("--unseen", metavar="NAME,...", help="classes that training did not see (default: as scored)")
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
    before, after = (read_scores(Path(file)) for file in (args.before, args.after))
    fusion = fusion_of(args, before, after)
    rows, uses_label = class_rows(config, args, before, after), describe(fusion)["uses_ground_truth"]
    write_report(files[0], rows, fusion, uses_label, args.seed)
    draw_report(files[1], rows, fusion, uses_label, args.seed)
    print(f"fusion: {fusion}; uses_ground_truth: {str(uses_label).lower()}")
    if uses_label:
        print(f"{fusion} {ORACLE_NOTE}")
    for factor, (value, p) in correlations(rows, args.seed).items():
        print(f"gain with {factor}: Spearman {value:.3f}, p {p:.3f}")
    print(*files, sep="\n")


def read_scores(file: Path) -> dict:
    """The scores of an evaluation: `classes`, and where it says so `fusion`, `uses_ground_truth` and `unseen`."""
    try:
        scores = json.loads(file.read_text(encoding="utf-8"))
        overlaps = {row["name"]: math.nan if row["iou"] is None else float(row["iou"]) for row in scores["classes"]}
        return {**scores, "file": file, "classes": overlaps}
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{file} holds no scores ({error!r}); give FILE_<fusion>.json of tools/evaluate_zero_shot.py"
        ) from error


def fusion_of(args, before: dict, after: dict) -> str:
    """The fusion that the scores are of; ValueError where files and --fusion contradict each other."""
    if before.get("fusion", "none") != "none" or before.get("uses_ground_truth"):
        raise ValueError(f"--before {before['file']} has scores of fusion {before.get('fusion')}; give those of none")
    told, asked = after.get("fusion"), args.fusion
    if told is None and asked is None:
        raise ValueError(f"{after['file']} does not say of which fusion its scores are: give --fusion")
    if told is not None and asked is not None and told != asked:
        raise ValueError(f"--fusion {asked}, but {after['file']} has scores of {told}; leave --fusion out")
    fusion = told or asked
    if fusion == "none":
        raise ValueError(f"--after {after['file']} has scores of fusion none; give those of another")
    if describe(fusion)["uses_ground_truth"] != after.get("uses_ground_truth", fusion in NEED_LABEL):
        raise ValueError(f"{after['file']}: uses_ground_truth contradicts its fusion {fusion}; evaluate again")
    return fusion


def class_rows(config: Config, args, before: dict, after: dict) -> list[ClassGain]:
    """A row for each class of the data set."""
    data = config.data.model_copy(update={"unseen": ()})  # scores are of all classes
    names = load_classes(data).names
    for scores in (before, after):
        if tuple(scores["classes"]) != names:
            found = ", ".join(scores["classes"])
            raise ValueError(f"{scores['file']} has scores of {found}; the config's data set has {', '.join(names)}")
    told = after.get("unseen", config.data.unseen)
    wanted = told if args.unseen is None else [name.strip() for name in args.unseen.split(",")]
    unseen = [find_name(name, names) for name in wanted]
    if not unseen or None in unseen or len(set(unseen)) == len(names):
        raise ValueError(f"--unseen {','.join(wanted)}: need some, not all, of {', '.join(names)}")
    text = config.model.text
    if args.table is None and text is None:
        raise ValueError("the config has no model.text.table: give --table, text embeddings of the classes")
    table = find_table(args.table or text.table)
    spelt = [name if text is None else text.names.get(name, name) for name in names]
    vectors = rows_of(read_table(table), spelt, str(table))
    others = [k for k, name in enumerate(names) if name == BACKGROUND]
    locality = knn(vectors, args.neighbours) if args.neighbours else nearest_seen(vectors, unseen + others)
    shapes, images = mean_compactness(data, len(names), args.compactness)
    hidden = [k in unseen for k in range(len(names))]
    columns = (names, before["classes"].values(), after["classes"].values(), shapes, locality, images, hidden)
    return [ClassGain(*row) for row in zip(*columns, strict=True)]


def mean_compactness(data: DataConfig, num_classes: int, kind: str) -> tuple[list[float], list[int]]:
    """Per class the mean over the evaluation's labels, NaN without any, and the number of images that show it."""
    items, table = load_items(data, data.val_split), load_classes(data).table
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
