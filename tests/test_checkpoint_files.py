"""Checkpoint folders: what is written, what is kept, and that nothing damaged is taken for good."""

import json
import os
import random
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from src.engine import checkpoint_files
from src.engine.checkpoint_files import (
    BEST,
    FILES,
    LATEST,
    MARKER,
    OPTIMIZER,
    STATE,
    WEIGHTS,
    clear_debris,
    newest_good,
    numbers_of,
    problems_of,
    publish,
    set_aside,
    step_folders,
)
from src.engine.tensor_files import read_safetensors, tensor_blocks
from tests.checkpoint_writer import SMALL, files_of, names, write


def steps(root: Path) -> list[int]:
    return [numbers_of(folder)[0] for folder in step_folders(root)]


def test_another_reader_reads_the_files_and_this_one_reads_another_writers(tmp_path):
    tensors = {
        "a": np.arange(6, dtype=np.float32).reshape(2, 3), "b.flag": np.array([True, False, True]),
        "scalar": np.array(2.5, np.float32), "none": np.zeros((0, 4), np.float32), "wide": np.arange(3.0),
        "turned": np.arange(6, dtype=np.int32).reshape(2, 3).T, "half": np.ones(3, np.float16),
    }  # fmt: skip
    (tmp_path / "ours").write_bytes(b"".join(map(bytes, tensor_blocks(tensors, {"key": "ä"}))))
    save_file({n: a.copy("C") for n, a in tensors.items()}, tmp_path / "theirs", {"key": "ä"})
    found, (read, metadata) = load_file(tmp_path / "ours"), read_safetensors(tmp_path / "theirs")
    assert found.keys() == read.keys() == tensors.keys() and metadata == {"key": "ä"}
    assert read_safetensors(tmp_path / "ours")[1] == metadata
    for name, array in tensors.items():
        for other in (found[name], read[name]):
            assert other.dtype == array.dtype and other.shape == array.shape
            np.testing.assert_array_equal(other, array)
    with pytest.raises(ValueError, match="c is complex64; a .safetensors file takes float64"):
        tensor_blocks({"c": np.zeros(1, np.complex64)}, {})


def test_equal_arrays_make_equal_files():
    tensors, metadata = {"b": np.ones(2, np.float32), "a": np.zeros(1, np.float32)}, {"y": "1", "x": "2"}
    other = {"a": tensors["a"].copy(), "b": tensors["b"].copy()}, {"x": "2", "y": "1"}
    first, second = (b"".join(map(bytes, tensor_blocks(*each))) for each in ((tensors, metadata), other))
    assert first == second


def test_the_marker_is_as_documented(tmp_path):
    folder = write(tmp_path, 3, SMALL)
    marker = json.loads((folder / MARKER).read_text())
    assert marker["format"] == 1 and set(marker["files"]) == set(FILES) == names(folder) - {MARKER}
    for name, facts in marker["files"].items():
        output = subprocess.run(["sha256sum", folder / name], capture_output=True, text=True, check=True).stdout
        assert facts == {"bytes": (folder / name).stat().st_size, "sha256": output.split()[0]}
    assert {oct((folder / name).stat().st_mode & 0o777) for name in FILES} == {oct(0o666 & ~umask())}


def umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


@pytest.mark.parametrize("name", [*FILES, MARKER])
def test_every_flipped_bit_is_found(name, tmp_path):
    folder = write(tmp_path, 3, SMALL)
    content, rng = (folder / name).read_bytes(), random.Random(name)
    for _ in range(60):
        place, bit = rng.randrange(len(content)), rng.randrange(8)
        damaged = bytearray(content)
        damaged[place] ^= 1 << bit
        (folder / name).write_bytes(damaged)
        found = problems_of(folder)
        assert found, (place, bit, content[place : place + 1])
        if name != MARKER:
            assert len(found) == 1 and found[0].startswith(f"{name} has other content than was written (SHA-256 ")
            assert bool(problems_of(folder, (WEIGHTS,))) == (name == WEIGHTS)
    (folder / name).write_bytes(content)
    assert problems_of(folder) == []


@pytest.mark.parametrize("name", [*FILES, MARKER])
def test_every_cut_is_found(name, tmp_path):
    folder = write(tmp_path, 3, SMALL)
    content = (folder / name).read_bytes()
    for rest in (0, 1, len(content) // 2, len(content) - 1):
        (folder / name).write_bytes(content[:rest])
        (problem,) = problems_of(folder)
        if name != MARKER:
            assert problem == f"{name} has {rest} bytes, {len(content)} were written"
        else:
            assert problem.startswith(f"{MARKER} ")
    (folder / name).unlink()
    (problem,) = problems_of(folder)
    assert problem.startswith(f"{name} is missing")


@pytest.mark.parametrize("content, message", [
    ({"format": 2, "files": {}}, "has format 2, of a later version; this one reads 1"),
    ({"format": 1, "files": {}}, "is damaged: it does not list weights.safetensors, optimizer.safetensors"),
    ([1], "is damaged"), ({"files": {}}, "is damaged"),
])  # fmt: skip
def test_markers_of_others(content, message, tmp_path):
    folder = write(tmp_path, 3, SMALL)
    (folder / MARKER).write_text(json.dumps(content))
    assert message in problems_of(folder)[0]


def test_the_newest_good_one_is_found_behind_damaged_ones(tmp_path):
    for step in (1, 2, 3, 4):
        write(tmp_path, step, SMALL, keep=4)
    (tmp_path / "step_00000004" / STATE).unlink()
    (tmp_path / "step_00000003" / OPTIMIZER).write_bytes(b"")
    good, damaged = newest_good(tmp_path)
    assert good.name == "step_00000002"
    assert {folder.name: problems for folder, problems in damaged.items()} == {
        "step_00000004": ["state.json is missing"],
        "step_00000003": [f"optimizer.safetensors has 0 bytes, {(good / OPTIMIZER).stat().st_size} were written"],
    }
    shutil.rmtree(tmp_path / "step_00000004")
    assert newest_good(tmp_path)[1][tmp_path / "step_00000004"] == ["the folder is gone"]  # `latest` names it


def test_the_last_and_the_best_are_kept(tmp_path):
    for step in range(1, 8):
        write(tmp_path, step, SMALL, best=step == 2)
    assert steps(tmp_path) == [7, 6, 2]
    assert os.readlink(tmp_path / LATEST) == "step_00000007" and os.readlink(tmp_path / BEST) == "step_00000002"
    write(tmp_path, 8, SMALL, best=True, keep=1)
    assert steps(tmp_path) == [8]


def test_a_step_saved_again_replaces_the_first_without_a_gap(tmp_path, monkeypatch):
    write(tmp_path, 5, SMALL, best=True, keep=2)
    write(tmp_path, 6, SMALL, best=True, keep=2)
    seen, point = [], checkpoint_files.point

    def watch(link, target):
        seen.extend(problems_of(tmp_path / each) for each in (LATEST, BEST))
        point(link, target)

    monkeypatch.setattr(checkpoint_files, "point", watch)
    folder = write(tmp_path, 6, SMALL, best=True, keep=2)
    assert folder.name == "step_00000006-2" and seen == [[]] * 4
    assert names(tmp_path) == {"step_00000005", "step_00000006-2", LATEST, BEST}
    assert newest_good(tmp_path) == (folder, {})


def test_a_damaged_one_stays_until_the_run_has_got_past_it(tmp_path):
    for step in (10, 20, 30):
        write(tmp_path, step, SMALL, best=False)
    checkpoint_files.point(tmp_path / LATEST, "step_00000020")
    set_aside(tmp_path / "step_00000030")
    for step, there in ((25, True), (29, True), (30, False)):
        write(tmp_path, step, SMALL, best=False)
        assert (tmp_path / "step_00000030.damaged").exists() == there
    assert steps(tmp_path) == [30, 29] and len(names(tmp_path)) == 3


def test_debris_is_cleared_and_nothing_else(tmp_path):
    write(tmp_path, 3, SMALL)
    before = names(tmp_path)
    for name in ("step_00000009.incomplete", "step_00000001.incomplete"):
        (tmp_path / name).mkdir()
        (tmp_path / name / WEIGHTS).write_text("half")
    (tmp_path / "latest.new").symlink_to("step_00000009")
    assert newest_good(tmp_path)[0].name == "step_00000003"
    clear_debris(tmp_path)
    assert names(tmp_path) == before


def test_files_are_flushed_before_they_get_their_name(tmp_path, monkeypatch):
    order, fsync, rename, replace = [], os.fsync, Path.rename, os.replace

    def note_fsync(handle):
        order.append(("fsync", Path(os.readlink(f"/proc/self/fd/{handle}")).name))
        fsync(handle)

    def note_rename(path, target):
        order.append(("rename", Path(target).name))
        return rename(path, target)

    def note_replace(path, target):
        order.append(("replace", Path(target).name))
        replace(path, target)

    monkeypatch.setattr(os, "fsync", note_fsync)
    monkeypatch.setattr(Path, "rename", note_rename)
    monkeypatch.setattr(os, "replace", note_replace)
    publish(tmp_path, 3, files_of(3, SMALL), best=True, keep=1)
    assert order == [
        *(("fsync", name) for name in (*FILES, MARKER)), ("fsync", "step_00000003.incomplete"),
        ("rename", "step_00000003"), ("fsync", tmp_path.name),
        ("replace", LATEST), ("fsync", tmp_path.name), ("replace", BEST), ("fsync", tmp_path.name),
    ]  # fmt: skip
