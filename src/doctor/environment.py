"""The machine: versions, device, runtimes, shared memory, cores, memory, disk."""

import os
import platform
import shutil
import sys
from pathlib import Path

import mindspore as ms
import numpy as np
import psutil

from src import distributed
from src.doctor import device, memory, runtimes
from src.doctor.finding import ERROR, NOTE, WARNING, Finding
from src.doctor.network import existing, gibibytes

PYTHONS = ((3, 10), (3, 11), (3, 12))
SHARED = Path("/dev/shm")
SHARED_NEEDED = 2**30  # bytes, for collectives between processes on one machine
MEMORY_NEEDED, DISK_NEEDED, DISK_LEAST = 2 * 2**30, 2**30, 2**26
ONEDNN_VARIABLE, ONEDNN_FAST = "ONEDNN_MAX_CPU_ISA", "AVX2"


def examine(target: str, said_by: str, output_dir: str) -> tuple[list[Finding], dict]:
    """Findings and facts. said_by: where the target comes from. Under msrun the all-reduce is checked, too."""
    facts = gather(output_dir) | {"rank": 0, "world_size": 1}
    told = f"device.target={target} ({said_by}): a training computes on {target} and on nothing else"
    found = [Finding("device", NOTE, told)]
    found += versions(facts) + runtimes.findings(target, facts) + idle(target, facts)
    try:
        rank, world_size = distributed.setup(target, "graph")
    except ValueError as error:
        found.append(Finding("device_unusable", ERROR, str(error), (), "nothing falls back to another device"))
        return found + machine(facts, target, 1), facts
    facts |= {"rank": rank, "world_size": world_size}
    found += machine(facts, target, world_size)
    worked, facts["device"] = device.check_product(target)
    found += worked
    if world_size > 1:
        found += device.check_all_reduce(rank, world_size)
        found.append(Finding("all_reduce", NOTE, f"summed over {world_size} processes on {target}"))
    return found, facts


def gather(output_dir: str) -> dict:
    """What can be read without using a device."""
    shared = shutil.disk_usage(SHARED) if SHARED.is_dir() else None
    place = existing(Path(output_dir))
    return {
        "python": platform.python_version(), "system": platform.platform(), "mindspore": ms.__version__,
        "numpy": np.__version__, "accelerators": {name: runtimes.device_files(name) for name in ("GPU", "Ascend")},
        "driver": runtimes.driver(),
        "cuda": {"wanted": runtimes.cuda_wanted(runtimes.package_folder()), "found": runtimes.cuda_found(os.environ)},
        "cann": {"wanted": runtimes.cann_wanted(), "found": runtimes.cann_found(os.environ)},
        "cores": memory.cores(), "memory": psutil.virtual_memory().total, "memory_free": memory.available("CPU")[0],
        "shared_memory": shared.total if shared else 0, "shared_memory_free": shared.free if shared else 0,
        "disk": {"place": str(place), "free": shutil.disk_usage(place).free},
        "onednn_max_cpu_isa": os.environ.get(ONEDNN_VARIABLE),
    }  # fmt: skip


def versions(facts: dict) -> list[Finding]:
    """Versions that are known not to work, or not tested."""
    found = []
    if sys.version_info[:2] not in PYTHONS:
        known = ", ".join(".".join(map(str, version)) for version in PYTHONS)
        found.append(Finding("python", WARNING, f"Python {facts['python']} is not tested; {known} are"))
    if int(facts["numpy"].split(".")[0]) >= 2:
        text = f"NumPy {facts['numpy']}: the MindSpore wheel is built against NumPy 1, and operators fail with 2"
        found.append(Finding("numpy", ERROR, text, (), "pip install -r requirements.txt"))
    return found


def idle(target: str, facts: dict) -> list[Finding]:
    """Accelerators that the machine has and the configuration does not use."""
    found = []
    for name, number in facts["accelerators"].items():
        if number and name != target:
            text = f"{number} {name} devices are here, but device.target={target} leaves them idle"
            mend = f"set device.target={name}, if MindSpore has a runtime for it: `doctor.py env --device {name}` tells"
            found.append(Finding("accelerator_idle", WARNING, text, (), mend))
    return found


def machine(facts: dict, target: str, devices: int) -> list[Finding]:
    """Shared memory, cores, memory and disk."""
    found = []
    if devices > 1 and facts["shared_memory_free"] < SHARED_NEEDED:
        text = f"{SHARED} has {gibibytes(facts['shared_memory_free'])} free; {devices} processes may need 1 GiB"
        mend = "docker --shm-size=8g, Kubernetes: an emptyDir of medium Memory mounted there"
        found.append(Finding("shared_memory", WARNING, text, (str(SHARED),), mend))
    if facts["cores"] < devices:
        text = f"{facts['cores']:g} cores for {devices} processes: they wait for each other"
        found.append(Finding("cores", WARNING, text, (), "start fewer processes, or give the container more cores"))
    if facts["memory_free"] < MEMORY_NEEDED:
        text = f"{gibibytes(facts['memory_free'])} of main memory are free; MindSpore alone takes 1 to 2"
        found.append(Finding("memory_low", WARNING, text, (), "end other programs, or raise the container's limit"))
    free = facts["disk"]["free"]
    if free < DISK_NEEDED:
        severity = ERROR if free < DISK_LEAST else WARNING
        text = f"{gibibytes(free)} are free in {facts['disk']['place']}, where runs write their checkpoints"
        found.append(Finding("disk", severity, text, (facts["disk"]["place"],), "make room, or set output_dir"))
    isa = facts["onednn_max_cpu_isa"]
    if target == "CPU" and isa not in (None, ONEDNN_FAST):
        text = f"{ONEDNN_VARIABLE}={isa}: oneDNN then runs most convolutions about 100 times slower"
        found.append(Finding("onednn", WARNING, text, (), f"unset it; {ONEDNN_FAST} is then set"))
    return found
