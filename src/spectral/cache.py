"""Eigensegments on disk, and making them for many images in several processes (spec sazs, section 6.5)."""

import json
import os
import tempfile
import zipfile
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import fields
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from src.log import get_console, progress
from src.spectral.options import SpectralOptions
from src.spectral.segments import FORMAT, Segments, decompose, image_digest

KEYS = ("eigenvalues", "eigenvectors", "degree", "meta")
SETTINGS = "settings.json"
AHEAD = 2  # images that wait for a process, for each process: features are large
THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


class Job(NamedTuple):
    """An image (H, W, 3) uint8 RGB by its name, its features (N, D) made when a process is free for it."""

    name: str
    image: np.ndarray
    features: Callable[[np.ndarray], np.ndarray] | None


class Cache(NamedTuple):
    """A folder of eigensegments for one set of options and one network.

    network: plain values, all that decides its features besides the options (`FeatureMaker.facts`); none for colours.
    """

    root: Path
    options: SpectralOptions
    network: dict[str, Any] = {}  # never written to

    @property
    def folder(self) -> Path:
        return self.root / self.options.digest(self.network)

    def file(self, name: str) -> Path:
        """Where the segments of the image `name` lie; ValueError for a name that leads out of the folder."""
        file = self.folder / f"{name}.npz"
        if Path(name).is_absolute() or ".." in Path(name).parts:
            raise ValueError(f"image name {name!r} leads out of the cache; it must be a path below a split's folder")
        return file


def open_cache(place: Path) -> Cache:
    """The cache that tools/compute_segments.py made in a folder, or in the only one of its settings below that.

    Raises FileNotFoundError for none, ValueError for several, and for one whose settings are not those of its name.
    """
    files = [place / SETTINGS] if (place / SETTINGS).is_file() else sorted(place.glob(f"*/{SETTINGS}"))
    if not files:
        raise FileNotFoundError(f"no eigensegments in {place}; make them with tools/compute_segments.py")
    if len(files) > 1:
        listed = ", ".join(str(file.parent) for file in files)
        raise ValueError(f"{place} holds the eigensegments of {len(files)} settings: name one of {listed}")
    folder, names = files[0].parent, [field.name for field in fields(SpectralOptions)]
    try:
        settings = json.loads(files[0].read_text(encoding="utf-8"))
        cache = Cache(folder.parent, SpectralOptions(**{name: settings.pop(name) for name in names}), settings)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{files[0]} holds no settings of eigensegments ({error}); make them again") from error
    if cache.folder.resolve() != folder.resolve():
        raise ValueError(f"{folder} was made with other settings than {SETTINGS} in it says; make it again")
    return cache


def write_segments(file: Path, segments: Segments) -> None:
    """Writes segments in one move; equal segments make equal bytes."""
    file.parent.mkdir(parents=True, exist_ok=True)
    handle, draft = tempfile.mkstemp(suffix=".npz", prefix=".draft", dir=file.parent)
    os.close(handle)
    try:
        np.savez_compressed(
            draft, eigenvalues=segments.values, eigenvectors=segments.vectors, degree=segments.degree,
            meta=np.array(json.dumps(segments.meta, sort_keys=True)),
        )  # fmt: skip
        Path(draft).chmod(0o644)
        os.replace(draft, file)
    finally:
        Path(draft).unlink(missing_ok=True)


def read_segments(file: Path) -> Segments:
    """Segments from a file; ValueError where it is none of ours or damaged."""
    try:
        with np.load(file, allow_pickle=False) as stored:
            values, vectors, degree, meta = (stored[key] for key in KEYS)
        facts = json.loads(str(meta))
    except (ValueError, KeyError, OSError, EOFError, zipfile.BadZipFile) as error:
        if isinstance(error, FileNotFoundError):
            raise
        raise ValueError(f"{file}: no readable eigensegments ({error}); compute_segments.py makes it again") from error
    if facts.get("format") != FORMAT or vectors.shape != (len(values), *degree.shape):
        raise ValueError(f"{file}: eigensegments of another format or wrong shape; compute_segments.py makes it again")
    return Segments(values, vectors, degree, facts)


def find(cache: Cache, name: str, image: np.ndarray) -> Segments | None:
    """The stored segments of an image; None where there are none or they were made from other pixels.

    And for a damaged file, which is said.
    """
    file = cache.file(name)
    if not file.is_file():
        return None
    try:
        segments = read_segments(file)
    except ValueError as error:
        get_console().print(str(error), markup=False, soft_wrap=True)
        return None
    return segments if segments.meta["image_sha256"] == image_digest(image) else None


def require_entries(cache: Cache, names: Iterable[str]) -> None:
    """Raises FileNotFoundError where images have no file and a network would be needed to make it."""
    names = list(dict.fromkeys(names))
    missing = [name for name in names if not cache.file(name).is_file()]
    if missing and cache.options.features != "color":
        raise FileNotFoundError(
            f"no eigensegments of {len(missing)} of {len(names)} images in {cache.folder}, the first is {missing[0]}; "
            "make them with tools/compute_segments.py"
        )


def load_or_make(cache: Cache, job: Job) -> Segments:
    """The segments of an image, made and stored where the cache has none.

    Raises FileNotFoundError where that needs features and the job has nothing to make them.
    """
    found = find(cache, job.name, job.image)
    if found:
        return found
    if job.features is None and cache.options.features != "color":
        raise FileNotFoundError(
            f"no eigensegments of {job.name}, with these pixels, in {cache.folder}; make them with "
            "tools/compute_segments.py"
        )
    features = None if job.features is None else job.features(job.image)
    _make(cache, job.name, job.image, features)
    return read_segments(cache.file(job.name))  # as every later reading gives them


def _make(cache: Cache, name: str, image: np.ndarray, features: np.ndarray | None) -> float:
    """Makes and stores the segments of one image; returns the largest residual. ValueError names the image."""
    try:
        segments = decompose(image, features, cache.options, cache.network.get("weights_sha256", ""))
    except ValueError as error:
        raise ValueError(f"eigensegments of {name}: {error}") from error
    write_segments(cache.file(name), segments)
    return segments.meta["max_residual"]


@contextmanager
def single_threaded() -> Iterator[None]:
    """Processes started inside compute with one thread each: faster together, and the same bits for any number."""
    before = {name: os.environ.get(name) for name in THREADS}
    os.environ.update(dict.fromkeys(THREADS, "1"))
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def make_all(cache: Cache, jobs: Iterable[Job], total: int, workers: int) -> tuple[int, float]:
    """Makes what the cache lacks, in `workers` processes; returns how many were made, and the largest residual.

    Features are made here, one image after another, while the processes decompose. An image that is there is kept.
    """
    if workers < 1:
        raise ValueError(f"--workers is {workers}; at least 1 is needed")
    cache.folder.mkdir(parents=True, exist_ok=True)
    settings = cache.options.settings(cache.network)
    (cache.folder / SETTINGS).write_text(json.dumps(settings, indent=1, sort_keys=True), encoding="utf-8")
    waiting: set[Future] = set()
    residuals: list[float] = []
    with single_threaded(), ProcessPoolExecutor(workers, get_context("spawn")) as pool, progress(
        total, "eigensegments"
    ) as advance:
        for job in jobs:
            if find(cache, job.name, job.image):
                advance()
                continue
            features = None if job.features is None else job.features(job.image)
            waiting.add(pool.submit(_make, cache, job.name, job.image, features))
            if len(waiting) >= AHEAD * workers:
                waiting = _collect(waiting, residuals, advance)
        while waiting:
            waiting = _collect(waiting, residuals, advance)
    return len(residuals), max(residuals, default=0.0)


def _collect(waiting: set[Future], residuals: list[float], advance: Callable) -> set[Future]:
    done, rest = wait(waiting, return_when=FIRST_COMPLETED)
    for future in done:
        residuals.append(future.result())
        advance(1, f"residual {residuals[-1]:.0e}")
    return rest
