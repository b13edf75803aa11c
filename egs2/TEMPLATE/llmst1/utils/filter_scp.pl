#!/usr/bin/env bash
# Keeps the lines whose id is in a list: filter_scp.pl [--exclude] [-f FIELD] id_list [in.scp]
exec "${PYTHON:-python3}" -m espnet_llmst.bin.llmst_datadir filter "$@"
