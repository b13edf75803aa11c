"""Language codes of the corpora."""

import pytest

from espnet_llmst.cli import InputError
from espnet_llmst.languages import english_name, iso639_3, whisper_code


@pytest.mark.parametrize(
    ("code", "name", "tag"),
    [
        ("fr", "French", "fra"),
        ("zh-CN", "Chinese", "zho"),
        ("pt_br", "Portuguese", "por"),
        ("yue_hant_hk", "Cantonese", "yue"),
        ("sv-SE", "Swedish", "swe"),
        ("es_419", "Spanish", "spa"),
        ("cmn_hans_cn", "Mandarin Chinese", "zho"),
    ],
)
def test_codes(code, name, tag):
    assert (english_name(code), iso639_3(code)) == (name, tag)


@pytest.mark.parametrize("code", ["xx", "", "not a code!"])
def test_unknown_code_is_one_clear_line(code):
    with pytest.raises(InputError, match="language code"):
        english_name(code)


def test_whisper_knows_every_code_of_ours():
    from transformers.models.whisper.tokenization_whisper import LANGUAGES

    codes = {"fr": "fr", "pt_br": "pt", "cmn_hans_cn": "zh", "zh-CN": "zh", "yue_hant_hk": "yue", "fil_ph": "tl"}
    assert {code: whisper_code(code) for code in codes} == codes and set(codes.values()) <= set(LANGUAGES)
