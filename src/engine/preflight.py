"""What a training is about to do and how long it will take, told before its first step.

It is refused where its checkpoints will not fit on the disk.
"""

import errno
import math
import shutil
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from itertools import chain
from pathlib import Path
from statistics import median

import mindspore as ms
from mindspore import nn
from rich.table import Table

from src.config import OptimizerConfig
from src.engine.checkpoint import FOLDER, checkpoint_size
from src.engine.recent_steps import format_bytes, format_memory
from src.engine.timing import peak_memory
from src.engine.trainer import Loop, Parts, read_group, take_step
from src.log import format_seconds, get_console

REHEARSALS = 3  # timed steps before the first


def tell_plan(
    loop: Loop, settings: OptimizerConfig, rates: Sequence[float], items: int, network: nn.Cell, optimizer: nn.Cell
) -> None:
    """Prints the plan of the run. Only for rank 0, which has the disk.

    rates: learning rate of every step; items: number of the training split.
    Raises OSError (ENOSPC) where the run's checkpoints will not fit.
    """
    size, count = checkpoint_size(network, optimizer, loop.classes), most_checkpoints(loop)
    held = sum(file.stat().st_size for folder in checkpoint_folders(loop.run) for file in folder.iterdir())
    needed, free = max(count * size - held, 0), shutil.disk_usage(loop.run).free
    parameters = sum(parameter.size for parameter in network.trainable_params())
    table = create_table(loop, settings, max(rates), items, parameters)
    table.add_row("checkpoints", f"up to {count} of {format_bytes(size)} at a time")
    table.add_row("disk", f"{format_bytes(needed)} more needed, {format_bytes(free)} free")
    get_console().print(table)
    if free < needed:
        text = (
            f"no room for the checkpoints of {loop.run}: up to {count} at a time (train.keep_checkpoints "
            f"{loop.keep_checkpoints}, the best, the one being written) of {size:,} bytes each need {needed:,} bytes "
            f"more, {free:,} are free. Make room, lower train.keep_checkpoints or set output_dir to another disk"
        )
        raise OSError(errno.ENOSPC, text)


def most_checkpoints(loop: Loop) -> int:
    """How many lie on the disk at a time at most: those kept, the best, the one being written."""
    saved = sum(loop.saves(step) for step in range(loop.first_step + 1, loop.steps + 1))
    return min(len(checkpoint_folders(loop.run)) + saved, loop.keep_checkpoints + 2)


def checkpoint_folders(run: Path) -> list[Path]:
    """The checkpoints that a run has, damaged ones included."""
    return [folder for folder in (run / FOLDER).glob("step_*") if folder.is_dir()]


def create_table(loop: Loop, settings: OptimizerConfig, peak: float, items: int, parameters: int) -> Table:
    """What is known without the disk. peak: highest learning rate."""
    images = loop.batch_size * loop.accumulate * loop.world_size
    table = Table(title=str(loop.run), title_justify="left", show_header=False)
    done = f", of which {loop.first_step} are done" if loop.first_step else ""
    table.add_row("steps", f"{loop.steps}{done}: {loop.steps * images / items:.1f} epochs of {items} images")
    factors = ((loop.batch_size, "a batch"), (loop.accumulate, "accumulated"), (loop.world_size, "devices"))
    named = [f"{number} {name}" for number, name in factors if number > 1]
    table.add_row("images a step", f"{images} = {' x '.join(named)}" if len(named) > 1 else str(images))
    rate = f"{settings.name}, {peak:.3g} at its highest"
    table.add_row("learning rate", rate + (f", {settings.warmup_steps} steps of warm-up" * (settings.warmup_steps > 0)))
    table.add_row("parameters", f"{parameters:,} trained")
    return table


def rehearse(loop: Loop, parts: Parts, state: dict, cache: AbstractContextManager, evaluation: float) -> Parts:
    """Compiles the training step, times it and says how long the run will take; returns the parts to train with.

    The rehearsals work on the data of the first step and update nothing. state: of the checkpoint, {} if new; cache:
    what the compilation runs in; evaluation: seconds of one, about. A run with no step left is not rehearsed.
    """
    if loop.first_step == loop.steps:
        return parts
    group = read_group(loop, parts, loop.first_step)
    get_console().print("the training step is compiled: half a minute for small networks")
    with cache:
        take_step(loop, parts, state, loop.first_step, group, math.nan)
    seconds = []
    for _ in range(REHEARSALS):
        start = time.perf_counter()
        take_step(loop, parts, state, loop.first_step, group, math.nan)
        seconds.append(time.perf_counter() - start)
    get_console().print(forecast(loop, median(seconds), evaluation), markup=False, soft_wrap=True)
    return replace(parts, batches=chain(group, parts.batches))


def forecast(loop: Loop, step: float, evaluation: float) -> str:
    """How long a run will take. step, evaluation: seconds of one; of an evaluation as far as a single image tells."""
    steps = loop.steps - loop.first_step
    evaluations = sum(map(loop.evaluates, range(loop.first_step + 1, loop.steps + 1)))
    memory = format_memory(peak_memory(), ms.runtime.max_memory_allocated())
    return (
        f"about {format_seconds(steps * step + evaluations * evaluation)} to go: {steps} steps of {step:.3g} s and "
        f"{evaluations} evaluation{'s' * (evaluations != 1)} of {evaluation:.3g} s; at most so far: {memory}"
    )
