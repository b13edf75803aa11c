"""What the preparations of all corpora share: items are checked, bad ones named, data directories written whole."""

import json
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from espnet_llmst.cli import InputError
from espnet_llmst.datadir.audio import AudioError, open_audio, read_mono
from espnet_llmst.datadir.clean import clean_text
from espnet_llmst.datadir.jobs import file_stamp, finished_summary, mark_finished, run_jobs
from espnet_llmst.datadir.kaldi import left_behind, write_tsv
from espnet_llmst.datadir.segments import Cut, frame_range
from espnet_llmst.datadir.transform import Tables, replace_data_dir

_VERSION = 2  # raise it when the same input is to be prepared anew


class Item(NamedTuple):
    """An utterance as its corpus has it.

    ``audio`` is a path; ``texts`` maps languages to texts. Where utterances are parts of longer recordings,
    each has its ``recording`` (an id) with ``start`` and ``end`` in seconds.
    """

    utt: str
    speaker: str
    lang: str
    audio: str
    texts: dict[str, str]
    recording: str = ""
    start: float = 0.0
    end: float | None = None


class Dropped(NamedTuple):
    """An utterance left out: a word for the reason, and what a person wants to know."""

    utt: str
    reason: str
    detail: str = ""


class Probe(NamedTuple):
    """What opening an audio file told: its length, or why it cannot be used."""

    frames: int = 0
    rate: int = 1
    reason: str = ""
    detail: str = ""


def prepare_set(
    set_dir: str | Path,
    read: Callable[[], tuple[list[Item], list[Dropped]]],
    inputs: Sequence[Path],
    *,
    whole: bool,
    nj: int = 1,
    force: bool = False,
    settings: dict | None = None,
) -> dict:
    """Write one data directory, or skip it when it was made of the same input.

    Texts are cleaned here (`clean_text`), audio files opened, segments that overshoot their audio clamped.

    Args:
        set_dir: where it goes: wav.scp [segments] text.tc.<lang>... utt2spk spk2utt utt2lang, dropped.tsv,
            clamped.tsv and the mark .done.
        read: gives the items, and those it had to leave out itself; called when there is something to do.
        inputs: tables (or folders) that the items come from. When one changes, or audio that could not be used
            does, the set is made again.
        whole: a test set: an utterance is left out only if its audio cannot be used, and then loudly.
        nj: processes that open audio.
        force: make it in any case.
        settings: more that the items depend on, as JSON can hold it.
    Returns:
        ``{"utterances", "hours", "dropped", "reasons": {reason: count}, "clamped"}``
    Raises:
        InputError: an input is missing, duplicate ids, a recording of two files, or nothing usable.
    """
    set_dir = Path(set_dir)
    key = {"version": _VERSION, "whole": whole, "settings": settings or {}, "inputs": [_input_stamp(p) for p in inputs]}
    key = json.loads(json.dumps(key))  # as it is read back: tuples become lists
    if not force and (done := finished_summary(set_dir, key)) is not None:
        return done
    for path in (set_dir / ".done", *left_behind(set_dir)):
        path.unlink(missing_ok=True)
    items, dropped = read()
    items = [item._replace(texts={lang: clean_text(text) for lang, text in item.texts.items()}) for item in items]
    _check_ids(set_dir, items)
    audio = {item.utt: item.audio for item in items}
    if not whole:
        items, empty = drop_empty(items)
        dropped = dropped + empty
    items, unusable, clamped = check_audio(items, nj, str(set_dir), whole)
    lost = {audio[item.utt] for item in unusable}  # to be looked at again by a later run
    dropped = sorted(dropped + unusable)
    write_tsv(set_dir / "dropped.tsv", [("utt", "reason", "detail"), *dropped])
    write_tsv(set_dir / "clamped.tsv", [("utt", "detail"), *sorted(clamped)])
    if not items:
        first = f"e.g. {dropped[0].utt}: {dropped[0].reason} {dropped[0].detail}" if dropped else "its tables are empty"
        raise InputError(f"{set_dir}: no utterance left ({first}); see {set_dir}/dropped.tsv and complete the corpus")
    for item in dropped if whole else ():
        print(f"WARNING: {set_dir}: lost {item.utt}: {item.reason} {item.detail}", file=sys.stderr)
    _write_tables(set_dir, items)
    summary = _summary(items, dropped, len(clamped))
    mark_finished(set_dir, key, summary, lost)
    return summary


def _summary(items: list[Item], dropped: list[Dropped], clamped: int) -> dict:
    return {
        "utterances": len(items),
        "hours": round(sum(item.end - item.start for item in items) / 3600, 3),
        "dropped": len(dropped),
        "reasons": dict(Counter(item.reason for item in dropped).most_common()),
        "clamped": clamped,
    }


def _input_stamp(path: Path) -> list:
    stamp = file_stamp(path)
    if stamp is None:
        raise InputError(f"{path}: no such file or folder; unpack the corpus again")
    return [str(path), *stamp]


def _check_ids(set_dir: Path, items: list[Item]) -> None:
    for utt, count in Counter(item.utt for item in items).items():
        if count > 1:
            raise InputError(f"{set_dir}: utterance id {utt} occurs {count} times in the corpus; keep one of them")


def drop_empty(items: list[Item]) -> tuple[list[Item], list[Dropped]]:
    """Items all of whose texts are there, and the others as ``empty_text.<lang>``."""
    kept, dropped = [], []
    for item in items:
        empty = sorted(lang for lang, text in item.texts.items() if not text)
        if empty:
            dropped.append(Dropped(item.utt, f"empty_text.{empty[0]}"))
        else:
            kept.append(item)
    return kept, dropped


def probe_audio(path: str) -> Probe:
    """Open an audio file and decode its first and last tenth of a second; never raises for bad audio."""
    try:
        with open_audio(path) as file:
            if file.frames == 0:
                return Probe(reason="empty_audio", detail=f"{path}: no samples")
            some = min(file.frames, file.samplerate // 10)
            read_mono(file, 0, some)
            read_mono(file, file.frames - some, some)
            return Probe(file.frames, file.samplerate)
    except AudioError as error:
        return Probe(reason=error.reason, detail=error.detail if path in error.detail else f"{path}: {error.detail}")


def check_audio(
    items: list[Item], nj: int, what: str, whole: bool
) -> tuple[list[Item], list[Dropped], list[tuple[str, str]]]:
    """Items with their real ``start`` and ``end``, those without usable audio, and (utt, detail) of clamped ones.

    A segment most of which lies outside its audio has the text of much more than is heard: only a test set keeps it.
    """
    paths = list(dict.fromkeys(item.audio for item in items))
    probes = dict(zip(paths, run_jobs(probe_audio, paths, nj, what), strict=True))
    kept, dropped, clamped = [], [], []
    for item in items:
        probe = probes[item.audio]
        try:
            if probe.reason:
                raise AudioError(probe.reason, probe.detail)
            first, last, overshoot = frame_range(Cut(item.utt, item.start, item.end), probe.rate, probe.frames)
            if overshoot and not whole and (last - first) / probe.rate < 0.5 * (item.end - item.start):
                raise AudioError("segment_outside_audio", f"more than half of it: {overshoot}")
        except AudioError as error:
            dropped.append(Dropped(item.utt, error.reason, error.detail))
            continue
        if overshoot:
            clamped.append((item.utt, overshoot))
        kept.append(item._replace(start=first / probe.rate, end=last / probe.rate))
    return kept, dropped, clamped


def _write_tables(set_dir: Path, items: list[Item]) -> None:
    tables: Tables = {"utt2spk": {}, "utt2lang": {}, "wav.scp": {}}
    for item in items:
        tables["utt2spk"][item.utt] = item.speaker
        tables["utt2lang"][item.utt] = item.lang
        for lang, text in item.texts.items():
            tables.setdefault(f"text.tc.{lang}", {})[item.utt] = text
        if item.recording:
            tables.setdefault("segments", {})[item.utt] = (
                f"{item.recording} {_seconds(item.start)} {_seconds(item.end)}"
            )
        recording = item.recording or item.utt
        if tables["wav.scp"].setdefault(recording, item.audio) != item.audio:
            both = f"{tables['wav.scp'][recording]} and {item.audio}"
            raise InputError(f"{set_dir}: recording {recording} is both {both}; give them different names")
    replace_data_dir(set_dir, tables)


def _seconds(time: float) -> str:
    return f"{time:.6f}".rstrip("0").rstrip(".")


def compare_counts(name: str, found: int, published: dict[str, int]) -> str:
    """A line that says which published release a set's number of utterances is that of, or how far it is off."""
    same = [release for release, count in published.items() if count == found]
    if same:
        return f"{name}: {found} utterances, as published ({', '.join(same)})"
    if not published:
        return f"{name}: {found} utterances (no published number is known)"
    release, count = min(published.items(), key=lambda pair: abs(pair[1] - found))
    return f"{name}: {found} utterances, {found - count:+d} against the published {count} ({release})"
