# shellcheck shell=bash
# Turns --some_option VALUE into the shell variable some_option; to be sourced after the defaults are set.
#
#   stage=1; force=false                  # only variables that already exist are options
#   help_message="Usage: ..."             # printed by --help; or a function help_text, which knows the options so far
#   . utils/parse_options.sh              # leaves the positional arguments in "$@"
#
# --some-option and --some_option mean the same; the value follows as the next word or after "=".
# An option whose default is true or false takes nothing else.

_po_fail() {
    echo "$(basename "$0"): $1" >&2
    exit 1
}

_po_is_option() { # word after the dashes
    local name=${1//-/_}
    [[ ${name} =~ ^[A-Za-z][A-Za-z0-9_]*$ && -n ${!name+set} ]]
}

_po_kind() { # option: which values it takes, if they are two
    local name=${1//-/_}
    if [[ ${!name} =~ ^(true|false)$ ]]; then echo " (true or false)"; fi
}

_po_set() { # option value
    local name=${1//-/_} value=$2
    if [[ ${!name} =~ ^(true|false)$ && ! ${value} =~ ^(true|false)$ ]]; then
        _po_fail "--$1 takes true or false, not '${value}'"
    fi
    printf -v "${name}" %s "${value}"
}

while [ $# -gt 0 ]; do
    case "$1" in
        --help | -h)
            if declare -F help_text > /dev/null; then
                help_text
            else
                printf '%s\n' "${help_message:-$(basename "$0"): no help available}"
            fi
            exit 0
            ;;
        --)
            shift
            break
            ;;
        --*)
            _po_option=${1%%=*}
            _po_option=${_po_option#--}
            _po_is_option "${_po_option}" || _po_fail "unknown option --${_po_option} (--help lists the options)"
            if [[ $1 == *=* ]]; then
                _po_set "${_po_option}" "${1#*=}"
                shift
                continue
            fi
            [ $# -gt 1 ] || _po_fail "$1 needs a value$(_po_kind "${_po_option}")"
            # A forgotten value would swallow the next option without a word.
            if [[ $2 == --* ]] && _po_is_option "${2#--}"; then
                _po_fail "$1 needs a value$(_po_kind "${_po_option}"), but $2 follows (write $1=$2 if that is the value)"
            fi
            _po_set "${_po_option}" "$2"
            shift 2
            ;;
        *) break ;;
    esac
done
unset _po_option
