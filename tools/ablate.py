"""Trains a configuration and variants of it that differ in a few settings, and sets their scores beside each other.

Rows are every config as it is, each followed by one row for every value of a --switch that differs from it:

  --switch model.head.fr=true,false
      one row a value; commas inside brackets, braces and quotes do not split
  --switch "model.head.fr=false+loss.weights={diversity: 0}"
      keys that change together in one row
  --switch model.head.num_rounds=0,1+model.head.updater=none,gated
      the first values together, then the second ones

Each row is trained once for every seed, each run by a process of its own: python train.py ... into FOLDER/runs. After
every run FOLDER/table.json (all facts) and FOLDER/table.md (for people) are written, in the end FOLDER/curves.png.
Started again with the same arguments it goes on where it stood: finished runs are kept, failed ones are tried again.
"""

import argparse
import inspect
import json
import os
import shlex
import signal
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import src  # noqa: E402, F401  (before MindSpore, whose log level it sets)

# isort: split
from src import cli, distributed  # noqa: E402
from src.class_text import give_text  # noqa: E402
from src.config import Config, config_to_yaml, load_config  # noqa: E402
from src.data import asks_for_classes, create_eval_samples, is_scribbled, load_classes, load_items  # noqa: E402
from src.engine import ablation  # noqa: E402
from src.engine.ablation import Row  # noqa: E402
from src.engine.ablation_process import describe_exit, describe_machine, follow, locked, stop_signals  # noqa: E402
from src.engine.ablation_table import (  # noqa: E402
    DONE,
    FAILED,
    NOT_RUN,
    RUNNING,
    TABLE,
    UNFINISHED,
    Report,
    read_records,
    run_name,
)
from src.engine.inference import require_fit  # noqa: E402
from src.engine.weights import load_pretrained  # noqa: E402
from src.losses import LOSSES, check_fit, check_outputs, create_loss  # noqa: E402
from src.models import BACKBONES, HEADS, create_model  # noqa: E402
from tools.plot_run import COLOURS, draw, load_run  # noqa: E402

TRAIN = ROOT / "train.py"
MISTAKES = (ValueError, OSError)  # in what the user gave


@dataclass(frozen=True)
class Run:
    """One training: a row and a seed. config: with name, folder and seed of the run."""

    row: Row
    name: str
    folder: Path
    overrides: tuple[str, ...]
    config: Config

    @property
    def command(self) -> list[str]:
        return [sys.executable, str(TRAIN), "--config", self.row.file, *self.overrides]


def main(arguments: list[str] | None = None) -> None:
    """Reads the command line, checks everything, trains what has not finished, writes the tables."""
    arguments = sys.argv[1:] if arguments is None else arguments
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}  # before setup, which changes it for this process alone
    options = parse(arguments)
    folder = Path(options.output)
    if not options.dry_run:
        cli.writable(str(folder / TABLE))
    if distributed.setup("CPU", "graph")[1] > 1:  # networks are only built here; runs choose their own device
        raise ValueError("the runs of a table are started one after another; start this tool without msrun")
    rows, seeds, facts = plan(options)
    runs = [make_run(row, seed, folder / "runs") for seed in seeds for row in rows]
    records = take_stock(runs, folder)
    command = shlex.join(["python", "tools/ablate.py", *arguments])
    report = Report(folder, rows, seeds, facts, records, {"command": command, "started_in": os.getcwd()})
    print(report.markdown(), flush=True)
    if options.dry_run:
        print(*(shlex.join(run.command) for run in runs if records[run.name]["state"] != DONE), sep="\n")
        return
    with stop_signals(), locked(folder) as lock:
        try:
            train_all(runs, report, lock, environment)
        except KeyboardInterrupt as stop:
            print(f"\nstopped by {signal.Signals(stop.args[0]).name}; to go on from here: {command}")
            sys.exit(128 + stop.args[0])
    draw_curves(report)
    print(f"\n{report.markdown()}\n{folder / 'table.md'}")
    if any(records[run.name]["state"] == FAILED for run in runs):
        sys.exit(1)


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """The command line; overrides that stand right behind the files of --config are told from them by their `=`."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog=f"Exit codes: 0 all runs are done, 1 a run failed, {cli.MISUSE} wrong usage, configuration or data, "
        "130 and 143 stopped.",
    )  # fmt: skip
    parser.add_argument("--config", required=True, nargs="+", metavar="FILE", help="YAML configurations, each a base")
    parser.add_argument(
        "--switch", action="append", default=[], metavar="KEY=V1,V2", help="settings to change; may be repeated"
    )
    parser.add_argument("--seeds", default="0", metavar="0,1", help="seeds to train every row with (default: 0)")
    parser.add_argument(
        "--output", default="output/ablation", metavar="FOLDER", help="where all goes (default: output/ablation)"
    )
    parser.add_argument("--dry-run", action="store_true", help="check everything, print rows and commands, and stop")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="settings of all rows, as for train.py")
    options = parser.parse_intermixed_args(arguments)
    texts = [item for item in options.config if "=" in item and not Path(item).is_file()]
    options.config = [item for item in options.config if item not in texts]
    options.overrides = [*texts, *options.overrides]
    if not options.config:
        parser.error("argument --config: expected at least one file")
    return options


def plan(options: argparse.Namespace) -> tuple[list[Row], list[int], dict[str, dict]]:
    """Rows, seeds, and facts by name of the row; a ValueError lists everything that is wrong with any of them."""
    changes, problems = ablation.read_switches(options.switch)
    problems += ablation.refuse_own_keys([*options.overrides, *(text for change in changes for text in change)])
    seeds, facts = [], {}
    try:
        seeds = ablation.read_seeds(options.seeds)
    except ValueError as error:
        problems.append(str(error))
    rows, more = ablation.plan_rows(options.config, changes, options.overrides, identify)
    problems += more
    for row in rows:
        try:
            facts[row.name] = check(row.config)
        except MISTAKES as error:
            problems.append(f"{row.label}: {error}")
    refuse(problems)
    return rows, seeds, facts


def refuse(problems: Sequence[str]) -> None:
    """Raises one ValueError for all problems, nothing without any."""
    if problems:
        raise ValueError("no run was started:\n- " + "\n- ".join(dict.fromkeys(problems)))


def identify(config: Config) -> str:
    """Text that is equal for configs that train the same: without name and seed, defaults of constructors filled in."""
    settings = config.model_dump(mode="json", exclude={"name", "output_dir", "seed"})
    model = settings["model"]
    model["backbone"] = with_defaults(BACKBONES, model["backbone"])
    model["head"] = with_defaults(HEADS, model["head"])
    settings["loss"] = with_defaults(LOSSES, settings["loss"])
    return json.dumps(settings, sort_keys=True, default=str)


def with_defaults(builders: Mapping[str, Callable], options: dict) -> dict:
    """Options of a constructor with its own defaults for those not given; as they are where its name is unknown."""
    if options["name"] not in builders:
        return options
    parameters = inspect.signature(builders[options["name"]]).parameters.values()
    return {p.name: p.default for p in parameters if p.default is not p.empty} | options


def check(config: Config) -> dict:
    """Builds all that train.py will build and looks for its data; returns the facts of a row.

    Raises ValueError or OSError as train.py would, but there it may come after hours of other rows.
    """
    classes = load_classes(config.data)
    network = create_model(config.model, len(classes), config.data.crop_size)
    give_text(network, config.model, classes.names, config.data.unseen)
    loss = create_loss(config.loss, len(classes))
    check_outputs(network.head, loss)
    sparse = is_scribbled(config.data, config.data.train_split)
    check_fit(loss, config.data.crop_size, sparse, asks_for_classes(config.data))
    if config.model.pretrained:
        load_pretrained(network, config.model.pretrained)
    if config.eval.size != config.data.crop_size:
        create_model(config.model, len(classes), config.eval.size)
    load_items(config.data, config.data.train_split)
    samples = create_eval_samples(config.data)
    if config.eval.mode == "whole":
        require_fit(samples.sizes(), config.eval)
    return {
        "parameters": sum(p.size for p in network.trainable_params()),
        "gmacs": (network.backbone.count_macs() + network.head.count_macs()) / 1e9,
        "crop_size": list(config.data.crop_size), "batch_size": config.train.batch_size * config.train.accumulate,
        "steps": config.train.steps, "device": config.device.target,
    }  # fmt: skip


def make_run(row: Row, seed: int, folder: Path) -> Run:
    """The run of a row and a seed, whose folder will be in `folder`."""
    name = run_name(row, seed)
    overrides = (*row.overrides, f"seed={seed}", f"name={name}", f"output_dir={json.dumps(str(folder))}")
    return Run(row, name, folder / name, overrides, load_config(row.file, overrides))


def take_stock(runs: Sequence[Run], folder: Path) -> dict[str, dict]:
    """The record of every run: what its folder and the table of an earlier start say.

    Raises ValueError that lists all folders that hold runs of other settings, or damaged ones.
    """
    records, problems = read_records(folder), []
    for run in runs:
        known = records.get(run.name, {})
        try:
            step = ablation.done_steps(run.folder)
            ablation.refuse_changes(run.folder, config_to_yaml(run.config), step >= run.config.train.steps)
            result = read_result(run)
        except MISTAKES as error:
            problems.append(f"{run.row.label}: {error}")
            continue
        error = None if result else known.get("error")
        records[run.name] = {
            "name": run.name, "seed": run.config.seed, "folder": str(run.folder), "command": shlex.join(run.command),
            "log": str(folder / "logs" / f"{run.name}.log"), "step": step, "error": error, "result": result,
            "state": DONE if result else FAILED if error else UNFINISHED if step else NOT_RUN,
            **{key: known.get(key) for key in ("wall_seconds", "versions")},
        }  # fmt: skip
    refuse(problems)
    return records


def read_result(run: Run) -> dict | None:
    """What a run gave, None unless it has done all its steps."""
    return ablation.read_result(run.folder, run.config, load_classes(run.config.data).names)


def train_all(runs: Sequence[Run], report: Report, lock: int, environment: Mapping[str, str]) -> None:
    """Trains every run that has not finished, one after another, and saves the report around each."""
    report.save()
    for number, run in enumerate(runs, 1):
        record = report.runs[run.name]
        if record["state"] == DONE:
            continue
        print(f"\n[{number}/{len(runs)}] {shlex.join(run.command)}", flush=True)
        record |= {"state": RUNNING, "error": None, "versions": describe_machine(ROOT)}
        report.save()
        began = time.monotonic()
        try:
            code, lines = follow(run.command, Path(record["log"]), environment, lock)
            record |= judge(run, code, lines)
        except KeyboardInterrupt:
            record["state"] = UNFINISHED
            raise
        finally:
            record["wall_seconds"] = round((record["wall_seconds"] or 0.0) + time.monotonic() - began, 1)
            record["step"] = ablation.done_steps(run.folder)
            report.save()


def judge(run: Run, code: int, lines: Sequence[str]) -> dict:
    """State of a run whose process has ended, with its result or what went wrong."""
    if code:
        return {"state": FAILED, "error": describe_exit(code, lines)}
    try:
        result = read_result(run)
    except MISTAKES as error:
        return {"state": FAILED, "error": str(error)}
    if result is None:
        return {"state": FAILED, "error": f"{run.folder} has not done all its steps, though train.py has ended well"}
    return {"state": DONE, "result": result}


def draw_curves(report: Report) -> None:
    """Draws the first seed of the first rows, as many as there are colours, to curves.png."""
    runs = {row.label: report.runs[run_name(row, report.seeds[0])] for row in report.rows}
    folders = {label: Path(run["folder"]) for label, run in runs.items() if run["state"] == DONE}
    chosen = list(folders.items())[: len(COLOURS)]
    if chosen:
        draw({label: load_run(folder) for label, folder in chosen}, report.folder / "curves.png")


if __name__ == "__main__":
    cli.run(main)
