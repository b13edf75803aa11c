#!/usr/bin/env bash
# What a GPU has to show of the decoding engine: graphs find what usual steps find, and the times of LLaST-8B's size.
# Usage: tools/gpu_decode.sh [<output dir>] [<options of tools/bench_decode.py>]
# transformers must be the one of tools/constraints.txt: 5.17 does not take one logits_to_keep for each row, and fails.
# It needs torch, transformers and pytest, and under ten minutes on an H100 or H200 (estimated, not measured).

set -euo pipefail
cd "$(dirname "$0")/.."
out=${1:-exp/gpu_decode}
mkdir -p "$out"
export PYTHONPATH=$PWD OMP_NUM_THREADS=1 PYTHONUNBUFFERED=1 HF_HUB_OFFLINE=1
python=${PYTHON:-python3}
status=0
timeout 150 "$python" -m pytest --noconftest test/espnet_llmst/search/test_graphs_gpu.py 2>&1 |
    tee "$out/tests.log" || status=$?
timeout 420 "$python" tools/bench_decode.py --preset llast_8b --json "$out/llast_8b.json" "${@:2}" 2>&1 |
    tee "$out/llast_8b.log" || status=$?
exit "$status"
