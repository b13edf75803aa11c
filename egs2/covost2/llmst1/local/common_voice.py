"""A Common Voice release on disk: language folders, tables, clips.

    <root>/[cv-corpus-<release>/]<lang>/
        clips/common_voice_<lang>_<number>.mp3      48 kHz mono
        validated.tsv  train.tsv  dev.tsv  test.tsv  ...

Tables have a header and one row a line, fields parted by TAB and by nothing else: quotes are text, even unbalanced
ones. Columns differ between releases in number and order, and are found by name: client_id, path, sentence.
``path`` is the name of a file in ``clips``, in releases 1 to 3 without ``.mp3``.
"""

import os
import re
import sys
import tarfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from hashlib import blake2b
from operator import itemgetter
from pathlib import Path
from typing import IO

from espnet_llmst.cli import InputError
from espnet_llmst.datadir.clean import clean_text
from espnet_llmst.datadir.corpus import Dropped, Item, compare_counts

SPLITS = ("train", "dev", "test")
_SUFFIXES = (".mp3", ".wav", ".flac", ".ogg", ".opus")  # some convert their clips


# ---- where a language is


def find_language(root: str | Path, lang: str) -> Path:
    """The folder of a language below ``root``.

    ``root`` holds language folders, releases (``cv-corpus-*``) with language folders, or is itself what the
    archive of this one language unpacks to.

    Raises:
        InputError: no such folder, or the language in several releases.
    """
    root = Path(root)
    if not root.is_dir():
        raise InputError(f"{root}: no such folder; give the root of Common Voice (README.md)")
    if (root / lang).is_dir():
        return root / lang
    found = sorted(path for path in root.glob(f"cv-corpus-*/{lang}") if path.is_dir())
    if len(found) > 1:
        names = ", ".join(path.parent.name for path in found)
        raise InputError(f"{root}: {lang} is in several releases ({names}); give the folder of one of them")
    if found:
        return found[0]
    if _is_language(root, lang):
        return root
    if archives := sorted([*root.glob(f"*{lang}.tar*"), *root.glob(f"cv-corpus-*/*{lang}.tar*")]):
        raise InputError(f"{archives[0]}: the archive is not unpacked; unpack it to {root / lang}")
    there = sorted({path.parent.name for path in [*root.glob("*/*.tsv"), *root.glob("cv-corpus-*/*/*.tsv")]})
    raise InputError(
        f"{root}: no folder {lang} (there are: {', '.join(there) or 'none'}); unpack Common Voice's {lang}"
    )


def _is_language(folder: Path, lang: str) -> bool:
    """Whether a folder holds the tables of this language itself, by the name of its first clip."""
    tables = [path for name in ("validated", *SPLITS) if (path := folder / f"{name}.tsv").is_file()]
    if not tables:
        return False
    first = next((values[0] for values in read_tsv(tables[0], ("path",), [])), "")
    return f"_{lang}_" in first or not first.startswith("common_voice_") and folder.name == lang


def release_of(folder: Path) -> str:
    """The release that a language folder lies in, by the name of a folder above it; may be empty."""
    return next((name for name in reversed(folder.resolve().parts) if name.startswith("cv-corpus-")), "")


# ---- tables


def read_tsv(
    path: Path, columns: Sequence[str], faults: list[Dropped], optional: Sequence[str] = ()
) -> Iterator[tuple[str, ...]]:
    """The named columns of each row; ``""`` for an optional column that the table does not have.

    Args:
        path: the table, or a tar.gz with it.
        columns: by name.
        faults: takes the rows that are no rows: too few or too many fields.
        optional: further columns, returned behind the others.
    Raises:
        InputError: no such file, empty, no such column, not UTF-8, cut off.
    """
    try:
        with _open(path) as file:
            pick, width, tabs = _picker(path, _decode(path, 1, file.readline()), columns, optional)
            for number, raw in enumerate(file, 2):
                line = _decode(path, number, raw)
                if line.strip() and not raw.endswith(b"\n") and raw.count(b"\t") < tabs:
                    raise InputError(f"{path}:{number}: the file ends within a row; get it again")
                if values := pick(fields := line.split("\t")):
                    yield values
                elif line.strip():
                    found = f"{path}:{number}: {len(fields)} fields instead of {width}"
                    faults.append(Dropped(f"{path.name}:{number}", "malformed_row", found))
    except (OSError, EOFError, zlib.error, tarfile.TarError) as error:
        raise InputError(f"{path}: cannot be read ({_reason(error)}); get it again") from None


@contextmanager
def _open(path: Path) -> Iterator[IO[bytes]]:
    if not path.name.endswith(".tar.gz"):
        with open(path, "rb") as file:
            yield file
        return
    with tarfile.open(path, "r:gz") as archive:  # read in place: nothing is unpacked
        for member in archive:
            if member.isreg() and re.fullmatch(r"[^.].*\.tsv", Path(member.name).name):
                yield archive.extractfile(member)
                return
    raise InputError(f"{path}: there is no .tsv in it; get it again")


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error) or type(error).__name__


def _decode(path: Path, number: int, raw: bytes) -> str:
    try:
        return raw.decode("utf-8-sig" if number == 1 else "utf-8").rstrip("\r\n")
    except UnicodeDecodeError:
        wrong = "not UTF-8" if raw.endswith(b"\n") else "the file ends within a row, or is not UTF-8"
        raise InputError(f"{path}:{number}: {wrong}; get it again") from None


def _picker(path: Path, header: str, columns: Sequence[str], optional: Sequence[str]) -> tuple[Callable, int, int]:
    """What takes the wanted values from the fields of a row (none if they are not there), the fields' right number,
    and how many TABs a row has at least that is complete as far as it is wanted."""
    names = [name.strip() for name in header.split("\t")]
    if not header:
        raise InputError(f"{path}: the file is empty; get it again")
    if missing := [name for name in columns if name not in names]:
        raise InputError(f"{path}: no column '{missing[0]}' (there are: {', '.join(names)}); get the table again")
    width, last = len(names), max(names.index(name) for name in columns)
    places = [names.index(name) if name in names else width for name in (*columns, *optional)]
    take = itemgetter(*places, width)  # of one place it would make no tuple

    def pick(fields: list[str]) -> tuple[str, ...]:
        while len(fields) > width and not fields[-1]:  # editors add and strip empty fields at the end
            fields.pop()
        if not last < len(fields) <= width:
            return ()
        fields.extend([""] * (width + 1 - len(fields)))
        return take(fields)[:-1]

    return pick, width, min(last + 1, width - 1)


# ---- values


def plain(text: str) -> str:
    """A text as it was meant: without the escapes that writers of such tables leave behind.

    Backslashes before quotes and backslashes go. Doubled quotes become single ones where the whole field is
    in quotes and all quotes within are doubled, as CSV writes it; other quotes are the text's own.
    """
    if "\\" in text:
        text = re.sub(r'\\(["\\])', r"\1", text)
    if '""' in text and text[0] == text[-1] == '"' and len(text) > 2:
        within = text[1:-1].split('""')
        if len(within) > 1 and not any('"' in part for part in within):
            return '"'.join(within)
    return text


@cache
def speaker_of(client_id: str) -> str:
    """A speaker's name, short: the 128 digits of Common Voice become 24, the same in all sets."""
    name = "_".join(client_id.split())
    if len(name) <= 32:
        return name
    return name[:8] + blake2b(client_id.encode(), digest_size=8).hexdigest()


def utt_of(path: str, lang: str) -> str:
    """The utterance id of a clip: its file name without suffix, with the language in it."""
    name = "_".join(path.rpartition("/")[2].split())
    for suffix in _SUFFIXES:
        name = name.removesuffix(suffix)
    return name if name.startswith("common_voice_") else f"{lang}_{name}"


def clips_of(folder: Path) -> Path:
    """The folder with a language's clips.

    Raises:
        InputError: there is none.
    """
    if not (folder / "clips").is_dir():
        raise InputError(f"{folder}/clips: no such folder; unpack all of the language's archive")
    return (folder / "clips").resolve()


def clip_finder(folder: Path) -> Callable[[str], str]:
    """What makes a table's ``path`` a file; where there is none, the file that should be there."""
    clips = clips_of(folder)
    there = set(os.listdir(clips))

    def find(path: str) -> str:
        name = path.rpartition("/")[2]
        if name in there:
            return f"{clips}/{name}"
        stem = name
        for suffix in _SUFFIXES:
            stem = stem.removesuffix(suffix)
        return f"{clips}/{next((stem + suffix for suffix in _SUFFIXES if stem + suffix in there), f'{stem}.mp3')}"

    return find


# ---- items


def drop_duplicates(items: list[Item], whole: bool) -> tuple[list[Item], list[Dropped]]:
    """Each clip once: of equal rows the first; of rows with different texts none, in a test set the first."""
    texts: dict[str, dict[str, str]] = {}
    contradicted = set()
    kept, dropped = [], []
    for item in items:
        first = texts.setdefault(item.utt, item.texts)
        if first is item.texts:
            kept.append(item)
        elif first == item.texts:
            dropped.append(Dropped(item.utt, "duplicate_row", "again the same; its first row stays"))
        else:
            contradicted.add(item.utt)
            again = f"again as {' | '.join(item.texts.values())}" + ("; its first row stays" if whole else "")
            dropped.append(Dropped(item.utt, "contradicting_row", again))
    if contradicted and not whole:
        dropped += [
            Dropped(item.utt, "contradicting_row", " | ".join(item.texts.values()))
            for item in kept
            if item.utt in contradicted
        ]
        kept = [item for item in kept if item.utt not in contradicted]
    return kept, dropped


def check_clips(folder: Path, items: list[Item], table: Path) -> None:
    """Refuse a corpus none of whose clips is there.

    Raises:
        InputError: naming the first one.
    """
    if items and not any(os.path.exists(item.audio) for item in items):
        raise InputError(
            f"{items[0].audio}: neither this clip nor any other of the {len(items)} of {table} exists; "
            f"unpack the clips of Common Voice to {folder / 'clips'}"
        )


# ---- reports


def warn(message: str) -> None:
    """A line for the user that is no result."""
    print(f"WARNING: {message}", file=sys.stderr)


def warn_of_faults(faults: list[Dropped]) -> None:
    """Say which rows of tables were no rows."""
    for fault in faults[:20]:
        warn(f"{fault.detail}; the row is left out")
    if len(faults) > 20:
        warn(f"{len(faults) - 20} more rows like these are left out")


def warn_of_empty(name: str, items: list[Item]) -> None:
    """Say which utterances of a set that keeps them all have an empty text."""
    for item in items:
        if empty := [lang for lang, text in item.texts.items() if not clean_text(text)]:
            warn(f"{name}: {item.utt} is kept, though its {empty[0]} text is empty")


def report(set_dir: Path, summary: dict, published: dict[str, int]) -> str:
    """What there is of a set, in one line."""
    line = f"{set_dir}: {summary['utterances']} utterances, {summary['hours']:.2f} h, dropped {summary['dropped']}"
    if summary["reasons"]:
        reasons = ", ".join(f"{reason} {count}" for reason, count in summary["reasons"].items())
        line += f" ({reasons}; see {set_dir}/dropped.tsv)"
    return f"{line}; {compare_counts(set_dir.name, summary['utterances'], published)}"
