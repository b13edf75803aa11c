#!/usr/bin/env bash
# Prepare FLEURS (stage 1), and the sets of Common Voice that the method transcribes in its first phase.
set -euo pipefail

log() {
    echo "$(date '+%Y-%m-%dT%H:%M:%S') (data.sh) $*"
}
fail() {
    echo "data.sh: error: $*" >&2
    exit 1
}

directions="en_us-de_de"   # one or several, such as "en_us-de_de fr_fr-de_de"
nj=4
force=false                # make everything again
fleurs=                    # root of FLEURS; default: FLEURS of db.sh
common_voice=              # root of Common Voice; default: COMMONVOICE of db.sh
audio_dir=downloads/fleurs # where archives are unpacked to
method=                    # a folder of conf/: sets of Common Voice are made if its phases name them

cd "$(dirname "${BASH_SOURCE[0]}")/.."
for script in ./path.sh ./cmd.sh ./db.sh; do
    # shellcheck source=/dev/null
    if [ -f "${script}" ]; then . "${script}"; fi
done
# shellcheck source=/dev/null
. utils/parse_options.sh

[ $# -eq 0 ] || fail "no positional arguments, but got: $*"
fleurs=${fleurs:-${FLEURS:-}}
common_voice=${common_voice:-${COMMONVOICE:-}}
[ -n "${fleurs}" ] || fail "FLEURS is not set: write its root into db.sh, or give --local_data_opts '--fleurs <root>';" \
    "README.md says how to get it"
[ -d "${fleurs}" ] || fail "FLEURS=${fleurs}: no such folder; correct db.sh (README.md says how to get the corpus)"
read -r -a pairs <<< "${directions//,/ }"

langs=
if [ -n "${method}" ]; then
    langs=$("${PYTHON:-python3}" local/common_voice_langs.py --train_config "conf/${method}"/[0-9]*.yaml --directions "${pairs[@]}")
fi
if [ -n "${langs}" ]; then
    hint="set its root in db.sh, or take --method llm_srt_3b_fleurs, which needs FLEURS only; see README.md"
    [ -n "${common_voice}" ] || fail "COMMONVOICE is not set, but ${method} transcribes Common Voice (${langs}): ${hint}"
    [ -d "${common_voice}" ] || fail "COMMONVOICE=${common_voice}: no such folder, but ${method} needs it: ${hint}"
fi

options=()
if [ "${force}" = true ]; then options+=(--force); fi
log "FLEURS, ${#pairs[@]} directions: ${pairs[*]}"
"${PYTHON:-python3}" local/prepare_fleurs.py --corpus_dir "${fleurs}" --out_dir data --audio_dir "${audio_dir}" \
    --directions "${pairs[@]}" --nj "${nj}" "${options[@]}"
if [ -n "${langs}" ]; then
    log "Common Voice: ${langs}"
    "${PYTHON:-python3}" local/prepare_common_voice.py --corpus_dir "${common_voice}" --out_dir data --langs "${langs}" \
        --nj "${nj}" "${options[@]}"
fi
log "done"
