"""Corpus text as one clean line: NFC, plain blanks, nothing invisible but what a script is written with."""

import unicodedata

_JOINERS = "\u200c\u200d"  # zero width non-joiner, joiner
_BIDI = "\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"
_JOINING = frozenset(
    "ARABIC SYRIAC MONGOLIAN NKO MANDAIC DEVANAGARI BENGALI GURMUKHI GUJARATI ORIYA TAMIL TELUGU KANNADA MALAYALAM "
    "SINHALA MYANMAR KHMER TIBETAN".split()
)
_NUMBER_SIGNS = "\u0600\u0601\u0602\u0603\u0604\u0605"  # Arabic: visible, though of a format's category
_UNSPACED = frozenset("KHMER THAI LAO MYANMAR".split())  # words may be parted by U+200B


def clean_text(text: str) -> str:
    """The text on one line, in NFC, single-spaced, without control and invisible characters.

    Kept are joiners after a letter of a script that joins (fa, hi, si, ...), directional marks in text that
    has right-to-left letters, and the zero-width space in scripts written without blanks.
    """
    text = unicodedata.normalize("NFC", text)
    if text.isprintable():  # no white space but blanks, nothing of the categories looked at below
        return " ".join(text.split())
    right_to_left = any(unicodedata.bidirectional(character) in ("R", "AL") for character in text)
    kept = []
    for character in text:
        if character in _JOINERS:
            keep = _script(kept) in _JOINING
        elif character == "\u200b":
            keep = _script(kept) in _UNSPACED
        elif character in _BIDI:
            keep = right_to_left
        elif character.isspace():
            keep, character = True, " "
        else:
            keep = unicodedata.category(character) not in ("Cc", "Cf", "Co", "Cn", "Cs") or character in _NUMBER_SIGNS
        if keep:
            kept.append(character)
    return " ".join("".join(kept).split())


def _script(characters: list[str]) -> str:
    """First word of the name of the last character: its script, for letters and their marks."""
    return unicodedata.name(characters[-1], "").partition(" ")[0] if characters else ""
