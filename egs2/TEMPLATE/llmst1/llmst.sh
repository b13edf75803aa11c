#!/usr/bin/env bash
# The stages of LLM-based speech translation. A recipe's run.sh calls this with its corpus's settings.
set -euo pipefail
{ # bash reads all of this before it runs any: the file may be edited during a run

log() {
    echo "$(date '+%Y-%m-%dT%H:%M:%S') (llmst.sh:${BASH_LINENO[0]}:${FUNCNAME[1]}) $*"
}
fail() {
    echo "llmst.sh: error: $*" >&2
    exit 1
}

# General
stage=1                 # first stage
stop_stage=8            # last stage
skip_data_prep=false    # skip stages 1 to 3
skip_train=false        # skip stages 4 to 6
skip_eval=false         # skip stages 7 and 8
force=false             # do finished work of the chosen stages again
ngpu=1                  # GPUs for training, of each node; 0 trains on the CPU
num_nodes=1             # nodes for training; several need Slurm (cmd_backend=slurm)
nj=4                    # parallel jobs of data preparation
inference_nj=1          # parallel jobs of decoding
gpu_inference=false     # decode on GPUs, one per job
num_threads=1           # CPU threads of a training process
foundation_threads=1    # CPU threads of a foundation model's training from alone_after of its YAML on; one before, nj models at a time
dumpdir=dump            # formatted audio and mixtures
expdir=exp              # foundation models, experiments, results
python=python3          # the interpreter of path.sh's environment

# Data
directions=             # to be scored, e.g. "fr-en de-en"; default: all that the phases name
train_set=train         # splits; a set is <split>.<source>-<target>
valid_set=dev           # split for validation
test_sets="test"        # e.g. "tst-COMMON tst-HE"
local_data_opts=        # passed to local/data.sh
speed_perturb_factors=  # e.g. "0.9 1.0 1.1"
audio_format=flac       # or wav
min_wav_duration=0.1    # seconds; shorter training utterances are dropped
max_wav_duration=30     # seconds; longer training utterances are dropped

# Method
method=                 # a folder of conf/: its YAML files are the phases, in order
phase=                  # only this phase (name of its YAML without .yaml) in stages 5 to 8
train_args=             # more options for llmst_train, e.g. "--max_epoch 2 --optim_conf lr=1e-3"

# Decoding
inference_config=conf/decode_beam5.yaml   # options of llmst_inference; its name is the folder of the results
inference_args=         # more options for llmst_inference, e.g. "--beam_size 1"
inference_model=        # checkpoint of the phase, e.g. valid.acc.ave.pth; default: the best by its first best_model_criterion
inference_task=         # st, srt, smt, asr or mt; default: what the phase was trained for, in this order
shuffled_control=false  # also decode with audio shuffled between utterances
control_seed=1          # of that shuffling

# Scoring
score_opts=             # more options for llmst_score, e.g. "--buckets 5,10,15"; in place of the recipe's own

# Tables of papers: in place of one method
table=                  # conf/paper/<table>.yaml: run what its rows lack, each decoded by the YAML it names, write exp/paper_<table>.md
rows=                   # only these, e.g. "s_lora dual"; --dry_run true names them
seeds=                  # train each row with each, e.g. "1 2 3"; foundation models are shared
dry_run=false           # only say what is there, what would be run, and the GPU memory

run_words=("$@")
run_args=$(printf '%q ' "$@")
help_text() { # the lines above, with the values that the recipe's run.sh gives
    local line name
    sed '/^run_words=/,$d' "$0" | grep -E '^(# [A-Z]|[a-z_]+=)' | while IFS= read -r line; do
        name=${line%%=*}
        if [[ ${line} == "# "* ]]; then printf '\n%s\n' "${line#\# }"; else echo "  --${name} (${!name}) ${line#*# }"; fi
    done
}
. ./path.sh
. utils/parse_options.sh
. ./cmd.sh
[ $# -eq 0 ] || fail "unexpected argument '$1'; options are written --name value"
shopt -s nullglob
tool() { # command arguments...
    local name=$1
    shift
    "${python}" -m "espnet_llmst.bin.${name}" "$@"
}
options_tag() { # what options of decoding add to the name of a decode, as in ESPnet
    sed -E 's/^ *(.)/_\1/; s/--//g; s/[^A-Za-z0-9._]+/_/g' <<< "${inference_args}${inference_model:+ ${inference_model%.pth}}"
}
to_the_end() { # command arguments...: waits for it as a shell does, and hands signals on to it
    local child status
    "$@" &
    child=$!
    trap 'kill -TERM "${child}" 2> /dev/null || true' INT TERM HUP
    while true; do
        status=0
        wait "${child}" || status=$?
        if ! kill -0 "${child}" 2> /dev/null; then break; fi    # else the signal ended the wait, not the child
    done
    trap - INT TERM HUP
    return "${status}"
}

if [ -n "${table}" ]; then
    ! "${force}" || fail "--force true is for one --method; a table only runs what is missing"
    [ -z "${phase}${directions}${inference_task}" ] || fail "--phase, --directions and --inference_task are for one --method; the rows of a table name their own"
    # Every row is a run, or several, of the recipe's own script with this run's options and the row's.
    # shellcheck disable=SC2206
    paper=(llmst_table --table "${table}" --rows ${rows} --seeds ${seeds} --expdir "${expdir}" --stage "${stage}"
        --stop_stage "${stop_stage}" --train_args="${train_args}" --decode_suffix="$(options_tag)" --inference_args="${inference_args}")
    if "${dry_run}"; then
        tool "${paper[@]}" --dry_run
        exit 0
    fi
    runs=$(tool "${paper[@]}" --list_runs)
    failed=
    while IFS=$'\t' read -r -u 3 row options; do
        if [[ " ${failed} " == *" ${row} "* ]]; then continue; fi    # an earlier phase of it failed
        IFS=$'\t' read -r -a words <<< "${options}"
        log "table ${table}, row ${row}: ${words[*]}"
        status=0
        to_the_end ./run.sh "${run_words[@]}" --table= --rows= --seeds= "${words[@]}" 3<&- || status=$?
        [ "${status}" -lt 128 ] || exit "${status}"    # ended by a signal: so is this
        if [ "${status}" -ne 0 ]; then
            log "table ${table}, row ${row}: failed, see above; the other rows go on"
            failed+=" ${row}"
        fi
    done 3<<< "${runs}"
    tool "${paper[@]}" --out "${expdir}/paper_${table}.md"
    [ -z "${failed}" ] || fail "table ${table}: failed rows:${failed}; mend what is said above and run this again"
    if [ "${stop_stage}" -ge 8 ]; then
        tool llmst_results --expdir "${expdir}" --out "${expdir}/RESULTS.md" --command "./run.sh ${run_args% }" \
            --tables conf/paper/*.yaml > /dev/null
    fi
    log "the table is in ${expdir}/paper_${table}.md"
    exit 0
fi

if [ -n "${rows}${seeds}" ] || "${dry_run}"; then fail "--rows, --seeds and --dry_run are for a --table"; fi
configs=("conf/${method}"/[0-9]*.yaml)
if [ -z "${method}" ] || [ ${#configs[@]} -eq 0 ]; then
    methods=$(for file in conf/*/[0-9]*.yaml; do basename "$(dirname "${file}")"; done | sort -u | xargs)
    fail "unknown method '${method}'; there are: ${methods:-none, for a method is a folder conf/<method> of phases}"
fi
if [ -n "${phase}" ]; then
    [[ " ${configs[*]} " == *" conf/${method}/${phase}.yaml "* ]] || fail "unknown phase '${phase}' of ${method}; there are: $(basename -a -s .yaml "${configs[@]}" | xargs)"
fi
[[ ${stage} =~ ^[0-9]+$ && ${stop_stage} =~ ^[0-9]+$ ]] || fail "--stage and --stop_stage take numbers"
[[ ${ngpu} =~ ^[0-9]+$ && ${num_nodes} =~ ^[1-9][0-9]*$ ]] || fail "--ngpu and --num_nodes take numbers"
[ "${num_nodes}" -eq 1 ] || [ "${cmd_backend}" = slurm ] || fail "--num_nodes ${num_nodes} needs Slurm: cmd_backend=slurm (cmd.sh)"
[[ ${expdir}${dumpdir} != *[[:space:]]* ]] || fail "--expdir and --dumpdir must not contain blanks"
read -r -a direction_list <<< "${directions}"
read -r -a test_list <<< "${test_sets}"
[ ${#test_list[@]} -gt 0 ] || fail "--test_sets is empty; give e.g. --test_sets test"
# A job of a killed run may still be at work: its files are not shared with it.
mkdir -p "${expdir}/${method}"
exec 9>> "${expdir}/${method}/.lock"
flock -n 9 || fail "another run is at work in ${expdir}/${method}; wait for it, or end it (ps)"

in_range() { # stage skip_flag
    [ "${stage}" -le "$1" ] && [ "${stop_stage}" -ge "$1" ] && ! "$2"
}
finished() { # mark key: whether the mark was left by a run with the same key
    ! "${force}" && [ -e "$1" ] && [ "$(cat "$1")" = "$2" ]
}
mark() { # mark key
    mkdir -p "$(dirname "$1")"
    echo "$2" > "$1.tmp"
    mv "$1.tmp" "$1"
}
phases() { # the phases to work on
    basename -a -s .yaml "${configs[@]}" | grep -x "${phase:-.*}"
}
export PYTHON=${python}    # for local/ and utils/
needed=$(tool llmst_mix --list_directions --train_config "${configs[@]}" --directions "${direction_list[@]}")
if [ -z "${directions}" ]; then
    read -r -a direction_list <<< "${needed}"
fi
[ ${#direction_list[@]} -gt 0 ] || fail "conf/${method} names no directions; give e.g. --directions fr-en"
force_option=$(if "${force}"; then echo --force; fi)

lock() { # descriptor of a lock file, what others do under it: wait for them
    if ! flock -n "$1"; then
        log "another run $2; waiting for it"
        flock "$1"
    fi
}
if [ "${stage}" -le 3 ] && ! "${skip_data_prep}"; then
    mkdir -p data
    exec 7>> data/.lock
    lock 7 "prepares data/"
fi
if in_range 1 "${skip_data_prep}"; then
    log "stage 1: data preparation; finished sets are skipped"
    # shellcheck disable=SC2086
    local/data.sh --directions "${needed}" --nj "${nj}" --force "${force}" ${local_data_opts}
fi

sets_of() { # folder split split phases...: the sets that the phases read
    # shellcheck disable=SC2086
    tool llmst_mix --list_sets --data_dir "$1" --splits "$2" "$3" \
        --train_config "${@:4}" --directions "${direction_list[@]}" --near ${needed}
}

if in_range 2 "${skip_data_prep}" && [ -n "${speed_perturb_factors}" ]; then
    log "stage 2: speed perturbation ${speed_perturb_factors}"
    sets=$(sets_of data "${train_set}" "${train_set}" "${configs[@]}")
    for set in ${sets}; do
        # shellcheck disable=SC2086
        tool llmst_speed_perturb --data_dir "data/${set}" --out_dir "data/${train_set}_sp${set#"${train_set}"}" \
            --factors ${speed_perturb_factors} --nj "${nj}" ${force_option}
    done
fi
if [ -n "${speed_perturb_factors}" ]; then
    train_set=${train_set}_sp
fi

if in_range 3 "${skip_data_prep}"; then
    log "stage 3: format audio as 16 kHz ${audio_format}, drop what cannot be trained on"
    sets=$(sets_of data "${train_set}" "${valid_set}" "${configs[@]}")
    for set in ${sets}; do
        # A test set stays whole, also where it validates.
        if [[ " ${test_list[*]} " == *" ${set%%.*} "* && " ${direction_list[*]} " == *" ${set#*.} "* ]]; then continue; fi
        # shellcheck disable=SC2086
        tool llmst_format --data_dir "data/${set}" --out_dir "${dumpdir}/raw/${set}" --nj "${nj}" \
            --audio_format "${audio_format}" --min_duration "${min_wav_duration}" \
            --max_duration "${max_wav_duration}" ${force_option}
    done
    for test in "${test_list[@]}"; do
        for direction in "${direction_list[@]}"; do
            set=${test}.${direction}
            # shellcheck disable=SC2086
            tool llmst_format --data_dir "data/${set}" --out_dir "${dumpdir}/raw/${set}" --nj "${nj}" \
                --audio_format "${audio_format}" --keep_all ${force_option}
        done
    done
fi

exec 7>&-

if in_range 4 "${skip_train}"; then
    log "stage 4: foundation models"
    wanted=$(if "${force}"; then echo --list_local; else echo --list_missing; fi)
    missing=$(tool llmst_foundation --train_config "${configs[@]}" "${inference_config}" "${wanted}")
    if [ -n "${missing}" ]; then
        [ -e local/foundation.sh ] || fail "missing models: ${missing//$'\n'/ }; put them there, or name others in conf/${method}"
        shared=$(dirname "${missing%%$'\n'*}")    # by runs with other --expdir, too
        mkdir -p "${shared}"
        exec 8>> "${shared}/.lock"
        lock 8 "is training foundation models in ${shared}"
        missing=$(tool llmst_foundation --train_config "${configs[@]}" "${inference_config}" "${wanted}")
    fi
    if [ -n "${missing}" ]; then
        # shellcheck disable=SC2086
        to_the_end local/foundation.sh --nj "${nj}" --num_threads "${foundation_threads}" --dumpdir "${dumpdir}" \
            --splits "${train_set} ${valid_set} ${test_list[*]}" ${missing}
    fi
    exec 8>&-
    tool llmst_foundation --train_config "${configs[@]}" "${inference_config}" --out "${expdir}/foundation.json"
fi

if in_range 5 "${skip_train}"; then
    for name in $(phases); do
        config=conf/${method}/${name}.yaml
        stats_dir=${expdir}/${method}/${name}/stats
        prompt=$(sed -nE 's/^prompt: *([^ #]+).*/\1/p' "${config}")
        # Only what this phase reads: sets of other methods come and go, other directions may be scored.
        sets=$(sets_of "${dumpdir}/raw" "${train_set}" "${valid_set}" "${config}")
        tables=$(for set in ${sets}; do echo "${dumpdir}/raw/${set}"/{wav,feats}.s[c]p "${dumpdir}/raw/${set}"/{utt2num_samples,text.*}; done)
        # shellcheck disable=SC2086
        key=$(cat "${config}" "${prompt}" ${tables} | sha256sum)-${sets//$'\n'/ }
        mix_dir=${dumpdir}/mix/${method}/${name}    # another --expdir may have other data there by now
        if finished "${stats_dir}/.done" "${key}" && finished "${mix_dir}/.done" "${key}"; then
            log "stage 5: ${name}: mixture and sizes are ready"
            continue
        fi
        log "stage 5: ${name}: mixture and sizes"
        rm -f "${stats_dir}/.done" "${mix_dir}/.done"
        # shellcheck disable=SC2086
        tool llmst_mix --train_config "${config}" --directions "${direction_list[@]}" --near ${needed} \
            --data_dir "${dumpdir}/raw" --splits "${train_set}" "${valid_set}" \
            --out_dir "${mix_dir}" --stats_dir "${stats_dir}"
        mark "${mix_dir}/.done" "${key}"
        mark "${stats_dir}/.done" "${key}"
    done
fi

data_options() { # train|valid mix stats: what llmst_train reads
    local dir=$2/$1
    if [ -e "${dir}/feats.scp" ]; then
        echo "--$1_data_path_and_name_and_type ${dir}/feats.scp,speech,kaldi_ark"
    else
        echo "--$1_data_path_and_name_and_type ${dir}/wav.scp,speech,sound"
    fi
    echo "--$1_data_path_and_name_and_type ${dir}/utt2task,task,text"
    echo "--$1_data_path_and_name_and_type ${dir}/text,text,text"
    if [ -e "${dir}/transcript" ]; then
        echo "--$1_data_path_and_name_and_type ${dir}/transcript,transcript,text"
    fi
    if [ -e "$3/$1/position_shape" ]; then    # first: batch_type tokens reads no other
        echo "--$1_shape_file $3/$1/position_shape"
    fi
    echo "--$1_shape_file $3/$1/speech_shape"
    echo "--$1_shape_file $3/$1/text_shape"
}
same_models() { # phase: refuse foundation models other than those it was trained with
    tool llmst_foundation --train_config "conf/${method}/$1.yaml" --out "${expdir}/foundation.json" --kept "${expdir}/${method}/$1/foundation.json"
}
best_of() { # phase's YAML: the checkpoint that its first criterion chooses
    "${python}" - "$1" << 'EOF'
import sys
import yaml

part, name, _ = (yaml.safe_load(open(sys.argv[1])).get("best_model_criterion") or [["valid", "loss", "min"]])[0]
print(f"{part}.{name}.best.pth")
EOF
}
keep_log() { # file: an earlier log is not overwritten
    local n=1
    [ -e "$1" ] || return 0
    while [ -e "${1%.log}.${n}.log" ]; do n=$((n + 1)); done
    mv "$1" "${1%.log}.${n}.log"
}

if in_range 6 "${skip_train}"; then
    previous=
    for config in "${configs[@]}"; do
        name=$(basename "${config}" .yaml)
        dir=${expdir}/${method}/${name}
        from=$(sed -nE 's/^init_from: *([^ #]+).*/\1/p' "${config}")
        if [ "${from}" = previous ]; then
            [ -n "${previous}" ] || fail "${config}: init_from: previous, but there is no earlier phase"
            from=${previous}/$(best_of "conf/${method}/$(basename "${previous}").yaml")
        elif [[ ${from} == exp/* && ${from} != exp/foundation/* ]]; then
            from=${expdir}/${from#exp/}    # of this experiment, as is what it starts from
        fi
        previous=${dir}
        if [ -n "${phase}" ] && [ "${phase}" != "${name}" ]; then continue; fi
        if [ -n "${from}" ] && [ "${from}" != null ] && [ ! -e "${from}" ]; then
            fail "${config}: init_from: ${from} is missing; train that phase first"
        fi
        if [ -e "$(dirname "${from}")/.started" ] && [ ! -e "$(dirname "${from}")/.done" ]; then
            fail "${config}: init_from: $(dirname "${from}") is not trained to its end; do that first (stage 6 of that phase)"
        fi
        [ -e "${dir}/stats/.done" ] || fail "${dir}/stats is missing: run stage 5 first"
        inputs=("${dir}/stats/.done")
        if [ -e "${from}" ]; then inputs+=("${from}"); fi
        # What changes nothing of the result may be given to a run that goes on.
        told=$(sed -E 's/--(save_interval_iters|log_interval|num_workers)[= ]+[0-9]+ *//g; s/ +$//' <<< "${train_args}")
        key="$(sha256sum < "${config}")$(cat "${inputs[@]}" | sha256sum)-${told}-${from}"
        if "${force}"; then rm -f "${dir}/foundation.json"; fi
        same_models "${name}"
        if finished "${dir}/.done" "${key}"; then
            log "stage 6: ${name}: already trained in ${dir}"
            continue
        fi
        if "${force}"; then rm -f "${dir}"/*.pth "${dir}"/*.pth.tmp "${dir}/.started" "${dir}/.done"; fi
        if [ -e "${dir}/.started" ] && [ "$(cat "${dir}/.started")" != "${key}" ]; then
            before=$(sed -E 's/^[^-]*-[^-]*-[^-]*-//' "${dir}/.started")
            before=${before%"-${from}"}
            if [ "${before}" != "${told}" ]; then before="--train_args '${before}', now '${told}'"; else before="YAML or data"; fi
            fail "${dir} was trained with other settings (${before}): use --expdir for a new experiment, or --force true"
        fi
        mark "${dir}/.started" "${key}"
        log "stage 6: ${name}: training; the log is ${dir}/train.log"
        keep_log "${dir}/train.log"
        init=$(if [ -n "${from}" ] && [ "${from}" != null ]; then echo "--init_param ${from}"; fi)
        processes=$((ngpu > 1 ? ngpu : 1))    # of a node: one per GPU
        # shellcheck disable=SC2046,SC2086
        OMP_NUM_THREADS=${num_threads} to_the_end ${cuda_cmd} --gpu "${ngpu}" --num_nodes "${num_nodes}" \
            --num_threads $((num_threads * processes)) "${dir}/train.log" \
            utils/launch.sh "${processes}" "${num_nodes}" \
            -m espnet_llmst.bin.llmst_train --config "${config}" --output_dir "${dir}" --resume true \
            --ngpu $((ngpu > 0)) --multiprocessing_distributed false \
            --dist_backend "$(if [ "${ngpu}" -gt 0 ]; then echo nccl; else echo gloo; fi)" \
            $(data_options train "${dumpdir}/mix/${method}/${name}" "${dir}/stats") \
            $(data_options valid "${dumpdir}/mix/${method}/${name}" "${dir}/stats") ${init} ${train_args}
        mark "${dir}/.done" "${key}"
    done
fi

decode_dir() { # phase set: where its decode lies; options of the run are part of the name, as in ESPnet
    local tag
    tag=$(basename "${inference_config}" .yaml)${inference_task:+_${inference_task}}$(options_tag)
    echo "${expdir}/${method}/$1/${tag}/$2"
}
task_of() { # phase: the task by which it is tested
    if [ -n "${inference_task}" ]; then
        echo "${inference_task}"
    else
        tool llmst_mix --list_task --train_config "conf/${method}/$1.yaml" --directions "${direction_list[@]}"
    fi
}
source_of() { # direction: its source language, with a region in capitals
    [[ $1 =~ ^([a-z0-9_]+(-[A-Z]+)?)-(.+)$ ]] || fail "direction '$1' is not source-target"
    echo "${BASH_REMATCH[1]}"
}
sets_to_decode() { # task: lines of set and direction; transcription is tested once for each source language
    local test direction seen
    for test in "${test_list[@]}"; do
        seen=
        for direction in "${direction_list[@]}"; do
            if [ "$1" = asr ] && [[ " ${seen} " == *" $(source_of "${direction}") "* ]]; then continue; fi
            seen+=" $(source_of "${direction}")"
            echo "${test}.${direction} ${direction}"
        done
    done
}
controls_of() { # task: kinds of audio to decode with
    echo own
    # Text from gold transcripts hears nothing.
    if "${shuffled_control}" && { [ "$1" != mt ] || grep -q '^asr_model:' "${inference_config}"; }; then echo shuffled; fi
}

works_of() { # phase task: lines of set, direction, folder of the decode, and the control's seed
    local set direction control out
    while read -r set direction; do
        for control in $(controls_of "$2"); do
            out=$(decode_dir "$1" "${set}")
            if [ "${control}" = own ]; then
                echo "${dumpdir}/raw/${set} ${direction} ${out}"
            else
                echo "${dumpdir}/raw/${set} ${direction} ${out}/shuffled ${control_seed}"
            fi
        done
    done < <(sets_to_decode "$2")
}

if in_range 7 "${skip_eval}"; then
    for name in $(phases); do
        model=${expdir}/${method}/${name}/${inference_model:-$(best_of "conf/${method}/${name}.yaml")}
        [ -e "${model}" ] || fail "${model} is missing: run stage 6 first"
        begun=${expdir}/${method}/${name}/.started
        if [ -e "${begun}" ] && [[ "$(cat "${begun}")" != "$(sha256sum < "conf/${method}/${name}.yaml")"* ]]; then
            fail "conf/${method}/${name}.yaml has changed since ${model} was trained: train it again (--stage 6 --force true, or another --expdir)"
        fi
        if [ -e "${begun}" ] && [ ! -e "${begun%started}done" ]; then
            log "stage 7: warning: ${name} is not trained to its end; the checkpoint so far is decoded"
        fi
        same_models "${name}"
        task=$(task_of "${name}")
        list=$(decode_dir "${name}" decode_list)
        mkdir -p "$(dirname "${list}")"
        works_of "${name}" "${task}" > "${list}.all"
        # shellcheck disable=SC2206
        options=(--config "${inference_config}" --train_config "${expdir}/${method}/${name}/config.yaml"
            --model_file "${model}" --task "${task}" ${inference_args})
        # A decode's key is what decides its result, by content: checkpoint, configurations, models, speech.
        keys=$(tool llmst_inference "${options[@]}" --list_keys --decode_list "${list}.all")
        todo=()
        while read -r key data direction out seed; do
            # A run that begins here was started to decode: finished work is done again, a killed one goes on.
            if [ "${stage}" -eq 7 ]; then rm -f "${out:?}/.done"; fi
            if "${force}"; then rm -rf "${out:?}"/job.*; fi
            if finished "${out}/.done" "${key}"; then
                log "stage 7: ${out} is ready"
                continue
            fi
            rm -f "${out}/.done"
            log "stage 7: to decode: ${out}"
            todo+=("${key} ${data} ${direction} ${out} ${seed}")
        done <<< "${keys}"
        rm "${list}.all"
        [ ${#todo[@]} -gt 0 ] || continue
        printf '%s\n' "${todo[@]#* }" > "${list}"
        gpu=$(if "${gpu_inference}"; then echo 1; else echo 0; fi)
        log "stage 7: decoding; the log is $(dirname "${list}")/log/decode.*.log"
        # shellcheck disable=SC2086
        to_the_end ${decode_cmd} --gpu "${gpu}" JOB=1:"${inference_nj}" "$(dirname "${list}")/log/decode.JOB.log" \
            "${python}" -m espnet_llmst.bin.llmst_inference "${options[@]}" --ngpu "${gpu}" \
            --decode_list "${list}" --job JOB --num_jobs "${inference_nj}"
        tool llmst_inference --merge --decode_list "${list}" --num_jobs "${inference_nj}"
        for work in "${todo[@]}"; do
            read -r key _ _ out _ <<< "${work}"
            mark "${out}/.done" "${key}"
        done
    done
fi

score() { # decode_dir set direction out kind hypotheses
    local target reference key scored_by
    target=$(source_of "$3")
    if [ "$5" != asr ]; then target=${3#"${target}-"}; fi
    reference=${dumpdir}/raw/$2/text.tc.${target}
    key=$(cat "$1/decode.json" "$1/1best_recog/$6" "${reference}" | sha256sum)-${score_opts}
    scored_by=${4%/*}/.$(basename "$4").done
    if [ -e "$4" ] && finished "${scored_by}" "${key}"; then return; fi
    log "stage 8: scoring $1, $6"
    scored=true
    # shellcheck disable=SC2086
    tool llmst_score --kind "$5" --hyp "$1/1best_recog/$6" --ref "${reference}" \
        --tgt_lang "${target}" --set "$2" --durations "${dumpdir}/raw/$2/utt2num_samples" --decode_info "$1/decode.json" \
        --out "$4" ${score_opts}
    mark "${scored_by}" "${key}"
}

if in_range 8 "${skip_eval}"; then
    scored=false
    decodes=()
    for name in $(phases); do
        task=$(task_of "${name}")
        kind=$(if [ "${task}" = asr ]; then echo asr; else echo st; fi)
        while read -r set direction; do
            dir=$(decode_dir "${name}" "${set}")
            decodes+=("${dir}")
            for control in "" shuffled; do
                out=${dir}${control:+/${control}}
                json=${dir}/scores${control:+_${control}}.json
                if [ ! -e "${out}/.done" ]; then
                    [ -n "${control}" ] || fail "${out} is missing: run stage 7 first"
                    continue
                fi
                score "${out}" "${set}" "${direction}" "${json}" "${kind}" text
                if [ -z "${control}" ] && [ -e "${out}/1best_recog/transcript" ]; then
                    score "${out}" "${set}" "${direction}" "${dir}/scores_asr.json" asr transcript
                fi
            done
        done < <(sets_to_decode "${task}")
    done
    results=(tool llmst_results --expdir "${expdir}" --check "${decodes[@]}")
    if "${scored}" || [ ! -e "${expdir}/RESULTS.md" ]; then
        "${results[@]}" --out "${expdir}/RESULTS.md" --command "./run.sh ${run_args% }" --tables conf/paper/*.yaml
    else
        "${results[@]}"
    fi
    log "stage 8: the tables are in ${expdir}/RESULTS.md"
fi
log "done"
exit 0
}
