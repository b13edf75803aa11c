#!/usr/bin/env bash
# Starts a Python program as several processes that work together, by torchrun; one process is started as it is.
#
#   launch.sh processes_per_node nodes -m espnet_llmst.bin.llmst_train argument...
#
# Several nodes are those of the Slurm job in which this runs (slurm.pl --num_nodes N log.txt launch.sh ...).
# Each process gets RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR and MASTER_PORT.
set -euo pipefail
processes=$1
nodes=$2
shift 2

python=${PYTHON:-python3}
torchrun=("${python}" -m espnet_llmst.train.launch --nproc_per_node "${processes}")
if [ "${nodes}" -gt 1 ]; then
    if [ "${SLURM_JOB_NUM_NODES:-}" != "${nodes}" ]; then
        echo "launch.sh: error: ${nodes} nodes must be those of a Slurm job; set cmd_backend=slurm" >&2
        exit 1
    fi
    # They meet at the node where this runs. Two jobs there hardly share the last digits of their numbers.
    srun --export=ALL --ntasks-per-node=1 --kill-on-bad-exit=1 \
        "${torchrun[@]}" --nnodes "${nodes}" --rdzv_backend c10d --rdzv_id "${SLURM_JOB_ID}" \
        --rdzv_endpoint "$(hostname):$((20000 + SLURM_JOB_ID % 20000))" "$@" &
    step=$!
    # SIGTERM to srun would kill the processes before they save their state; Slurm can hand it to them.
    trap 'scancel --signal=TERM "${SLURM_JOB_ID}" 2> /dev/null || true' TERM
    while true; do
        wait "${step}" && code=0 || code=$?
        kill -0 "${step}" 2> /dev/null || exit "${code}"    # a signal ends the waiting too
    done
elif [ "${processes}" -gt 1 ]; then
    exec "${torchrun[@]}" --standalone "$@"
else
    exec "${python}" "$@"
fi
