#!/usr/bin/env bash
# Inverts utt2spk: utt2spk_to_spk2utt.pl [utt2spk] > spk2utt
exec "${PYTHON:-python3}" -m espnet_llmst.bin.llmst_datadir utt2spk_to_spk2utt "$@"
