# How jobs run. All runners share Kaldi's call form: <cmd> [options] JOB=1:n log.JOB command...
#   local   utils/run.pl, on this machine
#   slurm   slurm.pl, sge: queue.pl; both are Kaldi's: put them on PATH (path.sh) and describe the
#           partitions in conf/slurm.conf or conf/queue.conf
# shellcheck shell=bash disable=SC2034
cmd_backend=${cmd_backend:-local}
case "${cmd_backend}" in
    local)
        train_cmd=run.pl
        cuda_cmd=run.pl
        decode_cmd=run.pl
        ;;
    slurm | sge)
        runner=slurm.pl
        if [ "${cmd_backend}" = sge ]; then runner=queue.pl; fi
        conf=conf/${runner%.pl}.conf
        train_cmd="${runner} --config ${conf}"
        cuda_cmd="${train_cmd}"
        decode_cmd="${train_cmd}"
        ;;
    *)
        echo "$0: error: cmd_backend=${cmd_backend} must be local, slurm or sge" >&2
        return 1
        ;;
esac
