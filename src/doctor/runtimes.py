"""Which CUDA and CANN are installed, and which ones the installed MindSpore was built for."""

import importlib.util
import os
import re
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path

from src.doctor.finding import ERROR, Finding
from src.launching.checks import NODE_FILES

PLUGIN = r"libmindspore_gpu\.so\.(\d+\.\d+)"
CUDART = r"libcudart\.so\.(\d+(?:\.\d+)+)"
CANN_LINE = r"(?im)^\s*version\s*=\s*\[?\"?([\w.]+)"
CUDA_FOLDERS = ("/usr/local/cuda*/lib64", "/usr/local/cuda*/targets/*/lib", "/usr/lib/*-linux-gnu")
CANN_HOMES = ("/usr/local/Ascend/ascend-toolkit/latest", "/usr/local/Ascend/cann", "/usr/local/Ascend/latest")
CANN_FILES = ("compiler/version.info", "*/ascend_toolkit_install.info", "version.cfg")


def package_folder() -> Path:
    """Where MindSpore is installed."""
    return Path(importlib.util.find_spec("mindspore").origin).parent


def device_files(target: str, folder: str | Path = "/dev") -> int:
    """How many accelerators of a kind the kernel shows."""
    return len(list(Path(folder).glob(NODE_FILES[target])))


def cuda_wanted(package: Path) -> list[str]:
    """Versions of CUDA that MindSpore's GPU plugins were built for."""
    names = [path.name for path in package.glob("lib/plugin/libmindspore_gpu.so.*")]
    return sorted(match[1] for name in names if (match := re.fullmatch(PLUGIN, name)))


def cuda_found(environ: Mapping[str, str], folders: tuple[str, ...] = CUDA_FOLDERS) -> dict[str, str]:
    """Version of every CUDA runtime library -> its path, on the library path and in the usual folders."""
    places = [Path(p) for p in environ.get("LD_LIBRARY_PATH", "").split(os.pathsep) if p]
    places += [place for pattern in folders for place in sorted(Path("/").glob(pattern.lstrip("/")))]
    found: dict[str, str] = {}
    for file in (file for place in places if place.is_dir() for file in sorted(place.glob("libcudart.so.*.*"))):
        if match := re.fullmatch(CUDART, file.name):
            found.setdefault(match[1], str(file))
    return found


def driver() -> str | None:
    """Names and driver of the NVIDIA devices, as nvidia-smi tells them."""
    if not shutil.which("nvidia-smi"):
        return None
    command = ["nvidia-smi", "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader"]
    told = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    return told.stdout.strip() if told.returncode == 0 else None


def cann_wanted() -> list[str]:
    """Versions of CANN that MindSpore's own check lists; empty where it does not say."""
    try:
        from mindspore.run_check._check_version import AscendEnvChecker
    except ImportError:  # no public name
        return []
    return list(getattr(AscendEnvChecker(None), "version", []))


def cann_found(environ: Mapping[str, str], homes: tuple[str, ...] = CANN_HOMES) -> dict[str, str]:
    """Version of every CANN toolkit -> its folder; the one of ASCEND_HOME_PATH comes first."""
    named = [environ[key] for key in ("ASCEND_HOME_PATH", "ASCEND_TOOLKIT_HOME") if environ.get(key)]
    found: dict[str, str] = {}
    for home in map(Path, (*named, *homes)):
        files = [file for pattern in CANN_FILES for file in sorted(home.glob(pattern))] if home.is_dir() else []
        for file in files:
            if match := re.search(CANN_LINE, file.read_text(encoding="utf-8", errors="replace")):
                found.setdefault(match[1], str(home))
                break
    return found


def findings(target: str, facts: dict) -> list[Finding]:
    """Errors where the accelerator that is asked for has no runtime that MindSpore was built for."""
    if target == "CPU":
        return []
    runtime = facts["cuda"] if target == "GPU" else facts["cann"]
    name = "CUDA runtime" if target == "GPU" else "CANN toolkit"
    wanted = ", ".join(runtime["wanted"]) or "unknown"
    found = []
    if not facts["accelerators"][target]:
        text = f"device.target={target}, but there is no {target} device in /dev ({NODE_FILES[target]})"
        mend = "in a container, pass the devices on; else set device.target=CPU"
        found.append(Finding("no_accelerator", ERROR, text, (), mend))
    if not runtime["found"]:
        text = f"no {name} is found; MindSpore {facts['mindspore']} was built for {wanted}"
        hint = "put its libraries on LD_LIBRARY_PATH" if target == "GPU" else "source its set_env.sh"
        found.append(Finding("no_runtime", ERROR, text, (), f"install one of these versions, and {hint}"))
    elif not any(fits(version, runtime["wanted"]) for version in runtime["found"]):
        listed = ", ".join(f"{version} ({place})" for version, place in runtime["found"].items())
        text = f"{name} {listed} is found; MindSpore {facts['mindspore']} was built for {wanted}"
        found.append(Finding("wrong_runtime", ERROR, text, (), "install one of the versions that it was built for"))
    return found


def fits(version: str, wanted: list[str]) -> bool:
    """Whether a version is one of those wanted, which name its first numbers."""
    return not wanted or any(version == prefix or version.startswith(f"{prefix}.") for prefix in wanted)
