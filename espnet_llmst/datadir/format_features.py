"""Formats a data directory of Kaldi features: normalised by speaker, checked, bad utterances filtered out.

Input: feats.scp (`<utterance> <archive>:<byte>`, no wav.scp) and, where means and variances are to be
normalised, cmvn.scp (`<speaker> <archive>:<byte>`). Output: feats.scp of archives under data/, text*, utt2spk,
spk2utt, utt2* as they were, utt2num_frames, utt2num_samples (16 kHz, as much speech as the frames cover),
feats_type, dropped.tsv, .done.

Shapes: T frames, M features of a frame.
"""

import hashlib
import json
import os
import re
import struct
import sys
from collections import Counter
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
from kaldiio.matio import read_matrix_or_vector, write_array

from espnet_llmst.cli import InputError
from espnet_llmst.datadir.audio import AudioError
from espnet_llmst.datadir.clean import clean_text
from espnet_llmst.datadir.jobs import finished_summary, mark_finished, run_jobs, table_stamps
from espnet_llmst.datadir.kaldi import atomic_write, read_table, text_files, write_tsv
from espnet_llmst.datadir.transform import Tables, read_data_dir, replace_data_dir, restrict, without_audio

FRAME_SAMPLES, SHIFT_SAMPLES = 400, 160  # Kaldi's 25 and 10 ms at 16 kHz
SAMPLE_RATE = 16000
_AT_ONCE = 2000  # utterances of one archive
_TWO_BYTES = 3  # kaldiio's number for matrices of 16-bit values: half the size, errors below 1e-3
# Kinds of matrices in an archive: where their sizes stand, in what form, bytes for each column and each value.
_LAYOUTS = {
    b"CM": (13, "<ii", 8, 1),
    b"CM2": (14, "<ii", 0, 2),
    b"CM3": (14, "<ii", 0, 1),
    b"FM": (5, "<xixi", 0, 4),
    b"DM": (5, "<xixi", 0, 8),
}
_VERSION = 1  # raise it when the same input is to be formatted anew


class Made(NamedTuple):
    """One utterance's outcome: its place and size, or the reason why it has none."""

    utt: str
    place: str = ""
    frames: int = 0
    features: int = 0
    reason: str = ""
    detail: str = ""


class Wanted(NamedTuple):
    """One utterance's features, and the statistics of its speaker ("" for none)."""

    utt: str
    feats: str
    cmvn: str


def samples_of(frames: int) -> int:
    """Samples at 16 kHz that so many frames cover."""
    return FRAME_SAMPLES + (frames - 1) * SHIFT_SAMPLES if frames else 0


# ---- archives


def split_place(place: str) -> tuple[str, int]:
    """(file, byte) of ``<archive>:<byte>``.

    Raises:
        AudioError: unreadable_features, for a command or a file without a byte.
    """
    match = re.fullmatch(r"([^|].*):(\d+)", place)
    if not match:
        raise AudioError("unreadable_features", f"{place}: is not <archive>:<byte>")
    return match[1], int(match[2])


def matrix_shape(file: BinaryIO, offset: int) -> tuple[int, int, int]:
    """(rows, columns, end) of the matrix that begins at a byte of an archive; end is the byte behind it.

    Raises:
        AudioError: unreadable_features: no Kaldi matrix begins there.
    """
    file.seek(offset)
    head = file.read(24)
    kind = head[2:].partition(b" ")[0]
    start, sizes, of_column, of_value = _LAYOUTS.get(kind, (len(head) + 1, "", 0, 0))
    if head[:2] != b"\0B" or len(head) < start + struct.calcsize(sizes):
        raise AudioError("unreadable_features", f"{file.name}:{offset}: no Kaldi matrix begins there")
    rows, columns = struct.unpack_from(sizes, head, start)
    body = offset + start + struct.calcsize(sizes)
    return rows, columns, body + of_column * columns + of_value * rows * columns


def read_matrix(place: str) -> np.ndarray:
    """A matrix (T, M) as float64, from ``<archive>:<byte>``.

    Raises:
        AudioError: missing_features, empty_features or unreadable_features.
    """
    path, offset = split_place(place)
    try:
        with open(path, "rb") as file:
            rows, columns, end = matrix_shape(file, offset)
            if end > os.fstat(file.fileno()).st_size:
                raise AudioError("unreadable_features", f"{place}: the archive is cut off before byte {end}")
            if rows < 1 or columns < 1:
                raise AudioError("empty_features", f"{place}: {rows} frames of {columns} features")
            file.seek(offset)
            matrix = read_matrix_or_vector(file).astype(np.float64)
    except OSError as error:
        raise AudioError("missing_features", f"{path}: {error.strerror}") from None
    if not np.isfinite(matrix).all():
        raise AudioError("unreadable_features", f"{place}: not all features are finite numbers")
    return matrix


def apply_cmvn(feats_TM: np.ndarray, stats: np.ndarray) -> np.ndarray:
    """Features with mean 0 and variance 1 by a speaker's statistics.

    Args:
        feats_TM: features.
        stats: Kaldi's (2, M + 1): sums and the number of frames; sums of squares.
    Raises:
        AudioError: bad_cmvn: they are of other features, or of no frame.
    """
    if stats.shape != (2, feats_TM.shape[1] + 1) or stats[0, -1] < 1:
        raise AudioError("bad_cmvn", f"statistics of shape {stats.shape} for {feats_TM.shape[1]} features")
    mean_M = stats[0, :-1] / stats[0, -1]
    variance_M = stats[1, :-1] / stats[0, -1] - mean_M**2
    return (feats_TM - mean_M) / np.sqrt(np.maximum(variance_M, 1e-10))


# ---- formatting


def format_feature_dir(
    in_dir: str | Path,
    out_dir: str | Path,
    *,
    min_duration: float = 0.1,
    max_duration: float = 30.0,
    drop: bool = True,
    langs: Sequence[str] | None = None,
    nj: int = 1,
    force: bool = False,
) -> dict:
    """Write in_dir as out_dir with normalised features, without its bad utterances. Skips what is already done.

    Args:
        in_dir: data directory with feats.scp; without cmvn.scp features stay as they are.
        out_dir: another directory.
        min_duration, max_duration, drop, langs, nj, force: as of `format_audio.format_data_dir`.
    Returns:
        {"utterances", "seconds", "dropped", "reasons": {reason: count}, "clamped": 0}
    Raises:
        InputError: a broken table (duplicate ids, missing file), an unknown language, nothing left.
    """
    in_dir, out_dir = Path(in_dir), Path(out_dir)
    if in_dir.resolve() == out_dir.resolve():
        raise InputError(f"{out_dir}: is the input directory itself; choose another --out_dir")
    bounds = (min_duration, max_duration) if drop else (0.0, float("inf"))
    cmvn = read_table(in_dir / "cmvn.scp") if (in_dir / "cmvn.scp").is_file() else None
    key = hashlib.sha1(repr(cmvn).encode()).hexdigest()
    wanted = None if langs is None else sorted(langs)
    settings = {"version": _VERSION, "bounds": list(bounds), "drop": drop, "langs": wanted, "cmvn": key}
    settings["tables"] = table_stamps(in_dir)
    done = None if force else finished_summary(out_dir, settings)
    if done is not None:
        return done
    (out_dir / ".done").unlink(missing_ok=True)
    tables = read_data_dir(in_dir)
    if "feats.scp" not in tables:
        raise InputError(f"{in_dir}/feats.scp: missing; prepare the directory again (stage 1)")
    made = _check_tables(in_dir, tables, langs, drop)
    made += _format_all(in_dir, out_dir, tables, cmvn, {item.utt for item in made}, nj, force)
    summary = _write(out_dir, tables, [_in_bounds(item, *bounds) for item in made], loud=not drop)
    mark_finished(out_dir, settings, summary)
    return summary


def _check_tables(in_dir: Path, tables: Tables, langs: Sequence[str] | None, drop: bool) -> list[Made]:
    """The utterances that lack features, a speaker or a text."""
    texts = {lang: tables[path.name] for lang, path in text_files(in_dir).items() if langs is None or lang in langs}
    missing = sorted(set(langs or ()) - set(texts))
    if missing:
        raise InputError(f"{in_dir}: no text.tc.{missing[0]}; prepare it, or leave {missing[0]} out of --langs")
    bad = []
    for utt in sorted(set(tables["feats.scp"]).union(tables["utt2spk"], *texts.values())):
        reasons = [f"missing_text.{lang}" for lang, text in texts.items() if utt not in text]
        if drop:
            reasons += [f"empty_text.{lang}" for lang, text in texts.items() if not clean_text(text.get(utt, "x"))]
        if utt not in tables["feats.scp"]:
            reasons.insert(0, "missing_features")
        if utt not in tables["utt2spk"]:
            reasons.append("missing_speaker")
        if reasons:
            bad.append(Made(utt, reason=reasons[0], detail=f"not in {in_dir}" if "missing" in reasons[0] else ""))
    return bad


def _format_all(
    in_dir: Path, out_dir: Path, tables: Tables, cmvn: dict[str, str] | None, skip: set[str], nj: int, force: bool
) -> list[Made]:
    """Normalise and write the features of all utterances but ``skip``, several archives at a time."""
    wanted, bad = [], []
    for utt, place in tables["feats.scp"].items():
        speaker = tables["utt2spk"].get(utt, "")
        if utt in skip:
            continue
        if cmvn is not None and speaker not in cmvn:
            bad.append(Made(utt, reason="missing_cmvn", detail=f"{speaker} is not in {in_dir}/cmvn.scp"))
        else:
            wanted.append(Wanted(utt, place, "" if cmvn is None else cmvn[speaker]))
    wanted.sort(key=lambda one: (*_reading_order(one.feats), one.utt))
    shards = [wanted[i : i + _AT_ONCE] for i in range(0, len(wanted), _AT_ONCE)]
    used = set()
    for name, made in run_jobs(partial(format_shard, out_dir / "data", not force), shards, nj, str(in_dir)):
        used.add(name)
        bad += made
    for path in (out_dir / "data").glob("*.*"):
        if path.stem not in used:
            path.unlink()  # of an earlier run
    return bad


def _reading_order(place: str) -> tuple[str, int]:
    path, _, offset = place.rpartition(":")
    return (path, int(offset)) if offset.isdigit() else (place, 0)


def format_shard(folder: Path, reuse: bool, shard: Sequence[Wanted]) -> tuple[str, list[Made]]:
    """Write one archive of normalised features; a finished one of the same input is kept.

    Returns:
        the archive's name without suffix, and what became of each utterance.
    """
    archives = sorted({_reading_order(place)[0] for one in shard for place in (one.feats, one.cmvn)})
    stamps = [(os.stat(path).st_size, os.stat(path).st_mtime_ns) for path in archives if os.path.isfile(path)]
    name = hashlib.sha1(repr((_VERSION, shard, stamps)).encode()).hexdigest()
    archive, index = folder / f"{name}.ark", folder / f"{name}.json"
    if reuse and archive.exists() and index.exists():
        return name, [Made(*row) for row in json.loads(index.read_text(encoding="utf-8"))]
    with atomic_write(archive, binary=True) as file:
        made = [_format_one(file, archive, one) for one in shard]
    with atomic_write(index) as file:
        json.dump(made, file)
    return name, made


def _format_one(file: BinaryIO, archive: Path, one: Wanted) -> Made:
    try:
        feats_TM = read_matrix(one.feats)
        if one.cmvn:
            feats_TM = apply_cmvn(feats_TM, read_matrix(one.cmvn))
    except AudioError as error:
        return Made(one.utt, reason=error.reason, detail=error.detail)
    file.write(f"{one.utt} ".encode())
    place = f"{archive.absolute()}:{file.tell()}"
    write_array(file, feats_TM.astype(np.float32), compression_method=_TWO_BYTES)
    return Made(one.utt, place, *feats_TM.shape)


def _in_bounds(item: Made, shortest: float, longest: float) -> Made:
    seconds = samples_of(item.frames) / SAMPLE_RATE
    if item.reason or shortest <= seconds <= longest:
        return item
    if seconds < shortest:
        return Made(item.utt, reason="too_short", detail=f"{seconds:.3f} s, less than {shortest:g} s")
    return Made(item.utt, reason="too_long", detail=f"{seconds:.3f} s, more than {longest:g} s")


def _write(out_dir: Path, tables: Tables, made: list[Made], loud: bool) -> dict:
    dropped = sorted(item for item in made if item.reason)
    kept = sorted(item for item in made if not item.reason)
    rows = [(item.utt, item.reason, item.detail) for item in dropped]
    write_tsv(out_dir / "dropped.tsv", [("utt", "reason", "detail"), *rows])
    if not kept:
        first = f"e.g. {' '.join(rows[0])}" if rows else "it is empty"
        raise InputError(f"{out_dir}: no utterance left ({first}); see {out_dir}/dropped.tsv and correct the input")
    for item in kept:
        if item.features != kept[0].features:
            sizes = f"{kept[0].utt} has {kept[0].features} features a frame, {item.utt} has {item.features}"
            raise InputError(f"{out_dir}: {sizes}; make the features of all in the same way")
    if loud:
        for utt, reason, detail in rows:
            print(f"WARNING: {out_dir}: lost {utt}: {reason} {detail}", file=sys.stderr)
    result = restrict(without_audio(tables), {item.utt for item in kept})
    result["feats.scp"] = {item.utt: item.place for item in kept}
    result["utt2num_frames"] = {item.utt: str(item.frames) for item in kept}
    result["utt2num_samples"] = {item.utt: str(samples_of(item.frames)) for item in kept}
    replace_data_dir(out_dir, result)
    with atomic_write(out_dir / "feats_type") as file:
        file.write("kaldi\n")
    return {
        "utterances": len(kept),
        "seconds": round(sum(samples_of(item.frames) for item in kept) / SAMPLE_RATE, 2),
        "dropped": len(dropped),
        "reasons": dict(Counter(item.reason for item in dropped).most_common()),
        "clamped": 0,
    }
