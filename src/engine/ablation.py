"""What training runs of an ablation differ in, and what each of them gave.

A row is a configuration with a few settings changed; its runs differ in the seed only. ablation_table.py sets rows
beside each other, tools/ablate.py runs them.
"""

import hashlib
import json
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from ruamel.yaml import YAML

from src.config import Config, load_config
from src.engine.checkpoint_files import STATE, newest_good
from src.engine.run_folder import CONFIG, changes, flatten, refuse_other_settings
from src.log import read_metrics

OWN = {"name": "it is made from the row and the seed", "output_dir": "use --output", "seed": "use --seeds"}
KEY = r"[A-Za-z_]\w*(\.\w+)*="
FORM = "key=value,value,... or, for keys that change together, key=value+key=value"
LONGEST_NAME = 120  # characters of a row's name; file systems allow 255 bytes

Change = tuple[str, ...]  # the key=value texts that make a row from its base


@dataclass(frozen=True)
class Row:
    """One line of the table.

    label: for people; name: what the names of its runs begin with; overrides: all that its runs are given, its own
    changes last; base: name of the row that it is compared with, None for the first row; same: labels of other rows
    that came out with equal settings and are not run again.
    """

    label: str
    name: str
    file: str
    changes: Change
    overrides: tuple[str, ...]
    config: Config
    base: str | None
    same: list[str]


def read_seeds(text: str) -> list[int]:
    """`0,1` as numbers; raises ValueError for anything else, none at all and a seed given twice."""
    parts = [part.strip() for part in text.split(",")]
    if not all(re.fullmatch("[0-9]+", part) for part in parts):
        raise ValueError(f"--seeds {text!r}: wanted whole numbers from 0 on with commas between them, such as 0,1")
    seeds = [int(part) for part in parts]
    if len(set(seeds)) < len(seeds):
        raise ValueError(f"--seeds {text!r} names a seed twice; equal seeds give equal runs")
    return seeds


def read_switches(texts: Iterable[str]) -> tuple[list[Change], list[str]]:
    """The changes that --switch texts ask for, one for each row, and all that is wrong with the texts."""
    changes, problems, seen = [], [], {}
    for text in texts:
        try:
            switch = read_switch(text)
        except ValueError as error:
            problems.append(f"--switch {text!r}: {error}")
            continue
        keys = frozenset(part.partition("=")[0] for part in switch[0])
        if keys in seen:
            problems.append(f"--switch {text!r} repeats the keys of {seen[keys]!r}; put all values into one of them")
        seen[keys] = text
        changes += switch
    return changes, problems


def read_switch(text: str) -> list[Change]:
    """`a=1,2` -> [("a=1",), ("a=2",)]; `a=1,2+b=[3,4],5` -> [("a=1", "b=[3,4]"), ("a=2", "b=5")].

    Commas and plus signs inside brackets, braces and quotes do not split, nor does a plus sign without `key=` behind
    it. Raises ValueError for anything that is not of this form.
    """
    factors = {}
    for part in split_outside(text, "+", KEY):
        key, _, listed = part.partition("=")
        if not re.match(KEY, part):
            raise ValueError(f"{part!r} is not of the form {FORM}")
        values = [value.strip() for value in split_outside(listed, ",")]
        if not all(values):
            raise ValueError(f"a value of {key} is empty; write null for none, '\"\"' for empty text")
        if key in factors:
            raise ValueError(f"{key} is given twice")
        factors[key] = values
    if len({len(values) for values in factors.values()}) > 1:
        counts = ", ".join(f"{len(values)} of {key}" for key, values in factors.items())
        raise ValueError(f"keys that change together need equally many values, but there are {counts}")
    together = zip(*factors.values(), strict=True)
    return [tuple(f"{key}={value}" for key, value in zip(factors, values, strict=True)) for values in together]


def split_outside(text: str, separator: str, follows: str = "") -> list[str]:
    """Splits at separators outside brackets, braces and quotes that stand before what the pattern `follows` matches."""
    parts, depth, quote, start = [], 0, "", 0
    for i, char in enumerate(text):
        if quote:
            quote = "" if char == quote else quote
        elif char in "\"'":
            quote = char
        elif char in "[{":
            depth += 1
        elif char in "]}":
            depth -= 1
        elif char == separator and depth == 0 and re.match(follows, text[i + 1 :]):
            parts.append(text[start:i])
            start = i + 1
    if depth or quote:
        raise ValueError("brackets, braces or quotes are not closed")
    return [*parts, text[start:]]


def refuse_own_keys(texts: Iterable[str]) -> list[str]:
    """Problems with key=value texts that set what every run of a table gets from elsewhere."""
    keys = {text.partition("=")[0] for text in texts}
    return [f"{key} cannot be set here: {remedy}" for key, remedy in OWN.items() if key in keys]


def plan_rows(
    files: Sequence[str], changes: Sequence[Change], common: Sequence[str], identify: Callable[[Config], str]
) -> tuple[list[Row], list[str]]:
    """The rows of a table and all that is wrong with their settings.

    Every config as it is, each followed by one row a change. common: overrides of all rows. identify: text that is
    equal for configs whose runs would be equal; a row that repeats another is noted there and left out.
    """
    rows, problems = {}, []
    for file, stem in zip(files, short_names(files), strict=True):
        base = None
        for change in ((), *changes):
            prefix = f"{stem}: " if len(files) > 1 else ""
            label = f"{prefix}{' + '.join(change)}" if change else stem
            try:
                config = load_config(file, (*common, *change))
            except ValueError as error:
                problems.append(f"{label}: {error}")
                if not change:
                    break  # its rows would all say the same
                continue
            first = next(iter(rows.values())).name if rows else None
            name, overrides = row_name(config.name, change), (*common, *change)
            row = Row(label, name, file, change, overrides, config, base or first, [])
            row = rows.setdefault(identify(config), row)
            if row.label != label:
                row.same.append(label)
            base = base or row.name
    return list(rows.values()), problems + name_problems(rows.values())


def short_names(files: Sequence[str]) -> list[str]:
    """The files' names without suffix, with as many of their folders as tell them apart."""
    paths = [Path(file).with_suffix("") for file in files]
    tails = [["/".join(path.parts[-n:]) for path in paths] for n in range(1, 1 + max(len(p.parts) for p in paths))]
    return next((names for names in tails if len(set(names)) == len(set(paths))), tails[-1])


def name_problems(rows: Iterable[Row]) -> list[str]:
    """Problems of rows that would write into the same folders."""
    owners, problems = {}, []
    for row in rows:
        if row.name in owners:
            other = owners[row.name]
            problems.append(
                f"{row.file} and {other.file} are both named {row.config.name!r}; set another `name:` in one of them"
            )
        owners.setdefault(row.name, row)
    return list(dict.fromkeys(problems))


def row_name(config_name: str, changes: Change) -> str:
    """A folder name that depends on nothing but the row; with a hash where the text has other characters in it."""
    text = "--".join([config_name, *(["+".join(sorted(map(canonical, changes)))] if changes else [])])
    name = re.sub("[^A-Za-z0-9._=+-]+", "-", text).strip("-.")
    if name == text and len(name) <= LONGEST_NAME:
        return name
    return f"{name[:LONGEST_NAME].rstrip('-')}-{hashlib.sha256(text.encode()).hexdigest()[:6]}"


def canonical(change: str) -> str:
    """key=value with the value written in the one way that does not depend on spaces or notation."""
    key, _, text = change.partition("=")
    value = YAML(typ="safe", pure=True).load(text)
    return f"{key}={value if isinstance(value, str) else json.dumps(value, separators=(',', ':'), default=str)}"


def done_steps(run: Path) -> int:
    """Step of the run's newest undamaged checkpoint, 0 where there is none."""
    latest, _ = newest_good(run / "checkpoints")
    return json.loads((latest / STATE).read_text())["step"] if latest else 0


def refuse_changes(run: Path, config_text: str, finished: bool) -> None:
    """Raises ValueError where a run's folder holds checkpoints of other settings than `config_text`.

    A finished run was evaluated with its own eval settings, so those must be equal, too.
    """
    file = run / CONFIG
    if not (file.exists() and (run / "checkpoints").exists()):
        return
    old_text = file.read_text()
    refuse_other_settings(run, old_text, config_text)
    if not finished:
        return
    old, new = (flatten(YAML(typ="safe").load(text)) for text in (old_text, config_text))
    changed = changes(old, new, [key for key in new if key.startswith("eval.")])
    if changed:
        raise ValueError(
            f"{run} has finished, and was evaluated with other settings; use eval.py for these, or another --output:"
            "\n  " + "\n  ".join(changed)
        )


def read_result(run: Path, config: Config, classes: Sequence[str]) -> dict | None:
    """Scores and speed of a run that has done all its steps; None where it has not.

    The scores are those of the evaluation after the last step. seconds_per_step and waiting (share of the time spent
    waiting for data, 0 to 1) are medians over the logged windows without the first, in which caches fill.
    Raises ValueError where the run has finished and its log does not hold that evaluation.
    """
    steps = config.train.steps
    if done_steps(run) < steps:
        return None
    records = read_metrics(run / "metrics.jsonl")
    last = [record for record in records if record.get("kind") == "eval" and record.get("step") == steps]
    if not last or len(last[-1]["iou"]) != len(classes):
        raise ValueError(
            f"{run / 'metrics.jsonl'} holds no evaluation of {len(classes)} classes after step {steps}, though the run "
            "has finished; evaluate its checkpoint with eval.py, or remove the folder to train again"
        )
    windows = [record for record in records if record.get("kind") == "train"]
    windows = windows[1:] or windows
    images = config.train.batch_size * config.train.accumulate
    return {
        "step": steps,
        **{key: last[-1][key] for key in ("miou", "boundary_f", "pixel_accuracy", "mean_accuracy")},
        "iou": dict(zip(classes, last[-1]["iou"], strict=True)),
        "loss": windows[-1]["loss"] if windows else None,
        "seconds_per_step": median(images / record["images_per_s"] for record in windows) if windows else None,
        "waiting": median(record["waiting"] for record in windows) if windows else None,
        "windows": len(windows),
    }
