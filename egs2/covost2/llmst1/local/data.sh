#!/usr/bin/env bash
# Data directories of CoVoST-2 from Common Voice and the translation tables (stage 1). Nothing is downloaded.
set -euo pipefail

log() {
    echo "$(date '+%Y-%m-%dT%H:%M:%S') (data.sh) $*"
}

directions="fr-en"  # one or several, such as "fr-en en-zh-CN"
corpus_dir=         # root of Common Voice; default: COMMONVOICE of db.sh
covost2_dir=        # folder of covost_v2.<src>_<tgt>.tsv; default: COVOST2 of db.sh
asr_langs=          # also train.<lang> dev.<lang> test.<lang> of Common Voice's own tables, such as "en"
asr_corpus_dir=     # the release that these are taken from; default: corpus_dir
nj=4
force=false         # make finished directories again

cd "$(dirname "${BASH_SOURCE[0]}")/.."
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
covost2_dir=${covost2_dir:-${COVOST2:-}}
corpus_dir=${corpus_dir:-${COMMONVOICE:-${covost2_dir}}}
if [ -z "${corpus_dir}" ]; then
    log "error: where is Common Voice? Set COMMONVOICE (and COVOST2, the translation tables) in db.sh; see README.md" >&2
    exit 1
fi

options=(--nj "${nj}")
if [ "${force}" = true ]; then options+=(--force); fi
read -r -a pairs <<< "${directions//,/ }"
log "CoVoST-2, directions: ${pairs[*]}"
"${PYTHON:-python3}" local/prepare_covost2.py --corpus_dir "${corpus_dir}" ${covost2_dir:+--covost2_dir "${covost2_dir}"} \
    --out_dir data --directions "${pairs[@]}" "${options[@]}"

if [ -n "${asr_langs}" ]; then
    # A clip that CoVoST-2 tests with may be one to train on in another release.
    tested=()
    read -r -a langs <<< "${asr_langs//,/ }"
    for pair in "${pairs[@]}"; do
        for lang in "${langs[@]}"; do
            if [[ ${pair} == "${lang}"-* ]]; then tested+=("data/dev.${pair}" "data/test.${pair}"); fi
        done
    done
    log "Common Voice, languages: ${langs[*]}"
    "${PYTHON:-python3}" local/prepare_common_voice.py --corpus_dir "${asr_corpus_dir:-${corpus_dir}}" --out_dir data \
        --langs "${langs[@]}" ${tested[0]:+--exclude "${tested[@]}"} "${options[@]}"
fi
log "done"
