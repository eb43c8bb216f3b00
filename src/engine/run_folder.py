"""The folder of a run: output_dir/name, which holds everything that the run writes."""

import json
import os
from collections.abc import Iterable
from pathlib import Path

from ruamel.yaml import YAML

from src.log import replace_file

CONFIG = "config.yaml"
# Settings that may differ when a run goes on: they change neither the samples nor the weights.
FREE = (
    "output_dir", "eval.", "device.", "data.workers", "train.log_every", "train.evaluate_every",
    "train.checkpoint_every", "train.keep_checkpoints", "train.max_bad_steps", "data.on_bad_sample",
    "data.max_bad_samples", "data.check_samples",
)  # fmt: skip


def open_run(output_dir: str, name: str, config_text: str, create: bool = True) -> Path:
    """Makes the run's folder (where `create`) and writes the merged configuration into it; returns the folder.

    Raises ValueError where the folder holds a run with other settings, PermissionError where it cannot be written.
    """
    run = Path(output_dir) / name
    if not create:
        return run
    try:
        run.mkdir(parents=True, exist_ok=True)
    except (PermissionError, FileExistsError, NotADirectoryError, OSError) as error:
        raise PermissionError(f"cannot make the run's folder {run}: {error.strerror}; set output_dir") from error
    if not os.access(run, os.W_OK | os.X_OK):
        raise PermissionError(f"cannot write into the run's folder {run}; set output_dir or mend its permissions")
    file = run / CONFIG
    if file.exists() and (run / "checkpoints").exists():
        refuse_other_settings(run, file.read_text(), config_text)
    replace_file(file, config_text)
    return run


def refuse_other_settings(run: Path, old_text: str, new_text: str) -> None:
    """Raises ValueError that lists the settings in which the run in a folder differs from the one to go on with."""
    old, new = flatten(YAML(typ="safe").load(old_text)), flatten(YAML(typ="safe").load(new_text))
    changed = changes(old, new, [key for key in old.keys() | new.keys() if not key.startswith(FREE)])
    if changed:
        raise ValueError(
            f"{run} holds a run with other settings; give this one another name=..., or remove that folder:\n  "
            + "\n  ".join(changed)
        )


def changes(old: dict, new: dict, keys: Iterable[str]) -> list[str]:
    """One line for each of these dotted keys whose value differs, with both values as YAML has them."""
    return [
        f"{key}: {json.dumps(old.get(key))} there, {json.dumps(new.get(key))} now"
        for key in sorted(keys)
        if old.get(key) != new.get(key)
    ]


def flatten(tree: dict, prefix: str = "") -> dict:
    """Nested mapping -> {dotted key: leaf}."""
    flat = {}
    for key, value in tree.items():
        flat |= flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat
