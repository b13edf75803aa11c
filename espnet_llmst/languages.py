"""Language codes of the corpora (fr, zh-CN, pt_br, cmn_hans_cn) as English names and ISO 639-3 tags."""

from functools import cache

import langcodes

from espnet_llmst.cli import InputError

# Where FLORES, FLEURS and LLM-SRT do not follow the macrolanguage: North Azerbaijani, Nepali, Odia, Swahili, Tagalog.
_TAGS = {"az": "azj", "ne": "npi", "or": "ory", "sw": "swh", "fil": "tgl"}
_NAMES = {"bn": "Bengali", "luo": "Luo", "mdw": "Mboshi"}  # CLDR: Bangla, Luo (Kenya and Tanzania), Mbosi
_WHISPER = {"cmn": "zh", "fil": "tl", "jv": "jw", "nb": "no"}


@cache
def _parse(code: str) -> langcodes.Language:
    try:
        language = langcodes.Language.get(code.replace("_", "-"), normalize=False)
    except langcodes.LanguageTagError as error:
        raise InputError(f"'{code}' is no language code; use codes such as fr, zh-CN or pt_br") from error
    if not language.language or not language.is_valid():
        raise InputError(f"'{code}' is no known language code; use codes such as fr, zh-CN or pt_br")
    return language


@cache
def two_letters(code: str) -> str:
    """The shortest code, of the macrolanguage where there is one: ``pt_br`` -> pt, ``jpn`` -> ja."""
    tag = code.replace("_", "-")
    known = langcodes.standardize_tag(tag) if langcodes.tag_is_valid(tag) else code  # zho is valid, zh its standard
    return _parse(known).prefer_macrolanguage().language


def english_name(code: str) -> str:
    """The language's name in English: ``fr`` -> French, ``zh-CN`` -> Chinese."""
    language = _parse(code)
    return _NAMES.get(language.language) or language.language_name()


def iso639_3(code: str) -> str:
    """The three-letter tag: ``fr`` -> fra, ``zh-CN`` and ``cmn_hans_cn`` -> zho, ``yue_hant_hk`` -> yue."""
    language = _parse(code)
    return _TAGS.get(language.language) or language.prefer_macrolanguage().to_alpha3()


def whisper_code(code: str) -> str:
    """The code by which Whisper knows the language: ``pt_br`` -> pt, ``cmn_hans_cn`` -> zh."""
    language = _parse(code).language
    return _WHISPER.get(language, language)
