"""A process that does what train.py does up to the end of its first step, and says when it got how far.

Arguments: file with the row (JSON), file for the times (JSON), wall-clock time of the start, folder of the compile
cache (none: no cache). Weights are fresh, as at the start of a run without pretrained weights.
"""

import json
import sys
import time
from pathlib import Path

import src  # noqa: F401  (before MindSpore, whose log level it sets)

# isort: split
from benchmarks.workers.mindspore_worker import create_network, create_step
from benchmarks.workers.rows import draw_batch
from src import distributed
from src.engine.graph_cache import graph_cache
from src.engine.train_step import draw_noise
from src.losses import batch_counts


def main() -> None:
    """Import (done by now), build, first step; writes the seconds of each."""
    row_file, times_file, started, *cache = sys.argv[1:]
    row = json.loads(Path(row_file).read_text(encoding="utf-8"))
    imported = time.time()
    distributed.setup("CPU", "graph")
    distributed.set_seed(row["seed"])
    network = create_network(row)
    batch = draw_batch(row)
    noise = draw_noise(network.noise_rates, row["seed"], 0, row["batch"])[0]
    step = create_step(row, network, batch, noise, batch_counts(batch))
    built = time.time()
    with graph_cache(cache[0] if cache else None, row):
        step(row["optimizer"]["lr"])
    done = time.time()
    times = {"import": imported - float(started), "build": built - imported, "first_step": done - built}
    second = time.time()
    step(row["optimizer"]["lr"])
    times |= {"second_step": time.time() - second, "total": done - float(started)}
    Path(times_file).write_text(json.dumps(times), encoding="utf-8")


if __name__ == "__main__":
    main()
