"""How much memory a training step takes on one device, estimated before it is compiled, and how much there is.

The estimate adds up what a step must hold in float32. Its factors are fitted to the measured peaks of 16 training steps
of ViT and Swin with the ECENet head on CPU (benchmarks/results/, docs/performance.md), all of which it gives within
6 %; the tests hold it to them. Other heads and devices were not measured.

Letters: B images of a micro-batch, D width, N tokens, n tokens that one token sees, E head width, K classes, M classes
at most in one crop, H x W crop.
"""

import math
import os
import shutil
import subprocess
from pathlib import Path

import psutil
from mindspore import nn

FLOAT = 4  # bytes
FIXED = 1520 * 2**20  # interpreter, MindSpore, and what compiling keeps
# Copies that a step holds of: tokens of every block and maps of the head; attention scores; maps of the classes.
MAPS, SCORES, LOGITS = 47.0, 1.6, 8.2
STATES = {"adamw": 4, "sgd": 3}  # weights, gradients and moments: copies of the parameters
CGROUP = Path("/sys/fs/cgroup")
UNLIMITED = 2**60  # cgroups write huge numbers where there is no limit


def step_memory(
    network: nn.Cell, crop_size: tuple[int, int], batch_size: int, num_classes: int, optimizer: str, accumulate: int = 1
) -> dict[str, int]:
    """Bytes by what holds them, and their `total`."""
    parameters = sum(math.prod(parameter.shape) for parameter in network.get_parameters())
    tokens, scores = backbone_sizes(network.backbone)
    head = network.head
    levels = len(network.backbone.grids)
    output_grid = getattr(head, "output_grid", network.backbone.grids[0])
    maps = levels * head.channels * math.prod(output_grid)
    logits = num_classes * math.prod(crop_size)
    parts = {
        "process": FIXED,
        "parameters": FLOAT * parameters * (STATES[optimizer] + (accumulate > 1)),
        "backbone": int(FLOAT * batch_size * (MAPS * tokens + SCORES * scores)),
        "head": int(FLOAT * batch_size * MAPS * maps),
        "classes": int(FLOAT * batch_size * LOGITS * logits),
    }
    return {**parts, "total": sum(parts.values())}


def is_measured(backbone: nn.Cell) -> bool:
    """Whether the estimate is for such a backbone: ViT or Swin."""
    return hasattr(backbone, "depths") or hasattr(backbone, "blocks")


def backbone_sizes(backbone: nn.Cell) -> tuple[int, int]:
    """Numbers of one image over all blocks: N x D of their tokens, and heads x N x n of their attention scores."""
    if not hasattr(backbone, "depths"):  # a plain ViT: all blocks on one grid, every token sees all
        count = math.prod(backbone.grid)
        heads = backbone.blocks[0].attn.num_heads
        return backbone.depth * count * backbone.width, backbone.depth * heads * count**2
    tokens = scores = 0
    for stage, depth, width, grid in zip(
        backbone.stages, backbone.depths, backbone.channels, backbone.grids, strict=True
    ):
        count = math.prod(-(-side // backbone.window) * backbone.window for side in grid)
        tokens += depth * count * width
        scores += depth * count * stage.blocks[0].attn.num_heads * backbone.window**2
    return tokens, scores


def available(target: str, device: int = 0) -> tuple[int | None, str]:
    """Bytes that are free on a device, and how that is known; None where nothing here tells."""
    if target == "CPU":
        free, limit = psutil.virtual_memory().available, cgroup_rest()
        if limit is not None and limit < free:
            return limit, "what this container's limit leaves"
        return free, "MemAvailable of /proc/meminfo"
    if target == "GPU" and shutil.which("nvidia-smi"):
        command = ["nvidia-smi", "--query-gpu=memory.free", "--format=csv,noheader,nounits", f"--id={device}"]
        told = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        if told.returncode == 0 and told.stdout.strip().isdigit():
            return int(told.stdout) * 2**20, "nvidia-smi"
    return None, f"nothing here tells the free memory of a {target} device"


def cgroup_rest(root: Path = CGROUP) -> int | None:
    """What the memory limit of this control group leaves, version 2 or 1; None without a limit."""
    first = ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes")
    for limit, usage in (("memory.max", "memory.current"), first):
        try:
            most, used = (root / limit).read_text().strip(), (root / usage).read_text().strip()
        except OSError:
            continue
        if most.isdigit() and int(most) < UNLIMITED:
            return max(0, int(most) - int(used))
    return None


def cgroup_cores(root: Path = CGROUP) -> float | None:
    """Cores that this control group may use; None without a limit."""
    try:
        quota, period = (root / "cpu.max").read_text().split()
    except (OSError, ValueError):
        return None
    return int(quota) / int(period) if quota.isdigit() else None


def cores() -> float:
    """Cores that this process may use."""
    allowed, limit = len(os.sched_getaffinity(0)), cgroup_cores()
    return allowed if limit is None else min(allowed, limit)
