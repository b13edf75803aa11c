"""Corpus scores with signatures: BLEU, chrF2, TER by sacreBLEU; WER, CER by jiwer after Whisper's normaliser.

Every score is a percentage and comes as ``{"score": float, "signature": str}``, the sacreBLEU ones with
``"ci95": [low, high]`` beside. BLEU and chrF2 grow with quality; TER, WER and CER fall.
"""

import importlib.util
from collections.abc import Callable, Sequence
from importlib.metadata import version

from espnet_llmst.cli import InputError

ST_METRICS = ("BLEU", "BLEU_lc", "chrF2", "TER")
ASR_METRICS = ("WER", "CER")
ALL_METRICS = ST_METRICS + ASR_METRICS
N_BOOTSTRAP = 1000
# Scripts written without blanks between words: words are no unit there, characters are.
CHARACTER_LANGUAGES = frozenset({"th", "km", "lo", "my"})
UNSPACED_LANGUAGES = CHARACTER_LANGUAGES | {"zh", "ja"}


def base_language(lang: str) -> str:
    """The language of a code without its region: ``zh-CN`` -> ``zh``, ``pt_br`` -> ``pt``."""
    return lang.replace("_", "-").split("-")[0].lower()


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


def _sacrebleu_metric(name: str, tgt_lang: str, tokenize: str | None):
    from sacrebleu.metrics import BLEU, CHRF, TER

    if name == "chrF2":
        return CHRF()
    if name == "TER":
        # TER counts words; Chinese and Japanese have none unless their characters are set apart
        asian = base_language(tgt_lang) in ("zh", "ja")
        return TER(normalized=asian, asian_support=asian)
    tokenize = tokenize or bleu_tokenizer(tgt_lang)
    if tokenize not in BLEU.TOKENIZERS:
        raise InputError(f"sacreBLEU has no tokenizer '{tokenize}', choose from {', '.join(BLEU.TOKENIZERS)}")
    try:
        return BLEU(tokenize=tokenize, lowercase=name == "BLEU_lc")
    except (ImportError, OSError, RuntimeError) as error:  # no package, or no network for its model
        reason = str(error).strip().split("\n")[0] or type(error).__name__
        raise InputError(f"sacreBLEU cannot set up tokenizer '{tokenize}', install or fetch it: {reason}") from error


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


def sacrebleu_score(
    name: str,
    hyps: Sequence[str],
    refs: Sequence[Sequence[str]],
    tgt_lang: str,
    *,
    tokenize: str | None = None,
    n_bootstrap: int = N_BOOTSTRAP,
) -> dict:
    """One sacreBLEU corpus score, as the ``sacrebleu`` command gives it.

    Args:
        name: one of ``ST_METRICS``; ``BLEU_lc`` is BLEU of lower-cased text.
        hyps: one hypothesis per utterance, detokenised; may be empty strings.
        refs: one list per reference set, each as long as ``hyps`` and in its order.
        tgt_lang: target language code; it chooses the tokenizer of BLEU and, for Chinese and Japanese,
            TER's splitting of characters (``--ter-normalized --ter-asian-support``).
        tokenize: another tokenizer for BLEU, e.g. ``flores200``.
        n_bootstrap: resamples for the confidence interval; below 2: no interval.

    Returns:
        ``score``, ``signature`` and ``ci95``: mean -/+ half-width over sacreBLEU's own bootstrap samples, cut
        to the range of the metric. The seed is sacreBLEU's 12345 (``SACREBLEU_SEED`` changes it); the
        signature names it.

    Raises:
        InputError: the tokenizer cannot be had.
    """
    metric = _with_float_scores(_sacrebleu_metric(name, tgt_lang, tokenize))
    score = metric.corpus_score(list(hyps), [list(ref) for ref in refs], n_bootstrap=n_bootstrap)
    result = {"score": float(score.score), "signature": str(metric.get_signature())}
    if n_bootstrap > 1:
        top = float("inf") if name == "TER" else 100.0  # TER has no upper bound
        mean, half = float(score._mean), float(score._ci)
        result["ci95"] = [max(0.0, mean - half), min(top, mean + half)]
    return result


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


def error_rate(name: str, hyps: Sequence[str], refs: Sequence[str], lang: str) -> dict:
    """WER or CER over a corpus after Whisper's normaliser.

    Args:
        name: ``WER`` or ``CER``. CER counts the blanks between words, except in scripts without them.
        hyps, refs: one string per utterance, in the same order.
        lang: language code of the text.

    Raises:
        InputError: no reference has any word left after normalisation.
    """
    import jiwer

    normalize, normalizer = whisper_normalizer(lang)
    blanks = name == "WER" or base_language(lang) not in UNSPACED_LANGUAGES
    refs, hyps = ([(" " if blanks else "").join(normalize(t).split()) for t in side] for side in (refs, hyps))
    if not any(refs):
        raise InputError(f"{name}: every reference is empty after Whisper's normaliser, check --ref and --tgt_lang")
    rate = (jiwer.wer if name == "WER" else jiwer.cer)(refs, hyps)
    parts = {"nrefs": 1, "norm": normalizer, "blanks": "yes" if blanks else "no", "jiwer": version("jiwer")}
    parts["transformers"] = version("transformers")
    return {"score": 100.0 * rate, "signature": "|".join(f"{k}:{v}" for k, v in parts.items())}


def corpus_score(
    name: str,
    hyps: Sequence[str],
    refs: Sequence[Sequence[str]],
    tgt_lang: str,
    *,
    tokenize: str | None = None,
    n_bootstrap: int = N_BOOTSTRAP,
) -> dict:
    """One score by its name, any of ``ALL_METRICS``; arguments as in ``sacrebleu_score``.

    Raises:
        InputError: unknown metric, an error rate with several references, or no tokenizer.
    """
    if name not in ALL_METRICS:
        raise InputError(f"unknown metric '{name}', choose from {', '.join(ALL_METRICS)}")
    if name in ST_METRICS:
        return sacrebleu_score(name, hyps, refs, tgt_lang, tokenize=tokenize, n_bootstrap=n_bootstrap)
    if len(refs) != 1:
        raise InputError(f"{name} takes one reference, not {len(refs)}: give one file to --ref")
    return error_rate(name, hyps, refs[0], tgt_lang)
