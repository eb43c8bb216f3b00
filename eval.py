"""Evaluates a checkpoint or an exported model on the evaluation split of a configuration.

python eval.py --config FILE --checkpoint PATH | --model FILE.mindir [--output FILE.json] [key=value ...]
"""

import json

from src import cli, distributed
from src.config import format_config, load_config_with_sources
from src.data import create_eval_samples, load_classes
from src.engine.evaluator import evaluate
from src.engine.inference import require_fit
from src.metrics import format_table
from src.predictor import from_checkpoint, from_mindir


def main() -> None:
    """Reads the command line, evaluates, prints the table and writes the summary."""
    parser = cli.config_parser(__doc__)
    source = parser.add_mutually_exclusive_group()
    source.add_argument(
        "--checkpoint", metavar="PATH", help="checkpoint folder, run folder (its best), .safetensors or .ckpt file"
    )
    source.add_argument("--model", metavar="FILE.mindir", help="model written by export.py")
    parser.add_argument("--output", metavar="FILE.json", help="where to write the summary as JSON")
    arguments = parser.parse_intermixed_args()
    config, sources = load_config_with_sources(arguments.config, arguments.overrides)
    if arguments.print_config:
        print(format_config(config, sources))
        return
    if not (arguments.checkpoint or arguments.model):
        parser.error("one of the arguments --checkpoint --model is required")
    output = cli.writable(arguments.output) if arguments.output else None
    distributed.setup(config.device.target, config.device.mode)
    classes = load_classes(config.data)
    samples = create_eval_samples(config.data)
    if config.eval.mode == "whole":
        require_fit(samples.sizes(), config.eval)
    if arguments.checkpoint:
        predictor = from_checkpoint(config, classes, arguments.checkpoint)
    else:
        predictor = from_mindir(arguments.model, config.eval)
        if predictor.names != classes.names:
            raise ValueError(
                f"{arguments.model} was exported for the classes {', '.join(predictor.names)}; the data set has "
                f"{', '.join(classes.names)}; evaluate it with the config that it was trained with"
            )
    summary = evaluate(predictor, samples, classes, config.eval.boundary_radius)
    print(format_table(summary))
    if output:
        facts = {"source": arguments.checkpoint or arguments.model, "eval": config.eval.model_dump(mode="json")}
        output.write_text(json.dumps({**summary, **facts}, indent=1))
        print(f"summary written to {output}")


if __name__ == "__main__":
    cli.run(main)
