#!/usr/bin/env bash
# Makes the virtual environment tools/venv: pinned versions, no root, no compiler.
#   tools/setup_venv.sh [python]
# Does nothing when the environment already matches setup.py, constraints.txt and overrides.txt.
set -euo pipefail
cd "$(dirname "$0")/.."

find_python() {
    local candidate
    for candidate in "$@" python3.12 python3.11 python3; do
        if "${candidate}" -c 'import sys, venv; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 12))' \
            2>/dev/null; then
            echo "${candidate}"
            return
        fi
    done
    echo "$0: error: no Python 3.11 or 3.12 with venv found; install one (Debian: python3-venv)" >&2
    exit 1
}

venv=tools/venv
want=$({ cat setup.py tools/constraints.txt tools/overrides.txt; ls espnet_llmst/bin/*.py; } | sha256sum | cut -d' ' -f1)
stamp=${venv}/.stamp
if [ -e "${stamp}" ] && [ "$(cat "${stamp}")" = "${want}" ]; then
    touch "${stamp}"
    exit 0
fi

python=$(find_python "$@")
echo "$0: making ${venv} with $(command -v "${python}") (about 6 GB, most of it PyTorch)"
"${python}" -m venv --clear "${venv}"
"${venv}/bin/python" -m pip install --quiet --disable-pip-version-check -c tools/constraints.txt uv
"${venv}/bin/uv" pip install --quiet --python "${venv}/bin/python" \
    --constraint tools/constraints.txt --override tools/overrides.txt \
    --editable '.[mini,train,test]'
echo "${want}" > "${stamp}"
echo "$0: done"
