"""The tables of FLEURS: which sentence each recording reads, and its text, from tsv or parquet files.

A tsv has no header and no quoting; 7 tab-separated columns: sentence id, file name, raw transcription, normalised
transcription, characters, number of samples, gender. Early copies have an 8th, and empty last fields may be missing.
"""

import re
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from espnet_llmst.cli import InputError
from espnet_llmst.datadir.corpus import Dropped
from espnet_llmst.datadir.kaldi import read_lines

SPLIT_NAMES = {"train": ("train",), "dev": ("dev", "validation"), "test": ("test",)}
_LFS = "version https://git-lfs"
_SHARD = re.compile(r"(?:fleurs-)?(train|validation|dev|test)(?:-(\d+)-of-(\d+))?\.parquet")


class Recording(NamedTuple):
    """A recording: the number of the sentence that is read, its file's name, the raw transcription."""

    sentence: int
    file: str
    text: str


class Table(NamedTuple):
    """The recordings of a language and split, its sentences, rows left out, and the files these come from."""

    recordings: list[Recording]
    sentences: dict[int, str]
    dropped: list[Dropped]
    files: list[Path]


def language_dirs(corpus_dir: Path, lang: str) -> list[Path]:
    """The folders that may hold a language: of the original, of a copy without ``data``, of lhotse's form.

    Raises:
        InputError: there is none.
    """
    if not corpus_dir.is_dir():
        raise InputError(f"{corpus_dir}: no such folder; give the root of FLEURS, the folder that holds data/")
    parents = [corpus_dir / "data", corpus_dir, corpus_dir / "metadata", corpus_dir / "parquet-data"]
    dirs = [parent / lang for parent in parents if (parent / lang).is_dir()]
    if not dirs:
        there = sorted({path.name for parent in parents for path in parent.glob("*_*") if path.is_dir()})
        found = f"there are {', '.join(there)}" if there else "there is no folder of a language"
        raise InputError(f"{corpus_dir}: no folder {lang} or data/{lang}; {found}; get it, or correct --directions")
    return dirs


def utterance_id(lang: str, recording: Recording) -> str:
    """``en_us_0042_10004088536354799741``: unique, since a sentence has several recordings."""
    return f"{lang}_{recording.sentence:04d}_{Path(recording.file).stem}"


def read_table(dirs: list[Path], lang: str, split: str) -> Table:
    """The table of a split.

    Raises:
        InputError: no table or shard is missing, it is no table of FLEURS, or damaged.
    """
    for name in SPLIT_NAMES[split]:
        for path in (folder / f"{name}.tsv" for folder in dirs):
            if path.is_file():
                return _keep_one_per_file(lang, [path], _tsv_rows(path, lang, split))
    shards = parquet_shards(dirs, split)
    if not shards:
        raise InputError(f"{dirs[0]}/{split}.tsv: missing, and there are no parquet files of {split}; get them")
    return _keep_one_per_file(lang, shards, _parquet_rows(shards, lang, split))


def _keep_one_per_file(lang: str, files: list[Path], rows: Iterable[tuple[str, Recording | Dropped]]) -> Table:
    """One recording per file name; where two sentences claim the same file, nobody knows which one it is."""
    dropped: list[Dropped] = []
    claims: dict[str, list[tuple[str, Recording]]] = {}
    for where, row in rows:
        if isinstance(row, Dropped):
            dropped.append(row)
        else:
            claims.setdefault(row.file, []).append((where, row))
    sentences = _sentences(row for same in claims.values() for _, row in same)
    recordings = []
    for same in claims.values():
        ambiguous = len({row.sentence for _, row in same}) > 1
        recordings += [] if ambiguous else [same[0][1]]
        reason = "ambiguous_file_name" if ambiguous else "duplicate_file_name"
        for where, row in same if ambiguous else same[1:]:
            others = " and ".join(place for place, _ in same if place != where)
            dropped.append(Dropped(utterance_id(lang, row), reason, f"{where}: {row.file} is also in {others}"))
    if not recordings:
        example = f" (e.g. {dropped[0].detail})" if dropped else ""
        raise InputError(f"{files[0]}: no row of FLEURS's form{example}; download it again")
    return Table(sorted(recordings), sentences, dropped, files)


def _sentences(recordings: Iterable[Recording]) -> dict[int, str]:
    """The text of each sentence: that of its first recording by file name, of those that have one."""
    texts: dict[int, str] = {}
    for row in sorted(recordings):
        texts[row.sentence] = texts.get(row.sentence) or row.text
    return texts


# ---- tsv


def refuse_pointer(path: Path) -> None:
    """Refuse what a git clone leaves in the place of a large file.

    Raises:
        InputError: it is a pointer, or cannot be read.
    """
    try:
        with open(path, "rb") as file:
            start = file.read(len(_LFS))
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); make it readable") from None
    if start == _LFS.encode():
        raise InputError(f"{path}: is a Git LFS pointer, not the file itself; run 'git lfs pull' there")


def _tsv_rows(path: Path, lang: str, split: str) -> Iterable[tuple[str, Recording | Dropped]]:
    refuse_pointer(path)
    lines = read_lines(path)
    # The last fields of a row may be missing, but then the line has an end.
    if lines and lines[-1].count("\t") < 5 and lines[-1].strip() and not path.read_bytes().endswith(b"\n"):
        raise InputError(f"{path}: truncated: line {len(lines)} breaks off; download it again")
    for number, line in enumerate(lines, 1):
        if line.strip():
            where = f"{path}:{number}"
            fields = line.split("\t")
            problem = _problem(fields)
            if problem:
                yield where, Dropped(f"{lang}_{split}_line_{number}", "malformed_row", f"{where}: {problem}")
            else:
                yield where, Recording(int(fields[0]), fields[1].strip(), unquote(fields[2]))


def _problem(fields: list[str]) -> str:
    """What is wrong with a row, if anything: a stray tab or line break shifts the columns."""
    if len(fields) < 3:
        return f"{len(fields)} tab-separated columns instead of 7"
    if not re.fullmatch(r" *[0-9]+ *", fields[0]):
        return f"the sentence id is '{fields[0]}'"
    if not re.fullmatch(r"[\w.+-]+", fields[1].strip()):
        return f"the file name is '{fields[1]}'"
    if len(fields) > 8 or len(fields) > 5 and not re.fullmatch(r"[0-9]*", fields[5].strip()):
        return "the columns are shifted: the sixth is not a number of samples"
    return ""


def unquote(text: str) -> str:
    """A text freed of CSV's escapes: ``""you""`` is "you"; quotes around the whole go where all within are doubled."""
    text = text.strip()
    if '""' not in text:
        return text
    inner = text[1:-1]
    if re.fullmatch(r'"(?:[^"]|"")*"', text) and ('""' in inner or not inner):
        inner = inner.replace('""', '"')
        # A first quote that closes (said", he), or a last one that opens, belongs to an outer one.
        before = '"' if re.match(r'[^"]*[^\s"]"(?!\w)', inner) else ""
        after = '"' if re.search(r'(^|\s)"(?=\w)[^"]*$', inner) else ""
        if inner.count('"') % 2 == 0 and before:
            after = '"'
        return f"{before}{inner}{after}"
    return text.replace('""', '"')


# ---- parquet


def parquet_shards(dirs: list[Path], split: str) -> list[Path]:
    """The parquet files of a split, in order; [] where there are none.

    Raises:
        InputError: one of them is missing.
    """
    for folder in dirs:
        for name in SPLIT_NAMES[split]:
            shards = {}
            for path in sorted(folder.glob("*.parquet")):
                match = _SHARD.fullmatch(path.name)
                if match and match[1] == name:
                    shards[int(match[2] or 0)] = path, int(match[3] or 1)
            for path in sorted((folder / name).glob("*.parquet")) if not shards else ():
                if path.stem.isdigit():
                    shards[int(path.stem)] = path, 1
            if shards:
                count = max(*(total for _, total in shards.values()), max(shards) + 1)
                missing = sorted(set(range(count)) - set(shards))
                if missing:
                    raise InputError(f"{shards[max(shards)][0]}: its neighbour {missing[0]} is missing; download it")
                return [shards[index][0] for index in sorted(shards)]
    return []


def open_parquet(path: Path):
    """A ParquetFile with the columns that FLEURS has.

    Raises:
        InputError: damaged, a column is missing, or there is no pyarrow.
    """
    try:
        import pyarrow.parquet  # few need it
    except ImportError:
        raise InputError(
            f"{path}: the Python package pyarrow reads it; pip install pyarrow, or get the tsv form"
        ) from None
    refuse_pointer(path)
    try:
        file = pyarrow.parquet.ParquetFile(path)
    except _parquet_errors() as error:
        raise damaged(path, error) from None
    lacking = sorted({"id", "audio", "raw_transcription"} - set(file.schema_arrow.names))
    if lacking:
        raise InputError(f"{path}: column {lacking[0]} is missing; download it again from google/fleurs")
    return file


def _parquet_errors() -> tuple[type[Exception], ...]:
    from pyarrow import ArrowException

    return ArrowException, OSError


def damaged(path: Path, error: Exception) -> InputError:
    """The message about a truncated or otherwise unreadable file."""
    reason = " ".join(str(error).split())[:200]
    return InputError(f"{path}: truncated or damaged ({reason or type(error).__name__}); download it again")


def parquet_name(row: dict) -> str:
    """A recording's file name, which may come with folders of the machine it was made on."""
    return Path((row["audio"] or {}).get("path") or row.get("path") or "").name


def _parquet_rows(shards: list[Path], lang: str, split: str) -> Iterable[tuple[str, Recording | Dropped]]:
    for path in shards:
        file = open_parquet(path)
        paths = [name for name in ("path",) if name in file.schema_arrow.names]
        try:
            rows = file.read(columns=["id", "raw_transcription", "audio.path", *paths]).to_pylist()
        except _parquet_errors() as error:
            raise damaged(path, error) from None
        for number, row in enumerate(rows, 1):
            where = f"{path}:{number}"
            problem = _problem([str(row["id"]), parquet_name(row), ""])
            if problem:
                yield where, Dropped(f"{lang}_{split}_{path.stem}_{number}", "malformed_row", f"{where}: {problem}")
            else:
                yield where, Recording(row["id"], parquet_name(row), unquote(row["raw_transcription"] or ""))
