#!/usr/bin/env bash
# Prepares Mboshi-French (stage 1): data/{train,dev,test}.mdw-fr. How to obtain the corpus: README.md.
set -euo pipefail

log() {
    echo "$(date '+%Y-%m-%dT%H:%M:%S') (data.sh) $*"
}
fail() {
    echo "data.sh: error: $*" >&2
    exit 1
}

directions="mdw-fr"              # the only one
nj=4
force=false                      # make everything again
corpus_dir=                      # the clone; default: MBOSHI_FRENCH of db.sh
audio_dir=downloads/mboshi_french_repaired  # recordings whose header is wrong, written anew
num_valid=200                    # training utterances held out for validation
url=https://github.com/besacier/mboshi-french-parallel-corpus  # cloned when MBOSHI_FRENCH is "downloads"

cd "$(dirname "${BASH_SOURCE[0]}")/.."
from_environment=${MBOSHI_FRENCH:-}
for script in ./path.sh ./cmd.sh ./db.sh; do
    # shellcheck source=/dev/null
    if [ -f "${script}" ]; then . "${script}"; fi
done
# shellcheck source=/dev/null
. utils/parse_options.sh

[ $# -eq 0 ] || fail "no positional arguments, but got: $*"
[ "${directions}" = mdw-fr ] || fail "directions '${directions}': the corpus has Mboshi speech and French text, mdw-fr only"
corpus_dir=${corpus_dir:-${MBOSHI_FRENCH:-${from_environment}}}
[ -n "${corpus_dir}" ] || fail "MBOSHI_FRENCH is not set: write the folder of its clone into db.sh, or" \
    "MBOSHI_FRENCH=downloads to have it cloned (README.md)"
if [ "${corpus_dir}" = downloads ]; then
    corpus_dir=downloads/$(basename "${url}")
    if [ ! -d "${corpus_dir}" ]; then
        log "cloning ${url} to ${corpus_dir}"
        mkdir -p downloads
        rm -rf "${corpus_dir}.tmp"    # of a killed run
        git clone --depth 1 "${url}" "${corpus_dir}.tmp" || fail "${url} cannot be cloned; clone it elsewhere and" \
            "write its folder into db.sh"
        mv "${corpus_dir}.tmp" "${corpus_dir}"
    fi
fi
[ -d "${corpus_dir}" ] || fail "MBOSHI_FRENCH=${corpus_dir}: no such folder; correct db.sh (README.md says how to get the corpus)"

options=()
if [ "${force}" = true ]; then options+=(--force); fi
log "Mboshi-French in ${corpus_dir}"
"${PYTHON:-python3}" local/prepare_mboshi_french.py --corpus_dir "${corpus_dir}" --out_dir data --audio_dir "${audio_dir}" \
    --num_valid "${num_valid}" --nj "${nj}" "${options[@]}"
log "done"
