"""What every process of test_distributed.py runs: python distributed_worker.py --config FILE [key=value ...]

What it finds out goes to OUTPUT_DIR/found/: counts_RANK.npy, norm_RANK.npz, found_RANK.json.
"""

import json
import sys
from functools import partial
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import train  # noqa: E402
from src import cli, distributed  # noqa: E402
from src.config import load_config  # noqa: E402
from src.engine.evaluator import evaluate  # noqa: E402
from tests.sync_norm import train_shared_norm  # noqa: E402

BIG = 2**40 + 1  # a 32-bit sum, or one in floating point, would lose the end
SHARES = range(6)  # numbers of images to evaluate: none, fewer than ranks, not divisible
K = 3
CHANGES = ("os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.symlink", "os.link", "os.truncate")  # audit events


def main() -> None:
    """Adds counts over the ranks, evaluates, trains, and notes what it saw."""
    arguments = cli.config_parser(__doc__).parse_intermixed_args()
    config = load_config(arguments.config, arguments.overrides)
    rank, world_size = distributed.setup(config.device.target, config.device.mode)
    folder = Path(config.output_dir) / "found"
    folder.mkdir(exist_ok=True)
    counts = distributed.sum_counts(np.array([rank + 1, BIG, -rank], np.int64))
    np.save(folder / f"counts_{rank}.npy", counts)
    np.savez(folder / f"norm_{rank}.npz", **train_shared_norm(rank, world_size))
    found = {
        "shares": [score_share(total, rank, world_size) for total in SHARES],
        "fresh": note_first_evaluation(),
        "disagreement": provoke_disagreement(rank, world_size),
        "samples": note_samples(),
        "written": note_writing(Path(config.output_dir) / config.name),
    }
    train.train(config, rank, world_size)
    (folder / f"found_{rank}.json").write_text(json.dumps(found))


def score_share(total: int, rank: int, world_size: int) -> dict:
    """Summary of `total` images, of which this rank has its share; a prediction is a function of the image."""
    samples = [draw_sample(i) for i in range(total)][rank::world_size]
    return evaluate(predict, samples, Names, 2, False, distributed.sum_counts if world_size > 1 else None)


class Names:
    """Classes of the drawn samples."""

    names = tuple("abc")


def predict(image: np.ndarray) -> np.ndarray:
    return image[..., 0] % K


def draw_sample(i: int) -> tuple[str, dict]:
    """Image and label number i, 6 x 8."""
    random = np.random.default_rng(i)
    image = random.integers(0, 256, (6, 8, 3), np.uint8)
    return f"image {i}", {"image": image, "label": random.integers(0, K, (6, 8)).astype(np.uint8)}


def note_first_evaluation() -> dict:
    """A dict that gets the summary of the network with its initial weights, and the names of this rank's images."""
    found: dict = {}
    train.create_validation = partial(evaluate_at_once, train.create_validation, found)
    return found


def evaluate_at_once(create, found: dict, *arguments):
    """What `create` makes, after a first call of it; arguments[3] are the samples, as of train.create_validation."""
    validate, seconds = create(*arguments)
    found |= {"summary": validate(), "names": [name for name, _ in arguments[3]]}
    return validate, seconds


def provoke_disagreement(rank: int, world_size: int) -> str:
    """The message of ranks that differ in one of two facts."""
    try:
        distributed.require_agreement({"same": 7, "step": 3 * rank}, rank, world_size)
    except ValueError as error:
        return str(error)
    return ""


def note_samples() -> list[int]:
    """A list that gets the checksum of every training sample in the order in which they come."""
    seen: list[int] = []
    train.count = partial(count_and_note, train.count, seen)
    return seen


def count_and_note(count, seen: list[int], group: list[dict]) -> np.ndarray:
    for batch in group:
        seen += [distributed.checksum([batch["image"][b], batch["label"][b]]) for b in range(len(batch["label"]))]
    return count(group)


def note_writing(folder: Path) -> list[str]:
    """A list that gets every attempt of this process to change something in a folder."""
    written: list[str] = []
    place = str(folder.resolve())

    def hook(event: str, arguments: tuple) -> None:
        writes = event in CHANGES
        if event == "open":
            mode, flags = arguments[1] or "", arguments[2] or 0
            writes = any(letter in str(mode) for letter in "wax+") or bool(flags & 3)
        paths = [Path(argument).absolute() for argument in arguments if isinstance(argument, str | Path)]
        if writes and any(str(path).startswith(place) for path in paths):
            written.append(f"{event} {arguments[0]}")

    sys.addaudithook(hook)
    return written


if __name__ == "__main__":
    cli.run(main)
