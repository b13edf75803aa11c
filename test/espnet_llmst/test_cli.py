"""Options of every command: bad ones are one clear line."""

import pytest

from espnet_llmst.bin import llmst_datadir, llmst_score
from espnet_llmst.cli import run


@pytest.mark.parametrize(
    ("main", "options", "message"),
    [
        (llmst_score.main, ["--hyp", "h", "--ref", "r", "--tgt_lag", "en", "--out", "o"], "unknown option --tgt_lag"),
        (llmst_score.main, ["--hyp", "h", "--ref", "r", "--out", "o"], "required: --tgt_lang"),
        (llmst_score.main, ["--metrics", "bleu"], "invalid choice: 'bleu' (choose from 'BLEU', "),
        (llmst_datadir.main, ["validte"], "invalid choice: 'validte' (choose from 'validate', "),
        (llmst_datadir.main, ["validate"], "required: data_dir"),
    ],
)
def test_a_bad_option_is_one_line(capsys, main, options, message):
    assert run(main, options) == 1
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1 and error.endswith("(--help lists the options)\n")
