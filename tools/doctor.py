"""Finds mistakes before a training does: in the data, in a configuration, on the machine.

data:   python tools/doctor.py data --config FILE [key=value ...]    reads every image and label file
config: python tools/doctor.py config FILE [key=value ...]           builds, fits into memory, matches its weights
env:    python tools/doctor.py env [--config FILE | --device NAME]   computes on the device that a training would use
"""

import argparse
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import src  # noqa: E402, F401  (before MindSpore, whose log level it sets)

# isort: split
from rich.console import Console  # noqa: E402

from src import cli  # noqa: E402
from src.config import load_config  # noqa: E402
from src.data import load_classes  # noqa: E402
from src.doctor import data, environment, group, network  # noqa: E402
from src.doctor.finding import Finding, errors, to_report, to_text  # noqa: E402
from src.doctor.settings import load_settings  # noqa: E402
from src.doctor.sheet import draw_sheet  # noqa: E402
from src.doctor.tables import class_table, fact_lines, split_lines  # noqa: E402

EPILOG = """exit codes: 0 no error found (with --strict: no warning either), 1 errors found, 2 wrong usage, a
configuration file that is not there or, but for `config`, one that is refused.
--json writes {schema, command, ok, counts, findings: [{code, severity, text, where, mend}], facts}.
"""


def main() -> None:
    """Reads the command line, examines, reports, exits with 0 or 1."""
    options = read_arguments()
    output = cli.writable(options.json) if options.json not in (None, "-") else None
    findings, facts = EXAMINERS[options.command](options)
    report = to_report(options.command, findings, facts, options.strict)
    text = json.dumps(report, indent=1, ensure_ascii=False)
    if output and facts.get("world_size", 1) > 1:  # under msrun each rank writes a file of its own
        output = output.with_name(f"{output.stem}_{facts['rank']}{output.suffix}")
    if output:
        output.write_text(text + "\n", encoding="utf-8")
    if options.json == "-":
        print(text)
    else:
        tell(options.command, report)
    sys.exit(0 if report["ok"] else 1)


def read_arguments() -> argparse.Namespace:
    """The command, then its own options and settings in any order, which subcommands of argparse do not allow."""
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("command", choices=tuple(EXAMINERS), help="`doctor.py COMMAND --help` names its options")
    command = parser.parse_args(sys.argv[1:2]).command
    parser = argparse.ArgumentParser(
        prog=f"{parser.prog} {command}", epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    {"data": add_data_options, "config": add_config_options, "env": add_env_options}[command](parser)
    parser.add_argument("--json", metavar="FILE", help="write the report; `-`: print it in place of the text")
    parser.add_argument("--strict", action="store_true", help="warnings count as errors")
    parser.add_argument(
        "overrides", nargs="*", metavar="key=value", help="settings that replace those of the configuration"
    )
    options = parser.parse_intermixed_args(sys.argv[2:])
    if command == "config" and (not options.config or ("=" in options.config and not Path(options.config).is_file())):
        parser.error("which configuration? Name its YAML file before any key=value")
    return argparse.Namespace(command=command, **vars(options))


def add_data_options(parser: argparse.ArgumentParser) -> None:
    """Options of `data`."""
    parser.add_argument("--config", required=True, metavar="FILE", help="YAML configuration, or the base of a data set")
    parser.add_argument("--splits", metavar="A,B", help="what to read (default: data.train_split and data.val_split)")
    parser.add_argument(
        "--sheet", metavar="FILE.png", type=png, help="contact sheet: labels over images, augmented samples"
    )
    parser.add_argument("--samples", type=int, default=12, metavar="N", help="samples a split on it (default 12)")


def png(text: str) -> str:
    """The name of a PNG file, for argparse's `type`."""
    if not text.lower().endswith(".png"):
        raise argparse.ArgumentTypeError(f"{text}: the sheet is a PNG file; give a name that ends in .png")
    return text


def add_config_options(parser: argparse.ArgumentParser) -> None:
    """Options of `config`."""
    parser.usage = "%(prog)s [-h] FILE [key=value ...] [--checkpoint PATH] [--json FILE] [--strict]"
    parser.add_argument("config", nargs="?", metavar="FILE", help="YAML configuration")
    parser.add_argument("--checkpoint", metavar="PATH", help="weights that it shall load (run, checkpoint or file)")


def add_env_options(parser: argparse.ArgumentParser) -> None:
    """Options of `env`."""
    parser.add_argument("--config", metavar="FILE", help="YAML configuration whose device.target is meant")
    parser.add_argument("--device", choices=("CPU", "GPU", "Ascend"), help="device in place of the configuration's")
    parser.add_argument("--devices", type=int, default=1, metavar="N", help="processes of an all-reduce (default 1)")


def examine_data(options: argparse.Namespace) -> tuple[list[Finding], dict]:
    """`data`: all files of the splits; the contact sheet, where it is wanted."""
    config = load_settings(options.config, options.overrides)
    splits = options.splits.split(",") if options.splits else [config.data.train_split, config.data.val_split]
    if not all(splits):
        raise ValueError(f"--splits {options.splits}: give names between commas, such as train,val")
    if options.samples < 1:
        raise ValueError(f"--samples {options.samples}: at least 1")
    sheet = cli.writable(options.sheet) if options.sheet else None
    findings, facts = data.examine(config, splits, Console(stderr=True, highlight=False))
    if sheet and facts:
        draw_sheet(config, splits, load_classes(config.data), options.samples).save(sheet, "PNG")
        facts["sheet"] = str(sheet)
    return findings, facts


def examine_config(options: argparse.Namespace) -> tuple[list[Finding], dict]:
    """`config`: without a device, on any machine."""
    if not Path(options.config).is_file():  # wrong usage, where errors in the file are findings
        raise FileNotFoundError(f"config file not found: {options.config}; give the path of an existing YAML file")
    return network.examine(options.config, options.overrides, options.checkpoint)


def examine_env(options: argparse.Namespace) -> tuple[list[Finding], dict]:
    """`env`: in one process, or in several for the all-reduce between them."""
    if options.overrides and not options.config:
        raise ValueError(f"{options.overrides[0]!r}: settings need --config")
    if options.devices < 1:
        raise ValueError(f"--devices {options.devices}: at least 1")
    target, said_by, output_dir = options.device, "--device", "."
    if options.config:
        config = load_config(options.config, options.overrides)
        target, output_dir = target or config.device.target, config.output_dir
        said_by = said_by if options.device else options.config
    target, said_by = (target, said_by) if target else ("CPU", "the default of a configuration")
    if options.devices > 1:
        settings = ["--config", options.config, *options.overrides] if options.config else []
        named = ["--device", options.device] if options.device else []
        return group.examine_group([*settings, *named], options.devices)
    return environment.examine(target, said_by, output_dir)


EXAMINERS = {"data": examine_data, "config": examine_config, "env": examine_env}


def tell(command: str, report: dict) -> None:
    """Prints the report for people: facts, then findings, the worst last, where the eye falls."""
    console, facts = Console(highlight=False), report["facts"]
    if command == "data" and facts:
        console.print(class_table(facts))
        lines = split_lines(facts) + ([f"contact sheet: {facts['sheet']}"] if "sheet" in facts else [])
    else:
        lines = fact_lines(facts)
    findings = [Finding(**{**entry, "where": tuple(entry["where"])}) for entry in report["findings"]]
    for text in [*lines, *[to_text(finding) for finding in reversed(findings)]]:
        console.print(text, markup=False, soft_wrap=True)
    counts = ", ".join(f"{n} {severity}{'' if n == 1 else 's'}" for severity, n in report["counts"].items())
    verdict = "not usable as it is" if errors(findings) else "nothing stands in the way"
    console.print(f"{command}: {verdict}; {counts}")


if __name__ == "__main__":
    cli.run(main)
