"""Score one decoded set: join hypotheses and references by utterance id, compute, say how it was made."""

import platform
import subprocess
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from math import inf
from pathlib import Path

import espnet_llmst
from espnet_llmst.cli import InputError
from espnet_llmst.scoring.metrics import N_BOOTSTRAP, ST_METRICS, UNSPACED_LANGUAGES, base_language, corpus_score

DEFAULT_BUCKETS = (5.0, 10.0, 15.0)
# The edges that the published duration analyses of LST and Aligned use, in seconds
BUCKET_PRESETS = {"lst": (5.0, 10.0, 15.0, 20.0, 50.0), "aligned": (10.0, 20.0)}
PRESETS = ", ".join([*BUCKET_PRESETS, "auto"])
AUTO_BUCKETS = 5
LENGTH_BUCKETS = (10.0, 20.0, 30.0, 40.0)
REPORTED_PACKAGES = ("torch", "transformers", "sacrebleu", "jiwer")


def environment() -> dict[str, str]:
    """Versions of Python, this package and the installed ones that scores depend on; imports none."""
    versions = {"python": platform.python_version(), "espnet_llmst": espnet_llmst.__version__}
    for package in REPORTED_PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    return versions


def git_commit() -> str | None:
    """Commit of the code that runs, ``-dirty`` appended when files differ from it; None outside git."""
    command = ["git", "describe", "--always", "--dirty", "--exclude=*", "--abbrev=40"]
    try:
        done = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None


def _check_references(refs: Sequence[Mapping[str, str]]) -> None:
    if not refs or not refs[0]:
        raise InputError("there is no reference utterance to score against, check --ref")
    for number, ref in enumerate(refs[1:], start=2):
        differing = sorted(set(refs[0]) ^ set(ref))
        if differing:
            raise InputError(
                f"reference 1 and reference {number} differ in {len(differing)} utterance(s), "
                f"first {differing[0]}: give references of the same set"
            )


def _check_hypotheses(hyps: Mapping[str, str], ref: Mapping[str, str], allow_missing: bool) -> list[str]:
    """The reference ids without a hypothesis, sorted."""
    extra = sorted(set(hyps) - set(ref))
    if extra:
        raise InputError(
            f"{len(extra)} hypothesis utterance(s) have no reference, first {extra[0]}: "
            "check that --hyp and --ref belong to the same set"
        )
    missing = sorted(set(ref) - set(hyps))
    if missing and not allow_missing:
        raise InputError(
            f"{len(missing)} of {len(ref)} reference utterance(s) have no hypothesis, first {missing[0]}: "
            "finish decoding, or score them as empty with --allow_missing"
        )
    return missing


def align(
    hyps: Mapping[str, str], refs: Sequence[Mapping[str, str]], allow_missing: bool = False
) -> tuple[list[str], list[str], list[list[str]], int]:
    """Utterance ids in a fixed order, their hypotheses and references as columns, and the number missing.

    The order is that of the ids' bytes: the bootstrap draws by position.

    Raises:
        InputError: an id without hypothesis (unless ``allow_missing``: it counts as empty), one without reference.
    """
    _check_references(refs)
    missing = _check_hypotheses(hyps, refs[0], allow_missing)
    ids = sorted(refs[0], key=str.encode)
    return ids, [hyps.get(utt, "") for utt in ids], [[ref[utt] for utt in ids] for ref in refs], len(missing)


def split_srt(hyps: Mapping[str, str], tags: str) -> tuple[dict[str, str], dict[str, str], int]:
    """Transcripts and translations of outputs ``<transcript><tags><translation>``, and how many lack the tags.

    An output without tags counts as a transcript with an empty translation, as in decoding.
    """
    parts = {utt: text.partition(tags) for utt, text in hyps.items()}
    transcripts = {utt: part[0].strip() for utt, part in parts.items()}
    translations = {utt: part[2].strip() for utt, part in parts.items()}
    return transcripts, translations, sum(not tag for _, tag, _ in parts.values())


def edges_of(text: str, option: str, others: str = "") -> list[float]:
    """Bucket edges from a comma-separated list, e.g. ``5,10,15``; ``others`` says what else the option takes.

    Raises:
        InputError: not a rising list of positive numbers.
    """
    try:
        edges = [float(part) for part in text.split(",")]
    except ValueError:
        edges = []
    if not edges or not all(low < high < inf for low, high in zip([0.0, *edges], edges, strict=False)):
        raise InputError(f"{option} '{text}' is not a rising list of positive numbers such as 5,10,15{others}")
    return edges


def bucket_edges_of(text: str, durations: Sequence[float] = ()) -> list[float]:
    """Edges of the duration buckets from a list, a preset's name (the papers' edges), or ``auto``.

    ``auto`` cuts the ``durations`` into parts of about equal counts.

    Raises:
        InputError: none of the three.
    """
    if text in BUCKET_PRESETS:
        return list(BUCKET_PRESETS[text])
    return _even_edges(durations) if text == "auto" else edges_of(text, "--buckets", f", nor one of {PRESETS}")


def _even_edges(values: Sequence[float]) -> list[float]:
    ordered = sorted(values)
    cuts = {round(ordered[len(ordered) * part // AUTO_BUCKETS], 1) for part in range(1, AUTO_BUCKETS) if ordered}
    return sorted(cut for cut in cuts if cut > 0 and ordered[0] < cut)


def _buckets(
    ids: Sequence[str], values: Mapping[str, float], edges: Sequence[float], unit: str
) -> dict[str, list[str]]:
    """Ids by value, in buckets ``0-5<unit>``, ..., ``15<unit>+``; an edge itself belongs to the upper one."""
    lows = [0.0, *edges]
    names = [f"{low:g}-{high:g}{unit}" for low, high in zip(lows, edges, strict=False)] + [f"{lows[-1]:g}{unit}+"]
    buckets: dict[str, list[str]] = {name: [] for name in names}
    for utt in ids:
        buckets[names[sum(values[utt] >= edge for edge in edges)]].append(utt)
    return buckets


def duration_buckets(
    ids: Sequence[str], durations: Mapping[str, float], edges: Sequence[float]
) -> dict[str, list[str]]:
    """Split utterance ids by duration in seconds into ``0-5s``, ``5-10s``, ..., ``15s+``.

    An edge itself belongs to the upper bucket.

    Raises:
        InputError: an utterance has no duration.
    """
    for utt in ids:
        if utt not in durations:
            raise InputError(f"utterance {utt} has no duration: --durations must cover every reference")
    return _buckets(ids, durations, edges, "s")


def text_length(text: str, lang: str) -> int:
    """Words between blanks; characters without blanks in languages that set none between words."""
    words = text.split()
    return len("".join(words)) if base_language(lang) in UNSPACED_LANGUAGES else len(words)


def length_buckets(ref: Mapping[str, str], lang: str, edges: Sequence[float]) -> dict[str, list[str]]:
    """Split utterance ids by the length of their reference: ``0-10 words``, ..., ``40 words+`` (or ``chars``)."""
    unit = " chars" if base_language(lang) in UNSPACED_LANGUAGES else " words"
    ids = sorted(ref, key=str.encode)
    return _buckets(ids, {utt: text_length(ref[utt], lang) for utt in ids}, edges, unit)


def named_groups(ids: Sequence[str], groups: Mapping[str, str]) -> dict[str, list[str]]:
    """Split utterance ids by ``groups`` (utterance -> name of its group); an id that it lacks is in none."""
    return {name: [utt for utt in ids if groups.get(utt) == name] for name in sorted(set(groups.values()))}


def score_buckets(
    name: str, hyps: Mapping[str, str], refs: Sequence[Mapping[str, str]], buckets: Mapping, **options
) -> dict[str, dict]:
    """``n``, the metric and its ``ci95`` of each bucket; only ``n`` where there is no utterance or no word.

    Args:
        name: metric; ``options`` are those of ``corpus_score``.
        hyps, refs: utterance id -> text.
        buckets: name -> utterance ids.
    """
    scores: dict[str, dict] = {bucket: {"n": len(ids)} for bucket, ids in buckets.items()}
    for bucket, ids in buckets.items():
        if not ids:
            continue
        columns = [[ref[utt] for utt in ids] for ref in refs]
        try:
            score = corpus_score(name, [hyps[utt] for utt in ids], columns, **options)
        except InputError:  # the whole set has a score, so this bucket has no words left to be wrong on
            continue
        scores[bucket][name] = score["score"]
        if "ci95" in score:
            scores[bucket]["ci95"] = score["ci95"]
    return scores


def score_hypotheses(
    hyps: Mapping[str, str],
    refs: Sequence[Mapping[str, str]],
    *,
    tgt_lang: str,
    durations: Mapping[str, float] | None = None,
    bucket_edges: Sequence[float] = DEFAULT_BUCKETS,
    length_edges: Sequence[float] = LENGTH_BUCKETS,
    groups: Mapping[str, str] | None = None,
    allow_missing: bool = False,
    metrics: Sequence[str] = ST_METRICS,
    tokenize: str | None = None,
    n_bootstrap: int = N_BOOTSTRAP,
    set_name: str | None = None,
    decode_info: Mapping | None = None,
    command: str | None = None,
) -> dict:
    """Score hypotheses against references; the result is what ``scores.json`` holds.

    Args:
        hyps, refs: utterance id -> text; a hypothesis may be empty, several references share their ids.
        tgt_lang: language code of the texts (``de``, ``zh-CN``); it chooses tokenizer and normaliser.
        durations: utterance id -> seconds; gives ``speech_seconds`` and ``buckets``.
        bucket_edges, length_edges: rising edges of the buckets, in seconds of speech and in words (characters in
            Chinese and the like) of the first reference; each bucket gets the first metric.
        groups: utterance id -> name of a group that gets the first metric, too, e.g. of where it comes from.
        allow_missing: score an utterance without hypothesis as empty and count it in ``n_missing``.
        metrics: names from ``metrics.ALL_METRICS``.
        tokenize, n_bootstrap: as in ``corpus_score``.
        set_name, decode_info, command: for the record; of the decoder's, its ``*_seconds``.

    Returns:
        Counts (``n_empty``: given hypotheses without text), one entry per metric (``score, ci95, signature``;
        percentages, not rounded), seconds (None when unknown), ``buckets`` by duration, ``length_buckets``, and
        the origin.

    Raises:
        InputError: ids do not match, an utterance has no duration, or a metric cannot be computed.
    """
    ids, texts, columns, n_missing = align(hyps, refs, allow_missing)
    full = dict(zip(ids, texts, strict=True))
    by_duration = duration_buckets(ids, durations, bucket_edges) if durations is not None else {}
    by_length = length_buckets(refs[0], tgt_lang, length_edges)
    info, options = decode_info or {}, {"tgt_lang": tgt_lang, "tokenize": tokenize, "n_bootstrap": n_bootstrap}
    speech = sum(durations[utt] for utt in ids) if durations is not None else info.get("speech_seconds")
    return {
        "set": set_name,
        "n": len(ids),
        "n_missing": n_missing,
        "n_empty": sum(not text.strip() for text in hyps.values()),
        **{metric: corpus_score(metric, texts, columns, **options) for metric in metrics},
        "speech_seconds": speech,
        "decode_seconds": info.get("wall_seconds"),
        "buckets": score_buckets(metrics[0], full, refs, by_duration, **options),
        "length_buckets": score_buckets(metrics[0], full, refs, by_length, **options),
        "groups": score_buckets(metrics[0], full, refs, named_groups(ids, groups or {}), **options),
        "environment": environment(),
        "git_commit": git_commit(),
        "command": command,
    }
