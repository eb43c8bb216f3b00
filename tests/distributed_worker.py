"""What every process of test_distributed.py runs: python distributed_worker.py CONFIG OUTPUT"""

import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import train  # noqa: E402
from src import distributed  # noqa: E402
from src.config import load_config  # noqa: E402

BIG = 2**40 + 1  # a 32-bit sum, or one in floating point, would lose the end


def main() -> None:
    """Adds counts over the ranks, then trains."""
    config, output = load_config(sys.argv[1]), Path(sys.argv[2])
    rank, world_size = distributed.setup(config.device.target, config.device.mode)
    counts = distributed.sum_counts(np.array([rank + 1, BIG, -rank], np.int64))
    np.save(output / f"counts_{rank}.npy", counts)
    train.train(config, rank, world_size)


if __name__ == "__main__":
    main()
