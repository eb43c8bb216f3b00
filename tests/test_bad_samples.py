"""Samples that cannot be read: an error, or replaced alike whatever the workers, devices and interruptions."""

import cv2
import numpy as np
import pytest

import train
from src.config import DataConfig, load_config
from src.data import create_train_batches, load_classes, load_items
from src.data.bad_samples import BadSamples
from src.data.loader import permutation
from src.data.reading import FileItem, read_item
from src.engine.run_logs import BAD_SAMPLES, known_bad_samples
from src.log import read_metrics
from tests.tiny import write_config

NAMES = ("a", "b", "c", "d", "e", "f")
BAD = {"b": "cannot decode image", "e": "both must have one size"}
SETTINGS = {"max_classes": 2, "seed": 3, "rank": 0, "world_size": 1, "batch_size": 2, "first_sample": 0}


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> DataConfig:
    """Six pairs of 48 x 64 pixels; the image of b is damaged, the mask of e has another size."""
    root = tmp_path_factory.mktemp("data")
    rng = np.random.default_rng(0)
    for split in ("train", "val"):
        for kind in ("images", "labels"):
            (root / kind / split).mkdir(parents=True)
        for name in NAMES if split == "train" else NAMES[:1]:
            cv2.imwrite(str(root / "images" / split / f"{name}.png"), rng.integers(0, 256, (48, 64, 3), np.uint8))
            cv2.imwrite(str(root / "labels" / split / f"{name}.png"), rng.integers(0, 2, (48, 64), np.uint8))
    image = root / "images" / "train" / "b.png"
    image.write_bytes(image.read_bytes()[:30])
    cv2.imwrite(str(root / "labels" / "train" / "e.png"), np.zeros((9, 9), np.uint8))
    (root / "classes.yaml").write_text("names: [road, sky]\n")
    return DataConfig(dataset="folder", root=str(root), crop_size=(32, 48), workers=2, on_bad_sample="skip")


def notes(data: DataConfig, budget: int = 2, known=()) -> BadSamples:
    return BadSamples(load_items(data, "train"), load_classes(data).table, budget, known)


def collect(data: DataConfig, bad: BadSamples | None, **settings) -> list[tuple]:
    """The samples of all batches: (item, bytes of image and label)."""
    settings = {**SETTINGS, "num_samples": 18, **settings}
    batches = list(create_train_batches(data, bad=bad, **settings))
    return [
        (int(batch["item"][b]), batch["image"][b].tobytes(), batch["label"][b].tobytes())
        for batch in batches
        for b in range(len(batch["item"]))
    ]


@pytest.fixture(scope="module")
def collected(data):
    """18 samples with their replacements, and what was noted."""
    bad = notes(data)
    return collect(data, bad), bad


def test_the_next_good_item_stands_in(data, collected):


    samples, bad = collected
    order = [k for epoch in range(4) for k in permutation(3, epoch, 6).tolist()]
    good = [k for k in range(6) if NAMES[k] not in BAD]
    expected = []
    for position in range(18):
        expected.append(next(k for k in order[position:] if k in good))
    assert [item for item, *_ in samples] == expected
    assert sum(k not in good for k in order[:18]) == 6  # each bad one was met three times
    assert len({image for _, image, _ in samples}) == 18  # a stand-in is cut and coloured anew
    assert bad.names == ["b", "e"]


def test_a_stand_in_has_the_draws_of_its_position(data, collected):
    samples, bad = collected
    assert len({image for k, image, _ in samples if k == samples[0][0]}) > 1
    again = collect(data, notes(data))
    assert again == samples


@pytest.mark.parametrize("workers", [1, 5])
def test_workers_and_resuming_change_nothing(data, collected, workers):
    samples, _ = collected
    settings = data.model_copy(update={"workers": workers})
    assert collect(settings, notes(data), first_sample=6, num_samples=12) == samples[6:]


def test_two_devices_take_what_one_takes(data, collected):
    samples, _ = collected
    noted = [notes(data), notes(data)]
    ranks = [collect(data, noted[rank], rank=rank, world_size=2, num_samples=8) for rank in (0, 1)]
    assert [sample for pair in zip(*ranks, strict=True) for sample in pair] == samples[:16]


def test_an_error_by_default(data):
    with pytest.raises(ValueError, match="cannot decode image .*b.png|e.png is 9 x 9"):
        collect(data, None)


def test_beyond_the_budget_all_are_listed(data):
    bad = notes(data, budget=1)
    with pytest.raises(ValueError) as caught:
        collect(data, bad)
    first, *rest = str(caught.value).splitlines()
    assert "2 training samples cannot be read, data.max_bad_samples allows 1" in first
    assert sorted(line.split(":")[0].strip() for line in rest) == ["b", "e"]
    assert all(BAD[line.split(":")[0].strip()] in line for line in rest)


def test_nothing_good_is_left(data, tmp_path):
    for file in (tmp_path / "images" / "train" / "a.png", tmp_path / "labels" / "train" / "a.png"):
        file.parent.mkdir(parents=True)
        file.write_bytes(b"no image")
    (tmp_path / "classes.yaml").write_text("names: [road, sky]\n")
    settings = data.model_copy(update={"root": str(tmp_path)})
    with pytest.raises(ValueError, match="1 training samples in a row cannot be read"):
        collect(settings, notes(settings))


def test_each_is_told_once(data):
    bad = notes(data)
    bad.add(1, "damaged")
    bad.add(1, "damaged")
    assert bad.take_new() == [{"name": "b", "reason": "damaged"}] and bad.take_new() == []
    bad = notes(data, known=["b", "gone"])
    bad.add(1, "damaged")
    bad.add(4, "small")
    assert bad.take_new() == [{"name": "e", "reason": "small"}] and bad.names == ["b", "e"]


def test_devices_tell_each_other(data):
    first, second = notes(data), notes(data)
    second.add(1, "damaged")
    second.add(2, "a disk that only this device has")
    sent = []
    second.merge(lambda own: sent.append(own) or own)
    first.merge(lambda own: own + sent[0])
    told = {entry["name"]: entry["reason"] for entry in first.take_new()}
    assert told.keys() == {"b", "c"} and BAD["b"] in told["b"] and "another device only" in told["c"]
    short = notes(data, budget=1)
    with pytest.raises(ValueError, match="2 training samples cannot be read, data.max_bad_samples allows 1"):
        short.merge(lambda own: own + sent[0])


def test_a_run_goes_on_without_them_and_says_so(data, tmp_path, capsys):
    lines = write_config(tmp_path).read_text().splitlines()
    text = "\n".join(line for line in lines if "options:" not in line)
    file = tmp_path / "own.yaml"
    file.write_text(text.replace("dataset: toy_scenes", f"dataset: folder\n  root: {data.root}"))
    changes = [
        "model.head.name=fcn", "loss.name=cross_entropy", "data.on_bad_sample=skip", "data.max_bad_samples=2",
        "train.evaluate_every=4", "train.checkpoint_every=4", "train.steps=4", f"output_dir={tmp_path}",
    ]  # fmt: skip
    config = load_config(file, changes)
    train.train(config)
    text = " ".join(capsys.readouterr().out.split())
    for name, reason in BAD.items():
        assert text.count(f"left out: {name}: ") == 1 and reason in text
    assert "2 training samples left out: b, e (" in text
    records = read_metrics(tmp_path / "tiny" / BAD_SAMPLES)
    assert sorted(record["name"] for record in records) == ["b", "e"]
    assert all(BAD[record["name"]] in record["reason"] for record in records)
    assert known_bad_samples(tmp_path / "tiny") == [record["name"] for record in records]


@pytest.mark.parametrize("kind", ["image", "label"])
def test_an_absurd_size_in_a_header_is_named(kind, tmp_path):
    files = {name: tmp_path / f"{name}.bmp" for name in ("image", "label")}
    cv2.imwrite(str(files["image"]), np.zeros((8, 8, 3), np.uint8))
    cv2.imwrite(str(files["label"]), np.zeros((8, 8), np.uint8))
    item = FileItem("a", **files)
    assert read_item(item, {0: 0})["label"].shape == (8, 8)
    data = bytearray(files[kind].read_bytes())
    data[18:26] = (40_000).to_bytes(4, "little") * 2  # width and height
    files[kind].write_bytes(data)
    with pytest.raises(ValueError, match=f"{kind}.bmp"):
        read_item(item, {0: 0})
