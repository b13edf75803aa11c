#!/usr/bin/env bash
# Trains the tiny foundation models that a method names: exp/foundation/<name> by conf/foundation/<name>.yaml.
# nj train side by side, each on one CPU thread, or on num_threads from the update `alone_after` of its YAML on; one
# whose YAML names another as `model:` is made after that one.
#   local/foundation.sh [--nj 2] [--num_threads 1] [--dumpdir dump] [--splits "train dev test"] exp/foundation/<name>...
set -euo pipefail

nj=2
num_threads=1
dumpdir=dump
splits="train dev test"
. ./path.sh
. utils/parse_options.sh
. ./cmd.sh

log() {
    echo "$(date '+%Y-%m-%dT%H:%M:%S') (foundation.sh) $*"
}

setting() { # value of a key at the top of a model's YAML, empty without it
    sed -nE "s|^$2: *([A-Za-z0-9_./-]+).*|\1|p" "conf/foundation/$(basename "$1").yaml"
}

first=() second=()
for dir in "$@"; do
    config=conf/foundation/$(basename "${dir}").yaml
    if [ ! -e "${config}" ]; then
        echo "foundation.sh: error: ${dir}: there is no ${config} to make it by" >&2
        exit 1
    fi
    if [ -n "$(setting "${dir}" model)" ]; then second+=("${dir}"); else first+=("${dir}"); fi
done

read -r -a split_list <<< "${splits}"
running=()
# Background jobs of a script do not hear Ctrl-C; a failure of one ends the others too.
trap 'if [ ${#running[@]} -gt 0 ]; then kill "${running[@]}" 2>/dev/null || true; fi' EXIT
finish() { # wait for the oldest training
    wait "${running[0]}"
    running=("${running[@]:1}")
}
train() {
    local dir kind gpu command
    for dir in "$@"; do
        kind=$(setting "${dir}" kind)
        log "training ${dir} (${kind}); the log is ${dir}.log"
        if [ ${#running[@]} -ge "${nj}" ]; then finish; fi
        gpu=$(setting "${dir}" ngpu)
        if [ "$(setting "${dir}" device)" = cuda ]; then gpu=1; fi
        command="${train_cmd} --gpu 0"
        if [ "${gpu:-0}" -gt 0 ]; then command="${cuda_cmd} --gpu ${gpu}"; fi
        OMP_NUM_THREADS=1 FOUNDATION_THREADS=${num_threads} ${command} --num_threads "${num_threads}" "${dir}.log" \
            "${PYTHON:-python3}" "local/train_${kind}.py" \
            --model_config "conf/foundation/$(basename "${dir}").yaml" --dump_dir "${dumpdir}/raw" \
            --splits "${split_list[@]:0:3}" --out_dir "${dir}" &
        running+=($!)
    done
    while [ ${#running[@]} -gt 0 ]; do finish; done
}
train ${first[@]+"${first[@]}"}
train ${second[@]+"${second[@]}"}
for dir in "$@"; do
    { grep -hE ': (WER|BLEU|.*accuracy|inertia per frame) on ' "${dir}.log" || true; } |
        while read -r line; do log "${line}"; done
done
