"""Neither `kill -9` nor a full disk costs the last checkpoint, and neither leaves debris."""

import errno
import json
import os
import random
import shutil
import subprocess
import sys
import time
from collections import namedtuple
from pathlib import Path

import pytest
from safetensors.numpy import load_file

from src import cli
from src.engine import checkpoint_files
from src.engine.checkpoint import choose
from src.engine.checkpoint_files import (
    BEST,
    LATEST,
    OPTIMIZER,
    WEIGHTS,
    newest_good,
    numbers_of,
    problems_of,
    step_folders,
)
from src.log import MetricsLog
from tests.checkpoint_writer import KEEP, SMALL, files_of, names, write
from tests.commands import ROOT


def test_killed_at_random_moments_while_writing(tmp_path):
    rng, root, before, debris = random.Random(5), tmp_path / "checkpoints", 0, 0
    root.mkdir()
    for _ in range(20):
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.checkpoint_writer", tmp_path], cwd=ROOT, stdout=subprocess.PIPE
        )
        assert process.stdout.readline() == b"ready\n"
        time.sleep(rng.uniform(0.01, 0.2))
        process.kill()
        process.wait()
        process.stdout.close()
        debris += any(not name.startswith(("latest", "best")) and "." in name for name in names(root))
        before = check_after_kill(root, before)
    assert debris >= 3  # otherwise no kill came while something was being written
    assert before >= 20


def check_after_kill(root: Path, before: int) -> int:
    """All that must hold whenever the writer was killed, and after a start; returns the newest step."""
    newest, damaged = newest_good(root)
    assert damaged == {}
    if newest is None:
        assert before == 0  # killed before the first was complete
        return 0
    step = numbers_of(newest)[0]
    assert step >= before and len(step_folders(root)) <= KEEP + 3
    for link, behind in ((LATEST, 1), (BEST, 4)):
        if step <= behind:
            continue
        folder = (root / link).resolve(strict=True)
        assert problems_of(folder) == []
        named = numbers_of(folder)[0]
        assert step - behind <= named <= step
        for name in (WEIGHTS, OPTIMIZER):
            (array,) = load_file(folder / name).values()
            assert (array == named).all()
    assert choose(root) == newest and (root / LATEST).resolve() == newest.resolve()
    assert not [name for name in names(root) if "." in name]
    return step


def room_for(monkeypatch, count: int) -> None:
    """The disk takes `count` more bytes, then it is full."""
    room, real = [count], Path.open

    class Narrow:
        def __init__(self, file):
            self.file = file

        def write(self, block):
            taken = bytes(block)[: room[0]]
            room[0] -= len(taken)
            self.file.write(taken)
            if len(taken) < len(block):
                raise OSError(errno.ENOSPC, "No space left on device")

        def __getattr__(self, name):
            return getattr(self.file, name)

        def __enter__(self):
            return self

        def __exit__(self, *_):
            self.file.close()

    def narrow(path, mode="r", *args, **options):
        file = real(path, mode, *args, **options)
        return Narrow(file) if mode == "wb" else file

    monkeypatch.setattr(Path, "open", narrow)


WRITTEN = sum(len(block) for blocks in files_of(4, SMALL).values() for block in blocks)


@pytest.mark.parametrize("room", [0, 100, 300, WRITTEN - 1, WRITTEN, WRITTEN + 50])
def test_a_disk_that_fills_up_while_writing(room, tmp_path, monkeypatch):
    write(tmp_path, 3, SMALL)
    before = names(tmp_path)
    with monkeypatch.context() as patch:
        room_for(patch, room)
        with pytest.raises(OSError) as caught:
            write(tmp_path, 4, SMALL)
    assert caught.value.errno == errno.ENOSPC
    text = caught.value.strerror
    assert f"no room for the checkpoint of step 4 in {tmp_path}: it needs" in text
    assert "Make room, and the run goes on from step_00000003" in text
    assert names(tmp_path) == before and newest_good(tmp_path)[0].name == "step_00000003"
    write(tmp_path, 4, SMALL)
    assert newest_good(tmp_path)[0].name == "step_00000004"


def test_too_little_room_is_seen_before_writing(tmp_path, monkeypatch):
    write(tmp_path, 3, SMALL)
    needed = WRITTEN + checkpoint_files.SLACK
    usage = namedtuple("usage", "free")
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint_files, "write_folder", lambda *_: pytest.fail("it began to write"))
        patch.setattr(shutil, "disk_usage", lambda path: usage(needed - 1))
        with pytest.raises(OSError, match=f"it needs {needed:,} bytes, {needed - 1:,} were free"):
            write(tmp_path, 4, SMALL)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(needed))
    write(tmp_path, 4, SMALL)


def test_any_other_failure_leaves_no_debris(tmp_path, monkeypatch):
    write(tmp_path, 3, SMALL)
    before = names(tmp_path)
    monkeypatch.setattr(os, "fsync", lambda handle: (_ for _ in ()).throw(OSError(errno.EIO, "Input/output error")))
    with pytest.raises(OSError, match="Input/output error"):
        write(tmp_path, 4, SMALL)
    assert names(tmp_path) == before


@pytest.mark.parametrize("blind", [False, True], ids=["looking", "blind"])
def test_a_small_disk_runs_full(blind, tmp_path):
    """On a tmpfs of 2 MB; blind: without looking first how much room there is, as under a quota."""
    mount = ["unshare", "-m", "sh", "-c", 'mount -t tmpfs -o size=2m tmpfs "$1" && shift && "$@"', "sh", str(tmp_path)]
    if shutil.which("unshare") is None or subprocess.run([*mount, "true"], capture_output=True).returncode:
        pytest.skip("mounting a tmpfs of our own is not allowed here")
    command = [sys.executable, "-m", "tests.checkpoint_writer", str(tmp_path), "--until-full"]
    done = subprocess.run(
        [*mount, *command, *(["--blind"] if blind else [])], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    last = f"step_{told['step'] - 1:08d}"
    assert told["errno"] == errno.ENOSPC and told["step"] == 3  # 720 kB each
    assert f"step 3 in {tmp_path / 'checkpoints'}: it needs" in told["text"] and f"goes on from {last}" in told["text"]
    assert told["latest"] == told["link"] == last and told["damaged"] == 0
    assert told["names"] == [LATEST, *(f"step_{step:08d}" for step in range(1, told["step"]))]


def test_a_full_disk_is_told_in_a_line(tmp_path, capsys):
    file = tmp_path / "metrics.jsonl"
    file.symlink_to("/dev/full")
    log = MetricsLog(file)
    with pytest.raises(SystemExit) as caught:
        cli.run(lambda: log.write({"step": 1}))
    assert caught.value.code == 1 and capsys.readouterr().err == f"error: {file}: No space left on device\n"

    def other():
        raise OSError(errno.EIO, "Input/output error")

    with pytest.raises(OSError, match="Input/output error"):
        cli.run(other)
