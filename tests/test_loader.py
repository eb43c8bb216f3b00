"""A sample depends on (seed, position) alone: not on workers, resume, devices or the order of asking."""

import gc
import os
from threading import Barrier, Semaphore
from threading import enumerate as enumerate_threads
from time import perf_counter, sleep

import numpy as np
import pytest

from src.config import DataConfig
from src.data import create_train_batches, load_classes, load_items, train_transforms
from src.data.loader import SampleStream, create_batches, permutation

DATA = DataConfig(
    dataset="toy_scenes", crop_size=(32, 40), workers=2, options={"train_count": 5, "val_count": 1, "size": [40, 48]}
)
SETTINGS = {"max_classes": 9, "seed": 3, "rank": 0, "world_size": 1, "batch_size": 2, "first_sample": 0}


def make_stream(length=12, transforms=None, **settings):
    transforms = train_transforms(DATA, 9) if transforms is None else transforms
    return SampleStream(load_items(DATA, "train"), load_classes(DATA).table, transforms, 3, length, **settings)


def read(stream):
    return [stream[i] for i in range(len(stream))]


def assert_same(samples, expected):
    assert len(samples) == len(expected)
    for sample, other in zip(samples, expected, strict=True):
        for array, wanted in zip(sample, other, strict=True):
            np.testing.assert_array_equal(array, wanted)


def collect(**settings):
    """All samples of the batches, as tuples in the order of the columns."""
    batches = list(create_train_batches(DATA, **{**SETTINGS, **settings}))
    names = ("image", "label", "valid", "present", "item")
    return [tuple(batch[name][b] for name in names) for batch in batches for b in range(len(batch["label"]))]


def interleave(ranks):
    return [sample for samples in zip(*ranks, strict=True) for sample in samples]


def test_every_epoch_has_every_item_once_in_another_order():
    orders = [permutation(3, epoch, 20).tolist() for epoch in range(3)] + [permutation(4, 0, 20).tolist()]
    assert all(sorted(order) == list(range(20)) for order in orders)
    assert len({tuple(order) for order in orders}) == 4

    scenes = [image.tobytes() for image, *_ in read(make_stream(15, []))]  # without transforms: the scenes themselves
    epochs = [scenes[5 * epoch : 5 * epoch + 5] for epoch in range(3)]
    assert len(set(scenes)) == 5 and all(len(set(epoch)) == 5 for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) > 1


def test_sample_form():
    stream = make_stream()
    assert stream.columns == ("image", "label", "valid", "present", "item") and len(stream) == 12
    image, label, valid, present, item = stream[np.int64(1)]
    assert (image.shape, image.dtype, image.flags.c_contiguous) == ((3, 32, 40), np.uint8, True)
    assert (label.shape, label.dtype) == (valid.shape, valid.dtype) == ((32, 40), np.uint8)
    assert (present.shape, present.dtype) == ((9,), np.int32)
    plain = make_stream(transforms=[])[0][0]
    assert plain[2, :5].mean() > plain[0, :5].mean()  # the sky is blue: channels are R, G, B


def test_order_of_asking_does_not_matter():
    stream, forwards = make_stream(), read(make_stream())
    backwards = [stream[i] for i in reversed(range(12))][::-1]
    assert_same(backwards, forwards)
    # the same scene in two epochs is augmented differently, and another seed gives other samples
    assert len({columns[0].tobytes() for columns in forwards}) == 12
    other = SampleStream(stream.items, stream.table, stream.transforms, 4, 12)
    assert not np.array_equal(other[0][0], forwards[0][0])


@pytest.mark.parametrize("workers", [1, 2, 1000])  # 1000: more than there are cores
def test_workers_do_not_change_the_data(workers):
    batches = list(create_batches(make_stream(), 3, workers))
    assert [batch["image"].shape for batch in batches] == [(3, 3, 32, 40)] * 4
    assert batches[0]["label"].dtype == np.int32 and batches[0]["image"].dtype == np.uint8
    samples = [tuple(batch[name][b] for name in make_stream().columns) for batch in batches for b in range(3)]
    assert_same(samples, read(make_stream()))


def test_resume_continues_with_the_next_sample():
    whole = collect(num_samples=16)
    assert_same(collect(num_samples=6, first_sample=10), whole[10:])  # in the middle of an epoch of 5
    assert_same(whole, read(make_stream(16)))


def test_two_devices_see_what_one_of_double_batch_sees():
    one = collect(num_samples=12, batch_size=4)
    ranks = [collect(num_samples=6, rank=rank, world_size=2) for rank in (0, 1)]
    for step in range(3):
        micro = [samples[2 * step : 2 * step + 2] for samples in ranks]
        assert_same(interleave(micro), one[4 * step : 4 * step + 4])
    resumed = [collect(num_samples=2, first_sample=4, rank=rank, world_size=2) for rank in (0, 1)]
    assert_same(interleave(resumed), one[8:])


def test_declared_columns_are_yielded():
    def add_rows(sample, rng):
        return {**sample, "rows": np.full(4, sample["label"].shape[0], np.int64), "draft": np.zeros(1)}

    add_rows.columns = ("rows",)
    [batch] = create_batches(make_stream(2, [add_rows]), 2, 1)
    assert batch.keys() == {"image", "label", "rows", "item"}  # an undeclared key stays behind
    np.testing.assert_array_equal(batch["rows"], np.full((2, 4), 40))


@pytest.mark.parametrize("workers", [1, 2])
def test_error_of_a_sample_arrives_as_it_was_raised(workers):
    data = DATA.model_copy(update={"workers": workers})
    batches = create_train_batches(data, **{**SETTINGS, "max_classes": 1}, num_samples=4)
    with pytest.raises(ValueError, match=r"^scene_000000\d: \d classes in one crop, .* raise data.max_classes$"):
        list(batches)


def test_a_mistake_in_the_code_keeps_its_traceback():
    def broken(sample, rng):
        return sample + 1

    with pytest.raises(RuntimeError, match="(?s)return sample \\+ 1.*TypeError"):
        list(create_batches(make_stream(2, [broken]), 1, 1))


def test_reading_runs_ahead_of_who_takes_the_batches():
    made = Semaphore(0)

    def note(sample, rng):
        made.release()
        return sample

    batches = create_batches(make_stream(12, [note]), 2, 1)
    next(batches)
    for _ in range(12):  # all of them, while the first batch is worked on
        assert made.acquire(timeout=60)
    assert len(list(batches)) == 5 and not made.acquire(blocking=False)


def test_nobody_sleeps_while_samples_could_be_made():
    """MindSpore's own workers make 32 samples at most between two sleeps of 0.1 s: 1.9 s for these."""

    def little(sample, rng):
        sleep(0.001)
        return {"image": np.zeros((1, 1, 3), np.uint8), "label": np.zeros((1, 1), np.uint8)}

    stream = make_stream(640, [little])
    object.__setattr__(stream, "read", lambda position: (0, {}))
    start = perf_counter()
    assert len(list(create_batches(stream, 64, 2))) == 10
    assert perf_counter() - start < 1.5


@pytest.mark.skipif((os.cpu_count() or 1) < 2, reason="one core, one worker")
def test_as_many_samples_are_made_at_once_as_there_are_workers():
    both = Barrier(2, timeout=60)

    def meet(sample, rng):
        both.wait()  # raises where nobody comes
        return sample

    assert len(list(create_batches(make_stream(4, [meet]), 2, 2))) == 2


def test_threads_end_with_the_batches():
    def reading():
        return [thread for thread in enumerate_threads() if thread.name.startswith("reading")]

    list(create_batches(make_stream(4), 2, 2))
    batches = create_batches(make_stream(4000), 2, 2)
    next(batches)
    assert reading()
    batches.close()
    del batches
    gc.collect()
    end = perf_counter() + 30
    while reading() and perf_counter() < end:
        sleep(0.01)
    assert not reading()


def test_settings_that_do_not_fit():
    with pytest.raises(ValueError, match="12 samples are no whole batches of 5"):
        create_batches(make_stream(), 5, 1)
    with pytest.raises(ValueError, match="0 samples"):
        create_batches(make_stream(0), 5, 1)
    with pytest.raises(ValueError, match="data.workers is 0"):
        create_batches(make_stream(), 4, 0)
