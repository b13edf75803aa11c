"""Kaldi tables (`<id> <value>`, one per line) and which file of a data directory is keyed by what."""

import os
import re
import zlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from espnet_llmst.cli import InputError

# Best first: a set may hold one language in several spellings.
_CASES = ("tc", "lc", "lc.rm")


@contextmanager
def atomic_write(path: str | Path, binary: bool = False) -> Iterator[IO]:
    """Open a file for writing that appears under its name only when complete (UTF-8 text, or bytes).

    Missing parent directories are made. When the block raises, nothing is left behind.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{os.getpid()}.{zlib.crc32(path.name.encode())}.tmp")  # ids can be long
    try:
        with open(temporary, "wb") if binary else open(temporary, "w", encoding="utf-8", newline="\n") as file:
            yield file
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def left_behind(folder: Path) -> list[Path]:
    """Temporary files of `atomic_write` whose process was killed."""
    found = [(path, re.fullmatch(r"\.(\d+)\.\d+\.tmp", path.name)) for path in folder.glob(".*.tmp")]
    return [path for path, name in found if name and not Path("/proc", name[1]).exists()]


def read_lines(path: str | Path) -> list[str]:
    """The lines of a UTF-8 file without their newline (or CR newline), split at "\\n" only.

    Raises:
        InputError: the file is missing or not UTF-8.
    """
    try:
        data = Path(path).read_bytes()
    except (FileNotFoundError, IsADirectoryError, PermissionError) as error:
        raise InputError(f"{path}: {error.strerror}; the command needs this file") from None
    try:
        lines = data.decode("utf-8-sig").split("\n")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise InputError(f"{path}:{line}: not UTF-8; convert it, e.g. iconv -f latin1 -t utf8") from None
    if lines[-1] == "":
        lines.pop()
    return [line.removesuffix("\r") for line in lines]


def split_line(line: str) -> tuple[str, str]:
    """(id, value) of a table's line; only blanks and tabs separate, other white space is value."""
    parts = re.split(r"[ \t]+", line.strip(" \t"), maxsplit=1)
    return parts[0], parts[1] if len(parts) > 1 else ""


def read_rows(path: str | Path, *, allow_empty: bool = False) -> list[tuple[str, str]]:
    """The (id, value) pairs of a table in file order, duplicates included.

    Raises:
        InputError: unreadable file, a line without id, or (unless allow_empty) without value.
    """
    rows = [split_line(line) for line in read_lines(path)]
    for number, (key, value) in enumerate(rows, 1):
        if not key:
            raise InputError(f"{path}:{number}: empty line; delete it")
        if not value.strip() and not allow_empty:
            raise InputError(f"{path}:{number}: utterance {key} has no value; complete or delete the line")
    return rows


def read_table(path: str | Path, *, unique: bool = True, allow_empty: bool = False) -> dict[str, str]:
    """A Kaldi table as a dict in file order.

    Args:
        path: the table, UTF-8.
        unique: refuse an id that occurs twice; otherwise its first line counts.
        allow_empty: accept ids without value (value "").
    Raises:
        InputError: naming file, line and id, for a duplicate, an empty value, bad UTF-8, a missing file.
    """
    table: dict[str, str] = {}
    for number, (key, value) in enumerate(read_rows(path, allow_empty=allow_empty), 1):
        if unique and key in table:
            raise InputError(
                f"{path}:{number}: utterance {key} occurs twice; lines begin with an id of their own: delete one"
            )
        table.setdefault(key, value)
    return table


def write_table(path: str | Path, table: Mapping[str, str], order: Iterable[str] | None = None) -> None:
    """Write a table in the ``order`` of its keys; without one sorted in C order, that of code points as of UTF-8 bytes.

    Raises:
        InputError: an id with white space or a value with a line break, which would corrupt the table.
    """
    for key, value in table.items():
        if not key or re.search(r"\s", key) or "\n" in value:
            raise InputError(f"{path}: utterance {key!r}: ids take no white space, values no line break; replace it")
    with atomic_write(path) as file:
        file.writelines(f"{key} {table[key]}\n" for key in order or sorted(table))


def write_tsv(path: str | Path, rows: Iterable[tuple[str, ...]]) -> None:
    """Rows as lines of tab-separated fields; tabs and line breaks within a field become blanks."""
    with atomic_write(path) as file:
        for row in rows:
            file.write("\t".join(field.replace("\t", " ").replace("\n", " ") for field in row) + "\n")


def text_files(data_dir: str | Path) -> dict[str, Path]:
    """The text of each language, `text.<case>.<lang>`; true-cased (`tc`) where there are several cases.

    Plain `text`, and further references such as `text.tc.de.1`, are not listed.
    """
    found = []
    for path in Path(data_dir).glob("text.*.*"):
        match = re.fullmatch(r"text\.(.+)\.([A-Za-z][\w-]*)", path.name)
        if match:
            case, lang = match.groups()
            found.append((_CASES.index(case) if case in _CASES else len(_CASES), case, lang, path))
    best = {lang: path for _, _, lang, path in sorted(found, reverse=True)}
    return dict(sorted(best.items()))


def speech_table(set_dir: str | Path) -> Path:
    """The table of a formatted set's speech: feats.scp where it has features, else wav.scp.

    Raises:
        InputError: it has neither.
    """
    for name in ("feats.scp", "wav.scp"):
        if (Path(set_dir) / name).is_file():
            return Path(set_dir) / name
    raise InputError(f"{set_dir}/wav.scp is missing: give a formatted set (stage 3)")


def table_key(name: str, segmented: bool) -> str | None:
    """What a file of a data directory is keyed by: "utt", "reco", "spk", or None where it is no table.

    Args:
        name: file name, e.g. wav.scp.
        segmented: the directory has a segments file (wav.scp then lists recordings).
    """
    if name == "wav.scp":
        return "reco" if segmented else "utt"
    if name in ("segments", "feats.scp", "vad.scp", "text") or name.startswith(("text.", "utt2")):
        return "utt"
    if name.startswith("reco2"):
        return "reco"
    return "spk" if name == "cmvn.scp" or name.startswith("spk2") else None


def read_text(data_dir: Path, lang: str) -> dict[str, str]:
    """The texts of a language, empty ones included; raises InputError where the directory has none of it."""
    files = text_files(data_dir)
    if lang not in files:
        raise InputError(f"{data_dir}: text.tc.{lang} is missing (there are: {', '.join(sorted(files)) or 'none'})")
    return read_table(files[lang], allow_empty=True)


def table_names(data_dir: str | Path) -> list[str]:
    """The names of the tables in a data directory.

    Raises:
        InputError: no such directory.
    """
    data_dir = Path(data_dir)
    if not data_dir.is_dir():
        raise InputError(f"{data_dir}: no such data directory; prepare it first (stage 1)")
    return sorted(path.name for path in data_dir.iterdir() if path.is_file() and table_key(path.name, False))


def parse_segment(path: str | Path, utt: str, value: str) -> tuple[str, float, float | None]:
    """(recording, start, end) of a segments line, in seconds; end None is the end of the recording (-1).

    Raises:
        InputError: not three fields, or times that are no finite numbers.
    """
    try:
        recording, *times = value.split()
        start, end = (float(time) for time in times)
        if not abs(start) + abs(end) < 1e9:  # also refuses nan and inf
            raise ValueError
    except ValueError:
        raise InputError(f"{path}: {utt}: '{value}' is not <recording> <start> <end>; correct the line") from None
    return recording, start, None if end == -1 else end


def invert_utt2spk(utt2spk: Mapping[str, str]) -> dict[str, str]:
    """spk2utt of an utt2spk: the utterances of each speaker, sorted, blank-separated."""
    utts: dict[str, list[str]] = {}
    for utt in sorted(utt2spk):
        utts.setdefault(utt2spk[utt], []).append(utt)
    return {spk: " ".join(members) for spk, members in utts.items()}


def invert_spk2utt(rows: Iterable[tuple[str, str]]) -> dict[str, str]:
    """utt2spk of the (speaker, "utt utt ...") rows of an spk2utt.

    Raises:
        InputError: an utterance of two speakers.
    """
    utt2spk: dict[str, str] = {}
    for spk, utts in rows:
        for utt in utts.split():
            if utt2spk.setdefault(utt, spk) != spk:
                raise InputError(f"spk2utt: utterance {utt} belongs to {utt2spk[utt]} and {spk}; keep one")
    return utt2spk
