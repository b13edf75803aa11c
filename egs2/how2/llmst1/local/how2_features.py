"""How2's published features (40 filter banks and 3 pitch values, per frame of 10 ms) as data directories."""

import os
import sys
from collections import Counter
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import BinaryIO, NamedTuple

from how2_tables import FORM, PREFIX, VIDEO, Tables, read_split, stamp_of, walk

from espnet_llmst.cli import InputError
from espnet_llmst.datadir.audio import AudioError
from espnet_llmst.datadir.clean import clean_text
from espnet_llmst.datadir.corpus import Dropped, Item, drop_empty
from espnet_llmst.datadir.format_features import SAMPLE_RATE, matrix_shape, samples_of, split_place
from espnet_llmst.datadir.jobs import finished_summary, mark_finished
from espnet_llmst.datadir.kaldi import atomic_write, read_table, write_table, write_tsv
from espnet_llmst.datadir.transform import replace_data_dir

FEATURES = 43
_VERSION = 1  # raise it when the same input is to be prepared anew


class Entry(NamedTuple):
    """Where a matrix begins, and its rows."""

    place: str
    rows: int


def find_archives(folder: Path) -> dict[str, Path]:
    """The archives and their lists below a folder, by file name.

    Raises:
        InputError: there is no archive.
    """
    found: dict[str, Path] = {}
    for path in sorted(walk(folder)):
        if path.suffix in (".ark", ".scp") and path.parent.name not in ("train", "val", "dev5"):
            found.setdefault(path.name, path)
    if not any(name.endswith(".ark") for name in found):
        raise InputError(f"{folder}: no *.ark below; give --feats_dir, or ask for the features with {FORM}")
    return found


def prepare_features(
    set_dir: Path, tables: Tables, archives: dict[str, Path], place: Path, whole: bool, force: bool
) -> dict:
    """Write one set with feats.scp and cmvn.scp, or skip it when it was made of the same input.

    Every entry is looked up in its archive: its segment's name stands before it, it is whole, it has 43 columns.

    Args:
        set_dir: where it goes.
        tables: of the split.
        archives: what was found in ``place``.
        whole: a test set: utterances are left out only for their features, and loudly.
        force: make it in any case.
    Returns:
        as of `espnet_llmst.datadir.corpus.prepare_set`.
    Raises:
        InputError: an archive is missing, cut off, or not the one that the list was made for.
    """
    settings = {"version": _VERSION, "whole": whole, "archives": stamp_of([*archives.values(), *tables.values()])}
    done = None if force else finished_summary(set_dir, settings)
    if done is not None:
        return done
    (set_dir / ".done").unlink(missing_ok=True)
    segments, texts = read_split(tables)
    lists = {name: lists_of(name, tables, archives, place) for name in ("feats.scp", "cmvn.scp")}
    feats, bad = look_up(lists["feats.scp"], segments, archives, place, FEATURES)
    videos = {segment[:VIDEO] for segment in segments}
    cmvn, bad_cmvn = look_up(lists["cmvn.scp"], videos, archives, place, FEATURES + 1)
    items, dropped = [], []
    for segment in segments:
        video, utt = segment[:VIDEO], PREFIX + segment
        if segment not in feats:
            dropped.append(Dropped(utt, *bad[segment]))
        elif video not in cmvn:
            dropped.append(Dropped(utt, "missing_cmvn", bad_cmvn[video][1]))
        else:
            text = {lang: clean_text(of_lang[segment]) for lang, of_lang in texts.items()}
            items.append(Item(utt, PREFIX + video, "en", feats[segment].place, text))
    if not whole:
        items, empty = drop_empty(items)
        dropped += empty
    frames = {PREFIX + segment: entry.rows for segment, entry in feats.items()}
    statistics = {PREFIX + video: entry.place for video, entry in cmvn.items()}
    summary = write_set(set_dir, items, sorted(dropped), frames, statistics, whole)
    mark_finished(set_dir, settings, summary)
    return summary


def lists_of(name: str, tables: Tables, archives: dict[str, Path], place: Path) -> list[Path]:
    """The split's own list, or those that lie beside the archives.

    Raises:
        InputError: there is none.
    """
    if name in tables:
        return [tables[name]]
    start = {"feats.scp": "raw_", "cmvn.scp": "cmvn_"}[name]
    found = [path for file, path in archives.items() if file.startswith(start) and file.endswith(".scp")]
    if not found:
        raise InputError(f"{tables['segments'].parent}/{name}: missing, and no {start}*.scp below {place}")
    return found


def look_up(
    lists: Iterable[Path], wanted: Collection[str], archives: dict[str, Path], place: Path, columns: int
) -> tuple[dict[str, Entry], dict[str, tuple[str, str]]]:
    """The entries of what is wanted, and for what has none (reason, detail).

    Raises:
        InputError: an archive is missing, cut off, or holds something else where an entry should be.
    """
    where: dict[Path, list[tuple[int, str]]] = {}
    bad = dict.fromkeys(wanted, ("missing_features", f"not in {', '.join(map(str, lists))}"))
    for scp in lists:
        for key, value in read_table(scp).items():
            if key in bad:
                try:
                    path, offset = split_place(value)
                except AudioError as error:
                    bad[key] = (error.reason, error.detail)
                    continue
                where.setdefault(archive_of(path, key, scp, archives, place), []).append((offset, key))
    found = {}
    for archive, entries in where.items():
        with open(archive, "rb") as file:
            for offset, key in sorted(entries):
                try:
                    found[key] = Entry(f"{archive}:{offset}", read_size(file, offset, key, columns))
                    bad.pop(key, None)
                except AudioError as error:
                    bad[key] = (error.reason, error.detail)
    return found, bad


def archive_of(path: str, key: str, scp: Path, archives: dict[str, Path], place: Path) -> Path:
    """The archive that a list names, wherever it lies: lists as published have ``ARK_PATH`` for its folder."""
    if os.path.isabs(path) and os.path.isfile(path):
        return Path(path)
    name = os.path.basename(path)
    if name not in archives:
        raise InputError(f"{scp}: {key}: there is no {name} below {place}; fetch it, or give --feats_dir")
    return archives[name]


def read_size(file: BinaryIO, offset: int, key: str, columns: int) -> int:
    """Rows of the matrix of ``key``.

    Raises:
        AudioError: unreadable_features or empty_features.
        InputError: the archive ends before it, or another key stands there.
    """
    size = os.fstat(file.fileno()).st_size
    file.seek(max(0, offset - len(key) - 1))
    before = file.read(len(key) + 1)
    if offset < size and before != f"{key} ".encode():
        raise InputError(f"{file.name}: {before!r} stands before byte {offset}, not {key}: not the archive of its list")
    try:
        rows, found, end = matrix_shape(file, offset)
    except AudioError:
        if offset + 24 < size:  # not the end of a file that was cut off
            raise
        rows, found, end = 0, 0, offset + 24
    if end > size:
        raise InputError(f"{file.name}: ends at byte {size}, before the end of {key} ({end}): cut off; fetch it again")
    if found != columns:
        raise AudioError("unreadable_features", f"{file.name}:{offset}: {found} columns, not {columns}")
    if rows < 1:
        raise AudioError("empty_features", f"{file.name}:{offset}: no frames")
    return rows


def write_set(
    set_dir: Path,
    items: list[Item],
    dropped: list[Dropped],
    frames: dict[str, int],
    statistics: dict[str, str],
    whole: bool,
) -> dict:
    """Write the tables of a set; returns its summary."""
    write_tsv(set_dir / "dropped.tsv", [("utt", "reason", "detail"), *dropped])
    if not items:
        first = " ".join(dropped[0]) if dropped else "its tables are empty"
        raise InputError(f"{set_dir}: no utterance left (e.g. {first}); see {set_dir}/dropped.tsv")
    for lost in dropped if whole else []:
        print(f"WARNING: {set_dir}: lost {lost.utt}: {lost.reason} {lost.detail}", file=sys.stderr)
    result = {f"text.tc.{lang}": {item.utt: item.texts[lang] for item in items} for lang in items[0].texts}
    result["utt2spk"] = {item.utt: item.speaker for item in items}
    result["utt2lang"] = {item.utt: item.lang for item in items}
    result["feats.scp"] = {item.utt: item.audio for item in items}
    result["utt2num_frames"] = {item.utt: str(frames[item.utt]) for item in items}
    replace_data_dir(set_dir, result)
    write_table(set_dir / "cmvn.scp", {item.speaker: statistics[item.speaker] for item in items})
    with atomic_write(set_dir / "feats_type") as file:
        file.write("kaldi\n")
    seconds = sum(samples_of(frames[item.utt]) for item in items) / SAMPLE_RATE
    return {
        "utterances": len(items),
        "hours": round(seconds / 3600, 3),
        "dropped": len(dropped),
        "reasons": dict(Counter(item.reason for item in dropped).most_common()),
        "clamped": 0,
    }
