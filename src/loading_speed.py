"""How fast training samples are read, against what the stages of reading and decoding alone promise.

Letters: B batch, H x W image.
"""

import os
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import cv2
import numpy as np

from src.config import Config
from src.data import create_train_batches, create_train_stream, load_classes
from src.data.stages import DECODING, PROCESSOR, Seconds, stage_timer
from src.data.toy_scenes import TOY_CLASSES, TOY_PALETTE, draw_scene
from src.engine.timing import spread
from src.log import progress

ROUNDS = 5
WARM_UP = 2  # batches of each round that are not counted: the pipeline starts
COOL_DOWN = 2  # batches a worker, not counted either: all workers are busy to the end of what is
DRAWN_SIZE = (1024, 2048)  # H, W
DRAWN_COUNT = 24
JPEG_QUALITY = 90


def write_drawn(root: Path, suffix: str, size: tuple[int, int] = DRAWN_SIZE, count: int = DRAWN_COUNT) -> dict:
    """Writes drawn scenes as a data set `folder`; returns the keys of the section `data` that name it.

    suffix: of the images, .jpg or .png.
    """
    with progress(count, f"drawing scenes of {size[0]} x {size[1]}") as advance:
        for index in range(count):
            split = "train" if index else "val"
            image, label = draw_scene(0, index, size)
            for kind, array, ending in (("images", image[..., ::-1], suffix), ("labels", label, ".png")):
                path = root / kind / split / f"{index:04d}{ending}"
                path.parent.mkdir(parents=True, exist_ok=True)
                cv2.imwrite(str(path), array, [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])
            advance()
    palette = [list(colour) for colour in TOY_PALETTE]
    (root / "classes.yaml").write_text(f"{{names: [{', '.join(TOY_CLASSES)}], palette: {palette}}}\n", encoding="utf-8")
    return {"dataset": "folder", "root": str(root), "train_split": "train", "val_split": "val", "options": {}}


def measure_loading(config: Config, steps: int) -> dict:
    """Training batches, the stages of their samples and decoding alone, by turns on the same samples.

    steps: batches, spread over the rounds. Seconds are of one process and image; rates of all workers together.
    `processor`: seconds of processors an image, by stages and in the pipeline, and the share that the stages are.
    """
    data, batch_size = config.data, config.train.batch_size
    workers = min(data.workers, os.cpu_count() or 1)
    settings = {"max_classes": data.max_classes or len(load_classes(data)), "seed": config.seed}
    make_stream = partial(
        create_train_stream, data, **settings, first_sample=0, num_samples=(steps + WARM_UP) * batch_size
    )
    make_stream()  # what is missing is told here, not by another process
    rounds = min(ROUNDS, steps)
    shares = [len(part) for part in np.array_split(np.arange(steps), rounds)]
    batches, processor, parts, first = [], 0.0, [], 0
    with stage_timer(make_stream, batch_size, workers) as measure, progress(rounds, "rounds of reading") as advance:
        for share in shares:
            counted = range(first + WARM_UP * batch_size, first + (WARM_UP + share) * batch_size)
            count = (WARM_UP + share + COOL_DOWN * workers) * batch_size
            stream = create_train_batches(
                data, batch_size=batch_size, **settings, rank=0, world_size=1, first_sample=first, num_samples=count
            )
            seconds, busy = time_batches(stream, share)
            batches.append(seconds)
            processor += busy
            parts.append(measure(counted))
            first += share * batch_size
            advance()
    stages = sum(seconds[PROCESSOR] for part in parts for _, seconds in part)
    busy = {"stages": stages / (steps * batch_size), "pipeline": processor / (steps * batch_size)}
    return {
        "size": list(data.crop_size), "batch_size": batch_size, "workers": workers,
        "batch": spread(np.concatenate(batches)), **summarise(batches, parts, batch_size),
        "processor": {**busy, "share": stages / processor},
    }  # fmt: skip


def time_batches(batches: Iterator, count: int) -> tuple[np.ndarray, float]:
    """Seconds of `count` batches after the first WARM_UP, and the processor's seconds in all of them."""
    moments = [(time.perf_counter(), time.process_time()) for _ in batches]
    seconds, processor = np.diff(moments[WARM_UP - 1 : WARM_UP + count], axis=0).T
    return seconds, processor.sum()


def summarise(batches: list[np.ndarray], parts: list[list[tuple[int, Seconds]]], batch_size: int) -> dict:
    """Rates (images/s) by medians over the rounds; the pipeline's share of the predicted rate round by round."""
    names = [name for name in parts[0][0][1] if name not in (DECODING, PROCESSOR)]
    predicted = np.array([rate(part, names) for part in parts])
    reached = np.array([batch_size * len(seconds) / seconds.sum() for seconds in batches])
    alone = {name: np.median([rate(part, [name]) for part in parts]) for name in names}
    workers = len(parts[0])
    whole = sum(workers / value for value in alone.values())
    ratios = reached / predicted
    result = {
        "stages": {
            name: {"seconds": workers / value, "share": workers / value / whole, "images_per_s": value}
            for name, value in alone.items()
        },
        "train_images_per_s": np.median(reached), "predicted_images_per_s": np.median(predicted),
        "share_of_predicted": {"median": np.median(ratios), "min": ratios.min(), "max": ratios.max()},
    }  # fmt: skip
    if DECODING in parts[0][0][1]:
        result["decoding_images_per_s"] = np.median([rate(part, [DECODING]) for part in parts])
    return result


def rate(part: list[tuple[int, Seconds]], names: list[str]) -> float:
    """Images/s of all processes at stages that follow each other."""
    return sum(count / sum(seconds[name] for name in names) for count, seconds in part)
