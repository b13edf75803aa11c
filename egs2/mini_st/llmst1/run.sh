#!/usr/bin/env bash
# mini_st: spoken by a synthesiser, trained from scratch, on two CPU cores, in minutes.
#   ./run.sh --stage 1 --stop_stage 8                     French to English by LLaST
#   ./run.sh --method aligned_ecd                         another method of conf/
set -euo pipefail
cd "$(dirname "$0")"

exec ./llmst.sh \
    --method llast \
    --ngpu 0 \
    --nj 2 \
    --num_threads 2 \
    --inference_nj 2 \
    --max_wav_duration 4 \
    --shuffled_control true \
    "$@"
