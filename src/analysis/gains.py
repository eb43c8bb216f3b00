"""Which classes gain by shape: one row a class, correlations with their p-values, as CSV and as a picture."""

import csv
import math
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from matplotlib.figure import Figure
from scipy.stats import rankdata

PERMUTATIONS = 10_000
FACTORS = ("compactness", "locality")
ORACLE_NOTE = "uses the ground truth: the label chose the best mask of every image; no method's scores"


class ClassGain(NamedTuple):
    """IoU without and with fusion; compactness of the masks; locality in text space; images that show the class; and
    whether training did not see it.
    """

    name: str
    before: float
    after: float
    compactness: float
    locality: float
    images: int
    unseen: bool = False

    @property
    def gain(self) -> float:
        return self.after - self.before


def spearman(first: Sequence[float], second: Sequence[float]) -> float:
    """Correlation of ranks, ties sharing their mean rank; NaN where one of them is constant."""
    ranks = [rankdata(values) - (len(values) + 1) / 2 for values in (first, second)]
    length = np.sqrt((ranks[0] @ ranks[0]) * (ranks[1] @ ranks[1]))
    return float(ranks[0] @ ranks[1] / length) if length > 0 else math.nan


def permutation_test(
    first: Sequence[float], second: Sequence[float], seed: int = 0, permutations: int = PERMUTATIONS
) -> tuple[float, float]:
    """Spearman's correlation and its two-sided p: the share of permutations, itself among them, that are as far from 0.

    Both are NaN where a variable is constant. Raises ValueError for different lengths and fewer than three values.
    """
    if len(first) != len(second) or len(first) < 3:
        raise ValueError(f"a correlation of {len(first)} with {len(second)} values: need as many, at least 3")
    found = spearman(first, second)
    if math.isnan(found):
        return math.nan, math.nan
    ranks = [rankdata(values) - (len(values) + 1) / 2 for values in (first, second)]
    length = np.sqrt((ranks[0] @ ranks[0]) * (ranks[1] @ ranks[1]))
    shuffled = np.random.default_rng(seed).permuted(np.tile(ranks[1], (permutations, 1)), axis=1)
    extreme = np.abs(shuffled @ ranks[0] / length) >= abs(found) - 1e-12
    return found, float((1 + extreme.sum()) / (1 + permutations))


def correlations(rows: Sequence[ClassGain], seed: int = 0) -> dict[str, tuple[float, float]]:
    """(correlation, p) of the gain with every factor, over the classes whose values are all known."""
    found = {}
    for factor in FACTORS:
        pairs = [(row.gain, getattr(row, factor)) for row in rows]
        known = [pair for pair in pairs if not any(map(math.isnan, pair))]
        found[factor] = permutation_test(*zip(*known, strict=True), seed=seed) if len(known) > 2 else (math.nan,) * 2
    return found


def write_report(file: Path, rows: Sequence[ClassGain], fusion: str, uses_ground_truth: bool, seed: int = 0) -> None:
    """The CSV: lines with # say what was compared and correlates; then one row a class, unknown values empty."""
    lines = [f"# fusion: {fusion}; uses_ground_truth: {str(uses_ground_truth).lower()}"]
    lines += [f"# {fusion} {ORACLE_NOTE}"] if uses_ground_truth else []
    for factor, (value, p) in correlations(rows, seed).items():
        test = f"p {p:.4f} ({PERMUTATIONS} permutations, seed {seed})"
        lines.append(f"# Spearman of gain with {factor}: {value:.4f}, {test}")
    with file.open("w", newline="", encoding="utf-8") as out:
        out.write("\n".join(lines) + "\n")
        table = csv.writer(out, lineterminator="\n")
        table.writerow(["class", "iou_none", f"iou_{fusion}", "gain", *FACTORS, "images", "unseen"])
        for row in rows:
            numbers = (row.before, row.after, row.gain, row.compactness, row.locality)
            texts = ("" if math.isnan(x) else f"{x:.6f}" for x in numbers)
            table.writerow([row.name, *texts, row.images, int(row.unseen)])


def draw_report(file: Path, rows: Sequence[ClassGain], fusion: str, uses_ground_truth: bool, seed: int = 0) -> None:
    """The picture: gain over each factor, a dot a class, a square an unseen one, with the correlation above."""
    figure = Figure(figsize=(11, 4.5), layout="constrained")
    panels = figure.subplots(1, len(FACTORS))
    found = correlations(rows, seed)
    for panel, factor in zip(panels, FACTORS, strict=True):
        panel.axhline(0, color="grey", linewidth=0.8)
        for row in rows:
            place = (getattr(row, factor), row.gain)
            panel.plot(*place, "s" if row.unseen else "o", color="#d55e00" if row.unseen else "#0072b2")
            panel.annotate(row.name, place, textcoords="offset points", xytext=(4, 3), fontsize=8)
        panel.set(xlabel=factor, ylabel=f"gain in IoU, {fusion} over none")
        panel.set_title("Spearman {:.2f}, p {:.3f}".format(*found[factor]), loc="left", fontsize=10)
        panel.spines[["top", "right"]].set_visible(False)
    if any(row.unseen for row in rows):
        figure.supxlabel("square: a class that training did not see", fontsize=9)
    if uses_ground_truth:
        figure.suptitle(f"{fusion} {ORACLE_NOTE}", fontsize=9)
    figure.savefig(file, dpi=120)
