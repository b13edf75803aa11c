# Where the corpora are. Fill in the line of the corpus that you use.
# shellcheck shell=bash disable=SC2034
MUST_C=
COVOST2=
COMMONVOICE=
FLEURS=
HOW2=
MBOSHI_FRENCH=
