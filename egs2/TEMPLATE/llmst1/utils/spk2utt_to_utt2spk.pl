#!/usr/bin/env bash
# Inverts spk2utt: spk2utt_to_utt2spk.pl [spk2utt] > utt2spk
exec "${PYTHON:-python3}" -m espnet_llmst.bin.llmst_datadir spk2utt_to_utt2spk "$@"
