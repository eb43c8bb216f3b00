"""The inside of a worker process: answers requests, one JSON line each, by one JSON line each.

A worker is what `prepare` makes of a row: a call that does one step or one inference and waits for its result. The
worker measures its own time and memory. Only NumPy here, so that one framework does not load the other.
"""

import json
import os
import resource
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

Call = Callable[[float], Mapping[str, object]]  # learning rate (0: also what only the comparison needs) -> outputs
PRODUCTS = ((2048, 2048, 2048), (1024, 768, 3072))  # rows, inner, columns


def resident_memory() -> int:
    """Bytes of main memory that this process holds now."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize()


def peak_memory() -> int:
    """Most bytes of main memory that this process has held so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


class Worker:
    """Handlers of the requests that both frameworks have.

    Args:
        prepare: row, folder with inputs.npz -> call.
        multiply: (rows, inner, columns) -> a call that multiplies float32 matrices of these sizes and waits.
        versions: of what computes, by name.
    """

    def __init__(self, prepare: Callable[[dict, Path], Call], multiply: Callable, versions: Mapping[str, str]) -> None:
        self.prepare, self.multiply, self.versions = prepare, multiply, versions
        self.products: list[tuple[float, Callable]] = []

    def build(self, row: dict, folder: str) -> dict:
        """Builds the network with the row's weights. Returns seconds, and versions."""
        self.start = resident_memory()
        start = time.perf_counter()
        self.call = self.prepare(row, Path(folder))
        return {"seconds": time.perf_counter() - start, "versions": self.versions}

    def step(self, rate: float) -> dict:
        """One call; returns its seconds."""
        start = time.perf_counter()
        self.outputs = self.call(rate)
        return {"seconds": time.perf_counter() - start}

    def save(self, file: str) -> dict:
        """Writes the outputs of the last call to an .npz file."""
        np.savez(file, **{name: np.asarray(value) for name, value in self.outputs.items()})
        return {}

    def memory(self) -> dict:
        """Peak resident bytes of the process so far, and the part that came after the state before the network."""
        peak = peak_memory()
        return {"peak": peak, "growth": peak - self.start}

    def product(self) -> dict:
        """Multiply-accumulates a second of the faster of PRODUCTS."""
        if not self.products:
            self.products = [(float(np.prod(sizes)), self.multiply(*sizes)) for sizes in PRODUCTS]
            for _, call in self.products:
                call()
        speeds = []
        for macs, call in self.products:
            start = time.perf_counter()
            call()
            speeds.append(macs / (time.perf_counter() - start))
        return {"macs_per_s": max(speeds)}


def serve(worker: object) -> None:
    """Answers {"do": method, ...arguments} by what the worker's method returns, until the input ends.

    An exception is answered as {"error": its last line, "trace": all of it}. What else is printed goes to stderr.
    """
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    for line in sys.stdin:
        request = json.loads(line)
        method = getattr(worker, request.pop("do"))
        try:
            reply = method(**request)
        except Exception as error:  # the driver decides what an error means
            reply = {"error": f"{type(error).__name__}: {str(error).strip()[:400]}", "trace": traceback.format_exc()}
        replies.write(json.dumps(reply) + "\n")
        replies.flush()
