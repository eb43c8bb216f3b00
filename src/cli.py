"""What the command lines share: arguments, exit codes."""

import argparse
import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from src.constants import DISK_FULL, DIVERGED, INTERRUPTED, MISUSE, RESUME

TRACEBACK_VARIABLE = "ECENET_TRACEBACK"


def config_parser(description: str, required: bool = True) -> argparse.ArgumentParser:
    """A parser with --config FILE, --print-config and key=value overrides."""
    parser = argparse.ArgumentParser(
        description=description,
        epilog=f"Exit codes: 0 success, {MISUSE} wrong usage, configuration or data, 1 anything else, {INTERRUPTED} "
        f"interrupted; of training also {RESUME}: stopped by SIGTERM, SIGUSR1 or SIGINT, its steps saved, the same "
        f"command goes on; {DIVERGED}: the loss or its gradients were not finite for train.max_bad_steps steps in a "
        f"row. {TRACEBACK_VARIABLE}=1 in the environment shows where an error arose.",
    )
    parser.add_argument("--config", required=required, metavar="FILE", help="YAML configuration of the run")
    parser.add_argument(
        "overrides", nargs="*", metavar="key=value",
        help="settings that replace those of the file, e.g. optimizer.lr=6e-5 data.crop_size=[64,64]",
    )  # fmt: skip
    parser.add_argument(
        "--print-config", action="store_true", help="print the merged configuration and its sources, and stop"
    )
    return parser


def positive(text: str) -> int:
    """An argument's whole number from 1 on, for argparse's `type`."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text} is no whole number from 1 on")
    return int(text)


def natural(text: str) -> int:
    """An argument's whole number from 0 on, for argparse's `type`."""
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text} is no whole number from 0 on")
    return int(text)


def run(main: Callable[[], None]) -> None:
    """Runs a command line and exits: 0 when it returns, else with the code and the message that an error stands for.

    FloatingPointError, a run whose numbers went bad: DIVERGED; wrong values, missing and unwritable files: MISUSE.
    A full disk is told in a line, too, with exit code 1.
    """
    try:
        main()
    except (ValueError, FileNotFoundError, NotADirectoryError, FileExistsError, PermissionError) as error:
        if os.environ.get(TRACEBACK_VARIABLE):
            raise
        print(f"error: {error}", file=sys.stderr)
        sys.exit(MISUSE)
    except FloatingPointError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(DIVERGED)
    except OSError as error:
        if error.errno not in DISK_FULL or os.environ.get(TRACEBACK_VARIABLE):
            raise
        place = f"{error.filename}: " if error.filename else ""
        print(f"error: {place}{error.strerror}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(INTERRUPTED)


def writable(path: str) -> Path:
    """The path of a file to be written, its folder made; raises now, not hours later, where it cannot be written."""
    file = Path(path)
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise PermissionError(
            f"cannot make the folder {file.parent} for {file.name}: {error.strerror}; choose another place"
        ) from error
    if file.is_dir():
        raise FileExistsError(f"{file} is a folder; name a file in it")
    try:  # only the attempt tells: access bits mean nothing for root, nor in /proc
        if file.exists():
            file.open("ab").close()
        else:
            tempfile.TemporaryFile(dir=file.parent).close()
    except OSError as error:
        raise PermissionError(f"cannot write {file}: {error.strerror}; choose another place") from error
    return file
