#!/usr/bin/env bash
# Data directories of MuST-C from its unpacked archives (stage 1). Nothing is downloaded.
set -euo pipefail

log() {
    echo "$(date '+%Y-%m-%dT%H:%M:%S') (data.sh) $*"
}

must_c=             # the folder that holds en-de/data, en-fr/data, ...; default: MUST_C of db.sh
directions="en-de"  # one or several, such as "en-de en-fr"
nj=2
force=false         # make everything again

cd "$(dirname "${BASH_SOURCE[0]}")/.."
for script in ./path.sh ./cmd.sh ./db.sh; do
    # shellcheck source=/dev/null
    if [ -f "${script}" ]; then . "${script}"; fi
done
# shellcheck source=/dev/null
. utils/parse_options.sh

if [ $# -ne 0 ]; then
    echo "data.sh: error: no positional arguments, but got: $*" >&2
    exit 2
fi
must_c=${must_c:-${MUST_C:-}}
if [ -z "${must_c}" ]; then
    echo "data.sh: error: MUST_C is empty: put the folder of MuST-C into db.sh (README.md says how to obtain it)" >&2
    exit 1
fi

options=()
if [ "${force}" = true ]; then options+=(--force); fi
log "MuST-C in ${must_c}, directions: ${directions}"
"${PYTHON:-python3}" local/prepare_must_c.py --corpus_dir "${must_c}" --out_dir data --directions "${directions}" \
    --nj "${nj}" "${options[@]}"
log "done"
