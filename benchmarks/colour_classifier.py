"""How far colour alone goes on the toy scenes: per-pixel classifiers that see one pixel's RGB and nothing else.

Two families, fitted on training scenes and scored on other scenes: a lookup table over quantised RGB, and the k nearest
training colours. Both estimate the class counts n_k(c) of a colour c and answer argmax_k n_k(c) / N_k^a, where N_k is
the training count of class k: a = 0 is the majority class (best accuracy), larger a favours rare classes (mIoU may
gain). The largest mIoU over all bins, k and a is the figure to state: chosen on the scored scenes, so it errs upwards.

Run from the repository root: python -m benchmarks.colour_classifier
"""

import argparse
from collections.abc import Iterable

import numpy as np
from scipy.spatial import cKDTree

from src.constants import IGNORE
from src.data.toy_scenes import TOY_CLASSES, draw_scene

BALANCES = (0.0, 0.25, 0.5, 0.75, 1.0)
CLASSES = len(TOY_CLASSES)


def labelled_pixels(seed: int, indices: Iterable[int]) -> tuple[np.ndarray, np.ndarray]:
    """All labelled pixels of the scenes: colours (N, 3) uint8 and classes (N,) uint8."""
    scenes = [draw_scene(seed, index) for index in indices]
    colours = np.concatenate([image.reshape(-1, 3) for image, _ in scenes])
    labels = np.concatenate([label.reshape(-1) for _, label in scenes])
    return colours[labels != IGNORE], labels[labels != IGNORE]


def class_iou(truth: np.ndarray, guess: np.ndarray) -> np.ndarray:
    """Intersection over union per class, (K,) float64, from two (N,) arrays of class ids."""
    pairs = np.bincount(truth.astype(np.int64) * CLASSES + guess, minlength=CLASSES**2).reshape(CLASSES, CLASSES)
    hit = np.diag(pairs)
    return hit / np.maximum(pairs.sum(0) + pairs.sum(1) - hit, 1)


def bin_of(colours: np.ndarray, bins: int) -> np.ndarray:
    """Number of the RGB cell of each colour, with `bins` cells a channel: (N, 3) uint8 -> (N,) int64."""
    cell = colours.astype(np.int64) * bins // 256
    return (cell[:, 0] * bins + cell[:, 1]) * bins + cell[:, 2]


def lookup_counts(train: tuple[np.ndarray, np.ndarray], colours: np.ndarray, bins: int) -> np.ndarray:
    """Class counts (N, K) of the cell of each colour; cells that training never saw get the overall counts."""
    codes = bin_of(train[0], bins) * CLASSES + train[1]
    table = np.bincount(codes, minlength=bins**3 * CLASSES).reshape(-1, CLASSES)
    table[table.sum(1) == 0] = np.bincount(train[1], minlength=CLASSES)
    return table[bin_of(colours, bins)]


def neighbour_counts(train: tuple[np.ndarray, np.ndarray], colours: np.ndarray, neighbours: int) -> np.ndarray:
    """Class counts (N, K) among the nearest training colours of each colour."""
    _, found = cKDTree(train[0].astype(np.float32)).query(colours.astype(np.float32), k=neighbours)
    votes = train[1][found].astype(np.int64) + np.arange(len(colours))[:, None] * CLASSES
    return np.bincount(votes.reshape(-1), minlength=len(colours) * CLASSES).reshape(-1, CLASSES)


def best_iou(counts: np.ndarray, train_labels: np.ndarray, truth: np.ndarray) -> tuple[float, np.ndarray]:
    """The balance a with the largest mIoU and the class IoU it gives."""
    prior = np.maximum(np.bincount(train_labels, minlength=CLASSES), 1)
    scored = [(a, class_iou(truth, np.argmax(counts / prior**a, axis=1))) for a in BALANCES]
    return max(scored, key=lambda entry: entry[1].mean())


def thin(pixels: tuple[np.ndarray, np.ndarray], count: int) -> tuple[np.ndarray, np.ndarray]:
    """A fixed random subset of at most `count` pixels."""
    kept = np.random.default_rng(0).permutation(len(pixels[1]))[:count]
    return pixels[0][kept], pixels[1][kept]


def main() -> None:
    """Fit, score and print every variant."""
    parser = argparse.ArgumentParser(description="mIoU that one pixel's colour gives on the toy scenes")
    parser.add_argument("--seed", type=int, default=0, help="seed of the scenes (default 0)")
    parser.add_argument("--train-scenes", type=int, default=1000, help="scenes 0 ... N-1 are fitted (default 1000)")
    parser.add_argument("--val-scenes", type=int, default=200, help="the N scenes after them are scored (default 200)")
    args = parser.parse_args()
    train = labelled_pixels(args.seed, range(args.train_scenes))
    val = labelled_pixels(args.seed, range(args.train_scenes, args.train_scenes + args.val_scenes))
    few_train, few_val = thin(train, 400_000), thin(val, 40_000)
    print(f"{'variant':<18}{'a':>5}{'mIoU':>7}  " + "".join(f"{name:>11}" for name in TOY_CLASSES))
    results = []
    for bins in (8, 16, 32, 64):
        results.append((f"lookup {bins}^3", *best_iou(lookup_counts(train, val[0], bins), train[1], val[1])))
    for neighbours in (15, 101):
        counts = neighbour_counts(few_train, few_val[0], neighbours)
        results.append((f"{neighbours} neighbours", *best_iou(counts, few_train[1], few_val[1])))
    for name, balance, iou in results:
        print(f"{name:<18}{balance:>5.2f}{iou.mean():>7.3f}  " + "".join(f"{value:>11.3f}" for value in iou))
    print(f"largest mIoU of a colour classifier: {max(iou.mean() for _, _, iou in results):.3f}")


if __name__ == "__main__":
    main()
