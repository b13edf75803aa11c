#!/usr/bin/env bash
# Make mini_st: synthetic speech and its data directories (stage 1). Nothing is downloaded.
set -euo pipefail

log() {
    echo "$(date '+%Y-%m-%dT%H:%M:%S') (data.sh) $*"
}

directions="fr-en"  # one or several, such as "fr-en de-en"
nj=2
num_train=2400
num_dev=200
num_test=300
seed=0
force=false         # speak everything again

cd "$(dirname "${BASH_SOURCE[0]}")/.."
for script in ./path.sh ./cmd.sh ./db.sh; do
    # shellcheck source=/dev/null
    if [ -f "${script}" ]; then . "${script}"; fi
done
# shellcheck source=/dev/null
. utils/parse_options.sh

if [ $# -ne 0 ]; then
    log "error: no positional arguments, but got: $*"
    exit 2
fi

options=()
if [ "${force}" = true ]; then options+=(--force); fi
read -r -a pairs <<< "${directions//,/ }"
log "mini_st, directions: ${pairs[*]}"
"${PYTHON:-python3}" local/prepare_mini_st.py --out_dir data --audio_dir "${MINI_ST:-downloads/mini_st}" \
    --directions "${pairs[@]}" --num_train "${num_train}" --num_dev "${num_dev}" --num_test "${num_test}" \
    --seed "${seed}" --nj "${nj}" "${options[@]}"
log "done"
