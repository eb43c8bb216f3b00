"""The training loop: steps, log, evaluation, checkpoints, in that order."""

import math
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from mindspore import nn

from src.engine.checkpoint import save_checkpoint
from src.engine.train_step import TrainStep, draw_noise, run_step
from src.log import MetricsLog, get_console, progress


@dataclass(frozen=True)
class Loop:
    """What the loop needs besides the step: durations in optimiser steps, see TrainConfig."""

    run: Path
    steps: int
    first_step: int
    batch_size: int
    accumulate: int
    log_every: int
    evaluate_every: int
    checkpoint_every: int
    seed: int
    rank: int
    world_size: int
    keep_checkpoints: int
    classes: dict | None = None  # names and palette, kept with the weights


def fit(
    loop: Loop,
    network: nn.Cell,
    step_cell: TrainStep,
    rates: np.ndarray,
    batches: Iterator[dict],
    count: Callable[[list[dict]], np.ndarray],
    evaluate: Callable[[], dict],
    state: dict,
    cache: AbstractContextManager,
) -> dict:
    """Trains from loop.first_step to loop.steps; returns the state: `step`, `best_miou`, the last `miou`.

    rates (steps,): learning rates; count: micro-batches -> counts (3,) for the loss; evaluate: summary of the
    evaluation split with the network's present weights; state: of the checkpoint that the run goes on from, {} if new;
    cache: what the first step, which compiles, runs in.
    """
    log = MetricsLog(loop.run / "metrics.jsonl") if loop.rank == 0 else None
    if log:
        log.truncate_after(loop.first_step)
    means = StepMeans(loop)
    get_console().print("the first step is compiled: half a minute for small networks")
    with progress(loop.steps, "train", completed=loop.first_step, disable=loop.rank != 0) as advance:
        for step in range(loop.first_step, loop.steps):
            means.start()
            group = [next(batches) for _ in range(loop.accumulate)]
            means.data_ready()
            with cache if step == loop.first_step else nullcontext():
                terms, norm = take_step(loop, network, step_cell, rates, step, group, count(group))
            means.add(terms, norm)
            require_finite(step, terms, norm)
            done = step + 1
            state = {**state, "step": done}
            advance(text=f"loss {sum(terms.values()):.3f}")
            if log and (done % loop.log_every == 0 or done == loop.steps):
                log.write({"kind": "train", "step": done, "lr": float(rates[step]), **means.read()})
            evaluated = done % loop.evaluate_every == 0 or done == loop.steps
            best = False
            if evaluated:
                state, best = take_evaluation(state, evaluate(), log, done)
            if loop.rank == 0 and (best or evaluated or done % loop.checkpoint_every == 0):
                save_checkpoint(
                    loop.run, done, network, step_cell.optimizer, state, best, loop.classes, loop.keep_checkpoints
                )
    return state


def take_step(loop: Loop, network, step_cell, rates, step: int, group: list[dict], counts: np.ndarray):
    """Draws the noise of a step and runs it; returns (terms, gradient norm)."""
    noise = draw_noise(
        network.noise_rates, loop.seed, step, loop.batch_size,
        accumulate=loop.accumulate, rank=loop.rank, world_size=loop.world_size,
    )  # fmt: skip
    return run_step(step_cell, step_cell.optimizer.inputs(step, rates[step]), noise, group, counts)


def require_finite(step: int, terms: dict[str, float], norm: float) -> None:
    """Raises ArithmeticError where a loss term or the gradient norm of a step is NaN or infinite."""
    if not math.isfinite(sum(terms.values()) + norm):
        raise ArithmeticError(
            f"step {step + 1}: loss terms {terms}, gradient norm {norm}; the weights are lost, checkpoints before this "
            "step are not. Lower optimizer.lr, raise optimizer.warmup_steps or set optimizer.clip_norm"
        )


def take_evaluation(state: dict, summary: dict, log: MetricsLog | None, step: int) -> tuple[dict, bool]:
    """The new state after an evaluation, and whether it is the best so far."""
    best = summary["miou"] is not None and summary["miou"] > state.get("best_miou", -1.0)
    state = {**state, "miou": summary["miou"], **({"best_miou": summary["miou"], "best_step": step} if best else {})}
    if log:
        log.write({"kind": "eval", "step": step, **{key: summary[key] for key in LOGGED}, "iou": ious(summary)})
        score = "none: no labelled pixel" if summary["miou"] is None else f"{summary['miou']:.4f}"
        get_console().print(f"step {step}: val mIoU {score}{' (best so far)' if best else ''}")
    return state, best


LOGGED = ("miou", "pixel_accuracy", "mean_accuracy", "boundary_f")


def ious(summary: dict) -> list:
    """Per-class IoU of a summary; None for absent classes."""
    return [entry["iou"] for entry in summary["classes"]]


class StepMeans:
    """Means of loss terms and gradient norm, images a second and the share of time spent waiting for data."""

    def __init__(self, loop: Loop) -> None:
        self.images = loop.batch_size * loop.accumulate * loop.world_size
        self.reset()

    def reset(self) -> None:
        """Forgets what was added."""
        self.terms, self.norm, self.count = {}, 0.0, 0
        self.seconds = self.waiting = 0.0

    def start(self) -> None:
        """A step begins."""
        self.began = time.perf_counter()

    def data_ready(self) -> None:
        """The batches of the step have arrived."""
        self.waiting += time.perf_counter() - self.began

    def add(self, terms: dict[str, float], norm: float) -> None:
        """A step has ended."""
        self.seconds += time.perf_counter() - self.began
        self.count += 1
        self.norm += norm
        for name, value in terms.items():
            self.terms[name] = self.terms.get(name, 0.0) + value

    def read(self) -> dict:
        """Means since the last reading, for the log."""
        terms = {name: value / self.count for name, value in self.terms.items()}
        record = {
            "loss": sum(terms.values()), "terms": terms, "grad_norm": self.norm / self.count,
            "images_per_s": self.count * self.images / self.seconds, "waiting": self.waiting / self.seconds,
        }  # fmt: skip
        self.reset()
        return record
