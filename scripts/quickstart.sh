#!/usr/bin/env bash
# The whole of the main job on drawn street scenes: environment, training, evaluation, export, prediction.
# Usage: bash scripts/quickstart.sh [OUTPUT=output]        A second start takes up where the first stood.
set -euo pipefail
cd "$(dirname "$0")/.."
output=${1:-output}
config=config/ecenet/swin_tiny_toy.yaml
name=quickstart
run=$output/$name

source scripts/environment.sh
use_environment requirements.txt

step() { printf '\n== %s\n' "$*"; }

step "1/6 draw scenes into $run/images"
python tools/draw_scenes.py --output "$run/images" --count 12

step "2/6 train (compiling the step takes about half a minute, without output)"
python train.py --config "$config" "name=$name" "output_dir=$output"

step "3/6 evaluate the best checkpoint"
python eval.py --config "$run/config.yaml" --checkpoint "$run" --output "$run/evaluation.json"

step "4/6 export"
python export.py --config "$run/config.yaml" --checkpoint "$run" --output "$run/model.mindir"

step "5/6 predict a folder of images with the exported model"
python predict.py --model "$run/model.mindir" --input "$run/images" --output "$run/predictions"

step "6/6 draw the training curves"
python tools/plot_run.py "$run" --output "$run/curves.png"

cat <<DONE

Done. In $run:
  predictions/  overlays (NAME_overlay.jpg) and label maps (NAME_labels.png)
  evaluation.json, metrics.jsonl, curves.png
  model.mindir  the exported model;  checkpoints/best  its weights;  config.yaml  everything that the run was set to
DONE
