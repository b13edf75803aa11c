"""Score one decoded set: join hypotheses and references by utterance id, compute, say how it was made."""

import platform
import subprocess
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from math import inf
from pathlib import Path

import espnet_llmst
from espnet_llmst.cli import InputError
from espnet_llmst.scoring.metrics import N_BOOTSTRAP, ST_METRICS, corpus_score

DEFAULT_BUCKETS = (5.0, 10.0, 15.0)
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


def bucket_edges_of(text: str) -> list[float]:
    """Bucket edges in seconds from a comma-separated list, e.g. ``5,10,15``.

    Raises:
        InputError: not a rising list of positive numbers.
    """
    try:
        edges = [float(part) for part in text.split(",")]
    except ValueError:
        edges = []
    if not edges or not all(low < high < inf for low, high in zip([0.0, *edges], edges, strict=False)):
        raise InputError(f"--buckets '{text}' is not a rising list of positive seconds such as 5,10,15")
    return edges


def duration_buckets(
    ids: Sequence[str], durations: Mapping[str, float], edges: Sequence[float]
) -> dict[str, list[str]]:
    """Split utterance ids by duration in seconds into ``0-5s``, ``5-10s``, ..., ``15s+``.

    An edge itself belongs to the upper bucket.

    Raises:
        InputError: an utterance has no duration.
    """
    lows = [0.0, *edges]
    names = [f"{low:g}-{high:g}s" for low, high in zip(lows, edges, strict=False)] + [f"{lows[-1]:g}s+"]
    buckets: dict[str, list[str]] = {name: [] for name in names}
    for utt in ids:
        if utt not in durations:
            raise InputError(f"utterance {utt} has no duration: --durations must cover every reference")
        buckets[names[sum(durations[utt] >= edge for edge in edges)]].append(utt)
    return buckets


def _score_buckets(
    name: str, hyps: Mapping[str, str], refs: Sequence[Mapping[str, str]], buckets: dict, options: dict
) -> dict[str, dict]:
    scores = {}
    for bucket, ids in buckets.items():
        scores[bucket] = {"n": len(ids)}
        if not ids:
            continue
        columns = [[ref[utt] for utt in ids] for ref in refs]
        try:
            score = corpus_score(name, [hyps[utt] for utt in ids], columns, n_bootstrap=0, **options)
        except InputError:  # the whole set has a score, so this bucket has no words left to be wrong on
            continue
        scores[bucket][name] = score["score"]
    return scores


def score_hypotheses(
    hyps: Mapping[str, str],
    refs: Sequence[Mapping[str, str]],
    *,
    tgt_lang: str,
    durations: Mapping[str, float] | None = None,
    bucket_edges: Sequence[float] = DEFAULT_BUCKETS,
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
        bucket_edges: rising edges in seconds; each bucket gets the first metric.
        allow_missing: score an utterance without hypothesis as empty and count it in ``n_missing``.
        metrics: names from ``metrics.ALL_METRICS``.
        tokenize, n_bootstrap: as in ``sacrebleu_score``.
        set_name, decode_info, command: for the record; of the decoder's, its ``*_seconds``.

    Returns:
        Counts (``n_empty``: given hypotheses without text), one entry per metric (``score, ci95, signature``;
        percentages, not rounded), seconds (None when unknown), ``buckets``, and the origin.

    Raises:
        InputError: ids do not match, an utterance has no duration, or a metric cannot be computed.
    """
    _check_references(refs)
    missing = _check_hypotheses(hyps, refs[0], allow_missing)
    full = {**hyps, **dict.fromkeys(missing, "")}
    ids = sorted(refs[0], key=str.encode)  # a fixed order: the bootstrap draws by position
    buckets = duration_buckets(ids, durations, bucket_edges) if durations is not None else {}
    columns = [full[utt] for utt in ids], [[ref[utt] for utt in ids] for ref in refs]
    options, info = {"tgt_lang": tgt_lang, "tokenize": tokenize}, decode_info or {}
    speech = sum(durations[utt] for utt in ids) if durations is not None else info.get("speech_seconds")
    return {
        "set": set_name,
        "n": len(ids),
        "n_missing": len(missing),
        "n_empty": sum(not text.strip() for text in hyps.values()),
        **{m: corpus_score(m, *columns, n_bootstrap=n_bootstrap, **options) for m in metrics},
        "speech_seconds": speech,
        "decode_seconds": info.get("wall_seconds"),
        "buckets": _score_buckets(metrics[0], full, refs, buckets, options),
        "environment": environment(),
        "git_commit": git_commit(),
        "command": command,
    }
