"""The tables of How2: where they are, and segments with their texts as dictionaries."""

import bz2
import hashlib
import os
from collections import Counter
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path

from espnet_llmst.cli import InputError
from espnet_llmst.datadir.kaldi import parse_segment, read_lines, read_table, split_line

VIDEO = 11  # characters of a video's name; both - and _ may stand anywhere in it
PREFIX = "how2_"  # of utterances and speakers, since a video's name may begin with -
FORM = "the form at github.com/srvk/how2-dataset"
HOW_TO_GET = {
    "en": f"ask for the English text with {FORM}, or run scripts/install.sh of that repository",
    "pt": f"ask for the 'translation package' with {FORM} and put translations.pt.bz2 into {{root}}",
}

Tables = dict[str, Path]  # what a split has: segments, id, text.en, ...
Texts = dict[str, dict[str, str]]  # language -> segment -> text


def find_root(corpus_dir: Path) -> Path:
    """The folder with ``data/``: the one given, or How2's own below it.

    Raises:
        InputError: there is none, or it is the 2000 h release.
    """
    for root in (corpus_dir, corpus_dir / "how2-300h-v1", corpus_dir / "reproduce/300h"):
        if any((root / "data" / split).is_dir() for split in ("train", "val", "dev5")):
            return root
        if (root / "data/tr_2000h_utt").is_dir():
            raise InputError(f"{root}: the 2000 h release has no Portuguese; give the 300 h one, how2-300h-v1")
    raise InputError(f"{corpus_dir}: no data/train, data/val, data/dev5 in it; give the folder how2-300h-v1")


def find_tables(root: Path, split: str) -> Tables:
    """The tables of a split, among them the text of both languages.

    Raises:
        InputError: one is missing; the message says how to get it.
    """
    folder = root / "data" / split
    names = ("segments", "id", "text.en", "text.id.en", "text.pt", "text.id.pt", "feats.scp", "cmvn.scp")
    tables = {name: folder / name for name in names if (folder / name).is_file()}
    if "segments" not in tables:
        raise InputError(f"{folder}/segments: missing; ask for the English text, it comes along, with {FORM}")
    for lang in ("en", "pt"):
        if f"text.id.{lang}" in tables or f"text.{lang}" in tables:
            if f"text.id.{lang}" not in tables and "id" not in tables:
                raise InputError(f"{folder}/id: missing, and {tables[f'text.{lang}']} has its order; unpack it again")
            continue
        packed = root / "translations.pt.bz2"
        if lang == "en" or not packed.is_file():
            missing = f"{folder}/text.{lang}: missing, and so is text.id.{lang}"
            raise InputError(f"{missing}; {HOW_TO_GET[lang].format(root=root)}")
        tables["translations"] = packed
    return tables


def read_split(tables: Tables) -> tuple[dict[str, str], Texts]:
    """``<video> <start> <end>`` of each segment, and its text in both languages.

    Raises:
        InputError: tables that do not have the same segments, or two forms of a text that differ.
    """
    segments = read_table(tables["segments"])
    if "id" in tables:
        _check_same(tables["id"], set(read_ids(tables["id"])), tables["segments"], segments)
    return segments, {lang: _read_text(tables, lang, segments) for lang in ("en", "pt")}


def _read_text(tables: Tables, lang: str, segments: dict[str, str]) -> dict[str, str]:
    keyed, plain = tables.get(f"text.id.{lang}"), tables.get(f"text.{lang}")
    if keyed:
        found, path = read_table(keyed, allow_empty=True), keyed
    elif plain:
        found, path = read_by_line(tables["id"], plain), plain
    else:
        everything, path = read_translations(tables["translations"]), tables["translations"]
        found = {segment: text for segment, text in everything.items() if segment in segments}
    _check_same(path, found, tables["segments"], segments)
    if keyed and plain and "id" in tables:
        for segment, text in read_by_line(tables["id"], plain).items():
            if text.split() != found[segment].split():
                raise InputError(f"{plain}: the text of {segment} is not the one in {keyed}; unpack both again")
    return found


def read_ids(path: Path) -> list[str]:
    """The segments that ``id`` lists, each once.

    Raises:
        InputError: one occurs twice.
    """
    ids = [line.strip() for line in read_lines(path)]
    for segment, count in Counter(ids).items():
        if count > 1:
            raise InputError(f"{path}: {segment!r} occurs {count} times; unpack it again")
    return ids


def read_by_line(id_file: Path, text_file: Path) -> dict[str, str]:
    """A text whose lines are those of ``id``.

    Raises:
        InputError: it has more lines, or fewer.
    """
    ids, lines = read_ids(id_file), read_lines(text_file)
    if len(ids) != len(lines):
        raise InputError(f"{text_file}: {len(lines)} lines, but {id_file} has {len(ids)}; unpack both again")
    return dict(zip(ids, lines, strict=True))


def read_translations(path: Path) -> dict[str, str]:
    """The Portuguese text of all splits, from its packed file.

    Raises:
        InputError: it is cut off or no bzip2 file.
    """
    try:
        text = bz2.decompress(path.read_bytes()).decode("utf-8")
    except (OSError, ValueError, EOFError) as error:
        raise InputError(f"{path}: cannot be unpacked ({error}); fetch it again") from None
    return dict(split_line(line.removesuffix("\r")) for line in text.split("\n") if line.strip())


def _check_same(path: Path, found: Collection[str], segments_file: Path, segments: dict[str, str]) -> None:
    differing = sorted(set(segments).symmetric_difference(found))
    if differing:
        where = "not in it" if differing[0] in segments else f"not in {segments_file}"
        raise InputError(
            f"{path}: {len(found)} segments, {segments_file} has {len(segments)}, e.g. {differing[0]} is {where}; "
            "unpack both again, or delete what lacks a text from all tables"
        )


def times_of(segments_file: Path, segment: str, value: str) -> tuple[float, float]:
    """Start and end of a segment in seconds.

    Raises:
        InputError: they are no numbers, or the line names another segment's video.
    """
    video, start, end = parse_segment(segments_file, segment, value)
    if video != segment[:VIDEO]:
        raise InputError(f"{segments_file}: {segment} is said to be of the video {video}; correct the line")
    return start, end


def walk(folder: Path) -> Iterator[Path]:
    """All files below a folder, through symbolic links too, as absolute paths."""
    seen: set[str] = set()
    for place, folders, names in os.walk(folder.absolute(), followlinks=True):
        seen.add(os.path.realpath(place))
        folders[:] = [name for name in folders if os.path.realpath(os.path.join(place, name)) not in seen]
        yield from (Path(place, name) for name in names)


def stamp_of(paths: Iterable[Path]) -> str:
    """A short text that changes when one of the files is changed, added or removed."""
    stats = [(str(path), path.stat().st_size, path.stat().st_mtime_ns) for path in sorted(paths)]
    return hashlib.sha1(repr(stats).encode()).hexdigest()
