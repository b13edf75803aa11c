# Sourced by every script of a recipe: where the project is, its Python, its utilities.
# shellcheck shell=bash
MAIN_ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")" && cd ../../.. && pwd)
export MAIN_ROOT
# shellcheck source=/dev/null
. "${MAIN_ROOT}/tools/activate_python.sh"
export PATH="${PWD}/utils:${PWD}/local:${PATH}"
export PYTHONPATH="${MAIN_ROOT}${PYTHONPATH:+:${PYTHONPATH}}"
export LC_ALL=C PYTHONIOENCODING=UTF-8 PYTHONUTF8=1
# Threads that wait for a busy core make a small job many times slower: one thread per process, and those
# that a stage asks for spin for a fraction of a millisecond (asleep at once they are slower than one).
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1} OMP_WAIT_POLICY=${OMP_WAIT_POLICY:-passive}
export GOMP_SPINCOUNT=${GOMP_SPINCOUNT:-20000}
export TOKENIZERS_PARALLELISM=false
if [ -e local/path.sh ]; then
    # shellcheck source=/dev/null
    . local/path.sh
fi
