"""Formats a data directory: one mono 16-bit audio file per utterance, bad utterances filtered out.

Output: wav.scp, text*, utt2spk, spk2utt, utt2* as they were, utt2num_samples, feats_type, data/ (audio),
dropped.tsv (utterances left out, and why), clamped.tsv (segments that overshot their recording), .done.
"""

import os
import sys
from collections import Counter
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import soundfile

from espnet_llmst.cli import InputError
from espnet_llmst.datadir.audio import (
    AudioError,
    audio_path,
    fingerprint,
    length_if_made_from,
    open_audio,
    read_mono,
    resample,
    write_audio,
)
from espnet_llmst.datadir.jobs import finished_summary, mark_finished, run_jobs, table_stamps
from espnet_llmst.datadir.kaldi import atomic_write, text_files, write_tsv
from espnet_llmst.datadir.segments import Cut, Source, audio_of, frame_range, sources_of
from espnet_llmst.datadir.transform import Tables, read_data_dir, replace_data_dir, restrict, without_audio


class Target(NamedTuple):
    """What formatted audio must be."""

    folder: Path
    fs: int
    audio_format: str
    min_duration: float
    max_duration: float
    reuse: bool


class Made(NamedTuple):
    """One utterance's outcome: a path and its samples, or the reason why there is none."""

    utt: str
    path: str = ""
    samples: int = 0
    reason: str = ""
    detail: str = ""
    clamped: str = ""


def format_data_dir(
    in_dir: str | Path,
    out_dir: str | Path,
    *,
    fs: int = 16000,
    audio_format: str = "flac",
    min_duration: float = 0.1,
    max_duration: float = 30.0,
    drop: bool = True,
    langs: Sequence[str] | None = None,
    nj: int = 1,
    force: bool = False,
) -> dict:
    """Write in_dir as out_dir with uniform audio, without its bad utterances. Skips what is already done.

    Args:
        in_dir: Kaldi data directory; wav.scp may name wav, flac, mp3, ogg files or `file.ark:offset`.
        out_dir: another directory; its audio goes to out_dir/data, unless a file already is as wanted.
        fs: sampling rate in Hz.
        audio_format: "flac" or "wav".
        min_duration, max_duration: bounds in seconds, both allowed themselves.
        drop: leave out utterances too short, too long, or with empty text (training). False (test sets) keeps
            these, and tells on stderr of each that has to go since its audio or a text does not exist.
        langs: languages whose text every utterance needs; None for all that in_dir has (`text_files`).
        nj: number of processes.
        force: make everything again.
    Returns:
        {"utterances", "seconds", "dropped", "reasons": {reason: count}, "clamped"}
    Raises:
        InputError: a broken table (duplicate ids, missing file), an unknown language, nothing left.
    """
    in_dir, out_dir = Path(in_dir), Path(out_dir)
    if audio_format not in ("flac", "wav"):
        raise InputError(f"--audio_format {audio_format}: must be flac or wav")
    if in_dir.resolve() == out_dir.resolve():
        raise InputError(f"{out_dir}: is the input directory itself; choose another --out_dir")
    bounds = (min_duration, max_duration) if drop else (0.0, float("inf"))
    wanted = None if langs is None else sorted(langs)
    settings = {"fs": fs, "format": audio_format, "bounds": list(bounds), "drop": drop, "langs": wanted}
    settings["tables"] = table_stamps(in_dir)
    done = None if force else finished_summary(out_dir, settings)
    if done is not None:
        return done
    (out_dir / ".done").unlink(missing_ok=True)
    tables = read_data_dir(in_dir)
    if "wav.scp" not in tables:
        raise InputError(f"{in_dir}/wav.scp: missing; prepare the directory again (stage 1)")
    target = Target(out_dir / "data", fs, audio_format, *bounds, reuse=not force)
    made = _check_texts(in_dir, tables, langs, drop)
    sources, orphans = sources_of(in_dir, tables)
    made += _format_sources(in_dir, sources, orphans, target, {item.utt for item in made}, nj)
    summary = _write(out_dir, tables, made, fs, loud=not drop)
    mark_finished(out_dir, settings, summary, audio_of(sources, [item.utt for item in made if item.reason]))
    return summary


def _check_texts(in_dir: Path, tables: Tables, langs: Sequence[str] | None, drop: bool) -> list[Made]:
    """The utterances that lack a speaker, a text, or audio altogether."""
    texts = {lang: path.name for lang, path in text_files(in_dir).items()}
    missing = sorted(set(langs or ()) - set(texts))
    if missing:
        raise InputError(f"{in_dir}: no text.tc.{missing[0]}; prepare it, or leave {missing[0]} out of --langs")
    wanted = {lang: tables[name] for lang, name in texts.items() if langs is None or lang in langs}
    audio = tables.get("segments", tables["wav.scp"])
    bad = []
    for utt in sorted(set(audio).union(tables["utt2spk"], *wanted.values())):
        reasons = [f"missing_text.{lang}" for lang, text in wanted.items() if utt not in text]
        if drop:
            reasons += [f"empty_text.{lang}" for lang, text in wanted.items() if _is_blank(text.get(utt, "x"))]
        if utt not in audio:
            reasons.insert(0, "missing_audio")
        if utt not in tables["utt2spk"]:
            reasons.append("missing_speaker")
        if reasons:
            bad.append(Made(utt, reason=reasons[0], detail=f"not in {in_dir}" if "missing" in reasons[0] else ""))
    return bad


def _is_blank(text: str) -> bool:
    # Zero-width characters and the like are not printable.
    return not any(character.isprintable() and not character.isspace() for character in text)


def _format_sources(
    in_dir: Path, sources: list[Source], orphans: list[str], target: Target, skip: set[str], nj: int
) -> list[Made]:
    made = [Made(utt, reason="missing_audio", detail="its recording is not in wav.scp") for utt in orphans]
    wanted = [Source(audio, [cut for cut in cuts if cut.utt not in skip]) for audio, cuts in sources]
    wanted = [source for source in wanted if source.cuts]
    for several in run_jobs(partial(format_source, target), wanted, nj, str(in_dir)):
        made += several
    return [item for item in made if item.utt not in skip]


def format_source(target: Target, source: Source) -> list[Made]:
    """Make the audio of every utterance cut from one source; what fails is returned with its reason."""
    try:
        with open_audio(source.audio) as file:
            return [_format_cut(target, source.audio, file, cut) for cut in source.cuts]
    except AudioError as error:
        return [Made(cut.utt, reason=error.reason, detail=error.detail) for cut in source.cuts]


def _format_cut(target: Target, audio: str, file: soundfile.SoundFile, cut: Cut) -> Made:
    try:
        first, last, clamped = frame_range(cut, file.samplerate, file.frames)
        _check_duration((last - first) / file.samplerate, target)
        if (first, last) == (0, file.frames) and _is_as_wanted(file, target):
            samples = len(read_mono(file))  # decoded once, to know that it can be
            return Made(cut.utt, os.path.abspath(audio), samples, clamped=clamped)
        path = audio_path(target.folder, cut.utt, target.audio_format)
        made_from = fingerprint(os.path.abspath(audio), first, last, target.fs)
        samples = length_if_made_from(path, made_from) if target.reuse else None
        if samples is None:
            mono = read_mono(file, first, last - first)
            _check_duration(len(mono) / file.samplerate, target)
            mono = resample(mono, file.samplerate, target.fs)
            samples = len(mono)
            if samples == 0:
                raise AudioError("empty_audio", f"less than one sample at {target.fs} Hz")
            write_audio(path, mono, target.fs, made_from)
        return Made(cut.utt, str(path), samples, clamped=clamped)
    except AudioError as error:
        return Made(cut.utt, reason=error.reason, detail=f"{audio}: {error.detail}")


def _is_as_wanted(file: soundfile.SoundFile, target: Target) -> bool:
    wanted = (target.audio_format.upper(), "PCM_16", target.fs, 1)
    # An archive or completed MP3 is opened from memory and has no name to refer to.
    return isinstance(file.name, str) and (file.format, file.subtype, file.samplerate, file.channels) == wanted


def _check_duration(seconds: float, target: Target) -> None:
    if seconds < target.min_duration:
        raise AudioError("too_short", f"{seconds:.3f} s, less than {target.min_duration:g} s")
    if seconds > target.max_duration:
        raise AudioError("too_long", f"{seconds:.3f} s, more than {target.max_duration:g} s")


def _write(out_dir: Path, tables: Tables, made: list[Made], fs: int, loud: bool) -> dict:
    dropped = sorted(item for item in made if item.reason)
    kept = sorted(item for item in made if not item.reason)
    clamped = [item for item in kept if item.clamped]
    write_tsv(
        out_dir / "dropped.tsv",
        [("utt", "reason", "detail"), *((item.utt, item.reason, item.detail) for item in dropped)],
    )
    write_tsv(out_dir / "clamped.tsv", [("utt", "detail"), *((item.utt, item.clamped) for item in clamped)])
    if not kept:
        first = f"e.g. {dropped[0].utt}: {dropped[0].reason} {dropped[0].detail}" if dropped else "it is empty"
        raise InputError(f"{out_dir}: no utterance left ({first}); see {out_dir}/dropped.tsv and correct the input")
    if loud:
        for item in dropped:
            print(f"WARNING: {out_dir}: lost {item.utt}: {item.reason} {item.detail}", file=sys.stderr)
    _write_tables(out_dir, tables, kept)
    return {
        "utterances": len(kept),
        "seconds": round(sum(item.samples for item in kept) / fs, 2),
        "dropped": len(dropped),
        "reasons": dict(Counter(item.reason for item in dropped).most_common()),
        "clamped": len(clamped),
    }


def _write_tables(out_dir: Path, tables: Tables, kept: list[Made]) -> None:
    result = restrict(without_audio(tables), {item.utt for item in kept})
    result["wav.scp"] = {item.utt: item.path for item in kept}
    result["utt2num_samples"] = {item.utt: str(item.samples) for item in kept}
    replace_data_dir(out_dir, result)
    with atomic_write(out_dir / "feats_type") as file:
        file.write("raw\n")
