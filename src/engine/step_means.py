"""What a training run logs of its steps: means, speed, waiting."""

import math
import time

from src.engine.train_step import StepResult


class StepMeans:
    """Means of loss terms and gradient norm over the steps that updated something, images a second and the share of
    time spent waiting for data.

    Args:
        images: of one step, over all devices.
        pending: what `pending` gave of the run that is gone on with: sums since the last line of its log.
    """

    SUMS = ("terms", "norm", "updates", "steps", "seconds", "waiting")

    def __init__(self, images: int, pending: dict | None = None) -> None:
        self.images = images
        self.began = self.last_seconds = self.last_waiting = 0.0
        self.reset()
        if pending is not None:
            self.__dict__.update(pending)

    def reset(self) -> None:
        """Forgets what was added."""
        self.terms, self.norm, self.updates, self.steps = {}, 0.0, 0, 0
        self.seconds = self.waiting = 0.0

    def start(self) -> None:
        """A step begins."""
        self.began = time.perf_counter()

    def data_ready(self) -> None:
        """The batches of the step have arrived."""
        self.last_waiting = time.perf_counter() - self.began
        self.waiting += self.last_waiting

    def add(self, result: StepResult) -> None:
        """A step has ended; its own times are in last_seconds and last_waiting."""
        self.last_seconds = time.perf_counter() - self.began
        self.seconds += self.last_seconds
        self.steps += 1
        self.terms = {name: self.terms.get(name, 0.0) for name in result.terms}
        if not math.isfinite(result.norm):
            return
        self.updates += 1
        self.norm += result.norm
        for name, value in result.terms.items():
            self.terms[name] += value

    def pending(self) -> dict:
        """The sums since the last reading, JSON values."""
        return {name: getattr(self, name) for name in self.SUMS}

    def read(self) -> dict:
        """Means since the last reading, for the log; None where no step updated anything."""
        terms = {name: value / self.updates if self.updates else None for name, value in self.terms.items()}
        record = {
            "loss": sum(terms.values()) if self.updates else None, "terms": terms,
            "grad_norm": self.norm / self.updates if self.updates else None,
            "images_per_s": self.steps * self.images / self.seconds, "waiting": self.waiting / self.seconds,
        }  # fmt: skip
        self.reset()
        return record
