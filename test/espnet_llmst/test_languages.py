"""Language codes of the corpora."""

import pytest

from espnet_llmst.cli import InputError
from espnet_llmst.languages import english_name, iso639_3


@pytest.mark.parametrize(
    ("code", "name", "tag"),
    [
        ("fr", "French", "fra"),
        ("zh-CN", "Chinese", "zho"),
        ("pt_br", "Portuguese", "por"),
        ("yue_hant_hk", "Cantonese", "yue"),
        ("sv-SE", "Swedish", "swe"),
        ("es_419", "Spanish", "spa"),
    ],
)
def test_codes(code, name, tag):
    assert (english_name(code), iso639_3(code)) == (name, tag)


@pytest.mark.parametrize("code", ["xx", "", "not a code!"])
def test_unknown_code_is_one_clear_line(code):
    with pytest.raises(InputError, match="language code"):
        english_name(code)
