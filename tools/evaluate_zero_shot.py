"""Scores of classes that training did not see, for every fusion with eigensegments, as Markdown and JSON.

python tools/evaluate_zero_shot.py --config FILE --checkpoint RUN --output FILE.md
    [--fusion none,project,select,regions,oracle --cache FOLDER] [key=value ...]

The config is that of the training: data.unseen says which classes it left out, and here all are predicted together. For
pascal_5i and coco_20i with data.options.samples=pairs the class of each pair is given, and its mask predicted
(tools/mean_of_folds.py makes the mean over the folds). FOLDER holds what tools/compute_segments.py made, with its
settings. Of a run's folder the last checkpoint is taken; for the best one name RUN/checkpoints/best. FILE_<fusion>.json
hold the IoU of every class for tools/analyse_gains.py.
"""

import json
import math
import sys
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # so that the script runs from any folder

from src import cli, distributed  # noqa: E402
from src.class_text import loader_of  # noqa: E402
from src.config import Config, format_config, load_config_with_sources  # noqa: E402
from src.constants import IGNORE  # noqa: E402
from src.data import create_eval_samples, load_classes  # noqa: E402
from src.engine.checkpoint import FOLDER  # noqa: E402
from src.engine.checkpoint_files import BEST, LATEST, STATE  # noqa: E402
from src.engine.evaluator import read_ahead  # noqa: E402
from src.engine.graphs import NetworkLogits  # noqa: E402
from src.engine.inference import predict_scores  # noqa: E402
from src.engine.weights import require_classes  # noqa: E402
from src.fused import asked_counts, calibrate, chance_counts, class_counts, overlaps_of, softmax  # noqa: E402
from src.log import progress  # noqa: E402
from src.models import create_model  # noqa: E402
from src.spectral.cache import Cache, Job, load_or_make, open_cache, require_entries  # noqa: E402
from src.spectral.fusion import KINDS, NEED_LABEL, describe  # noqa: E402
from src.spectral.segments import Segments  # noqa: E402
from src.zero_shot import binary_scores, split_scores  # noqa: E402

CHANCE, SHUFFLED = "chance", "none, unseen names changed about"
PAIRS, TOGETHER = "one class at a time", "all classes together"
BACKGROUND = 0  # of one class at a time: all else


def main() -> None:
    """Reads the command line, evaluates, writes the table."""
    parser = cli.config_parser(__doc__.splitlines()[0])
    parser.add_argument("--checkpoint", metavar="PATH", help="run folder (its last), checkpoint, or weights file")
    parser.add_argument("--output", metavar="FILE.md", help="table; the same as .json beside it")
    parser.add_argument("--fusion", default="none", metavar="KIND,...", help=f"of {', '.join(KINDS)} (none)")
    parser.add_argument("--cache", metavar="FOLDER", help="of compute_segments.py, for every fusion but none")
    parser.add_argument(
        "--calibration", default="0", metavar="X,...", help="off the logits of seen classes, besides 0"
    )
    parser.add_argument("--images", type=cli.positive, metavar="N", help="the first N samples only")
    args = parser.parse_intermixed_args()
    config, sources = load_config_with_sources(args.config, args.overrides)
    if args.print_config:
        print(format_config(config, sources))
        return
    missing = [f"--{name}" for name in ("checkpoint", "output") if getattr(args, name) is None]
    if missing:
        parser.error(f"the following arguments are required: {', '.join(missing)}")
    kinds = tuple(kind.strip() for kind in args.fusion.split(","))
    for kind in kinds:
        describe(kind)
    if set(kinds) != {"none"} and not args.cache:
        parser.error("fusions need --cache, the folder of tools/compute_segments.py")
    output = cli.writable(args.output)
    distributed.setup(config.device.target, config.device.mode)
    report = evaluate(config, args, kinds, open_cache(Path(args.cache)) if args.cache else None)
    output.with_suffix(".json").write_text(json.dumps(report, indent=1), encoding="utf-8")
    write_class_scores(report, output)
    output.write_text(to_markdown(report), encoding="utf-8")
    print(to_markdown(report))


def evaluate(config: Config, args, kinds: Sequence[str], cache: Cache | None) -> dict:
    """Everything that is reported, as plain values."""
    trained, whole = load_classes(config.data), config.data.model_copy(update={"unseen": ()})
    classes, samples = load_classes(whole), create_eval_samples(whole)
    pairs = any(getattr(item, "category", None) is not None for item in samples.items)
    if not pairs and not config.data.unseen:
        raise ValueError("data.unseen is empty: name what training left out, or use data.options.samples=pairs")
    place, facts = find_checkpoint(Path(args.checkpoint))
    file, fill = loader_of(config.model, place, classes.names, not pairs)
    require_classes(file, trained.names)
    total = min(len(samples), args.images or len(samples))
    names = [f"{config.data.val_split}/{item.name}" for item in samples.items[:total]]
    if cache:
        require_entries(cache, names)
    unseen = [classes.names.index(name) for name in config.data.unseen]
    tally = Tally(kinds, (0.0,) if pairs else read_numbers(args.calibration), len(classes), unseen)
    make = NetworkLogits(partial(create_model, config.model, len(classes)), fill)
    single = config.eval.scales == (1.0,) and not config.eval.flip  # then scores are logits, else shares
    if pairs and not single:
        raise ValueError("one class at a time needs eval.scales=[1.0] and eval.flip=false, whose scores are logits")
    with progress(total, "evaluate") as advance:
        for name, (_, sample) in zip(names, read_ahead(samples), strict=False):
            scores = predict_scores(sample["image"], config.eval, make)
            segments = load_or_make(cache, Job(name, sample["image"], None)) if cache else None
            if pairs:
                tally.add_pair(scores, segments, sample)
            else:
                tally.add(softmax(scores) if single else scores, segments, sample)
            advance()
    hidden = tally.asked() if pairs else unseen
    return {
        "config": args.config, **facts, "protocol": PAIRS if pairs else TOGETHER, "samples": total,
        "unseen": [classes.names[k] for k in hidden], "classes": list(classes.names),
        "cache": str(cache.folder) if cache else None, "rows": tally.pair_rows() if pairs else tally.rows(),
    }  # fmt: skip


def find_checkpoint(path: Path) -> tuple[Path, dict]:
    """The checkpoint that is meant, of a run's folder the last, and what the report says of it."""
    place = path / FOLDER / LATEST if (path / FOLDER).is_dir() else path
    folder = (place if place.is_dir() else place.parent).resolve()
    links = {"last": LATEST, "best": BEST}
    chosen = [word for word, link in links.items() if (folder.parent / link).resolve() == folder]
    state = folder / STATE
    step = json.loads(state.read_text(encoding="utf-8"))["step"] if state.is_file() else None
    return place, {"checkpoint": str(path), "step": step, "chosen": " and ".join(chosen) or None}


def read_numbers(text: str) -> tuple[float, ...]:
    """`1,2.5` -> (0.0, 1.0, 2.5): 0, the headline, is always among them."""
    try:
        numbers = [float(part) for part in text.split(",")]
        if not all(map(math.isfinite, numbers)):
            raise ValueError("not finite")
    except ValueError as error:
        raise ValueError(f"--calibration {text!r}: give finite numbers between commas, such as 0,1.5") from error
    return tuple(dict.fromkeys((0.0, *numbers)))


class Tally:
    """Counts of every kind of fusion and every calibration, added up over images.

    Args:
        kinds: of fusion.
        gammas: what is taken off the logits of the seen classes.
        num_classes: K.
        unseen: ids of classes; none where one class at a time is asked for.
    """

    def __init__(self, kinds: Sequence[str], gammas: Sequence[float], num_classes: int, unseen: Sequence[int]) -> None:
        self.unseen, self.seen = list(unseen), [k for k in range(num_classes) if k not in unseen]
        names = (*kinds, *([SHUFFLED] if len(unseen) > 1 else []))
        # What the label chooses need not be calibrated.
        rows = [(name, gamma) for gamma in gammas for name in names if gamma == gammas[0] or name not in NEED_LABEL]
        self.counts = {row: np.zeros((num_classes, 2, 2), np.int64) for row in rows}
        self.pixels, self.images = np.zeros(num_classes, np.int64), 0

    def add(self, shares: np.ndarray, segments: Segments | None, sample: Mapping[str, np.ndarray]) -> None:
        """Adds an image that all classes were predicted of: shares (K, H, W)."""
        label = sample["label"]
        self.pixels += np.bincount(label[label != IGNORE], minlength=len(shares))
        for (name, gamma), counts in self.counts.items():
            weighed = calibrate(shares, self.seen, gamma)
            if name == SHUFFLED:
                places = np.roll(self.unseen, 1 + self.images % (len(self.unseen) - 1))  # each name elsewhere
                weighed[self.unseen] = weighed[places]
            counts += class_counts("none" if name == SHUFFLED else name, weighed, segments, label)
        self.images += 1

    def add_pair(self, logits: np.ndarray, segments: Segments | None, sample: Mapping[str, np.ndarray]) -> None:
        """Adds a pair of image and class: the class against what stands for all else; logits (K, H, W)."""
        asked = int(sample["category"])
        share = softmax(logits[[BACKGROUND, asked]])[1]
        truth = np.where(sample["label"] == IGNORE, IGNORE, sample["label"] == asked)
        for (name, _), counts in self.counts.items():
            counts[asked] += asked_counts(name, share, segments, truth)

    def rows(self) -> list[dict]:
        """Chance, then every fusion: seen, unseen, harmonic mean, FB-IoU of the unseen, IoU of every class."""
        found = []
        for (name, gamma), counts in {(CHANCE, 0.0): chance_counts(self.pixels), **self.counts}.items():
            overlaps = overlaps_of(counts)
            found.append({
                **flags_of(name), "calibration": gamma, **split_scores(overlaps, self.unseen),
                "fb_iou": binary_scores(counts[self.unseen])["fb_iou"],
                "iou": plain(overlaps),
            })  # fmt: skip
        return found

    def asked(self) -> list[int]:
        """The classes of the pairs."""
        return [k for k, counts in enumerate(next(iter(self.counts.values()))) if counts.any()]

    def pair_rows(self) -> list[dict]:
        """mIoU and FB-IoU over the classes that were asked for, and the IoU of each, of every fusion."""
        asked, found = self.asked(), []
        for (name, _), counts in self.counts.items():
            overlaps = plain(overlaps_of(counts))
            found.append({
                **flags_of(name), **binary_scores(counts[asked]),
                "iou": [overlap if k in asked else None for k, overlap in enumerate(overlaps)],
            })  # fmt: skip
        return found


def plain(overlaps: np.ndarray) -> list[float | None]:
    """IoUs (K,) for JSON, which knows no NaN."""
    return [None if np.isnan(overlap) else float(overlap) for overlap in overlaps]


def write_class_scores(report: Mapping, output: Path) -> None:
    """Writes FILE_<fusion>.json of every fusion without calibration, for tools/analyse_gains.py."""
    for row in report["rows"]:
        if row["fusion"] in KINDS and row.get("calibration", 0.0) == 0.0:
            classes = [{"name": name, "iou": iou} for name, iou in zip(report["classes"], row["iou"], strict=True)]
            facts = {key: row[key] for key in ("fusion", "uses_ground_truth")}
            facts |= {"unseen": report["unseen"], "classes": classes}
            file = output.with_name(f"{output.stem}_{row['fusion']}.json")
            file.write_text(json.dumps(facts, indent=1), encoding="utf-8")


def flags_of(name: str) -> dict:
    """What every row says of itself."""
    return describe(name) if name in KINDS else {"fusion": name, "uses_ground_truth": False}


def title(row: Mapping) -> str:
    """A row's name for people."""
    gamma = row.get("calibration", 0.0)
    name = f"{row['fusion']} (ground truth)" if row["uses_ground_truth"] else row["fusion"]
    return f"{name}, calibration {gamma:g}" if gamma else name


def to_markdown(report: dict) -> str:
    """The report as tables: scores of every fusion, then the IoU of every class."""
    lines = [
        f"# {report['protocol']}: {report['config']}", "",
        f"Checkpoint {report['checkpoint']} (" + ", ".join(
            ([] if report["step"] is None else [f"step {report['step']}"]) + [report["chosen"] or "as named"]
        ) + f"), {report['samples']} samples"
        + (f"; unseen: {', '.join(report['unseen'])}" if report["unseen"] else "") + ".",
        f"Eigensegments: {report['cache']}." if report["cache"] else "No eigensegments.",
        "Where a row uses the ground truth, the label chose the best mask of each image: no prediction, no headline.",
        "",
    ]  # fmt: skip
    lines += score_table(report["rows"])
    shown = report["unseen"] if report["protocol"] == PAIRS else report["classes"]
    marked = [f"{name} (unseen)" if name in report["unseen"] else name for name in shown]
    places = [report["classes"].index(name) for name in shown]
    rows = [[title(row), *(number(row["iou"][k]) for k in places)] for row in report["rows"]]
    lines += ["", *table(["IoU", *marked], rows)]
    return "\n".join([*lines, ""])


def score_table(rows: Sequence[Mapping]) -> list[str]:
    """Lines of a table of the scores of every row, and whether it used the ground truth."""
    fb_iou = "FB-IoU" if "miou" in rows[0] else "FB-IoU of the unseen"
    titles = {"seen": "seen", "unseen": "unseen", "hiou": "hIoU", "miou": "mIoU", "fb_iou": fb_iou}
    scores = [key for key in titles if key in rows[0]]
    return table(
        ["fusion", *(titles[key] for key in scores), "uses ground truth"],
        [[title(row), *(number(row.get(key)) for key in scores), "**yes**" if row["uses_ground_truth"] else "no"]
         for row in rows],
    )  # fmt: skip


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines of a Markdown table."""
    return ["| " + " | ".join(row) + " |" for row in (head, ["---"] * len(head), *rows)]


def number(value: float | None) -> str:
    """Four digits; a dash for a score that does not exist."""
    return "-" if value is None else f"{value:.4f}"


if __name__ == "__main__":
    cli.run(main)
