"""What every process of test_stopping_devices.py runs: python stopping_worker.py CONFIG OUTPUT"""

import json
import os
import signal
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import train  # noqa: E402
from src import distributed  # noqa: E402
from src.config import load_config  # noqa: E402
from src.engine import trainer  # noqa: E402
from src.engine.stopping import Stopped  # noqa: E402

SPOILT_STEP, SIGNAL_STEP = 0, 1  # counted from 0
FIRST_OF_EVALUATION = 3  # prediction of a start; the two before try the settings out


class Trouble:
    """What happens to device 1 alone: NaN in a step, SIGTERM in another, SIGUSR1 in the evaluation after a resume."""

    def __init__(self, rank: int) -> None:
        self.hit, self.starts, self.predictions = rank == 1, 0, 0
        self.functions = trainer.draw_noise, trainer.run_step, train.predict_label
        trainer.draw_noise, trainer.run_step, train.predict_label = self.draw_noise, self.run_step, self.predict

    def start(self) -> None:
        self.starts, self.predictions = self.starts + 1, 0

    def draw_noise(self, *args, **options):
        self.step = args[2]
        noise = self.functions[0](*args, **options)
        return noise * np.float32(np.nan) if self.hit and self.step == SPOILT_STEP else noise

    def run_step(self, *args):
        if self.hit and self.step == SIGNAL_STEP:
            os.kill(os.getpid(), signal.SIGTERM)
        return self.functions[1](*args)

    def predict(self, *args, **options):
        self.predictions += 1
        if self.hit and self.starts == 2 and self.predictions == FIRST_OF_EVALUATION:
            os.kill(os.getpid(), signal.SIGUSR1)
        return self.functions[2](*args, **options)


def main() -> None:
    """Trains until nothing stops it any more; writes where each start ended to OUTPUT/ends_RANK.json."""
    config, output = load_config(sys.argv[1]), Path(sys.argv[2])
    rank, world_size = distributed.setup(config.device.target, config.device.mode)
    trouble, ends = Trouble(rank), []
    while not ends or isinstance(ends[-1], str):
        trouble.start()
        try:
            ends.append(train.train(config, rank, world_size))
        except Stopped as stopped:
            ends.append(str(stopped))
    (output / f"ends_{rank}.json").write_text(json.dumps(ends))


if __name__ == "__main__":
    main()
