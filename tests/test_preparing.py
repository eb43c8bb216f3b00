"""What all tools/prepare_*.py share: masks made in several processes, failures, what a killed run leaves."""

import os
import signal
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from src.data.classes import read_classes
from src.data.preparing import ORIGIN, Job, convert_all
from tests.commands import ROOT

VOC = read_classes("voc_2012")


def shade(job: Job) -> np.ndarray:
    """For the test of several processes: fails for one mask, and tells the process."""
    if job.target.stem == "3":
        raise ValueError("three is bad")
    return np.full((2, 2), os.getpid() % 200, np.int32)


def test_several_processes(tmp_path):
    jobs = [Job(str(k), tmp_path / "masks" / f"{k}.png") for k in range(40)]
    with pytest.raises(ValueError, match=r"1 of 40 masks could not be made, the others are there.*\n  three is bad"):
        convert_all(jobs, shade, VOC.palette, 2, "shades")
    written = sorted((tmp_path / "masks").iterdir())
    assert len(written) == 39 and {path.suffix for path in written} == {".png"}
    values = {int(np.asarray(Image.open(path))[0, 0]) for path in written}
    assert os.getpid() % 200 not in values
    assert convert_all(jobs[:3], shade, VOC.palette, 2, "shades") == (0, 3)
    with pytest.raises(ValueError, match="--workers is 0"):
        convert_all(jobs, shade, VOC.palette, 0, "shades")
    with pytest.raises(ValueError, match=r"^no mask could be made, of 1; mend these and start again:\n  three is bad"):
        convert_all(jobs[3:4], shade, VOC.palette, 1, "shades", origin="paint")
    assert (tmp_path / "masks" / ORIGIN).read_text() == "paint\n"


KILLED = """
import os, signal, sys
from pathlib import Path
import numpy as np
from PIL import Image
from src.data.preparing import write_mask
Image.Image.save = lambda *arguments, **options: os.kill(os.getpid(), signal.SIGKILL)
write_mask(Path(sys.argv[1]), np.zeros((2, 2)), [], "digest")
"""


def test_what_a_killed_run_leaves_is_no_label_and_cleared(tmp_path):
    folder = tmp_path / "masks"
    folder.mkdir()
    (folder / "tmp_mine.new").write_text("somebody's")
    command = [sys.executable, "-c", KILLED, str(folder / "0.png")]
    assert subprocess.run(command, cwd=ROOT, check=False).returncode == -signal.SIGKILL
    [left] = [path.name for path in folder.iterdir() if path.name != "tmp_mine.new"]
    assert left.startswith(".")
    convert_all([Job("0", folder / "0.png")], shade, VOC.palette, 1, "shades")
    assert sorted(path.name for path in folder.iterdir()) == ["0.png", "tmp_mine.new"]
