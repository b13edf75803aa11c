#!/usr/bin/env bash
# How2, English to Portuguese (Aligned, arXiv 2411.18294): 300 h of instructional videos.
# As published: E-Branchformer small + STE + Marian small, entered at the text encoder, beam 5.
#   ./run.sh --stage 1 --stop_stage 8 --gpu_inference true
# Entered at the decoder, beam 4; and with a Q-Former:
#   ./run.sh --method ecd_ste_ebr_small_marian --inference_config conf/decode_beam4.yaml
#   ./run.sh --method eced_qformer_ebr_small_marian
# Whisper and OPUS-MT from the hub, nothing to train but the connector; published with audio from 0.1 s on:
#   ./run.sh --method eced_ste_whisper_small_opus --min_wav_duration 0.1
# Speech at three speeds, as published (there drawn anew in every epoch, so that one is a third as long):
#   ./run.sh --speed_perturb_factors "0.9 1.0 1.1" --train_args "--max_epoch 34"
# The published features instead of audio (E-Branchformers only):
#   ./run.sh --local_data_opts "--feats_type kaldi"
# The upper bound: Marian small on gold transcripts, beam 10:
#   ./run.sh --method mt_marian --inference_config conf/decode_beam10.yaml
set -euo pipefail
cd "$(dirname "$0")"

exec ./llmst.sh \
    --method eced_ste_ebr_small_marian \
    --directions en-pt \
    --train_set train \
    --valid_set val \
    --test_sets dev5 \
    --min_wav_duration 0.2 \
    --max_wav_duration 20 \
    --score_opts "--buckets 10,20" \
    "$@"
