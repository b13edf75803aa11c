# How jobs run. All runners share Kaldi's call form: <cmd> [options] JOB=1:n log.JOB command...
#   local   utils/run.pl, on this machine
#   slurm   utils/slurm.pl; what its options mean to sbatch stands in conf/slurm.conf of the recipe, or, without
#           one, of egs2/TEMPLATE/llmst1
#   sge     Kaldi's queue.pl: put it on PATH (path.sh) and describe the queues in conf/queue.conf
# shellcheck shell=bash disable=SC2034
cmd_backend=${cmd_backend:-local}
case "${cmd_backend}" in
    local)
        train_cmd=run.pl
        cuda_cmd=run.pl
        decode_cmd=run.pl
        ;;
    slurm)
        train_cmd=slurm.pl
        cuda_cmd=slurm.pl
        decode_cmd=slurm.pl
        ;;
    sge)
        train_cmd="queue.pl --config conf/queue.conf"
        cuda_cmd="${train_cmd}"
        decode_cmd="${train_cmd}"
        ;;
    *)
        echo "$0: error: cmd_backend=${cmd_backend} must be local, slurm or sge" >&2
        return 1
        ;;
esac
