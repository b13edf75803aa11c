#!/usr/bin/env bash
# Takes part of a data directory: subset_data_dir.sh [--first|--speakers] SRC N DEST, or --utt-list FILE SRC DEST
exec "${PYTHON:-python3}" -m espnet_llmst.bin.llmst_datadir subset "$@"
