"""The index of large folders: what it gives, when it is made anew, where it lies, and a start with a million pairs."""

import os
import stat
import time
from pathlib import Path

import numpy as np
import pytest

from benchmarks import many_samples
from src.config import DataConfig
from src.data import create_eval_samples, create_train_batches, index, load_items
from src.data.holdout import select_part
from src.data.index import FilePairs, Names, pack, pair_folders, read_index, write_index
from src.data.loader import permutation
from tests.layouts import save_mask, save_photo, write_lines

OLD = time.time_ns() - 60_000_000_000  # a minute ago: settled


def settle(*folders: Path) -> None:
    """Makes the folders look as if they had not been changed for a minute."""
    for folder in folders:
        os.utime(folder, ns=(OLD, OLD))


@pytest.fixture
def data(tmp_path, monkeypatch) -> Path:
    """Five pairs, two of them nested and one with other suffixes, above the number from which an index is kept."""
    monkeypatch.setattr(index, "INDEX_FROM", 3)
    monkeypatch.setenv("ECENET_CACHE", str(tmp_path / "cache"))
    root = tmp_path / "data"
    for name in ("b", "a", "town/c", "town/ä.b"):
        save_photo(root / "images" / "train" / f"{name}.jpg")
        save_mask(root / "labels" / "train" / f"{name}.png", [0, 1])
    save_photo(root / "images" / "train" / "z.PNG")
    save_mask(root / "labels" / "train" / "z.bmp", [0, 1])
    write_lines(root / "classes.yaml", ["names: [road, sky]"])
    settle_all(root)
    return root


def settle_all(root: Path) -> None:
    settle(*(path for path in root.rglob("*") if path.is_dir()))


def pairs(root: Path):
    return pair_folders(root / "images" / "train", root / "labels" / "train", "train")


def kept(root: Path) -> list[Path]:
    return sorted((root.parent / "cache").glob("*"))


def refuse_to_list(monkeypatch) -> None:
    def scan(*arguments):
        raise AssertionError("listed again")

    monkeypatch.setattr(index, "scan", scan)


def test_the_index_gives_what_listing_gives(data, monkeypatch):
    listed = pairs(data)
    assert [file.suffix for file in kept(data)] == [".index"]  # and nothing half written
    refuse_to_list(monkeypatch)
    mapped = pairs(data)
    assert isinstance(mapped, FilePairs) and isinstance(mapped.names.text.base, np.memmap)
    assert list(mapped) == list(listed) and len(mapped) == 5
    assert [item.name for item in mapped] == ["a", "b", "town/c", "town/ä.b", "z"]
    assert all(item.image.is_file() and item.label.is_file() for item in mapped)
    assert mapped[-1].image.name == "z.PNG" and mapped[-1].label.name == "z.bmp"
    assert [item.name for item in mapped[1::2]] == ["b", "town/ä.b"] and mapped[1::2][1] == mapped[3]
    with pytest.raises(IndexError):
        mapped[5]


def test_small_folders_leave_nothing_behind(data, monkeypatch):
    monkeypatch.setattr(index, "INDEX_FROM", 6)
    assert isinstance(pairs(data), list) and kept(data) == []


@pytest.mark.parametrize("change", ["add", "remove", "rename", "nested", "new folder"])
def test_a_changed_folder_is_listed_again(data, change):
    before = [item.name for item in pairs(data)]
    for kind, suffix in (("images", ".jpg"), ("labels", ".png")):
        place = data / kind / "train"
        if change == "remove":
            (place / f"a{suffix}").unlink()
        elif change == "rename":
            (place / f"a{suffix}").rename(place / f"q{suffix}")
        else:
            name = {"add": "q", "nested": "town/q", "new folder": "village/q"}[change]
            (save_photo if kind == "images" else lambda path: save_mask(path, [0]))(place / f"{name}{suffix}")
    after = [item.name for item in pairs(data)]
    assert after != before
    wanted = {name for name in before if name != "a" or change not in ("remove", "rename")}
    added = {"add": {"q"}, "rename": {"q"}, "nested": {"town/q"}, "new folder": {"village/q"}, "remove": set()}[change]
    assert set(after) == wanted | added


def test_changed_contents_need_no_new_index(data, monkeypatch):
    pairs(data)
    save_mask(data / "labels" / "train" / "a.png", [1])  # written in place: the folder's time stays
    refuse_to_list(monkeypatch)
    assert len(pairs(data)) == 5


def test_a_folder_changed_just_now_is_not_trusted(data):
    """A second change within the same tick of the clock would not show in the folder's time."""
    now = time.time_ns()
    os.utime(data / "images" / "train", ns=(now, now))
    pairs(data)
    for kind, suffix in (("images", ".jpg"), ("labels", ".png")):
        (data / kind / "train" / f"a{suffix}").unlink()
        settle(data / kind / "train")
    os.utime(data / "images" / "train", ns=(now, now))  # as it was when it was listed
    assert [item.name for item in pairs(data)][0] == "b"


@pytest.mark.parametrize("damage", ["cut off", "other file", "empty", "zeroed", "one bit", "one tail"])
def test_a_damaged_index_is_made_anew(data, damage):
    pairs(data)
    [file] = kept(data)
    content = file.read_bytes()
    header = content.index(b"\n") + 1
    damaged = {
        "cut off": content[:-8], "other file": b'{"a": 1}\n' + content, "empty": b"",
        "zeroed": content[:header] + bytes(len(content) - header), "one bit": content[:-1] + bytes([content[-1] ^ 1]),
        "one tail": content.replace(b'"tails": [".jpg"', b'"tails": [".jpX"'),
    }[damage]  # fmt: skip
    assert damaged != content
    file.write_bytes(damaged)
    assert [item.image.name for item in pairs(data)] == ["a.jpg", "b.jpg", "c.jpg", "ä.b.jpg", "z.PNG"]
    assert kept(data) == [file] and file.stat().st_size == len(content)


def test_unpaired_files_make_no_index(data):
    (data / "labels" / "train" / "a.png").unlink()
    with pytest.raises(ValueError, match=r"1 image \(a\) without a label"):
        pairs(data)
    assert kept(data) == []


def test_data_that_can_only_be_read(data):
    """The cache lies elsewhere, so no folder of the data is written to."""
    folders = [data, *(path for path in data.rglob("*") if path.is_dir())]
    times = [folder.stat().st_mtime_ns for folder in folders]
    for folder in folders:
        folder.chmod(stat.S_IRUSR | stat.S_IXUSR)
    try:
        assert len(pairs(data)) == len(pairs(data)) == 5
    finally:
        for folder in folders:
            folder.chmod(stat.S_IRWXU)
    assert [folder.stat().st_mtime_ns for folder in folders] == times and len(kept(data)) == 1


def test_a_cache_that_cannot_be_written_is_told(data, monkeypatch, capsys):
    blocked = data.parent / "file"
    blocked.write_text("")
    monkeypatch.setenv("ECENET_CACHE", str(blocked / "cache"))
    assert len(pairs(data)) == 5
    assert "not kept, so the next start lists again" in " ".join(capsys.readouterr().out.split())


def test_where_the_cache_lies(monkeypatch, tmp_path):
    monkeypatch.delenv("ECENET_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert index.cache_folder() == tmp_path / "ecenet"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert index.cache_folder() == tmp_path / ".cache" / "ecenet"
    monkeypatch.delenv("HOME")
    monkeypatch.setattr(os, "getuid", lambda: 54321)  # a user whom the system does not know
    assert index.cache_folder().name == "ecenet-54321"


def test_a_kill_while_writing_leaves_the_old_index(data, monkeypatch):
    pairs(data)
    [file] = kept(data)
    content = file.read_bytes()
    monkeypatch.setattr(index.os, "replace", lambda *paths: (_ for _ in ()).throw(KeyboardInterrupt()))
    with pytest.raises(KeyboardInterrupt):
        write_index(file, "key", pack({"a": ".jpg"}, {"a": ".png"}), {}, 0)
    assert kept(data) == [file] and file.read_bytes() == content


def test_shares_and_parts_of_an_index(data):
    settings = DataConfig(dataset="folder", root=str(data), crop_size=(4, 4), val_split="train")
    items = load_items(settings, "train")
    assert [item.name for item in create_eval_samples(settings, 1, 2).items] == [items[1].name, items[3].name]
    assert select_part(items, None) is items
    names = pack(*({f"{k:02d}": tail for k in range(41)} for tail in (".a", ".b")))
    many = FilePairs(Path("images"), Path("labels"), names)
    for part in ("fit", "held"):
        assert list(select_part(many, part)) == select_part(list(many), part)
    assert select_part(many, "held")[::2][1].image == Path("images/25.a")


def test_a_million_samples_start_within_seconds(tmp_path, monkeypatch):
    """From the index of a million pairs to the first batch. Only the files of that batch exist."""
    monkeypatch.setenv("ECENET_CACHE", str(tmp_path / "cache"))
    count, batch, root = 1_000_000, 4, tmp_path / "data"
    digits = (np.arange(count)[:, None] // 10 ** np.arange(6, -1, -1) % 10 + ord("0")).astype(np.uint8)
    columns = [np.frombuffer(text, np.uint8)[None].repeat(count, axis=0) for text in (b"part_", b"/image_")]
    text = np.concatenate([columns[0], digits[:, :4], columns[1], digits], axis=1)  # part_0012/image_0012345
    ends = np.arange(1, count + 1) * text.shape[1]
    names = Names((".jpg", ".png"), text.ravel(), ends, np.zeros(count, np.uint8), np.ones(count, np.uint8))
    for position in permutation(0, 0, count)[:batch].tolist():
        assert names[position] == f"part_{position // 1000:04d}/image_{position:07d}"
        save_photo(root / "images" / "train" / f"{names[position]}.jpg")
        save_mask(root / "labels" / "train" / f"{names[position]}.png", [0, 1])
    write_lines(root / "classes.yaml", ["names: [road, sky]"])
    settle_all(root)
    folders = [path for path in (root / "images", root / "labels") for path in [path / "train", *path.glob("train/*")]]
    stamps = {str(folder): folder.stat().st_mtime_ns for folder in folders}
    key, file = index.index_place(root / "images" / "train", root / "labels" / "train")
    write_index(file, key, names, stamps, time.time_ns())
    assert read_index(file, key) is not None
    refuse_to_list(monkeypatch)
    data = DataConfig(dataset="folder", root=str(root), crop_size=(4, 4), workers=1)
    start = time.perf_counter()
    items = load_items(data, "train")
    batches = create_train_batches(
        data, max_classes=2, seed=0, rank=0, world_size=1, batch_size=batch, first_sample=0, num_samples=batch,
        items=items,
    )  # fmt: skip
    first = next(iter(batches))
    seconds = time.perf_counter() - start
    assert len(items) == count and first["image"].shape == (batch, 3, 4, 4)
    assert first["item"].tolist() == permutation(0, 0, count)[:batch].tolist()
    assert seconds < 10, f"{seconds:.1f} s"


def test_the_benchmark_says_what_to_do_without_its_place(tmp_path):
    with pytest.raises(FileNotFoundError, match="none does not exist; make it, or leave out --place"):
        many_samples.main(["--place", str(tmp_path / "none")])
