"""One HTML page about one or two systems: scores, charts, and every utterance with its audio and differences.

The page is `page/report.html` with its style, script and data written into it; it loads nothing but linked audio.
All text reaches the page as JSON and is shown as text nodes; its security policy lets no other script run.
"""

import base64
import hashlib
import html
import json
import os
from collections.abc import Mapping, Sequence
from datetime import datetime
from importlib.resources import files
from io import BytesIO
from pathlib import Path
from string import Template
from urllib.parse import quote

import soundfile

from espnet_llmst.cli import InputError
from espnet_llmst.datadir.audio import AudioError, open_audio, read_mono
from espnet_llmst.scoring.compare import paired_test, same_set, sentence_chrf, verdict
from espnet_llmst.scoring.curves import training_curves
from espnet_llmst.scoring.decodes import Decode, audio_and_source
from espnet_llmst.scoring.metrics import ALL_METRICS, UNSPACED_LANGUAGES, base_language
from espnet_llmst.scoring.score import bucket_edges_of, duration_buckets, environment, git_commit, score_buckets

PLAYABLE = {".flac": "audio/flac", ".wav": "audio/wav", ".mp3": "audio/mpeg", ".ogg": "audio/ogg", ".m4a": "audio/mp4"}


def main_metric(decode: Decode) -> str:
    """The metric of charts and tests: what the decode was scored with first; BLEU for bare files."""
    return (decode.metrics or ["BLEU"])[0]


def partner(decode: Decode, others: Sequence[Decode]) -> Decode | None:
    """The decode of ``others`` to set beside one: same set, and if possible same phase and decoding; else the last."""
    same = [other for other in others if other.set == decode.set]
    parts = decode.name.split("/")
    return max(reversed(same), key=lambda other: sum(part in parts for part in other.name.split("/")), default=None)


def build_data(
    first: Sequence[Decode],
    second: Sequence[Decode],
    *,
    folder: Path,
    buckets: str = "auto",
    embed: int = 20,
    absolute: bool = False,
    command: str = "",
) -> dict:
    """Everything the page shows.

    Args:
        first, second: decodes of system A, and of B (empty without a comparison).
        folder: where the page will lie; links to audio are relative to it unless ``absolute``.
        buckets: edges of the chart by duration, as in ``score.bucket_edges_of``.
        embed: utterances per decode, of those the page shows first, whose audio is stored in it.
        command: what made the page.

    Raises:
        InputError: the systems have no set in common, or their references differ.
    """
    pairs = [[decode, other] if (other := partner(decode, second)) else [decode] for decode in first]
    if second and not any(len(pair) == 2 for pair in pairs):
        raise InputError(f"{first[0].name} and {second[0].name} have no set in common, decode the same set with both")
    shown = [(pair[n], n) for n in (0, 1) for pair in pairs if len(pair) > n]
    rows = list({(decode.folder, decode.name, decode.set, n): (decode, n) for decode, n in shown}.values())
    views = [_view(pair, folder, buckets, embed, absolute) for pair in pairs]
    return {
        "title": " and ".join(dict.fromkeys(_title(decodes) for decodes in (first, second) if decodes)),
        "subtitle": _subtitle(views),
        "compared": bool(second),
        "metrics": [*ALL_METRICS, "COMET"],
        "table": [_table_row(decode, n) for decode, n in sorted(rows, key=lambda row: row[0].set)],
        "signatures": _signatures([decode for decode, _ in rows]),
        "views": views,
        "curves": {name: training_curves(name) for view in views for name in view["curves"] if name},
        "command": command,
        "date": f"{datetime.now():%Y-%m-%d %H:%M}",
        "environment": ", ".join(f"{k} {v}" for k, v in environment().items())
        + f", commit {git_commit() or 'unknown'}",
    }


def _title(decodes: Sequence[Decode]) -> str:
    names = [decode.name.split("/") for decode in decodes]
    common = os.path.commonprefix([name[: max(1, len(name) - 1)] for name in names])
    return "/".join(common) or f"{len(names)} systems"


def _subtitle(views: Sequence[Mapping]) -> str:
    sets = sorted({view["set"] for view in views if view["set"]})
    utts = sum(len(view["ids"]) for view in views)
    return (
        f"{', '.join(sets) or 'Speech translation'} · {utts} utterances{f' in {len(views)} decodes' * (len(views) > 1)}"
    )


def _table_row(decode: Decode, system: int) -> dict:
    scores, control = decode.scores, decode.control or {}
    kept = {name: {k: v for k, v in scores[name].items() if k != "signature"} for name in _scored(decode)}
    speech, wall = scores.get("speech_seconds"), scores.get("decode_seconds")
    return {
        "system": system,
        "name": decode.name,
        "set": decode.set,
        "n": len(decode.ids),
        "scores": kept,
        "control": control.get(main_metric(decode), {}).get("score"),
        "rtf": wall / speech if wall and speech else None,
    }


def _scored(decode: Decode) -> list[str]:
    return [*decode.metrics, *(["COMET"] if "COMET" in decode.scores else [])]


def _signatures(decodes: Sequence[Decode]) -> list[list[str]]:
    found = {(name, decode.scores[name].get("signature", "")) for decode in decodes for name in _scored(decode)}
    return [[name, text] for name, text in sorted(found) if text]


def _view(pair: Sequence[Decode], folder: Path, buckets: str, embed: int, absolute: bool) -> dict:
    """One decode, alone or beside its partner, as columns over the utterances."""
    a = pair[0]
    for other in pair[1:]:
        same_set(a, other)
    wavs, source = audio_and_source(a)
    chrf = [[round(value, 2) for value in sentence_chrf(decode.hyps, decode.refs)] for decode in pair]
    return {
        "set": a.set,
        "metric": main_metric(a),
        "systems": [decode.name for decode in pair],
        "unspaced": base_language(a.tgt_lang) in UNSPACED_LANGUAGES,
        "ids": a.ids,
        "seconds": [round(value, 3) for value in a.seconds] if a.seconds else None,
        "ref": a.refs,
        "source": [source.get(utt, "") for utt in a.ids] if source else None,
        "hyps": [decode.hyps for decode in pair],
        "chrf": chrf,
        "audio": _audio(a, wavs, _first_shown(a.ids, chrf)[: max(embed, 0)], folder, absolute),
        "buckets": [_bucket_points(decode, buckets) for decode in pair],
        "tests": _tests(pair),
        "curves": [str(decode.folder.parent.parent) if decode.folder else None for decode in pair],
    }


def _first_shown(ids: Sequence[str], chrf: Sequence[Sequence[float]]) -> list[str]:
    """Utterances in the order in which the page first lists them: worst of one system, most changed of two."""
    keys = [-abs(b - a) for a, b in zip(*chrf, strict=True)] if len(chrf) > 1 else list(chrf[0])
    return [utt for _, _, utt in sorted(zip(keys, range(len(ids)), ids, strict=True))]


def _bucket_points(decode: Decode, buckets: str) -> list[dict]:
    """One point per bucket by duration: mean duration, score with its interval, number of utterances."""
    if not decode.seconds:
        return []
    name, seconds = main_metric(decode), dict(zip(decode.ids, decode.seconds, strict=True))
    parts = duration_buckets(decode.ids, seconds, bucket_edges_of(buckets, decode.seconds))
    hyps = dict(zip(decode.ids, decode.hyps, strict=True))
    refs = [dict(zip(decode.ids, ref, strict=True)) for ref in decode.refs]
    scores = score_buckets(name, hyps, refs, parts, tgt_lang=decode.tgt_lang, tokenize=decode.tokenize)
    points = []
    for bucket, ids in parts.items():
        if name in scores[bucket]:
            low, high = scores[bucket]["ci95"]
            mean = sum(seconds[utt] for utt in ids) / len(ids)
            score = {"y": scores[bucket][name], "low": low, "high": high}
            points.append({"x": round(mean, 3), "note": f"({bucket}, n = {len(ids)})", **score})
    return points


def _tests(pair: Sequence[Decode]) -> dict:
    """The paired tests of the main metric of two systems; its p is null where they wrote the same."""
    if len(pair) < 2:
        return {}
    a, b = pair
    name = main_metric(a)
    result = paired_test(name, (a.hyps, b.hyps), a.refs, a.tgt_lang, tokenize=a.tokenize)
    return {name: {**result, "verdict": verdict(name, result)}}


def _audio(decode: Decode, wavs: Mapping[str, str], embedded: Sequence[str], folder: Path, absolute: bool) -> list[str]:
    """Per utterance a data URL, a link to a file that browsers play, or an empty string."""
    inside = set(embedded)
    return [_audio_url(decode, wavs.get(utt, ""), utt in inside, folder, absolute) for utt in decode.ids]


def _audio_url(decode: Decode, source: str, embed: bool, folder: Path, absolute: bool) -> str:
    if not source:
        return ""
    path = source if os.path.isabs(source) else os.path.join(decode.recipe, source)
    kind = PLAYABLE.get(Path(path).suffix.lower())
    try:
        if embed:
            return _data_url(path, kind)
        if kind and os.path.exists(path):
            return quote(os.path.abspath(path) if absolute else os.path.relpath(path, folder))
    except (AudioError, OSError):
        return ""
    return ""


def _data_url(path: str, kind: str | None) -> str:
    if kind:
        content = Path(path).read_bytes()
    else:  # in an archive, or of a format that browsers do not know
        kind, buffer = "audio/flac", BytesIO()
        with open_audio(path) as file:
            soundfile.write(buffer, read_mono(file), file.samplerate, format="FLAC")
        content = buffer.getvalue()
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def render_page(data: Mapping) -> str:
    """The page as HTML, whole in itself but for linked audio."""
    page = files("espnet_llmst.scoring") / "page"
    text = {part: (page / f"report.{part}").read_text(encoding="utf-8") for part in ("html", "css", "js")}
    digest = base64.b64encode(hashlib.sha256(f"\n{text['js']}".encode()).digest()).decode()
    policy = "; ".join(
        [
            "default-src 'none'",
            "style-src 'unsafe-inline'",
            f"script-src 'sha256-{digest}'",
            "media-src 'self' data: file:",
        ]
    )
    # inside a script element only "<" can end it or begin a comment
    content = json.dumps(data, ensure_ascii=False, separators=(",", ":")).replace("<", "\\u003c")
    values = {"policy": policy, "title": html.escape(data["title"]), "style": text["css"], "script": text["js"]}
    return Template(text["html"]).substitute(values, data=content)


def missing_audio(data: Mapping) -> int:
    """Utterances for which the page has no audio, over all its decodes."""
    return sum(not url for view in data["views"] for url in view["audio"])
