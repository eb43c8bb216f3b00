"""The mean of the scores of several folds, from the .json files of tools/evaluate_zero_shot.py.

python tools/mean_of_folds.py fold0.json fold1.json fold2.json fold3.json --output FILE.md
"""

import argparse
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # so that the script runs from any folder

from src import cli  # noqa: E402
from src.zero_shot import mean_of_folds  # noqa: E402
from tools.evaluate_zero_shot import score_table  # noqa: E402

SCORES = ("seen", "unseen", "hiou", "miou", "fb_iou")


def main() -> None:
    """Reads the command line, writes the table and the same as .json beside it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE.json", help="reports, one a fold")
    parser.add_argument("--output", required=True, metavar="FILE.md", help="table; the same as .json beside it")
    args = parser.parse_args()
    output = cli.writable(args.output)
    report = {"folds": [str(file) for file in args.files], "rows": mean_rows(args.files)}
    output.with_suffix(".json").write_text(json.dumps(report, indent=1), encoding="utf-8")
    output.write_text(to_table(report), encoding="utf-8")
    print(to_table(report))


def mean_rows(files: list[Path]) -> list[dict]:
    """A row a fusion; ValueError for files without scores, of different fusions, and one fold twice."""
    reports = [read_report(file) for file in files]
    keys = [[(row["fusion"], row.get("calibration", 0.0)) for row in report["rows"]] for report in reports]
    for file, report, found in zip(files, reports, keys, strict=True):
        if (report["protocol"], found) != (reports[0]["protocol"], keys[0]):
            kinds, wanted = (", ".join(kind for kind, _ in names) for names in (found, keys[0]))
            raise ValueError(f"{file}: {report['protocol']}, rows {kinds}, those of {files[0]} are {wanted}")
    hidden = [frozenset(report["unseen"]) for report in reports]
    if len(set(hidden)) < len(hidden):
        raise ValueError("two files have the same unseen classes; give every fold once")
    rows = []
    for same in zip(*(report["rows"] for report in reports), strict=True):
        flags = {key: value for key, value in same[0].items() if key in ("fusion", "uses_ground_truth", "calibration")}
        known = [key for key in SCORES if all(isinstance(row.get(key), float) for row in same)]
        rows.append({**flags, **mean_of_folds([{key: row[key] for key in known} for row in same])})
    return rows


def read_report(file: Path) -> dict:
    """What evaluate_zero_shot.py wrote."""
    try:
        report = json.loads(file.read_text(encoding="utf-8"))
        return {key: report[key] for key in ("protocol", "unseen", "rows")}
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{file} holds no scores ({error!r}); give those of tools/evaluate_zero_shot.py") from error


def to_table(report: dict) -> str:
    """The report as Markdown."""
    return "\n".join([f"# Mean of {len(report['folds'])} folds", "", *score_table(report["rows"]), ""])


if __name__ == "__main__":
    cli.run(main)
