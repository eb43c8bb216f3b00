"""Training samples as a function of (seed, position), and the batches that MindSpore's pipeline makes of them.

Position counts samples over all devices: sample i of rank r among w ranks has position (first + i) * w + r. So neither
the number of workers, nor a resume, nor the number of devices changes the data.
Letters: B batch, H x W crop size, N items of the data set.
"""

import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache

import cv2
import mindspore.dataset as ds
import numpy as np

from src.data.bad_samples import BadSamples
from src.data.reading import Item, Sample, Size, read_item
from src.data.transforms import Transform, declared_columns

# Second entry of every seed: keeps the generators of samples, order and network noise (engine/train_step.py) apart.
SAMPLE_STREAM, ORDER_STREAM = 1, 2
AHEAD = 2  # batches a worker that are asked for at a time, so that none waits for one that takes longer


@lru_cache(maxsize=2)  # batches may reach over the end of an epoch
def permutation(seed: int, epoch: int, count: int) -> np.ndarray:
    """The order of the items in one epoch: (count,) indices, not to be written to."""
    order = np.random.default_rng((seed, ORDER_STREAM, epoch)).permutation(count)
    order.flags.writeable = False
    return order


@dataclass(frozen=True)
class SampleStream:
    """The training samples of one rank.

    first: samples that this rank has taken already (0 for a fresh run); length: samples from there on.
    bad: notes items that cannot be read, and the item of the next position that can be stands in (of the next position
    over all devices, so that their number does not matter); None: such an item is an error.
    `stream[i]` is a tuple in the order of `columns`: image (3, H, W) uint8, label (H, W) uint8, then what the
    transforms add, then `item`, int32, the index of the item that it was made of.
    """

    items: Sequence[Item]
    table: dict[int, int]
    transforms: Sequence[Transform]
    seed: int
    length: int
    rank: int = 0
    world_size: int = 1
    first: int = 0
    bad: BadSamples | None = None

    @property
    def columns(self) -> tuple[str, ...]:
        return ("image", "label", *declared_columns(self.transforms), "item")

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, i: int) -> tuple[np.ndarray, ...]:
        position = self.position(i)
        index, sample = self.read(position)
        rng = self.generator(position)
        try:
            for transform in self.transforms:
                sample = transform(sample, rng)
        except ValueError as error:
            raise ValueError(f"{self.items[index].name}: {error}") from error
        return self.to_columns(index, sample)

    def position(self, i: int) -> int:
        """Of sample i, among those of all devices."""
        return (self.first + int(i)) * self.world_size + self.rank

    def index(self, position: int) -> int:
        """Of the item at a position."""
        epoch, k = divmod(position, len(self.items))
        return int(permutation(self.seed, epoch, len(self.items))[k])

    def generator(self, position: int) -> np.random.Generator:
        """What the transforms draw from at a position."""
        return np.random.default_rng((self.seed, SAMPLE_STREAM, position))

    def reduction(self, position: int) -> Callable[[Size], int] | None:
        """Size of an image -> how many times smaller it may be decoded for a position; None: not at all.

        A transform says so in its attribute `reduction`, from the draws that it will make itself; none before it may
        draw or look at the image.
        """
        reduce = next((t.reduction for t in self.transforms if hasattr(t, "reduction")), None)
        return None if reduce is None else lambda size: reduce(size, self.generator(position))

    def read(self, position: int) -> tuple[int, Sample]:
        """Index and sample of the item at a position, or of the first one from there on that can be read."""
        count, choose = len(self.items), self.reduction(position)
        for place in range(position, position + count):
            index = self.index(place)
            try:
                return index, read_item(self.items[index], self.table, choose)
            except (ValueError, OSError) as error:
                if self.bad is None:
                    raise
                self.bad.add(index, str(error))
        raise ValueError(f"{count} training samples in a row cannot be read; see whether the data are where they were")

    def to_columns(self, index: int, sample: Sample) -> tuple[np.ndarray, ...]:
        """A transformed sample in the order of `columns`."""
        image = sample["image"]
        planes = np.empty((3, *image.shape[:2]), np.uint8)
        cv2.split(image, list(planes))  # into them
        sample = {**sample, "image": planes, "item": np.array(index, np.int32)}
        return tuple(np.asarray(sample[column], order="C") for column in self.columns)


class _Reader:
    """The batches of a stream in its order, made by threads that run ahead of who takes them.

    Keeps the error of a bad sample, which MindSpore's own report buries in a traceback.
    """

    def __init__(self, stream: SampleStream, batch_size: int, workers: int) -> None:
        self.stream = stream
        self.batch_size = batch_size
        self.workers = workers
        self.failure: Exception | None = None

    def __iter__(self) -> Iterator[tuple[np.ndarray, ...]]:
        # Decoding, resizing and look-ups leave the interpreter lock, so threads need no shared memory and no copies.
        # A thread makes a batch by itself: handing over every sample would make all wait for the lock more often.
        pool, ahead = ThreadPoolExecutor(self.workers, "reading"), deque()
        try:
            for first in range(0, len(self.stream), self.batch_size):
                ahead.append(pool.submit(self.make_batch, first))
                if len(ahead) == AHEAD * self.workers:
                    yield ahead.popleft().result()
            while ahead:
                yield ahead.popleft().result()
        except (ValueError, OSError) as error:
            self.failure = error
            raise
        finally:
            pool.shutdown(wait=False, cancel_futures=True)

    def make_batch(self, first: int) -> tuple[np.ndarray, ...]:
        """The columns of the samples from number `first` on."""
        samples = [self.stream[i] for i in range(first, first + self.batch_size)]
        return tuple(np.stack(arrays) for arrays in zip(*samples, strict=True))


def create_batches(stream: SampleStream, batch_size: int, workers: int) -> Iterator[dict[str, np.ndarray]]:
    """Batches of the stream in its order, as dicts of arrays: image (B, 3, H, W) uint8, label (B, H, W) int32, ...

    workers: threads that read ahead; no more are started than the machine has cores, which changes no data.
    Raises ValueError here for sizes that do not fit, and while iterating for a bad sample, with the sample's message.
    """
    if batch_size < 1 or workers < 1:
        raise ValueError(f"batch_size is {batch_size} and data.workers is {workers}; both must be at least 1")
    if len(stream) < 1 or len(stream) % batch_size:
        raise ValueError(f"{len(stream)} samples are no whole batches of {batch_size}; choose a multiple of it above 0")
    cv2.setNumThreads(1)  # the workers are the parallelism; OpenCV's own threads would compete with them
    reader = _Reader(stream, batch_size, min(workers, os.cpu_count() or 1))
    # MindSpore's own workers would read no more than 16 samples each in a tenth of a second: whoever gathers them
    # sleeps that long whenever there is nothing to gather (platform.md).
    dataset = ds.GeneratorDataset(reader, list(stream.columns), num_parallel_workers=1, shuffle=False)
    return _iterate(dataset, reader)


def _iterate(dataset: ds.Dataset, reader: _Reader) -> Iterator[dict[str, np.ndarray]]:
    try:
        for batch in dataset.create_dict_iterator(num_epochs=1, output_numpy=True):
            yield {**batch, "label": batch["label"].astype(np.int32)}
    except RuntimeError as error:
        if reader.failure is None:
            raise
        raise ValueError(str(reader.failure)) from error
