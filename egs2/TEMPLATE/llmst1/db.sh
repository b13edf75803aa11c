# Where the corpora are. Fill in the line of the corpus that you use, after the `:-`, or set the variable outside.
# shellcheck shell=bash disable=SC2034
MUST_C=${MUST_C:-}
COVOST2=${COVOST2:-}
COMMONVOICE=${COMMONVOICE:-}
FLEURS=${FLEURS:-}
HOW2=${HOW2:-}
MBOSHI_FRENCH=${MBOSHI_FRENCH:-}
