#!/usr/bin/env bash
# Checks a data directory: validate_data_dir.sh [--no-text] [--no-wav] DIR
exec "${PYTHON:-python3}" -m espnet_llmst.bin.llmst_datadir validate "$@"
