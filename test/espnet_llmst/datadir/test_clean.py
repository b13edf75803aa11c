"""Corpus text: what is taken away, what must stay."""

import sys
import unicodedata

import pytest

from espnet_llmst.datadir.clean import clean_text

KEPT = [
    "It's 5 °C – “fine” … 100 % (Laughter)",
    "می‌خواهم",  # zero-width non-joiner within a Persian word
    "क्‍ष",  # zero-width joiner after a virama
    "אבג (\u200eabc\u200e)",  # directional mark in right-to-left text
    "ភាសា\u200bខ្មែរ",  # zero-width space between Khmer words
    "你好，世界。",
    "👍🏽 ok",
    "\u0600\u0661",  # Arabic number sign
]
CHANGED = {
    "e\u0301te\u0301": "\u00e9t\u00e9",  # composed
    "\ufeffHello": "Hello",
    "a \t b\u00a0c\u3000d\u2009e": "a b c d e",
    "a\nb\r\nc\u2028d\u2029e\x85f\x1dg\x0bh\x0ci": "a b c d e f g h i",
    "wo\x00rd\x07s \x92x\x7f": "words x",
    "so\u00adft hy\u200bphen": "soft hyphen",
    "join\u200der\u200cs": "joiners",
    "left\u200e to \u202eright\u202c": "left to right",
    "private\ue000 use\U000f0000": "private use",
    "non\ufffe\U0001ffffcharacters": "noncharacters",
    "\u200cمی": "می",  # joins nothing
    " \u200b \u2060 ": "",
    "": "",
}


@pytest.mark.parametrize("text", KEPT)
def test_what_a_script_is_written_with_stays(text):
    assert clean_text(text) == unicodedata.normalize("NFC", text)


@pytest.mark.parametrize(("text", "expected"), CHANGED.items(), ids=map(ascii, CHANGED))
def test_the_invisible_goes(text, expected):
    assert clean_text(text) == expected


def test_every_character_leaves_a_clean_line():
    """One line, single blanks; cleaning again changes nothing. All visible characters stay."""
    for code in [*range(0x20000), *range(0xE0000, 0xE0200), sys.maxunicode]:
        character = chr(code)
        once = clean_text(f"a{character}b")
        assert once == clean_text(once)
        assert not any(c != " " and (c.isspace() or unicodedata.category(c) == "Cc") for c in once)
        if character.isprintable() and character != " ":
            assert once == unicodedata.normalize("NFC", f"a{character}b")
        elif character.isspace():
            assert once == "a b"
        else:
            assert once in ("ab", f"a{character}b")
