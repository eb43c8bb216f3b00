"""Keeps the compiled training step on disk, so that the next start of the same run need not compile it.

MindSpore's compile cache holds graphs by their order of compilation and checks Python sources only: with another batch
size, crop or switch of a configuration it would run the old graph. So each cache has a folder of its own, named by a
hash of everything that the graph depends on, and is switched on for the training step alone. MindSpore also keeps to
the folder that it was given first, so a process uses it once.
"""

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import mindspore as ms

from src.distributed import compile_cache
from src.log import get_console

USED: list[Path] = []  # the folder of this process
SOURCES = Path(__file__).resolve().parents[1]  # every module that graphs are made from


def fingerprint(facts: dict) -> str:
    """Hash of `facts` (JSON values), MindSpore's version, the instruction set of the CPU kernels and all sources."""
    state = {"facts": facts, "mindspore": ms.__version__, "isa": os.environ.get("ONEDNN_MAX_CPU_ISA")}
    digest = hashlib.sha256(json.dumps(state, sort_keys=True).encode())
    for file in sorted(SOURCES.rglob("*.py")):
        digest.update(file.relative_to(SOURCES).as_posix().encode() + file.read_bytes())
    return digest.hexdigest()[:20]


def require_folder(folder: str, mode: str) -> None:
    """Raises ValueError where compiled steps cannot be kept in `folder`, which is created, or where there are none."""
    if mode != "graph":
        raise ValueError(f"device.compile_cache needs device.mode=graph; in mode {mode} nothing is compiled: give null")
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise ValueError(
            f"device.compile_cache {folder}: {error.strerror}; give a folder that can be written to, or null"
        ) from error


@contextmanager
def graph_cache(folder: str | None, facts: dict) -> Iterator[None]:
    """Within it the one graph that is compiled comes from `folder`, or is kept there for the next time.

    facts: whatever the graph depends on besides the sources: settings, number of classes, rank, devices. A cache
    becomes visible once it is complete, so runs may share a folder. Without a folder, and after its first use in a
    process, nothing happens.
    """
    if folder is None or USED:
        yield
        return
    kept = Path(folder) / fingerprint(facts)
    if kept.is_dir():
        get_console().print(f"the compiled step comes from {kept}, unless MindSpore finds it damaged")
        USED.append(kept)
        with compile_cache(kept):
            yield
        return
    kept.parent.mkdir(parents=True, exist_ok=True)
    building = Path(tempfile.mkdtemp(prefix="building-", dir=kept.parent))
    try:
        USED.append(building)
        with compile_cache(building):
            yield
        try:
            building.rename(kept)
        except OSError:
            if not kept.is_dir():  # else another run has been faster
                raise
    finally:
        shutil.rmtree(building, ignore_errors=True)
