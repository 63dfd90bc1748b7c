#!/bin/bash
# What each part of the pre-training is worth: one thing changed at a time, each model fine-tuned for SLAKE with three seeds.
#
#   benchmarks/ablations.sh [AXIS...]    all axes by default; a table an axis, in runs/ablations/AXIS/slake/sweep.md
#   STEPS=3000 OPTIONS="model.init.text_encoder=FOLDER" benchmarks/ablations.sh losses
#
# The data are those of `m3ae train everything`. What is complete is not repeated, so that it may be stopped at any time.
# Pre-training stops with an error where no loss is left (all three weights 0); the other runs go on.
set -uo pipefail
OUT=${OUT:-runs/ablations}           # folder of all runs
STEPS=${STEPS:-1500}                 # of each pre-training
FINE=${FINE:-1000}                   # of each fine-tuning
MODEL=${MODEL:-runs/everything/model} # what the axis `missing` starts from
read -ra OPTIONS <<< "${OPTIONS:-}"  # further overrides of every pre-training
read -ra LATENT <<< "${LATENT:-}"    # a run whose latent head fills in what is missing, for the axis `missing`
MEASURED=(--metric test/accuracy --metric test/open_accuracy --metric test/closed_accuracy --metric test/shuffled_accuracy)

axis() { # NAME, then axes and overrides of the pre-training
  local name=$1 models
  shift
  m3ae sweep pretrain/everything "output_dir=$OUT/$name" "training.max_steps=$STEPS" "training.validate_every=$STEPS" \
    "${OPTIONS[@]}" "$@"
  models=$(find "$OUT/$name" -mindepth 2 -maxdepth 2 -name model | sort | paste -sd,)
  m3ae sweep slake_small "output_dir=$OUT/$name/slake" "training.max_steps=$FINE" "${MEASURED[@]}" \
    --over "model.path=$models" --over training.seed=0,1,2
}

losses() { axis losses model.overrides.itc_weight=0 \
  --over model.overrides.mim_weight=0,1 --over model.overrides.mlm_weight=0,1 --over model.overrides.itm_weight=0,1; }
contrast() { axis contrast --over model.overrides.itc_weight=0,0.2,1; }
layers() { axis layers --over model.overrides.mim_layer=0,1,2,3; } # of three fusion layers
decoders() { axis decoders --over model.overrides.decoder_num_hidden_layers=1,2,4 --over model.overrides.norm_pix_loss=true,false; }
ratios() { axis ratios --over model.overrides.mask_ratio=0.25,0.5,0.75 --over model.overrides.mlm_probability=0.15,0.4; }
schedule() { axis schedule --over model.overrides.schedule=joint,separate; }
latent() { axis latent --over "model.overrides.latent=null,{size: 32, weight: 1e-5, beta_warmup: 0.3, modalities: {\
image: {kind: image, decoder: cnn, hidden_size: 256, num_layers: 4}, text: {kind: text, decoder: autoregressive, weight: 10}}}"; }
missing() { # views and reports that training hides, and then the test, from 0 to 90 %
  m3ae sweep iu_xray_classification "output_dir=$OUT/missing" "model.path=$MODEL" data.views=all data.text_column=text \
    "training.max_steps=$FINE" --over data.missing_rate=0,0.3,0.6,0.9 --over training.seed=0,1,2
  for run in "$OUT"/missing/*/; do
    python "$(dirname "$0")/imputation.py" --run "$run" "${LATENT[@]/#/--latent=}" --json "${run}missing.json"
  done
}

for name in "${@:-losses contrast layers decoders ratios schedule latent missing}"; do
  for chosen in $name; do "$chosen"; done
done
