#!/usr/bin/env bash
# Trains a CamVid configuration of config/sazs on its seen classes and scores seen and unseen ones with every fusion.
# bash scripts/zero_shot_camvid.sh config/sazs/vit_tiny_camvid.yaml FOLDER [key=value ...]
# The settings go to training and evaluation, those of the data to the eigensegments, too.
# Results: FOLDER/<name of the config file>.md and .json. Started again it goes on: what is made is kept.
# ECENET_DATA is the folder with camvid_480x360, clip_text_embeddings and deit_tiny_int; IMAGES=N scores N images only.
set -euo pipefail
config=${1:?configuration} folder=${2:?folder for the results}
settings=("${@:3}")
cd "$(dirname "$0")/.."
export ECENET_DATA=${ECENET_DATA:-../shared/data}
stem=$(basename "$config" .yaml)
public=$ECENET_DATA/deit_tiny_int/vit_tiny_patch16_plain_recalibrated_float16.npz
python=${PYTHON:-python}
limit=(${IMAGES:+--images "$IMAGES"})

[ -f output/vit_tiny.safetensors ] ||
  "$python" tools/convert_weights.py --source timm_vit --input "$public" --output output/vit_tiny.safetensors
[ -f output/vit_tiny_class_token.safetensors ] ||
  "$python" tools/convert_weights.py --source timm_vit --class-token --input "$public" \
    --output output/vit_tiny_class_token.safetensors

# The eigensegments come from the pretrained network: they have seen no mask.
of_data=()
for setting in "${settings[@]}"; do [[ $setting != data.* || $setting = data.unseen=* ]] || of_data+=("$setting"); done
"$python" tools/compute_segments.py --config config/fcn/vit_tiny_camvid.yaml --cache "$folder/segments" \
  --features backbone_k --weights output/vit_tiny.safetensors --patch 8 "${limit[@]}" "${of_data[@]}"
"$python" train.py --config "$config" "name=$stem" "output_dir=$folder/runs" "${settings[@]}"
"$python" tools/evaluate_zero_shot.py --config "$config" --checkpoint "$folder/runs/$stem" \
  --cache "$folder/segments" "${limit[@]}" --fusion none,project,select,regions,oracle --calibration 0,1,2,4 \
  --output "$folder/$stem.md" "${settings[@]}"
