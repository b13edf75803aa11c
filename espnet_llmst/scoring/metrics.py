"""Corpus scores with signatures: BLEU, chrF2, TER by sacreBLEU; WER, CER by jiwer after Whisper's normaliser.

Every score is a percentage and comes as ``{"score": float, "signature": str, "ci95": [low, high]}``, BLEU, WER and CER
with a ``verbose_score``: precisions and brevity penalty as sacreBLEU writes them, or the kinds of errors. BLEU, spBLEU
and chrF2 grow with quality; TER, WER and CER fall (``FALLING``). ``_lc`` scores lower-cased text, ``_cased`` text as it
is: sacreBLEU's BLEU and chrF2 heed case by default and its TER does not. ``BLEU_char`` takes characters also where BLEU
takes words of Chinese, Japanese or Korean, as LLM-SRT's scorer does.
"""

import importlib.util
import os
from collections.abc import Callable, Sequence
from pathlib import Path

from espnet_llmst.cli import InputError
from espnet_llmst.languages import two_letters

ST_METRICS = ("BLEU", "BLEU_lc", "chrF2", "chrF2_lc", "TER", "TER_cased")
ASR_METRICS = ("WER", "CER")
ALL_METRICS = (*ST_METRICS, "BLEU_char", "spBLEU", *ASR_METRICS)
FALLING = frozenset({"TER", "TER_cased", "WER", "CER"})  # the lower the better
N_BOOTSTRAP = 1000
SPBLEU_TOKENIZER = "flores200"
SPBLEU_MODEL = "https://tinyurl.com/flores200sacrebleuspm"
# Scripts written without blanks between words: words are no unit there, characters are.
CHARACTER_LANGUAGES = frozenset({"th", "km", "lo", "my"})
UNSPACED_LANGUAGES = CHARACTER_LANGUAGES | {"zh", "ja"}


def bootstrap_seed() -> int | None:
    """The seed that sacreBLEU draws its resamples with; None (``SACREBLEU_SEED=none``): another one every time."""
    seed = os.environ.get("SACREBLEU_SEED", "12345")
    return None if seed.lower() == "none" else int(seed)


def base_language(lang: str) -> str:
    """The language of a code without its region: ``zh-CN``, ``cmn_hans_cn``, ``zho`` -> ``zh``, ``pt_br`` -> ``pt``.

    Cantonese counts as Chinese, as its writing asks of tokenizers.

    Raises:
        InputError: there is no such language.
    """
    language = two_letters(lang)
    return "zh" if language == "yue" else language


def bleu_tokenizer(tgt_lang: str) -> str:
    """The sacreBLEU tokenizer that papers use for a target language.

    Args:
        tgt_lang: ISO 639-1 code, with or without a region.

    Raises:
        InputError: Japanese is asked for and MeCab or its dictionary is not installed.
    """
    lang = base_language(tgt_lang)
    if lang == "ja":
        _need_mecab()
        return "ja-mecab"
    if lang == "zh":
        return "zh"
    return "char" if lang in CHARACTER_LANGUAGES else "13a"


def _need_mecab() -> None:
    missing = [name for name in ("MeCab", "ipadic") if importlib.util.find_spec(name) is None]
    if missing:
        raise InputError(
            f"BLEU for Japanese needs the Python package(s) {', '.join(missing)}: "
            "pip install 'sacrebleu[ja]', or choose another tokenizer with --tokenize"
        )


def _bleu(name: str, tgt_lang: str, tokenize: str | None):
    from sacrebleu.metrics import BLEU

    if name == "BLEU_char" and base_language(tgt_lang) in UNSPACED_LANGUAGES | {"ko"}:
        tokenize = "char"
    tokenize = SPBLEU_TOKENIZER if name == "spBLEU" else tokenize or bleu_tokenizer(tgt_lang)
    if tokenize not in BLEU.TOKENIZERS:
        raise InputError(f"sacreBLEU has no tokenizer '{tokenize}', choose from {', '.join(BLEU.TOKENIZERS)}")
    try:
        return BLEU(tokenize=tokenize, lowercase=name == "BLEU_lc")
    except (ImportError, OSError, RuntimeError) as error:  # no package, or no network for its model
        reason = str(error).strip().split("\n")[0] or type(error).__name__
        raise InputError(f"sacreBLEU cannot set up tokenizer '{tokenize}': {reason}; {_remedy(tokenize)}") from error


def _remedy(tokenize: str) -> str:
    if tokenize != SPBLEU_TOKENIZER:
        return "install or fetch what it needs, or choose another with --tokenize"
    models = Path(os.environ.get("SACREBLEU", Path.home() / ".sacrebleu")) / "models"
    return f"without network, fetch {SPBLEU_MODEL} elsewhere and put it at {models / Path(SPBLEU_MODEL).name}"


def _ter(name: str, tgt_lang: str):
    from sacrebleu.metrics import TER

    # TER counts words; Chinese and Japanese have none unless their characters are set apart
    asian = base_language(tgt_lang) in ("zh", "ja")
    return TER(normalized=asian, asian_support=asian, case_sensitive=name == "TER_cased")


def _chrf(name: str):
    from sacrebleu.metrics import CHRF

    return CHRF(lowercase=name == "chrF2_lc")


def sacrebleu_metric(name: str, tgt_lang: str, tokenize: str | None = None):
    """The metric of a name as an instance of sacreBLEU's ``Metric``, for its scores and its significance tests.

    Args:
        name: any of ``ALL_METRICS``.
        tgt_lang: language code of the text; it chooses the tokenizer of BLEU, the normaliser of WER and CER and,
            for Chinese and Japanese, TER's splitting of characters (``--ter-normalized --ter-asian-support``).
        tokenize: another tokenizer for BLEU, e.g. ``flores200``.

    Raises:
        InputError: unknown metric, or a tokenizer that cannot be had.
    """
    if name not in ALL_METRICS:
        raise InputError(f"unknown metric '{name}', choose from {', '.join(ALL_METRICS)}")
    if name in ASR_METRICS:
        from espnet_llmst.scoring.error_rate import ErrorRate

        return _with_float_scores(ErrorRate(name, tgt_lang))
    family = name.removesuffix("_lc").removesuffix("_cased")
    makers = {"chrF2": lambda: _chrf(name), "TER": lambda: _ter(name, tgt_lang)}
    return _with_float_scores(makers.get(family, lambda: _bleu(name, tgt_lang, tokenize))())


def _with_float_scores(metric):
    """The metric with scores of type float: sacreBLEU 2.6's bootstrap gives float32 except for a zero.

    Its average then stops with a TypeError as soon as one resample, not all, has no match (chrF of a poor
    system).
    """
    compute = metric._compute_score_from_stats

    def compute_float(stats):
        score = compute(stats)
        score.score = float(score.score)
        return score

    metric._compute_score_from_stats = compute_float
    return metric


def whisper_normalizer(lang: str) -> tuple[Callable[[str], str], str]:
    """Whisper's text normaliser for a language, and its name for the signature.

    English has one of its own (numbers, contractions, titles). Its table of British and American spellings is
    data of Whisper's repository that transformers does not ship, so it runs with an empty one: ``colour`` and
    ``color`` count as different words. Every other language has the basic one: lower case, no punctuation,
    nothing between brackets; it also drops combining marks, such as the vowel signs of Hindi or Thai.
    """
    from transformers.models.whisper.english_normalizer import BasicTextNormalizer, EnglishTextNormalizer

    if base_language(lang) == "en":
        return EnglishTextNormalizer({}), "whisper-english-nospelling"
    return BasicTextNormalizer(), "whisper-basic"


def corpus_score(
    name: str,
    hyps: Sequence[str],
    refs: Sequence[Sequence[str]],
    tgt_lang: str,
    *,
    tokenize: str | None = None,
    n_bootstrap: int = N_BOOTSTRAP,
) -> dict:
    """One corpus score; those of sacreBLEU are what the ``sacrebleu`` command gives.

    Args:
        name: one of ``ALL_METRICS``.
        hyps: one hypothesis per utterance, detokenised; may be empty strings.
        refs: one list per reference set, each as long as ``hyps`` and in its order.
        tgt_lang, tokenize: as in ``sacrebleu_metric``.
        n_bootstrap: resamples for the confidence interval; below 2: no interval.

    Returns:
        ``score``, ``signature``, of some metrics ``verbose_score``, and ``ci95``: mean -/+ half-width over
        sacreBLEU's own bootstrap samples, cut to the range of the metric. The seed is sacreBLEU's 12345
        (``SACREBLEU_SEED`` changes it); the signature names it.

    Raises:
        InputError: unknown metric, no tokenizer, or an error rate with several references or without words.
    """
    metric = sacrebleu_metric(name, tgt_lang, tokenize)
    if name in ASR_METRICS and len(refs) != 1:
        raise InputError(f"{name} takes one reference, not {len(refs)}: give one file to --ref")
    score = metric.corpus_score(list(hyps), [list(ref) for ref in refs], n_bootstrap=n_bootstrap)
    result = {"score": float(score.score), "signature": str(metric.get_signature())}
    if score._verbose:
        result["verbose_score"] = score._verbose
    if n_bootstrap > 1:
        result["ci95"] = interval(name, float(score._mean), float(score._ci))
    return result


def interval(name: str, mean: float, half: float) -> list[float]:
    """``mean`` -/+ ``half``, cut to the range of the metric; error rates have no upper bound."""
    return [max(0.0, mean - half), mean + half if name in FALLING else min(100.0, mean + half)]
