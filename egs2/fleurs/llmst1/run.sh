#!/usr/bin/env bash
# FLEURS by LLM-SRT (arXiv 2409.19510). Write FLEURS= and COMMONVOICE= into db.sh first; README.md says more.
#   ./run.sh --stage 1 --stop_stage 8                            3B, 6 sources to 12 targets; 66 directions
#   ./run.sh --method llm_srt_3b_fleurs                          without Common Voice: phase 1 on FLEURS itself
#   ./run.sh --method llm_srt_7b                                 larger language models: llm_srt_7b, llm_srt_32b
#   ./run.sh --method llm_srt_7b_15x14                           15 languages, 210 directions
#   ./run.sh --method llm_srt_3b_direct                          the baseline without curriculum
#   ./run.sh --stage 7 --inference_config conf/decode_greedy.yaml    greedy search, as in the table of speeds
set -euo pipefail
cd "$(dirname "$0")"

# Which Common Voice sets are needed depends on the method, so local/data.sh is told it.
method=llm_srt_3b
data_opts=
args=("$@")
for ((i = 0; i < $#; i++)); do
    case "${args[i]}" in
        --method) method=${args[i + 1]-} ;;
        --method=*) method=${args[i]#*=} ;;
        --local_data_opts | --local-data-opts) data_opts=${args[i + 1]-} ;;
        --local_data_opts=* | --local-data-opts=*) data_opts=${args[i]#*=} ;;
    esac
done

exec ./llmst.sh \
    --ngpu 4 \
    --nj 8 \
    --inference_nj 4 \
    --gpu_inference true \
    --train_set train \
    --valid_set dev \
    --test_sets test \
    --inference_config conf/decode_beam5.yaml \
    --score_opts "--also BLEU_char" \
    "$@" \
    --method "${method}" \
    --local_data_opts "--method ${method} ${data_opts#--method * }"
