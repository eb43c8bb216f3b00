"""Makes a shareable model of a run: its best weights, its configuration without paths of this machine, a model card.

python tools/publish.py RUN [--output FOLDER] [--licence TEXT]
"""

import argparse
import json
import shutil
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # so that the script runs from any folder

from src import cli  # noqa: E402
from src.config import Config, config_to_yaml, load_config  # noqa: E402
from src.engine.checkpoint_files import MARKER, STATE, file_hash  # noqa: E402
from src.engine.model_card import CLASSES_FILE, Facts, write_card  # noqa: E402
from src.engine.run_folder import CONFIG  # noqa: E402
from src.engine.weights import CLASSES, read_metadata, read_tensors, weights_file  # noqa: E402
from src.log import read_metrics  # noqa: E402

PUBLISHED, WEIGHTS, CARD, METRICS = "published", "best.safetensors", "README.md", "metrics.jsonl"


def main() -> None:
    """Reads the command line and writes the folder, whole or not at all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", metavar="RUN", type=Path, help="folder of a run, output_dir/name")
    parser.add_argument("--output", metavar="FOLDER", type=Path, help=f"folder to make (default: RUN/{PUBLISHED})")
    parser.add_argument("--licence", metavar="TEXT", default="", help="licence of the weights, for the card")
    arguments = parser.parse_args()
    output = arguments.output or arguments.run / PUBLISHED
    if output.exists():
        raise FileExistsError(f"{output} exists already; remove it, or name another folder with --output")
    if not (arguments.run / CONFIG).is_file():
        raise FileNotFoundError(f"{arguments.run} is no folder of a run: it holds no {CONFIG}")
    cli.writable(str(output))
    draft = output.with_name(f".{output.name}.incomplete")
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir()
    try:
        publish(arguments.run, draft, arguments.licence.strip())
        draft.rename(output)
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    print(f"{output}: {', '.join(sorted(path.name for path in output.iterdir()))}")
    if not arguments.licence:
        print(f"state a licence with --licence, or in {output / CARD}: without one nobody may use the weights")


def publish(run: Path, folder: Path, licence: str) -> None:
    """Writes the files of a run into a new folder, with the classes where the data set is the user's own."""
    source, config = weights_file(run), load_config(run / CONFIG)
    shutil.copyfile(source, folder / WEIGHTS)
    shared, left_out = without_paths(config)
    (folder / CONFIG).write_text(config_to_yaml(shared))
    tensors, metadata = read_tensors(folder / WEIGHTS)
    step, names = step_of(source), [WEIGHTS, CONFIG]
    if config.data.dataset == "folder" and CLASSES in metadata:
        (folder / CLASSES_FILE).write_text(metadata[CLASSES])  # JSON is YAML
        names.append(CLASSES_FILE)
    facts = Facts(
        config=config, step=step, record=record_of(run, step),
        classes=tuple(json.loads(metadata[CLASSES])["names"]) if CLASSES in metadata else (),
        parameters=sum(array.size for array in tensors.values()),
        files={name: fact_of(folder / name) for name in names},
        pretrained=describe_pretrained(config.model.pretrained), licence=licence, left_out=left_out,
    )  # fmt: skip
    (folder / CARD).write_text(write_card(facts))


def fact_of(file: Path) -> dict:
    """Size and digest of a file."""
    return {"bytes": file.stat().st_size, "sha256": file_hash(file)}


def step_of(weights: Path) -> int | None:
    """The step at which weights were saved, from their checkpoint's state."""
    state = weights.parent / STATE
    return json.loads(state.read_text())["step"] if (weights.parent / MARKER).exists() else None


def record_of(run: Path, step: int | None) -> dict | None:
    """The last evaluation of a step in a run's log."""
    records = read_metrics(run / METRICS) if (run / METRICS).is_file() else []
    found = [r for r in records if r["kind"] == "eval" and r["step"] == step]
    return found[-1] if found else None


def describe_pretrained(path: str | None) -> str:
    """The weights that training started from: file name, where they are from, digest; not their place."""
    if path is None:
        return "fresh weights"
    name = Path(path).name
    try:
        file = weights_file(path)
    except (FileNotFoundError, ValueError):
        return f"{name}, which is no longer there"
    origin = read_metadata(file).get("source", "a run of this code")
    return f"{name} ({origin}), SHA-256 `{file_hash(file)}`"


def without_paths(config: Config) -> tuple[Config, tuple[str, ...]]:
    """The configuration without what belongs to one machine, and the names of the settings that were taken out.

    Weights to start from go, too: they are in the published ones. Relative paths stay, but for those.
    """
    tree = config.model_dump()
    fresh = {("output_dir",): "output", ("data", "root"): None, ("device", "compile_cache"): None}
    gone = [keys for keys in fresh if Path(value_at(tree, keys) or "").is_absolute()]
    for *parents, last in gone:
        value_at(tree, parents)[last] = fresh[(*parents, last)]
    for key, value in list(tree["data"]["options"].items()):
        if isinstance(value, str) and Path(value).is_absolute():
            del tree["data"]["options"][key]
            gone.append(("data", "options", key))
    if config.model.pretrained is not None:
        tree["model"] |= {"pretrained": None, "reset_classifier": False}
        gone.append(("model", "pretrained"))
    return Config.model_validate(tree), tuple(".".join(keys) for keys in gone)


def value_at(tree: dict, keys) -> object:
    """The value that nested keys lead to."""
    for key in keys:
        tree = tree[key]
    return tree


if __name__ == "__main__":
    cli.run(main)
