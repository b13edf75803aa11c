"""Two systems on the same utterances: significance by sacreBLEU's paired tests, buckets, and what changed most."""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from sacrebleu.metrics import CHRF
from sacrebleu.significance import PairedTest

from espnet_llmst.cli import InputError
from espnet_llmst.scoring.decodes import Decode
from espnet_llmst.scoring.metrics import FALLING, N_BOOTSTRAP, bootstrap_seed, interval, sacrebleu_metric
from espnet_llmst.scoring.score import DEFAULT_BUCKETS, LENGTH_BUCKETS, duration_buckets, length_buckets

N_TRIALS = 10000
SIGNIFICANT = 0.05


def _remember_statistics(metric):
    """Let a metric extract the statistics of a list of texts once: TER's search takes far longer than the tests."""
    extract, known = metric._extract_corpus_statistics, {}

    def extract_once(hypotheses, references):
        key = tuple(hypotheses)
        if key not in known:
            known[key] = extract(hypotheses, references)
        return known[key]

    metric._extract_corpus_statistics = extract_once
    return metric


def _difference_interval(metric, texts: Sequence[Sequence[str]], refs: list, n_bootstrap: int) -> list[float]:
    """95 % of the differences (second minus first) over resamples that draw the same utterances for both."""
    rng = np.random.default_rng(bootstrap_seed())
    stats = [np.array(metric._extract_corpus_statistics(text, refs), dtype="float64") for text in texts]
    differences = []
    for _ in range(n_bootstrap):
        drawn = rng.choice(len(refs[0]), size=len(refs[0]))
        first, second = (float(metric._compute_score_from_stats(one[drawn].sum(0)).score) for one in stats)
        differences.append(second - first)
    return [float(bound) for bound in np.percentile(differences, (2.5, 97.5))]


def paired_test(
    name: str,
    texts: tuple[Sequence[str], Sequence[str]],
    refs: Sequence[Sequence[str]],
    tgt_lang: str,
    *,
    tokenize: str | None = None,
    n_bootstrap: int = N_BOOTSTRAP,
    n_trials: int = N_TRIALS,
) -> dict:
    """Both of sacreBLEU's paired tests of one metric, as ``sacrebleu --paired-bs`` and ``--paired-ar`` give them.

    Args:
        name, tgt_lang, tokenize: as in ``metrics.sacrebleu_metric``.
        texts: hypotheses of systems A and B, in the order of each list of ``refs``.
        n_bootstrap, n_trials: resamples of the bootstrap, trials of the approximate randomisation.

    Returns:
        ``scores`` and ``ci95`` of A and B, ``difference`` (B - A) with ``difference_ci95``, ``p_bootstrap``,
        ``p_randomisation`` (None for both when A and B wrote the same), and the tests' ``signatures``.
    """
    metric = _remember_statistics(sacrebleu_metric(name, tgt_lang, tokenize))
    texts, refs = [list(text) for text in texts], [list(ref) for ref in refs]
    found, signatures = {}, []
    for test, samples in (("bs", n_bootstrap), ("ar", n_trials)):
        systems = [("A", texts[0]), ("B", texts[1])]
        signature, scores = PairedTest(systems, {name: metric}, refs, test_type=test, n_samples=samples)()
        (key,) = signature
        found[test] = scores[key]
        signatures.append(str(signature[key]))
    (a, b), same = found["bs"], texts[0] == texts[1]
    return {
        "scores": [float(a.score), float(b.score)],
        "ci95": [interval(name, float(one.mean), float(one.ci)) for one in (a, b)],
        "difference": float(b.score - a.score),
        "difference_ci95": _difference_interval(metric, texts, refs, n_bootstrap),
        "p_bootstrap": None if same else b.p_value,
        "p_randomisation": None if same else found["ar"][1].p_value,
        "signatures": signatures,
    }


def sentence_chrf(hyps: Sequence[str], refs: Sequence[Sequence[str]]) -> list[float]:
    """sacreBLEU's sentence chrF2 of each utterance; ``refs`` holds one list per reference."""
    metric = CHRF()
    return [float(metric.sentence_score(hyp, ref).score) for hyp, *ref in zip(hyps, *refs, strict=True)]


def same_set(a: Decode, b: Decode) -> None:
    """Refuse two decodes that were not scored against the same references.

    Raises:
        InputError: naming the first utterance that differs.
    """
    differing = sorted(set(a.ids) ^ set(b.ids))
    if differing:
        raise InputError(f"{a.name} and {b.name} hold different utterances, first {differing[0]}: decode the same set")
    for utt, one, other in zip(a.ids, zip(*a.refs, strict=True), zip(*b.refs, strict=True), strict=True):
        if one != other:
            raise InputError(f"{a.name} and {b.name} have different references, first of {utt}: score them alike")


def _part(decode: Decode, positions: Sequence[int]) -> tuple[list[str], list[list[str]]]:
    return [decode.hyps[i] for i in positions], [[ref[i] for i in positions] for ref in decode.refs]


def _by_bucket(a: Decode, b: Decode, buckets: Mapping[str, Sequence[str]], test: Callable) -> dict[str, dict]:
    place, results = {utt: i for i, utt in enumerate(a.ids)}, {}
    for bucket, ids in buckets.items():
        positions = [place[utt] for utt in ids]
        hyps, refs = _part(a, positions)
        results[bucket] = {"n": len(ids)}
        if not ids:
            continue
        try:
            results[bucket] |= test((hyps, _part(b, positions)[0]), refs)
        except InputError:  # the whole set has a score, so this bucket has no words left to be wrong on
            continue
    return results


def changed_utterances(a: Decode, b: Decode) -> list[dict]:
    """Every utterance whose text differs, with both sentence chrF2, from B's greatest gain to its greatest loss."""
    rows = []
    scores = sentence_chrf(a.hyps, a.refs), sentence_chrf(b.hyps, b.refs)
    for i, utt in enumerate(a.ids):
        if a.hyps[i] != b.hyps[i]:
            chrf = [scores[0][i], scores[1][i]]
            row = {"utt": utt, "ref": [ref[i] for ref in a.refs], "hyps": [a.hyps[i], b.hyps[i]], "chrF2": chrf}
            rows.append(row | {"seconds": a.seconds[i] if a.seconds else None})
    return sorted(rows, key=lambda row: (row["chrF2"][0] - row["chrF2"][1], row["utt"]))


def compare(
    a: Decode,
    b: Decode,
    metrics: Sequence[str],
    *,
    bucket_edges: Sequence[float] = DEFAULT_BUCKETS,
    length_edges: Sequence[float] = LENGTH_BUCKETS,
    n_bootstrap: int = N_BOOTSTRAP,
    n_trials: int = N_TRIALS,
) -> dict:
    """Systems A and B on one set.

    Args:
        a, b: decodes of the same utterances against the same references.
        metrics: names of ``metrics.ALL_METRICS``; the buckets get the first.
        bucket_edges, length_edges: as in ``score.score_hypotheses``; durations are A's.

    Returns:
        ``systems``, ``set``, ``n``, ``metrics`` (name -> ``paired_test``), ``bucket_metric``, ``buckets``,
        ``length_buckets``, ``changed`` (all utterances that differ) and ``n_equal``.

    Raises:
        InputError: the decodes do not match, or a metric cannot be computed.
    """
    same_set(a, b)

    def test(texts, refs, name=metrics[0]):
        options = {"tokenize": a.tokenize, "n_bootstrap": n_bootstrap, "n_trials": n_trials}
        return paired_test(name, texts, refs, a.tgt_lang, **options)

    ref = dict(zip(a.ids, a.refs[0], strict=True))
    seconds = dict(zip(a.ids, a.seconds, strict=True)) if a.seconds else None
    changed = changed_utterances(a, b)
    return {
        "systems": [a.name, b.name] if a.name != b.name else [str(a.folder), str(b.folder)],
        "set": a.set,
        "n": len(a.ids),
        "metrics": {name: test((a.hyps, b.hyps), a.refs, name) for name in metrics},
        "bucket_metric": metrics[0],
        "buckets": _by_bucket(a, b, duration_buckets(a.ids, seconds, bucket_edges) if seconds else {}, test),
        "length_buckets": _by_bucket(a, b, length_buckets(ref, a.tgt_lang, length_edges), test),
        "n_equal": len(a.ids) - len(changed),
        "changed": changed,
    }


def pair(first: Sequence[Decode], second: Sequence[Decode]) -> list[tuple[Decode, Decode]]:
    """Decodes of the same set from two lists that hold each set once.

    Raises:
        InputError: no set in common, or a set twice in one list.
    """
    if len(first) == len(second) == 1:
        return [(first[0], second[0])]
    for decodes in (first, second):
        names = [decode.set for decode in decodes]
        double = next((decode for decode in decodes if names.count(decode.set) > 1), None)
        if double:
            raise InputError(f"{double.name}: {double.set} was decoded more than once there; give one decode folder")
    by_set = {decode.set: decode for decode in second}
    pairs = [(decode, by_set[decode.set]) for decode in first if decode.set in by_set]
    if not pairs:
        raise InputError(f"{first[0].name} and {second[0].name} have no set in common, decode the same set with both")
    return pairs


def verdict(name: str, result: Mapping) -> str:
    """Which system a metric calls better; none when either test's p is not below 0.05."""
    chances = result["p_bootstrap"], result["p_randomisation"]
    if None in chances:
        return "the same texts"
    if max(chances) >= SIGNIFICANT or not result["difference"]:
        return "no difference shown"
    return "B better" if (result["difference"] < 0) == (name in FALLING) else "A better"


def _escape(text: str) -> str:
    """Text that Markdown shows as it is."""
    plain = "".join(f"\\{c}" if c in "\\`*_[]<>#|&~$" else c for c in " ".join(text.split()))
    return plain or "*(empty)*"


def _test_row(first: str, name: str, result: Mapping) -> str:
    (a, b), (ci_a, ci_b) = result["scores"], result["ci95"]
    low, high = result["difference_ci95"]
    cells = [
        first,
        f"{a:.1f} [{ci_a[0]:.1f}, {ci_a[1]:.1f}]",
        f"{b:.1f} [{ci_b[0]:.1f}, {ci_b[1]:.1f}]",
        f"{result['difference']:+.1f} [{low:+.1f}, {high:+.1f}]",
        *("–" if p is None else f"{p:.4f}" for p in (result["p_bootstrap"], result["p_randomisation"])),
        verdict(name, result),
    ]
    return f"| {' | '.join(cells)} |"


HEAD = "| A [95 % CI] | B [95 % CI] | B − A [95 % CI] | p bootstrap | p randomisation | verdict |"
RULE = "| ---: | ---: | ---: | ---: | ---: | --- |"


def _bucket_lines(title: str, name: str, buckets: Mapping[str, Mapping]) -> list[str]:
    if not any(bucket["n"] for bucket in buckets.values()):
        return []
    lines = [f"### {name} by {title}", "", f"| {title}, n {HEAD}", f"| --- {RULE}"]
    for bucket, result in buckets.items():
        first = f"{bucket}, {result['n']}"
        lines.append(_test_row(first, name, result) if "scores" in result else f"| {first} | – | – | – | – | – | |")
    return [*lines, ""]


def _changed_lines(title: str, rows: Sequence[Mapping]) -> list[str]:
    lines = [f"### {title}", ""] if rows else []
    for row in rows:
        seconds = f", {row['seconds']:.1f} s" if row["seconds"] is not None else ""
        a, b = row["chrF2"]
        lines.append(f"- {_escape(row['utt'])}{seconds}: chrF2 {a:.1f} → {b:.1f} ({b - a:+.1f})")
        lines += [f"  - reference: {_escape(ref)}" for ref in row["ref"]]
        lines += [f"  - {label}: {_escape(hyp)}" for label, hyp in zip("AB", row["hyps"], strict=True)]
    return [*lines, ""] if rows else []


def render_comparison(result: Mapping, top: int = 10) -> str:
    """The comparison as Markdown.

    Args:
        result: what ``compare`` gives.
        top: how many utterances of the greatest gains and of the greatest losses are shown.
    """
    a, b = result["systems"]
    lines = [f"## {result['set'] or 'comparison'}: {result['n']} utterances", "", f"- A: {_escape(a)}"]
    lines += [f"- B: {_escape(b)}", "", f"| metric {HEAD}", f"| --- {RULE}"]
    lines += [_test_row(name, name, test) for name, test in result["metrics"].items()]
    lines += [
        "",
        "A p is the chance of a difference this large between systems that are equal. Tests of many buckets find "
        "one in twenty by chance.",
        "",
    ]
    lines += _bucket_lines("duration", result["bucket_metric"], result["buckets"])
    lines += _bucket_lines("reference length", result["bucket_metric"], result["length_buckets"])
    gains = [row for row in result["changed"] if row["chrF2"][1] > row["chrF2"][0]]
    losses = [row for row in reversed(result["changed"]) if row["chrF2"][1] < row["chrF2"][0]]
    lines += [f"{result['n_equal']} texts are equal, B is nearer in {len(gains)} and farther in {len(losses)}.", ""]
    lines += _changed_lines("Greatest gains of B (sentence chrF2)", gains[:top])
    lines += _changed_lines("Greatest losses of B (sentence chrF2)", losses[:top])
    lines += ["Signatures:", ""]
    lines += [f"- {name}: `{text}`" for name, test in result["metrics"].items() for text in test["signatures"]]
    return "\n".join(lines) + "\n"
