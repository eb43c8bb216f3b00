"""The command lines, run inside the test's process."""

import io
import runpy
import sys
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path

from pytest import MonkeyPatch

ROOT = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class Result:
    """How a command ended: exit code, standard output, standard error."""

    code: int
    out: str
    err: str


def run_command(script: str, *arguments) -> Result:
    """Runs `python SCRIPT ARGUMENTS...` without a new process; an error other than an exit is the test's."""
    out, err, code = io.StringIO(), io.StringIO(), 0
    with MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(err):
        patch.setattr(sys, "argv", [script, *map(str, arguments)])
        try:
            runpy.run_path(str(ROOT / script), run_name="__main__")
        except SystemExit as stop:
            code = stop.code or 0
    return Result(code, out.getvalue(), err.getvalue())


def succeed(script: str, *arguments) -> str:
    """Runs a command that must succeed; returns its standard output."""
    result = run_command(script, *arguments)
    assert result.code == 0, result.err
    return result.out


def refuse(script: str, *arguments) -> str:
    """Runs a command that must be refused as misuse; returns its message, with line breaks as spaces."""
    result = run_command(script, *arguments)
    assert result.code == 2, (result.code, result.err, result.out)
    assert "Traceback" not in result.err
    return " ".join(result.err.split())
