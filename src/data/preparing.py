"""Turns label files of other forms into PNG masks: in parallel, in one move each, and only what is not there yet.

A mask that was written here carries a digest of what it was made from. Started again, a mask is kept if it can be read
whole and its digest is still right, and made again otherwise. A file without a digest is not ours and never touched.
What a folder was made from before is asked first: nothing is written where sources or parts would mix.
"""

import argparse
import hashlib
import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from src.data.classes import Colour
from src.data.listing import count_of
from src.data.reading import PILLOW_ERRORS
from src.log import get_console, progress

DIGEST_KEY = "ecenet-source"
FAILURES_SHOWN = 10
CHUNK = 16  # masks a process takes at a time
ORIGIN = "made_from.txt"  # beside the masks of a data set whose labels come in more than one form
DRAFT = (".ecenet-", ".new")  # of a mask that is being written: hidden files are never taken for labels


@dataclass(frozen=True)
class Job:
    """One mask to make. source: a file, or the text itself; settings: whatever else the mask depends on."""

    source: Path | str
    target: Path
    settings: str = ""

    def digest(self) -> str:
        content = self.source.encode() if isinstance(self.source, str) else self.source.read_bytes()
        return hashlib.sha256(self.settings.encode() + b"\0" + content).hexdigest()


Convert = Callable[[Job], np.ndarray]  # -> (H, W) integers 0..255


def parser(description: str, epilog: str) -> argparse.ArgumentParser:
    """What the tools share: --workers and --subset."""
    shared = argparse.ArgumentParser(
        description=description, epilog=epilog, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    shared.add_argument(
        "--workers", type=int, default=os.cpu_count() or 1, metavar="N", help="processes (default: one a core)"
    )
    shared.add_argument(
        "--subset", action="store_true", help="accept fewer files than published, for a part of the data"
    )
    return shared


def check_number(found: int, published: int | tuple[int, ...], what: str, subset: bool) -> None:
    """ValueError where there are not as many as published and no subset is meant."""
    wanted = published if isinstance(published, tuple) else (published,)
    if found == 0 or (not subset and found not in wanted):
        raise ValueError(
            f"found {found} {what}, published are {' or '.join(map(str, wanted))}; unpack the download again"
            f"{'' if found == 0 else ', or give --subset to use a part on purpose'}"
        )


def convert_all(
    jobs: Sequence[Job],
    convert: Convert,
    palette: Sequence[Colour],
    workers: int,
    description: str,
    lists: Mapping[Path, Sequence[str]] | None = None,
    origin: str = "",
) -> tuple[int, int]:
    """Makes the masks of all jobs, then the lists; returns how many were made and how many were there already.

    convert: a function of a module, for it is sent to other processes. palette: colours of the values 0, 1, ...
    lists: file -> the names to write there. origin: which of several forms the labels come from, kept beside them.
    Raises ValueError where masks or lists of another origin or subset are there, before anything is written, and one
    that lists the masks that could not be made, after everything else was.
    """
    if workers < 1:
        raise ValueError(f"--workers is {workers}; at least 1 is needed")
    folders, lists = {job.target.parent for job in jobs}, lists or {}
    for folder in folders:
        _check_origin(folder, origin)
    for path, names in lists.items():
        _is_listed(path, names)
    for folder in folders:
        _open_folder(folder, origin)
    made, failures = 0, []
    make = partial(_make, convert=convert, palette=tuple(palette))
    with ExitStack() as stack:
        advance = stack.enter_context(progress(len(jobs), description))
        if workers == 1:
            results = map(make, jobs)
        else:
            results = stack.enter_context(ProcessPoolExecutor(workers)).map(make, jobs, chunksize=CHUNK)
        for fresh, failure in results:
            made += fresh
            failures += [failure] if failure else []
            advance(1, f"{made} new")
    if failures:
        raise ValueError(_tell(failures, len(jobs)))
    for path, names in lists.items():
        write_list(path, names)
    kept = len(jobs) - made
    get_console().print(f"{description}: {made} made, {kept} there already", markup=False)
    return made, kept


def _tell(failures: Sequence[str], count: int) -> str:
    shown = "\n  ".join(failures[:FAILURES_SHOWN])
    more = f"\n  and {len(failures) - FAILURES_SHOWN} more" if len(failures) > FAILURES_SHOWN else ""
    some = f"{len(failures)} of {count} masks could not be made, the others are there"
    which = some if len(failures) < count else f"no mask could be made, of {count}"
    return f"{which}; mend these and start again:\n  {shown}{more}"


def _check_origin(folder: Path, origin: str) -> None:
    """ValueError where the folder holds masks of another origin."""
    there = _origin_of(folder)
    if origin and there not in ("", origin) and any(folder.glob("*.png")):
        raise ValueError(
            f"{folder} was made from {there}, this run reads {origin}; the two do not mix, and nothing was written: "
            f"remove the folder and the lists that were made with it, or name another one with --output"
        )


def _open_folder(folder: Path, origin: str) -> None:
    """Makes the folder, clears what a killed run left half written and notes the origin."""
    folder.mkdir(parents=True, exist_ok=True)
    for draft in folder.glob("*".join(DRAFT)):
        draft.unlink(missing_ok=True)
    if origin and origin != _origin_of(folder):
        _write_text(folder / ORIGIN, f"{origin}\n")


def _origin_of(folder: Path) -> str:
    record = folder / ORIGIN
    return record.read_text(encoding="utf-8").strip() if record.is_file() else ""


def _make(job: Job, convert: Convert, palette: tuple[Colour, ...]) -> tuple[bool, str]:
    """(whether a mask was written, what went wrong)."""
    try:
        digest = job.digest()
        if _is_finished(job.target, digest):
            return False, ""
        write_mask(job.target, convert(job), palette, digest)
    except (ValueError, KeyError, OSError) as error:
        return False, str(error)
    return True, ""


def _is_finished(target: Path, digest: str) -> bool:
    """Whether the mask is there, whole and made from the same; ValueError for a file that is not ours."""
    if not target.exists():
        return False
    try:
        with Image.open(target) as mask:
            found = mask.info.get(DIGEST_KEY)
            mask.verify()  # to the last chunk and checksum, which loading the pixels does not ask for
    except PILLOW_ERRORS:  # cut off by a full disk or a bad copy: nobody's source
        return False
    if found is None:
        raise ValueError(f"{target} exists and was not made by this tool; nothing is written over, name another folder")
    return found == digest


def write_mask(target: Path, values: np.ndarray, palette: Sequence[Colour], digest: str) -> None:
    """Writes (H, W) values 0..255 as a palette PNG in one move; values beyond the palette are black."""
    if values.ndim != 2 or values.min(initial=0) < 0 or values.max(initial=0) > 255:
        raise ValueError(f"{target}: a mask has two axes and values 0..255, not {values.shape} and {values.max()}")
    image = Image.fromarray(values.astype(np.uint8))
    # All 256 entries: with 16 or fewer pillow would store 4 bits a pixel, and 255 would become 15.
    image.putpalette([part for colour in palette for part in colour] + [0] * (3 * (256 - len(palette))))
    facts = PngInfo()
    facts.add_text(DIGEST_KEY, digest)
    with tempfile.NamedTemporaryFile(dir=target.parent, prefix=DRAFT[0], suffix=DRAFT[1], delete=False) as new:
        try:
            image.save(new, "PNG", pnginfo=facts)
            new.flush()
            os.chmod(new.name, 0o666 & ~_umask())
            os.replace(new.name, target)
        except BaseException:
            os.unlink(new.name)
            raise


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def write_list(path: Path, names: Sequence[str]) -> None:
    """Writes names, one a line. A list that is there with the same names stays, one with others is an error."""
    if not _is_listed(path, names):
        path.parent.mkdir(parents=True, exist_ok=True)
        _write_text(path, "".join(f"{name}\n" for name in names))


def _is_listed(path: Path, names: Sequence[str]) -> bool:
    """Whether the list is there with the same names; ValueError where it has others."""
    if not path.exists():
        return False
    there = path.read_text(encoding="utf-8").split()
    if sorted(there) != sorted(names):
        differing = sorted(set(there) ^ set(names))
        raise ValueError(
            f"{path} exists and differs in {count_of(differing, 'name')}: it was made from another source or subset, "
            f"of {len(there)} images, this one has {len(names)}. Nothing is written over: remove the list (masks that "
            f"are right are kept), or name another folder with --output"
        )
    return True


def _write_text(path: Path, text: str) -> None:
    new = path.with_name(f"{path.name}.new")
    new.write_text(text, encoding="utf-8")
    os.replace(new, path)
