"""Checkpoint folders on the disk: written whole or not at all, verified before they are used.

    RUN/checkpoints/step_00000100/{weights.safetensors, optimizer.safetensors, state.json, complete.json}
    RUN/checkpoints/latest -> step_00000100        RUN/checkpoints/best -> step_00000080

complete.json, written last, holds {"format": 1, "files": {name: {"bytes": size, "sha256": digest}}}. A folder is
written beside its place (*.incomplete), flushed to the disk and renamed; links are replaced, and flushed, too. So a
process may be killed at any moment, and `latest` and `best` name complete folders. A step that is saved again gets
another folder, step_00000100-2: the links can then be moved from the old one to the new one without a gap. A
checkpoint found damaged is set aside as *.damaged until the run has got past it.
"""

import errno
import hashlib
import json
import os
import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from src.constants import DISK_FULL

WEIGHTS, OPTIMIZER, STATE, MARKER = "weights.safetensors", "optimizer.safetensors", "state.json", "complete.json"
FILES = (WEIGHTS, OPTIMIZER, STATE)
FORMAT = 1  # of the marker
LATEST, BEST = "latest", "best"
INCOMPLETE, DAMAGED, NEW = ".incomplete", ".damaged", ".new"
NAME = r"step_(\d{8,})(?:-(\d+))?"
SLACK = 65536  # bytes that a checkpoint takes besides its files' contents: marker, folder, rounding up to blocks


def publish(
    root: Path, step: int, files: Mapping[str, Sequence[bytes | np.ndarray]], *, best: bool, keep: int
) -> Path:
    """Writes the checkpoint of a step, points `latest` (and `best`) at it, removes those no longer kept; its folder.

    files: by name, blocks of bytes. keep: number of newest steps that are kept, besides the best.
    Raises OSError (ENOSPC) where there is no room; then nothing of it is left and the earlier ones are as they were.
    """
    needed = sum(len(block) for blocks in files.values() for block in blocks) + SLACK
    root.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(root).free
    draft = root / f"{name_of(step)}{INCOMPLETE}"
    try:
        if free < needed:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        write_folder(draft, files)
        final = root / fresh_name(root, step)
        draft.rename(final)
        sync_folder(root)
        for link in (LATEST, BEST) if best else (LATEST,):
            point(root / link, final.name)
    except OSError as error:
        if error.errno in DISK_FULL:
            raise no_room(root, step, needed, free) from error
        raise
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    prune(root, step, keep)
    return final


def no_room(root: Path, step: int, needed: int, free: int) -> OSError:
    """The error of a full disk."""
    kept = root / LATEST
    then = f"the run goes on from {kept.resolve().name}" if kept.exists() else "start again"
    text = (
        f"no room for the checkpoint of step {step} in {root}: it needs {needed:,} bytes, {free:,} were free. "
        f"Make room, and {then}"
    )
    return OSError(errno.ENOSPC, text)


def write_folder(folder: Path, files: Mapping[str, Sequence[bytes | np.ndarray]]) -> None:
    """Writes files and, last, the marker into a new folder; an old one of that name is removed first."""
    if folder.exists():
        shutil.rmtree(folder)
    folder.mkdir()
    facts = {name: write_file(folder / name, blocks) for name, blocks in files.items()}
    write_file(folder / MARKER, [json.dumps({"format": FORMAT, "files": facts}, indent=1).encode()])
    sync_folder(folder)


def write_file(path: Path, blocks: Sequence[bytes | np.ndarray]) -> dict:
    """Writes and flushes a file; returns its size and the digest of what was meant to be written."""
    digest, size = hashlib.sha256(), 0
    with path.open("wb") as file:
        for block in blocks:
            digest.update(block)
            file.write(block)
            size += len(block)
        file.flush()
        os.fsync(file.fileno())
    return {"bytes": size, "sha256": digest.hexdigest()}


def sync_folder(folder: Path) -> None:
    """Flushes the names in a folder to the disk."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def point(link: Path, target: str) -> None:
    """Makes the symbolic link name `target`, atomically."""
    fresh = link.with_name(link.name + NEW)
    fresh.unlink(missing_ok=True)
    fresh.symlink_to(target)
    os.replace(fresh, link)
    sync_folder(link.parent)


def name_of(step: int, again: int = 1) -> str:
    """Name of the folder of a step that is saved for the `again`-th time."""
    return f"step_{step:08d}" + (f"-{again}" if again > 1 else "")


def numbers_of(folder: Path) -> tuple[int, int]:
    """(step, again) of a folder, see `name_of`."""
    step, again = re.fullmatch(NAME, folder.name).groups()
    return int(step), int(again or 1)


def fresh_name(root: Path, step: int) -> str:
    """The first name for a step that no folder has."""
    again = 1
    while (root / name_of(step, again)).exists():
        again += 1
    return name_of(step, again)


def step_folders(root: Path) -> list[Path]:
    """The checkpoint folders, newest first, without those that are incomplete or set aside."""
    found = [folder for folder in root.glob("step_*") if re.fullmatch(NAME, folder.name)]
    return sorted(found, key=numbers_of, reverse=True)


def prune(root: Path, saved: int, keep: int) -> None:
    """Removes all but the newest `keep` steps and what the links name; damaged ones up to the step just saved, too."""
    kept = {os.readlink(root / link) for link in (LATEST, BEST) if (root / link).is_symlink()}
    steps: set[int] = set()
    for folder in step_folders(root):
        step = numbers_of(folder)[0]
        if step not in steps and len(steps) < keep:
            steps.add(step)
        elif folder.name not in kept:
            remove(folder)
    for folder in root.glob(f"step_*{DAMAGED}"):
        before = folder.with_suffix("")
        if re.fullmatch(NAME, before.name) and numbers_of(before)[0] <= saved:
            remove(folder)


def remove(folder: Path) -> None:
    """Removes a folder; killed halfway, it leaves what the next start clears away."""
    going = folder.with_name(folder.name + INCOMPLETE)
    shutil.rmtree(going, ignore_errors=True)
    folder.rename(going)
    # On network disks a file that somebody reads keeps its folder alive: no reason to stop a training run.
    shutil.rmtree(going, ignore_errors=True)


def clear_debris(root: Path) -> None:
    """Removes what a killed process left half written or half removed."""
    for pattern in (f"*{INCOMPLETE}", f"*{NEW}"):
        for path in root.glob(pattern):
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink()


def newest_good(root: Path) -> tuple[Path | None, dict[Path, list[str]]]:
    """The newest checkpoint without problems, None where there is none; and the problems of all newer ones."""
    damaged, link = {}, root / LATEST
    if link.is_symlink() and not link.exists():
        damaged[root / os.readlink(link)] = ["the folder is gone"]
    for folder in step_folders(root):
        found = problems_of(folder)
        if not found:
            return folder, damaged
        damaged[folder] = found
    return None, damaged


def set_aside(folder: Path) -> None:
    """Renames a damaged checkpoint, if it is there, so that nothing takes it for one; links must not name it."""
    aside = folder.with_name(folder.name + DAMAGED)
    if folder.exists():
        shutil.rmtree(aside, ignore_errors=True)
        folder.rename(aside)


def problems_of(folder: Path, names: Sequence[str] = ()) -> list[str]:
    """What is wrong with a checkpoint, or with some of its files: each text names a file and says what differs."""
    try:
        facts = read_marker(folder)
    except ValueError as error:
        return [str(error)]
    found = (file_problem(folder / name, facts[name]) for name in names or facts)
    return [problem for problem in found if problem]


def read_marker(folder: Path) -> dict[str, dict]:
    """Size and digest of each file of a checkpoint; ValueError where the marker is missing or damaged."""
    file = folder / MARKER
    if not file.is_file():
        raise ValueError(
            f"{MARKER} is missing: it was not written to its end, or by a version that wrote no such file (its "
            f"{WEIGHTS}, named as a file, can still be evaluated, exported or trained on as model.pretrained)"
        )
    try:
        marker = json.loads(file.read_bytes())
    except (ValueError, OSError) as error:
        raise ValueError(f"{MARKER} cannot be read: {error}") from error
    version = marker.get("format") if isinstance(marker, dict) else None
    if isinstance(version, int) and version > FORMAT:
        raise ValueError(f"{MARKER} has format {version}, of a later version; this one reads {FORMAT}")
    if version != FORMAT or set(marker) != {"format", "files"} or not whole(marker["files"]):
        raise ValueError(f"{MARKER} is damaged: it does not list {', '.join(FILES)} with bytes and sha256")
    return marker["files"]


def whole(files) -> bool:
    """Whether a marker's list of files is as `publish` writes it."""
    return isinstance(files, dict) and set(FILES) <= set(files) and all(
        isinstance(facts, dict) and set(facts) == {"bytes", "sha256"} and isinstance(facts["sha256"], str)
        for facts in files.values()
    )  # fmt: skip


def file_problem(file: Path, facts: dict) -> str | None:
    """How a file differs from what was written, None if it does not."""
    try:
        size = file.stat().st_size
        if size != facts["bytes"]:
            return f"{file.name} has {size} bytes, {facts['bytes']} were written"
        digest = file_hash(file)
    except FileNotFoundError:
        return f"{file.name} is missing"
    except OSError as error:
        return f"{file.name} cannot be read: {error.strerror}"
    if digest != facts["sha256"]:
        return f"{file.name} has other content than was written (SHA-256 {digest:.12}..., not {facts['sha256']:.12}...)"
    return None


def file_hash(path: str | Path) -> str:
    """SHA-256 of a file, hexadecimal."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
