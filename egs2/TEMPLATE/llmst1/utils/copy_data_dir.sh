#!/usr/bin/env bash
# Copies a data directory, renaming: copy_data_dir.sh [--utt-prefix P] [--spk-prefix P] SRC DEST
exec "${PYTHON:-python3}" -m espnet_llmst.bin.llmst_datadir copy "$@"
