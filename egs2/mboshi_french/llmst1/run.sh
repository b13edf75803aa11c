#!/usr/bin/env bash
# Mboshi to French, 4.46 hours of real speech. Write MBOSHI_FRENCH= into db.sh first; README.md says more.
#   ./run.sh --stage 1 --stop_stage 8                     LLaST on two CPU cores, from scratch
#   ./run.sh --method lst                                 another method of conf/
#   ./run.sh --method llast_gpu --ngpu 1 --gpu_inference true      larger, for one GPU
#   ./run.sh --method llast_hub --ngpu 1 --gpu_inference true      Whisper and a French-capable model of the hub
set -euo pipefail
cd "$(dirname "$0")"

exec ./llmst.sh \
    --method llast \
    --ngpu 0 \
    --nj 2 \
    --num_threads 2 \
    --foundation_threads 2 \
    --inference_nj 2 \
    --speed_perturb_factors "0.9 1.0 1.1" \
    --shuffled_control true \
    --score_opts "--groups data/test.mdw-fr.groups" \
    "$@"
