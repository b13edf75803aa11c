# Sourced by every path.sh. To use an environment of your own, replace these lines by its activation.
# shellcheck shell=bash
if [ -e "${MAIN_ROOT}/tools/venv/bin/activate" ]; then
    # shellcheck source=/dev/null
    . "${MAIN_ROOT}/tools/venv/bin/activate"
else
    echo "tools/venv is missing: run 'make' in the top folder, or edit tools/activate_python.sh" >&2
    return 1
fi
