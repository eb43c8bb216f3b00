"""What each stage of the training pipeline costs by itself, and what decoding alone would allow (tools/benchmark.py).

Letters: B batch, H x W crop size.
"""

import multiprocessing
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack, contextmanager
from functools import partial

import cv2
import numpy as np

from src.data.loader import SampleStream
from src.data.reading import SceneItem, as_sample, read_mask, read_photo, to_class_ids
from src.data.toy_scenes import draw_scene

Seconds = dict[str, float]
MakeStream = Callable[[], SampleStream]  # of a module, for it is sent to other processes
DECODING, PROCESSOR = "decoding alone", "processor"


class Stopwatch:
    """Adds up the seconds of named stages."""

    def __init__(self) -> None:
        self.seconds: Seconds = defaultdict(float)

    def run(self, stage: str, function: Callable, *inputs: Iterable) -> list:
        """The function's results for all inputs, one after the other."""
        start = time.perf_counter()
        results = list(map(function, *inputs))
        self.seconds[stage] += time.perf_counter() - start
        return results


def time_stages(stream: SampleStream, numbers: Sequence[int], batch_size: int) -> tuple[Seconds, dict[str, np.ndarray]]:
    """Seconds of every stage for the samples of these numbers, and the last batch, which is the pipeline's.

    A stage works through a batch before the next one begins: it runs by itself, on data that has left the caches as it
    will have in the pipeline.
    """
    watch, batch = Stopwatch(), {}
    for first in range(0, len(numbers), batch_size):
        positions = [stream.position(i) for i in numbers[first : first + batch_size]]
        indices = [stream.index(position) for position in positions]
        samples = _read(watch, stream, positions, indices)
        generators = [stream.generator(position) for position in positions]
        for transform in stream.transforms:
            samples = watch.run(transform.__qualname__.split(".")[0], transform, samples, generators)
        columns = watch.run("planes", stream.to_columns, indices, samples)
        [batch] = watch.run("batch", partial(_stack, stream.columns), [columns])
    return dict(watch.seconds), batch


def _read(watch: Stopwatch, stream: SampleStream, positions: list[int], indices: list[int]) -> list[dict]:
    """The samples before the first transform, as `read_item` gives them."""
    items = [stream.items[index] for index in indices]
    reductions = [1] * len(items)
    if isinstance(items[0], SceneItem):
        scenes = watch.run("draw scene", lambda item: draw_scene(item.seed, item.index, item.size), items)
        images, values = ([scene[part] for scene in scenes] for part in (0, 1))
    else:
        chosen = [stream.reduction(position) for position in positions]
        photos = watch.run("decode image", lambda item, choose: read_photo(item.image, choose), items, chosen)
        images, reductions = [photo[0] for photo in photos], [photo[2] for photo in photos]
        values = watch.run("decode label", lambda item: read_mask(item.label), items)
    tables = [getattr(item, "table", None) or stream.table for item in items]
    labels = watch.run("look up classes", to_class_ids, values, tables, [item.name for item in items])
    return list(map(as_sample, images, labels, reductions))


def _stack(names: Sequence[str], samples: Sequence[tuple[np.ndarray, ...]]) -> dict[str, np.ndarray]:
    batch = {name: np.stack(arrays) for name, arrays in zip(names, zip(*samples, strict=True), strict=True)}
    return {**batch, "label": batch["label"].astype(np.int32)}


def time_decoding(stream: SampleStream, numbers: Sequence[int]) -> Seconds:
    """Seconds in which OpenCV decodes the image and the label file of these samples, doing nothing else.

    Empty for drawn scenes, which have no files.
    """
    items = [stream.items[stream.index(stream.position(i))] for i in numbers]
    if isinstance(items[0], SceneItem):
        return {}
    watch = Stopwatch()
    watch.run(DECODING, lambda item: cv2.imread(str(item.image)), items)
    watch.run(DECODING, lambda item: cv2.imread(str(item.label), cv2.IMREAD_UNCHANGED), items)
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
