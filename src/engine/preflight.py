"""What a training is about to do and how long it will take, told before its first step.

It is refused where its checkpoints will not fit on the disk.
"""

import errno
import shutil
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from itertools import chain
from pathlib import Path
from statistics import median

import mindspore as ms
import numpy as np
from mindspore import nn, ops
from rich.table import Table

from src.config import OptimizerConfig
from src.distributed import sum_counts
from src.engine.checkpoint import FOLDER, checkpoint_size
from src.engine.recent_steps import format_bytes, format_memory
from src.engine.stopping import Stopped, StopSignals
from src.engine.timing import peak_memory
from src.engine.train_step import TrainStep
from src.engine.trainer import EVALUATION_DUE, Loop, Parts, read_group, reason, take_step
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

    The first step is taken several times, each whole, and everything that it changed is put back. state: of the
    checkpoint, {} if new; cache: what the compilation runs in; evaluation: seconds of one, about. A run with no step
    left is not rehearsed. Raises Stopped where any device has been asked to stop.
    """
    leave_if(loop, parts, any_asked(loop, parts.stop))
    if loop.first_step == loop.steps:
        return parts
    group, before = read_group(loop, parts, loop.first_step), keep_states(parts.step_cell)
    get_console().print("the training step is compiled: half a minute for small networks")
    seconds = []
    for number in range(1 + REHEARSALS):
        start = time.perf_counter()
        with nullcontext() if number else cache:
            result = take_step(loop, parts, state, loop.first_step, group)
        seconds.append(time.perf_counter() - start)
        leave_if(loop, parts, result.stop)
    put_back(parts.step_cell, before)
    text = forecast(loop, median(seconds[1:]), evaluation, due=EVALUATION_DUE in state)
    get_console().print(text, markup=False, soft_wrap=True)
    return replace(parts, batches=chain(group, parts.batches))


def any_asked(loop: Loop, stop: StopSignals) -> bool:
    """Whether any device has been asked to stop; the same answer on all of them."""
    return stop.asked() if loop.world_size == 1 else sum_counts(np.array([stop.asked()]))[0] > 0


def leave_if(loop: Loop, parts: Parts, stop: bool) -> None:
    """Raises Stopped where the run is to end before its first step, on all devices alike."""
    if stop:
        goes_on = f"goes on from step {loop.first_step}" if loop.first_step else "starts it again"
        text = f"{reason(parts.stop)} before step {loop.first_step + 1} of {loop.steps}; the same command {goes_on}"
        raise Stopped(text)


def keep_states(step_cell: TrainStep) -> list[np.ndarray]:
    """Copies of everything that a step changes: weights, running statistics, states of the optimiser, sums."""
    return [parameter.asnumpy().copy() for parameter in step_cell.get_parameters()]


def put_back(step_cell: TrainStep, states: Sequence[np.ndarray]) -> None:
    """Gives a step the states back that `keep_states` has copied; it may be compiled already (docs/platform.md)."""
    for parameter, state in zip(step_cell.get_parameters(), states, strict=True):
        ops.assign(parameter, ms.Tensor(state))


def forecast(loop: Loop, step: float, evaluation: float, due: bool = False) -> str:
    """How long a run will take that never waits for data.

    step, evaluation: seconds of one; of an evaluation as far as a single image tells. due: one is to be made up for.
    """
    steps = loop.steps - loop.first_step
    evaluations = due + sum(map(loop.evaluates, range(loop.first_step + 1, loop.steps + 1)))
    memory = format_memory(peak_memory(), ms.runtime.max_memory_allocated())
    duration = format_seconds(steps * step + evaluations * evaluation)
    return (
        f"about {duration} to go: {count(steps, 'step')} of {step:.3g} s and {count(evaluations, 'evaluation')} of "
        f"{evaluation:.3g} s, if no step waits for data; at most so far: {memory}"
    )


def count(number: int, noun: str) -> str:
    """The noun with its number."""
    return f"{number} {noun}{'s' * (number != 1)}"
