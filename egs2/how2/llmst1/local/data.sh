#!/usr/bin/env bash
# Prepares How2 (stage 1): data/{train,val,dev5}.en-pt. How to obtain the corpus: README.md.
set -euo pipefail

log() {
    echo "$(date '+%Y-%m-%dT%H:%M:%S') (data.sh) $*"
}

directions="en-pt"  # the only one
nj=4
force=false         # make everything again
corpus_dir=         # how2-300h-v1 or the folder around it; default: HOW2 of db.sh
feats_type=raw      # raw: audio; kaldi: the published features
audio_dir=          # of <video>.wav etc.; default: anywhere below corpus_dir
feats_dir=          # of the features' archives; default: likewise

cd "$(dirname "${BASH_SOURCE[0]}")/.."
from_environment=${HOW2:-}
for script in ./path.sh ./cmd.sh ./db.sh; do
    # shellcheck source=/dev/null
    if [ -f "${script}" ]; then . "${script}"; fi
done
# shellcheck source=/dev/null
. utils/parse_options.sh

if [ $# -ne 0 ]; then
    log "error: no positional arguments, but got: $*" >&2
    exit 2
fi
corpus_dir=${corpus_dir:-${HOW2:-${from_environment}}}
if [ -z "${corpus_dir}" ]; then
    log "error: HOW2 is not set: write the folder of How2 into db.sh (HOW2=...), see README.md" >&2
    exit 1
fi

options=()
if [ "${force}" = true ]; then options+=(--force); fi
if [ -n "${audio_dir}" ]; then options+=(--audio_dir "${audio_dir}"); fi
if [ -n "${feats_dir}" ]; then options+=(--feats_dir "${feats_dir}"); fi
log "How2 in ${corpus_dir}, directions: ${directions}, ${feats_type}"
"${PYTHON:-python3}" local/prepare_how2.py --corpus_dir "${corpus_dir}" --out_dir data --directions "${directions}" \
    --feats_type "${feats_type}" --nj "${nj}" "${options[@]}"
log "done"
