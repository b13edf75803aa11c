"""Language codes of the corpora (fr, zh-CN, pt_br, cmn_hans_cn) as English names and ISO 639-3 tags."""

from functools import cache

import langcodes

from espnet_llmst.cli import InputError


@cache
def _parse(code: str) -> langcodes.Language:
    try:
        language = langcodes.Language.get(code.replace("_", "-"), normalize=False)
    except langcodes.LanguageTagError as error:
        raise InputError(f"'{code}' is no language code; use codes such as fr, zh-CN or pt_br") from error
    if not language.language or not language.is_valid():
        raise InputError(f"'{code}' is no known language code; use codes such as fr, zh-CN or pt_br")
    return language


def english_name(code: str) -> str:
    """The language's name in English: ``fr`` -> French, ``zh-CN`` -> Chinese."""
    return _parse(code).language_name()


def iso639_3(code: str) -> str:
    """The three-letter tag: ``fr`` -> fra, ``zh-CN`` and ``cmn_hans_cn`` -> zho."""
    return _parse(code).prefer_macrolanguage().to_alpha3()


def whisper_code(code: str) -> str:
    """The code by which Whisper knows the language: ``pt_br`` -> pt, ``cmn_hans_cn`` -> zh."""
    language = _parse(code).language
    return {"cmn": "zh", "fil": "tl", "nb": "no"}.get(language, language)
