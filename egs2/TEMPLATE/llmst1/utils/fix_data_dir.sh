#!/usr/bin/env bash
# Keeps the utterances that every file of a data directory has, and sorts them: fix_data_dir.sh DIR
exec "${PYTHON:-python3}" -m espnet_llmst.bin.llmst_datadir fix "$@"
