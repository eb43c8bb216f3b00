"""Windows computed by themselves against the same windows of the whole resized image, and of images decoded smaller."""

import cv2
import numpy as np
import pytest
from PIL import Image

from benchmarks import reduced_decoding
from src.config import DataConfig
from src.data import create_train_batches, create_train_stream
from src.data.reading import FileItem, read_item, read_photo
from src.data.transforms import random_window
from src.data.windows import TOLERANCE, cut_bilinear, first_line, nearest_places
from src.loading_speed import write_drawn

LEVELS = 3  # the stated bound: two axes, each off by up to TOLERANCE of a step of 255, and the rounding
MEAN_LEVELS = 0.1


def draw_cases(count: int):
    """Random (H, W) of source and whole result, and a window in it; some at whole ratios, some large."""
    rng = np.random.default_rng(0)
    for k in range(count):
        full = tuple(int(n) for n in rng.integers(3, 200 if k % 9 else 1500, 2))
        scale = rng.uniform(0.2, 3.0) if k % 5 else (0.25, 0.5, 1.0, 1.25, 2.0)[k // 5 % 5]
        resized = tuple(max(1, int(n * scale + 0.5)) for n in full)
        shape = tuple(min(n, int(rng.integers(1, 120))) for n in resized)
        corner = (int(rng.integers(n - m + 1)) for n, m in zip(resized, shape, strict=True))
        yield rng, full, resized, (*corner, *shape)


def test_nearest_is_that_of_opencv():
    for source in (*range(1, 70), 360, 481, 1023, 2048):
        line = np.arange(source, dtype=np.float32)[None]
        for resized in (*range(1, 90, 3), 180, 359, 613, 1024, 1999):
            expected = cv2.resize(line, (resized, 1), interpolation=cv2.INTER_NEAREST_EXACT)[0]
            np.testing.assert_array_equal(nearest_places(source, resized), expected, err_msg=f"{source} to {resized}")


def test_bilinear_windows_are_those_of_the_whole():
    largest, total, exact = 0, [], 0
    for rng, full, resized, (top, left, height, width) in draw_cases(300):
        image = rng.integers(0, 256, (*full, 3), np.uint8)  # noise: any shift shows at once
        whole = cv2.resize(image, resized[::-1], interpolation=cv2.INTER_LINEAR)
        expected = whole[top : top + height, left : left + width].astype(int)
        got = cut_bilinear(image, full, resized, (top, left, height, width))
        assert got.shape == expected.shape
        difference = abs(got - expected)
        largest, exact = max(largest, difference.max()), exact + (difference.max() == 0)
        total.append(difference.mean())
    assert largest <= LEVELS and np.mean(total) <= MEAN_LEVELS, (largest, np.mean(total))
    assert exact > 200


def test_resizing_starts_shortly_before_the_window():
    rng, lost = np.random.default_rng(1), []
    for _ in range(500):
        source, wanted = int(rng.integers(500, 2000)), int(rng.integers(400, 800))
        resized = int(source * rng.uniform(0.5, 2.0))
        line, place = first_line(wanted, source, resized)
        assert abs(line * source / resized - place) <= TOLERANCE and 0 <= line <= wanted
        assert (wanted + 0.5) * source / resized - 0.5 >= place or place == 0  # weights stay in the cut-out
        lost.append(wanted - line)
    assert np.mean(lost) < 200 and np.median(lost) < 100


# --- the transform against resizing and cropping in full ------------------------------------------------------------


def plain_window(sample, rng, base_size, scale_range, size, limit):
    """The recipe word by word: everything is resized, then windows are tried and one is cut."""
    height, width = sample["label"].shape
    scale = rng.uniform(*scale_range)
    if base_size is not None:
        scale = min(int(max(base_size) * scale) / max(height, width), int(min(base_size) * scale) / min(height, width))
    new = max(1, int(width * scale + 0.5)), max(1, int(height * scale + 0.5))
    methods = {"image": cv2.INTER_LINEAR}
    whole = {k: cv2.resize(a, new, interpolation=methods.get(k, cv2.INTER_NEAREST_EXACT)) for k, a in sample.items()}
    label = whole["label"]
    height, width = min(size[0], label.shape[0]), min(size[1], label.shape[1])
    for _ in range(10 if limit < 1.0 else 1):
        top, left = int(rng.integers(label.shape[0] - height + 1)), int(rng.integers(label.shape[1] - width + 1))
        values, counts = np.unique(label[top : top + height, left : left + width], return_counts=True)
        counts = counts[values != 255]
        if len(counts) and counts.max() / counts.sum() < limit:
            break
    return {key: array[top : top + height, left : left + width] for key, array in whole.items()}


@pytest.mark.parametrize("base_size", [None, (150, 90)])
@pytest.mark.parametrize("limit", [0.4, 1.0])
def test_windows_are_those_of_the_plain_recipe(base_size, limit):
    for seed in range(25):
        rng = np.random.default_rng(seed)
        full = tuple(rng.integers(40, 160, 2))
        label = cv2.resize(rng.integers(0, 5, (4, 5), np.uint8), full[::-1], interpolation=cv2.INTER_NEAREST)
        label[label == 4] = 255
        sample = {"image": rng.integers(0, 256, (*full, 3), np.uint8), "label": label}
        sample |= {"score": rng.integers(0, 9, (*full, 2), np.uint8)}
        ours, theirs = np.random.default_rng((seed, 1)), np.random.default_rng((seed, 1))
        got = random_window(base_size, (0.5, 2.0), (60, 80), limit)(sample, ours)
        expected = plain_window(sample, theirs, base_size, (0.5, 2.0), (60, 80), limit)
        assert got.keys() == expected.keys() and ours.random() == theirs.random()  # as many draws
        for key in ("label", "score"):
            np.testing.assert_array_equal(got[key], expected[key])
        assert np.abs(got["image"].astype(int) - expected["image"]).max() <= LEVELS


# --- images decoded smaller -----------------------------------------------------------------------------------------


def waves(height: int, width: int) -> np.ndarray:
    """A smooth picture, (H, W, 3): what is lost by decoding it smaller is little, so that any shift shows."""
    y, x = np.mgrid[:height, :width].astype(float)
    planes = [np.sin(x / 19 + y / 43), np.cos(x / 37 - y / 23), np.sin(y / 29) * np.cos(x / 31)]
    return np.rint(127 + 120 * np.stack(planes, axis=-1)).astype(np.uint8)


def save(path, image, **options):
    Image.fromarray(image).save(path, quality=98, subsampling=0, **options)
    return path


@pytest.mark.parametrize("reduction", [2, 4, 8])
@pytest.mark.parametrize("size", [(320, 400), (317, 403), (313, 393), (321, 399)])
def test_a_smaller_image_shows_the_same_places(size, reduction, tmp_path):
    path = save(tmp_path / "waves.jpg", waves(*size))
    image, full, got = read_photo(path, lambda _: reduction)
    assert (full, got) == (size, reduction) and image.shape[:2] == tuple(-(-edge // reduction) for edge in size)
    resized = tuple(edge * 10 // (11 * reduction) for edge in size)
    window = (resized[0] // 3, resized[1] // 4, resized[0] // 2, resized[1] - resized[1] // 4)  # to the right edge
    small = cut_bilinear(image, full, resized, window, reduction).astype(int)
    plain = cut_bilinear(read_photo(path)[0], full, resized, window)
    # a row or column of the result is up to 8.8 of the file's, over which the waves change by up to 55 levels
    assert abs(small - plain).max() <= 8 and abs(small - plain).mean() < 2.0


def test_only_what_may_be_decoded_smaller_is(tmp_path):
    asked = []

    def choose(size):
        asked.append(size)
        return 2

    image = waves(30, 40)
    Image.fromarray(image).save(tmp_path / "a.png")
    turned = Image.Exif()
    turned[0x0112] = 2  # mirrored
    save(tmp_path / "turned.jpg", image, exif=turned)
    for name in ("a.png", "turned.jpg"):
        photo, size, reduction = read_photo(tmp_path / name, choose)
        assert (photo.shape, size, reduction) == ((30, 40, 3), (30, 40), 1)
    assert asked == []
    assert read_photo(save(tmp_path / "a.jpg", image), choose)[0].shape == (15, 20, 3) and asked == [(30, 40)]
    whole = (tmp_path / "a.jpg").read_bytes()
    (tmp_path / "a.jpg").write_bytes(whole[:12] + whole[-2:])  # an end mark, but no header
    with pytest.raises(ValueError, match="cannot decode image"):
        read_photo(tmp_path / "a.jpg", choose)


def test_sizes_are_compared_before_anything_gets_smaller(tmp_path):
    save(tmp_path / "a.jpg", waves(30, 41))
    Image.fromarray(np.zeros((30, 42), np.uint8)).save(tmp_path / "a.png")  # 41 and 42 pixels both become 21
    with pytest.raises(ValueError, match="a.jpg is 30 x 41.*a.png is 30 x 42"):
        read_item(FileItem("a", tmp_path / "a.jpg", tmp_path / "a.png"), {0: 0}, lambda _: 2)


def test_an_image_is_made_smaller_by_no_more_than_it_shrinks():
    def chosen(scale, full=(100, 200), base=None):
        return random_window(base, (scale, scale), (64, 64), 1.0, reduced=True).reduction(full, np.random.default_rng())

    assert [chosen(scale) for scale in (2.0, 1.0, 0.51, 0.5, 0.26, 0.25, 0.125, 0.12)] == [1, 1, 1, 2, 2, 4, 4, 8]
    assert chosen(1.0, (1024, 2048), (2048, 512)) == 2 and chosen(1.0, (1000, 2048), (2048, 512)) == 1  # 512 of 1000
    assert not hasattr(random_window(None, (0.1, 0.1), (64, 64), 1.0), "reduction")


@pytest.fixture(scope="module")
def drawn(tmp_path_factory) -> dict:
    return write_drawn(tmp_path_factory.mktemp("drawn"), ".jpg", size=(194, 258), count=4)


def read(data: DataConfig, count: int = 9, first: int = 0) -> list[dict]:
    stream = create_train_stream(data, max_classes=12, seed=3, first_sample=first, num_samples=count)
    return [dict(zip(stream.columns, stream[i], strict=True)) for i in range(count)]


def differences(settings: dict, count: int = 9) -> list[float]:
    """Mean difference in levels that decoding at reduced size makes to each image; labels must not differ at all."""
    whole = read(DataConfig(**settings, photometric=False), count)
    smaller = read(DataConfig(**settings, photometric=False, reduced_decoding=True), count)
    for sample, other in zip(whole, smaller, strict=True):
        for key in ("label", "valid", "present", "item"):
            np.testing.assert_array_equal(sample[key], other[key])
    return [np.abs(a["image"].astype(int) - b["image"]).mean() for a, b in zip(whole, smaller, strict=True)]


def check_bound(settings: dict, count: int, at_half: float, below: float) -> None:
    """The bounds that performance.md states: at half the size, and below, where four pixels of many miss the others."""
    assert 0.0 < max(differences({**settings, "scale_range": (0.5, 0.5)}, count)) < at_half
    assert 0.0 < max(differences({**settings, "scale_range": (0.2501, 0.5)}, count)) < below
    assert max(differences({**settings, "scale_range": (0.55, 2.0)}, count)) == 0.0


def test_images_decoded_smaller_stay_within_the_stated_bound(drawn):
    check_bound({**drawn, "crop_size": (48, 64)}, 9, 2.0, 10.0)  # small, with noise in every pixel


def test_photos_decoded_smaller_stay_within_the_stated_bound(data_root):
    camvid = {"dataset": "camvid", "root": str(data_root / "camvid_480x360"), "flip": 0.0}
    check_bound({**camvid, "crop_size": (90, 120)}, 40, 1.0, 13.0)
    whole = reduced_decoding.differences(camvid, (360, 480), (0.2501, 0.2501), 40)
    assert len(whole) == 40 and 5.0 < whole.max() < 10.0


def test_the_benchmark_takes_every_image_once(drawn):
    keys, size = {**drawn, "max_class_share": 1.0}, (194, 258)
    found = reduced_decoding.differences(keys, size, (0.5, 0.5), None)
    whole = {**keys, "crop_size": (97, 129), "scale_range": (0.5, 0.5), "flip": 0.0}
    np.testing.assert_allclose(np.sort(found), np.sort(differences(whole, 3)))  # whole images: the draws do not matter
    assert reduced_decoding.differences(keys, size, (0.51, 0.51), 2).tolist() == [0.0, 0.0]


def test_classes_of_the_whole_image_come_before_and_change_nothing(drawn):
    data = DataConfig(**drawn, crop_size=(48, 64), scale_range=(0.2, 0.4), reduced_decoding=True)
    settings = {"max_classes": 9, "seed": 3, "first_sample": 0, "num_samples": 3}
    plain, more = (create_train_stream(data, **settings, columns=names) for names in ((), ("image_present",)))
    for i in range(3):
        assert plain.reduction(i)((194, 258)) == more.reduction(i)((194, 258)) >= 2
        whole = dict(zip(more.columns, more[i], strict=True))
        for name, array in zip(plain.columns, plain[i], strict=True):
            np.testing.assert_array_equal(whole[name], array)
        assert set(whole["present"]) <= set(whole["image_present"]) | {-1}


def test_reduced_decoding_goes_on_exactly_and_alike_on_all_workers(drawn):
    data = DataConfig(**drawn, crop_size=(48, 64), scale_range=(0.2, 0.6), reduced_decoding=True)
    whole = read(data)
    resumed = read(data, 4, first=5)
    batches = list(
        create_train_batches(
            data, max_classes=12, seed=3, rank=0, world_size=1, batch_size=3, first_sample=0, num_samples=9
        )
    )
    batched = [{key: batch[key][b] for key in batch} for batch in batches for b in range(3)]
    for samples, expected in ((resumed, whole[5:]), (batched, whole)):
        for sample, wanted in zip(samples, expected, strict=True):
            for key in wanted:
                np.testing.assert_array_equal(sample[key], wanted[key])
