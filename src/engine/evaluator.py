"""Scores of a predictor on a data set; used while training, by eval.py and for an exported model alike."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from src.log import progress as show_progress
from src.metrics import boundary_counts, confusion_matrix, summarise


def evaluate(
    predict: Callable[[np.ndarray], np.ndarray],
    samples: Sequence[tuple[str, Mapping[str, np.ndarray]]],
    classes: Any,
    boundary_radius: float,
    progress: bool = True,
    all_reduce: Callable[[np.ndarray], np.ndarray] | None = None,
    stop: Callable[[], bool] | None = None,
) -> dict | None:
    """The summary of `metrics.summarise` over all samples, and `images`, their number.

    predict: image (H, W, 3) uint8 RGB -> label map (H, W). samples: (name, sample) of this rank. classes: has `names`
    in the order of the class ids. boundary_radius: pixels. progress: whether to show a bar. all_reduce: int64 array
    (N,) -> its sum over ranks, called once; None on a single device. stop: asked before every image whether to give up;
    where any rank does, all of them return None.
    Raises ValueError that names the image for a prediction of the wrong size or with a value that is no class.
    """
    num_classes = len(classes.names)
    matrix = np.zeros((num_classes, num_classes), np.int64)
    boundary = np.zeros((num_classes, 4), np.int64)
    stopped = False
    with show_progress(len(samples), "evaluate", disable=not progress) as advance:
        for name, sample in read_ahead(samples):
            if stop is not None and stop():
                stopped = True
                break
            try:
                pred, label = predict(sample["image"]), sample["label"]
                _check_size(pred, label)
                matrix += confusion_matrix(pred, label, num_classes)
                boundary += boundary_counts(pred, label, num_classes, boundary_radius)
            except ValueError as error:
                raise ValueError(f"{name}: {error}") from error
            advance()
    counts = np.concatenate([matrix.ravel(), boundary.ravel(), [len(samples), stopped]])
    if all_reduce is not None:
        counts = all_reduce(counts)
    if counts[-1]:  # after the sum, which no rank may miss
        return None
    matrix = counts[: matrix.size].reshape(matrix.shape)
    boundary = counts[matrix.size : -2].reshape(boundary.shape)
    return {**summarise(matrix, boundary, classes.names, boundary_radius), "images": int(counts[-2])}


def read_ahead(samples: Sequence) -> Iterator[Any]:
    """The samples in their order; while one is worked on, the next one is read."""
    with ThreadPoolExecutor(1) as pool:
        ahead = pool.submit(samples.__getitem__, 0) if len(samples) else None
        for i in range(1, len(samples) + 1):
            sample = ahead.result()
            if i < len(samples):
                ahead = pool.submit(samples.__getitem__, i)
            yield sample


def _check_size(pred: np.ndarray, label: np.ndarray) -> None:
    if pred.shape != label.shape:
        raise ValueError(
            f"the prediction has {' x '.join(map(str, pred.shape))} pixels (height x width), the label "
            f"{' x '.join(map(str, label.shape))}; a prediction must have the size of its image"
        )
