"""What each stage of the training pipeline costs by itself, and what decoding alone would allow (tools/benchmark.py).

Letters: B batch, H x W crop size.
"""

import multiprocessing
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack, contextmanager
from typing import Any

import cv2
import numpy as np

from src.data.loader import SampleStream
from src.data.reading import Item, Sample, SceneItem, as_sample, read_mask, read_photo, to_class_ids
from src.data.toy_scenes import draw_scene

Seconds = dict[str, float]
MakeStream = Callable[[], SampleStream]  # of a module, for it is sent to other processes
DECODING, PROCESSOR = "decoding alone", "processor"


class Stopwatch:
    """Adds up the seconds of named stages."""

    def __init__(self) -> None:
        self.seconds: Seconds = defaultdict(float)

    def run(self, stage: str, function: Callable, *inputs: Any) -> Any:
        """The function's result."""
        start = time.perf_counter()
        result = function(*inputs)
        self.seconds[stage] += time.perf_counter() - start
        return result


def time_stages(stream: SampleStream, numbers: Sequence[int], batch_size: int) -> tuple[Seconds, dict[str, np.ndarray]]:
    """Seconds of every stage for the samples of these numbers, and the last batch, which is the pipeline's.

    One sample after the other: whole batches at every stage would need fresh memory all the time, which takes longer
    than many a stage.
    """
    watch, batch = Stopwatch(), {}
    for first in range(0, len(numbers), batch_size):
        samples = [_make_sample(watch, stream, i) for i in numbers[first : first + batch_size]]
        batch = watch.run("batch", _stack, stream.columns, samples)
    return dict(watch.seconds), batch


def _make_sample(watch: Stopwatch, stream: SampleStream, number: int) -> tuple[np.ndarray, ...]:
    """What the stream gives for a number."""
    position = stream.position(number)
    index = stream.index(position)
    sample = _read(watch, stream, position, stream.items[index])
    generator = watch.run("random generator", stream.generator, position)
    for transform in stream.transforms:
        sample = watch.run(transform.__qualname__.split(".")[0], transform, sample, generator)
    return watch.run("planes", stream.to_columns, index, sample)


def _read(watch: Stopwatch, stream: SampleStream, position: int, item: Item) -> Sample:
    """The sample before the first transform, as `read_item` gives it."""
    if isinstance(item, SceneItem):
        image, values = watch.run("draw scene", draw_scene, item.seed, item.index, item.size)
        table, reduction = stream.table, 1
    else:
        image, _, reduction = watch.run("decode image", read_photo, item.image, stream.reduction(position))
        values = watch.run("decode label", read_mask, item.label)
        table = stream.table if item.table is None else item.table
    return as_sample(image, watch.run("look up classes", to_class_ids, values, table, item.name), reduction)


def _stack(names: Sequence[str], samples: Sequence[tuple[np.ndarray, ...]]) -> dict[str, np.ndarray]:
    batch = {name: np.stack(arrays) for name, arrays in zip(names, zip(*samples, strict=True), strict=True)}
    return {**batch, "label": batch["label"].astype(np.int32)}


def time_decoding(stream: SampleStream, numbers: Sequence[int]) -> Seconds:
    """Seconds in which OpenCV decodes the image and the label file of these samples, doing nothing else.

    Empty for drawn scenes, which have no files.
    """
    watch = Stopwatch()
    for number in numbers:
        item = stream.items[stream.index(stream.position(number))]
        if isinstance(item, SceneItem):
            return {}
        watch.run(DECODING, cv2.imread, str(item.image))
        watch.run(DECODING, cv2.imread, str(item.label), cv2.IMREAD_UNCHANGED)
    return dict(watch.seconds)


def _work(make_stream: MakeStream, batch_size: int, numbers: Sequence[int]) -> tuple[int, Seconds]:
    """In another process: how many samples, and their seconds."""
    stream = make_stream()
    start = time.process_time()
    seconds, _ = time_stages(stream, numbers, batch_size)
    seconds[PROCESSOR] = time.process_time() - start
    return len(numbers), {**seconds, **time_decoding(stream, numbers)}


@contextmanager
def stage_timer(make_stream: MakeStream, batch_size: int, processes: int) -> Iterator[Callable]:
    """A function: numbers of samples -> [(how many, seconds of each stage and of DECODING)], one of each process.

    The processes share the samples and work side by side, as the pipeline's workers do. The seconds of PROCESSOR are
    the processor's in all stages, which do not grow where other programs take their turns.
    """
    context = multiprocessing.get_context("spawn")  # MindSpore's threads do not survive a fork
    with ExitStack() as stack:
        pools = [
            stack.enter_context(ProcessPoolExecutor(1, context, initializer=cv2.setNumThreads, initargs=(1,)))
            for _ in range(processes)
        ]

        def measure(numbers: Sequence[int]) -> list[tuple[int, Seconds]]:
            jobs = [
                pool.submit(_work, make_stream, batch_size, numbers[k::processes]) for k, pool in enumerate(pools)
            ]
            return [job.result() for job in jobs]

        measure(range(processes))  # imports, first look at the files
        yield measure
