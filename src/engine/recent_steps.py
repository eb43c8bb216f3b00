"""What the progress of a training says besides speed and remaining time: the last steps, and memory."""

import math
import time
from collections import deque
from statistics import fmean

import mindspore as ms
import psutil

from src.engine.train_step import StepResult

WINDOW = 20  # steps
LOOK_EVERY = 1.0  # seconds between looks at memory, which gathers figures of the whole process


class RecentSteps:
    """Loss terms, images a second and the share of time spent waiting for data over the last WINDOW steps.

    All values are on the host already, so telling of them makes no device wait.

    Args:
        images: of one step, over all devices.
    """

    def __init__(self, images: int) -> None:
        self.images = images
        self.terms: deque[dict[str, float]] = deque(maxlen=WINDOW)
        self.times: deque[tuple[float, float]] = deque(maxlen=WINDOW)
        self.memory, self.looked = "", -math.inf

    def add(self, result: StepResult, seconds: float, waiting: float) -> None:
        """A step has ended. seconds: of the whole step; waiting: of it, for data."""
        self.terms.append(result.terms)
        self.times.append((seconds, waiting))

    def text(self, rate: float) -> str:
        """One line; rate: learning rate of the last step."""
        terms = {name: mean_of_finite([step[name] for step in self.terms]) for name in self.terms[-1]}
        parts = " ".join(f"{name} {value:.3f}" for name, value in terms.items())
        total = f"loss {sum(terms.values()):.3f}"
        facts = [f"{total} ({parts})" if len(terms) > 1 else total, f"lr {rate:.1e}"]
        seconds, waiting = (sum(times) for times in zip(*self.times, strict=True))
        speed = len(self.times) * self.images / seconds
        facts += [f"{speed:.{3 if speed < 1 else 1}f} images/s", f"waiting for data {waiting / seconds:.1%}"]
        if time.monotonic() - self.looked > LOOK_EVERY:
            self.memory = format_memory(psutil.Process().memory_info().rss, ms.runtime.memory_allocated())
            self.looked = time.monotonic()
        return "  ".join([*facts, self.memory])


def mean_of_finite(values: list[float]) -> float:
    """Steps that were skipped do not count; NaN where there is no other."""
    finite = [value for value in values if math.isfinite(value)]
    return fmean(finite) if finite else math.nan


def format_memory(main: int, device: int) -> str:
    """Bytes of main memory and of the device's, which a CPU has none of."""
    text = f"memory {format_bytes(main)}"
    return f"{text}, device {format_bytes(device)}" if device else text


def format_bytes(count: float) -> str:
    """In the unit that leaves three figures or so before the point."""
    for unit in ("bytes", "KiB", "MiB"):
        if count < 1024:
            return f"{count:.0f} {unit}"
        count /= 1024
    return f"{count:.1f} GiB"
