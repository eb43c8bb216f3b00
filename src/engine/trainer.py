"""The training loop: steps, log, evaluation, checkpoints, in that order; and the ways in which it ends early."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from mindspore import nn

from src.distributed import sum_counts
from src.engine.autopsy import write_autopsy
from src.engine.checkpoint import save_checkpoint
from src.engine.precision import LOSS_SCALE, carry_scale, next_scale, overflowed
from src.engine.recent_steps import RecentSteps
from src.engine.run_logs import Logs
from src.engine.step_means import StepMeans
from src.engine.stopping import Stopped, StopSignals
from src.engine.train_step import StepResult, TrainStep, draw_noise, run_step
from src.log import get_console, progress

PROGRESS = "progress"  # key of a batch: share (1,) of the steps that are done, for losses with a schedule
# Keys of a checkpoint's state, besides step, miou, best_miou and best_step:
SKIPPED, BAD_STEPS = "skipped", "bad_steps"  # steps that updated nothing: of the whole run, in a row up to now
EVALUATION_DUE = "evaluation_due"  # true where the run was stopped before, or in, the evaluation of the step
MEANS = "means"  # sums since the last line of the log
IMAGES = "images_a_step"  # over all devices and micro-batches


@dataclass(frozen=True)
class Loop:
    """What the loop needs besides its parts: durations in optimiser steps, see TrainConfig."""

    run: Path
    steps: int
    first_step: int
    batch_size: int
    accumulate: int
    log_every: int
    evaluate_every: int
    checkpoint_every: int
    max_bad_steps: int
    seed: int
    rank: int
    world_size: int
    keep_checkpoints: int
    classes: dict  # names and palette, kept with the weights

    def evaluates(self, step: int) -> bool:
        """Whether an evaluation follows the step, counted from 1."""
        return step % self.evaluate_every == 0 or step == self.steps

    def saves(self, step: int) -> bool:
        """Whether a checkpoint is written after the step, counted from 1."""
        return step % self.checkpoint_every == 0 or self.evaluates(step)


@dataclass(frozen=True)
class Parts:
    """What the loop works with.

    rates (steps,): learning rates; count: micro-batches -> counts (3,) for the loss; evaluate: summary of the
    evaluation split with the network's present weights, None where it was given up; stop: asks the run to end; items:
    of the training split, each with a `name`; bad: notes those that cannot be read (see data/bad_samples.py), None
    where they are errors.
    """

    network: nn.Cell
    step_cell: TrainStep
    rates: np.ndarray
    batches: Iterator[dict]
    count: Callable[[list[dict]], np.ndarray]
    evaluate: Callable[[], dict | None]
    stop: StopSignals
    items: Sequence
    bad: Any = None


def fit(loop: Loop, parts: Parts, state: dict) -> dict:
    """Trains from loop.first_step to loop.steps; returns the state: `step`, `best_miou`, the last `miou`, ...

    state: of the checkpoint that the run goes on from, {} if new.
    Raises Stopped where the run was asked to end, FloatingPointError after loop.max_bad_steps steps in a row whose loss
    or gradients are not finite.
    """
    logs = open_logs(loop, state) if loop.rank == 0 else None
    images = loop.batch_size * loop.accumulate * loop.world_size
    means, recent = StepMeans(images, state.get(MEANS)), RecentSteps(images)
    state = {key: value for key, value in state.items() if key != MEANS} | {IMAGES: images}
    state = carry_scale(state, parts.step_cell.scaled)
    if any_asked(loop, parts.stop):
        raise Stopped(f"{reason(parts.stop)} before the first step; the same command starts it again")
    if EVALUATION_DUE in state:
        state = close_step(loop, parts, logs, state, means, leave=False)
    with progress(loop.steps, "train", completed=loop.first_step, disable=loop.rank != 0) as advance:
        for step in range(loop.first_step, loop.steps):
            means.start()
            group = read_group(loop, parts, step)
            means.data_ready()
            result = take_step(loop, parts, state, step, group, parts.stop.asked())
            means.add(result)
            state = {**state, "step": step + 1, **count_bad_steps(state, result)}
            if state[BAD_STEPS]:
                judge_bad_step(loop, parts, state, result, group)
            recent.add(result, means.last_seconds, means.last_waiting)
            advance(text=recent.text(parts.rates[step]))
            if logs and ((step + 1) % loop.log_every == 0 or step + 1 == loop.steps):
                record = {"kind": "train", "step": step + 1, "lr": float(parts.rates[step]), **means.read()}
                scale = {LOSS_SCALE: state[LOSS_SCALE]} if LOSS_SCALE in state else {}
                logs.write({**record, SKIPPED: state[SKIPPED], **scale})
            if loop.evaluates(step + 1):
                state[EVALUATION_DUE] = True
            leave = result.stop if loop.world_size > 1 else parts.stop.asked()
            state = close_step(loop, parts, logs, state, means, leave)
    return state


def read_group(loop: Loop, parts: Parts, step: int) -> list[dict]:
    """The micro-batches of a step, with the run's progress."""
    progress_now = {PROGRESS: np.array([step / loop.steps], np.float32)}
    return [{**next(parts.batches), **progress_now} for _ in range(loop.accumulate)]


def open_logs(loop: Loop, state: dict) -> Logs:
    """The files that rank 0 writes line by line, up to the step to go on from."""
    return Logs(loop.run, loop.first_step, EVALUATION_DUE not in state, loop.classes["names"])


def take_step(loop: Loop, parts: Parts, state: dict, step: int, group: list[dict], stop: float) -> StepResult:
    """Draws the noise of a step and runs it; stop: see `run_step`."""
    inputs = parts.step_cell.inputs(step - state.get(SKIPPED, 0), parts.rates[step], state.get(LOSS_SCALE, 1.0))
    noise = noise_of(loop, parts, step)
    return run_step(parts.step_cell, inputs, noise, group, parts.count(group), stop)


def noise_of(loop: Loop, parts: Parts, step: int) -> np.ndarray:
    """The keep factors of a step, (accumulate, batch size, n)."""
    return draw_noise(
        parts.network.noise_rates, loop.seed, step, loop.batch_size,
        accumulate=loop.accumulate, rank=loop.rank, world_size=loop.world_size,
    )  # fmt: skip


def count_bad_steps(state: dict, result: StepResult) -> dict:
    """The entries of a state that count steps which updated nothing, after another step; and of the scale of the loss.

    Gradients that overflow because of the scale make no bad step: the next has a smaller scale.
    """
    loss = sum(result.terms.values())
    scale = next_scale(state, loss, result.norm)
    if math.isfinite(result.norm):
        return {SKIPPED: state.get(SKIPPED, 0), BAD_STEPS: 0, **scale}
    bad = 0 if overflowed(state, loss, result.norm) else state.get(BAD_STEPS, 0) + 1
    if not bad:
        get_console().print(f"gradients overflow, nothing updated; the loss is scaled by {scale[LOSS_SCALE]:g} now")
    return {SKIPPED: state.get(SKIPPED, 0) + 1, BAD_STEPS: bad, **scale}


def judge_bad_step(loop: Loop, parts: Parts, state: dict, result: StepResult, group: list[dict]) -> None:
    """Tells of a step that updated nothing; after too many in a row writes the autopsy and raises."""
    step, bad = state["step"], state[BAD_STEPS]
    what = f"step {step}: loss {sum(result.terms.values()):g}, gradient norm {result.norm:g}: not finite"
    get_console().print(f"{what}, nothing updated ({bad} in a row; {loop.max_bad_steps} end the run)")
    if bad < loop.max_bad_steps:
        return
    get_console().print("the step is looked into, which compiles it once more")
    other = f"_rank{loop.rank}" if loop.rank else ""
    file = loop.run / f"autopsy_{step:08d}{other}.json"
    counts = parts.count(group)
    if loop.world_size > 1:
        counts = sum_counts(counts.astype(np.int64)).astype(np.float32)
    facts = {
        "step": step, "bad_steps": bad, "lr": float(parts.rates[step - 1]), "loss_terms": result.terms,
        "gradient_norm": result.norm, "rank": loop.rank,
    }  # fmt: skip
    samples = [[parts.items[index].name for index in batch["item"]] for batch in group]
    noise = noise_of(loop, parts, step - 1)
    write_autopsy(file, facts, parts.step_cell, noise, group, counts, samples, loop.classes["names"])
    meet(loop)
    raise FloatingPointError(
        f"{what}, and so for {bad} steps in a row (train.max_bad_steps). {file} holds samples, loss terms, gradients "
        "and the first module that went wrong. Checkpoints are good; the same settings end here again: lower "
        "optimizer.lr, raise optimizer.warmup_steps or set optimizer.clip_norm, under another name"
    )


def close_step(loop: Loop, parts: Parts, logs: Logs | None, state: dict, means: StepMeans, leave: bool) -> dict:
    """Evaluation and checkpoint where they are due after a step; returns the state, or raises Stopped.

    leave: whether the run is to end here. It, and every decision below, is the same on all devices.
    """
    best = evaluated = False
    if EVALUATION_DUE in state and not leave:
        summary = parts.evaluate()
        leave, evaluated = summary is None, summary is not None
        if evaluated:
            state, best = take_evaluation(state, summary, logs)
    save = leave or evaluated or state["step"] % loop.checkpoint_every == 0
    if parts.bad is not None:
        if save and loop.world_size > 1:
            parts.bad.merge(sum_counts)
        if logs:
            logs.tell_bad_samples(parts.bad)
    if save and loop.rank == 0:
        saved = {**state, **({MEANS: means.pending()} if means.steps else {})}
        save_checkpoint(
            loop.run, state["step"], parts.network, parts.step_cell.optimizer, saved, best, loop.classes,
            loop.keep_checkpoints,
        )  # fmt: skip
    if leave:
        meet(loop)
        raise Stopped(
            f"{reason(parts.stop)} after step {state['step']} of {loop.steps}, saved in {loop.run}; the same command "
            "goes on from there"
        )
    return state


def meet(loop: Loop) -> None:
    """Waits for all devices: the launcher kills the others as soon as one has left."""
    if loop.world_size > 1:
        sum_counts(np.zeros(1, np.int64))


def any_asked(loop: Loop, stop: StopSignals) -> bool:
    """Whether any device has been asked to stop; the same answer on all of them."""
    return stop.asked() if loop.world_size == 1 else sum_counts(np.array([stop.asked()]))[0] > 0


def reason(stop: StopSignals) -> str:
    """Why a run ends, for its message."""
    return f"stopped by {stop.name}" if stop.name else "stopped with another device"


def take_evaluation(state: dict, summary: dict, logs: Logs | None) -> tuple[dict, bool]:
    """The new state after the evaluation of its step, and whether it is the best so far."""
    step = state["step"]
    best = summary["miou"] is not None and summary["miou"] > state.get("best_miou", -1.0)
    state = {key: value for key, value in state.items() if key != EVALUATION_DUE}
    state = {**state, "miou": summary["miou"], **({"best_miou": summary["miou"], "best_step": step} if best else {})}
    if logs:
        scores = {key: summary[key] for key in LOGGED}
        logs.write({"kind": "eval", "step": step, **scores, "iou": ious(summary)})
        score = "none: no labelled pixel" if summary["miou"] is None else f"{summary['miou']:.4f}"
        get_console().print(f"step {step}: val mIoU {score}{' (best so far)' if best else ''}")
    return state, best


LOGGED = ("miou", "pixel_accuracy", "mean_accuracy", "boundary_f")


def ious(summary: dict) -> list:
    """Per-class IoU of a summary; None for absent classes."""
    return [entry["iou"] for entry in summary["classes"]]
