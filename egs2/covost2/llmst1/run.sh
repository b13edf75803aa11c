#!/usr/bin/env bash
# CoVoST-2: LLaST-8B (arXiv 2407.15415), nine directions, on 8 GPUs. Needs COMMONVOICE and COVOST2 in db.sh.
#   ./run.sh --stage 1 --stop_stage 8                             all that the paper trains on and scores
#   ./run.sh --method llast_8b_mono                               fr-en alone: one language of Common Voice
#   ./run.sh --method llast_2b | llast_14b | llast_8b_l_lora      other sizes; ablations (README.md)
#   ./run.sh --directions "fr-en zh-CN-en"                        score these only; a method trains on all it names
#   ./run.sh --method llm_srt_7b --inference_config conf/decode_llm_srt.yaml \
#       --local_data_opts "--asr_langs en --asr_corpus_dir /data/cv-corpus-19.0-2024-09-13"
#                                                                 LLM-SRT (arXiv 2409.19510), en-{de,ja,zh-CN}
set -euo pipefail
cd "$(dirname "$0")"

exec ./llmst.sh \
    --method llast_8b \
    --train_set train \
    --valid_set dev \
    --test_sets test \
    --ngpu 8 \
    --gpu_inference true \
    --inference_nj 8 \
    --nj 16 \
    --inference_config conf/decode_beam5.yaml \
    --score_opts "--also BLEU_char" \
    "$@"
