"""The stages of the pipeline make its batches, rates are added up as they should, and memory stays flat."""

import numpy as np
import pytest

from benchmarks import loader_memory
from src.config import DataConfig
from src.data import create_train_batches, create_train_stream
from src.data.stages import DECODING, time_decoding, time_stages
from src.loading_speed import rate, summarise, time_batches, write_drawn

TRANSFORMS = ["random_window", "random_flip", "photometric_distortion", "pad", "present_classes"]
MiB = 2**20


@pytest.fixture(scope="module")
def drawn(tmp_path_factory) -> dict:
    return write_drawn(tmp_path_factory.mktemp("drawn"), ".jpg", size=(60, 90), count=4)


@pytest.mark.parametrize("kind", ["files", "scenes"])
def test_stages_make_the_batches_of_the_pipeline(kind, drawn):
    keys = drawn if kind == "files" else {"dataset": "toy_scenes", "options": {"train_count": 3, "size": [60, 90]}}
    data = DataConfig(**keys, crop_size=(48, 64), scale_range=(0.3, 2.0), reduced_decoding=True)
    settings = {"max_classes": 9, "seed": 5, "first_sample": 2, "rank": 0, "world_size": 1}
    *_, last = create_train_batches(data, batch_size=3, num_samples=9, **settings)
    stream = create_train_stream(data, num_samples=9, **settings)
    seconds, batch = time_stages(stream, range(9), 3)
    first = ["decode image", "decode label"] if kind == "files" else ["draw scene"]
    assert list(seconds) == [*first, "look up classes", "random generator", *TRANSFORMS, "planes", "batch"]
    assert all(value > 0.0 for value in seconds.values())
    assert batch.keys() == last.keys()
    for name, array in last.items():
        np.testing.assert_array_equal(batch[name], array)
        assert batch[name].dtype == array.dtype
    assert list(time_decoding(stream, range(3))) == ([DECODING] if kind == "files" else [])


def test_rates_of_processes_add_up():
    """Two processes; stages a and b follow each other, so their times add up in each."""
    fast, slow = (4, {"a": 1.0, "b": 1.0, DECODING: 0.5}), (4, {"a": 2.0, "b": 2.0, DECODING: 1.0})
    assert rate([fast, slow], ["a", "b"]) == pytest.approx(2.0 + 1.0)
    batches = [np.array([2.0, 2.0]), np.array([1.0, 1.0]), np.array([4.0, 4.0])]  # of 4 images: 2, 4 and 1 a second
    result = summarise(batches, [[fast, slow]] * 3, 4)
    assert result["predicted_images_per_s"] == pytest.approx(3.0) and result["train_images_per_s"] == pytest.approx(2.0)
    assert result["decoding_images_per_s"] == pytest.approx(12.0)
    assert result["share_of_predicted"] == pytest.approx({"median": 2 / 3, "min": 1 / 3, "max": 4 / 3})
    assert result["stages"]["a"] == pytest.approx({"seconds": 1 / 3, "share": 0.5, "images_per_s": 6.0})


def test_the_first_and_last_batches_are_not_timed(monkeypatch):
    moments, busy = iter([0.0, 10.0, 20.0, 21.0, 23.0, 99.0]), iter([0.0, 9.0, 10.0, 11.0, 15.0, 99.0])
    monkeypatch.setattr("src.loading_speed.time.perf_counter", lambda: next(moments))
    monkeypatch.setattr("src.loading_speed.time.process_time", lambda: next(busy))
    seconds, processor = time_batches(iter(range(6)), 3)  # after two of warm-up; another one cools down
    assert seconds.tolist() == [10.0, 1.0, 2.0] and processor == 6.0


def growth(stream, every: int, warm_up: int) -> float:
    """MiB by which the process grew after the warm-up (how many figures), at its largest."""
    sizes = loader_memory.record(stream, 2, every)
    return (max(sizes[warm_up:]) - sizes[warm_up - 1]) / MiB


def test_memory_stays_flat(tmp_path):
    stream = loader_memory.create_stream(tmp_path, 1500)
    assert growth(stream, 250, 2) < 4.0
    kept = []

    def keep(sample, rng):
        kept.append(np.repeat(sample["image"], 20, axis=0))
        return sample

    leaking = loader_memory.SampleStream(stream.items, stream.table, [*stream.transforms, keep], 0, 1500)
    assert growth(leaking, 250, 2) > 10.0  # 1000 arrays of 180 KiB, more than tests before this one left free


@pytest.mark.slow
def test_memory_stays_flat_over_ten_thousand_samples(tmp_path):
    assert growth(loader_memory.create_stream(tmp_path, 10_000), 1000, 2) < 4.0
