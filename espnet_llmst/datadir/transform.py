"""Data directories made from others: fix, subset, copy under new ids, combine."""

import random
from collections.abc import Collection, Sequence
from pathlib import Path

from espnet_llmst.cli import InputError
from espnet_llmst.datadir.kaldi import (
    atomic_write,
    invert_utt2spk,
    parse_segment,
    read_lines,
    read_table,
    split_line,
    table_key,
    table_names,
    write_table,
)

Tables = dict[str, dict[str, str]]  # file name -> table
_PLAIN_FILES = ("feats_type", "audio_format", "frame_shift")  # no tables: they hold for the whole directory

_OF_AUDIO = ("wav.scp", "segments", "feats.scp", "cmvn.scp", "vad.scp", "utt2num_samples", "utt2num_frames", "utt2dur")


def read_data_dir(data_dir: str | Path) -> Tables:
    """All tables of a data directory; texts may be empty, ids must be unique.

    Raises:
        InputError: a broken table, or no utt2spk.
    """
    data_dir = Path(data_dir)
    names = table_names(data_dir)
    if "utt2spk" not in names:
        raise InputError(f"{data_dir}/utt2spk: missing; where speakers are unknown, use the utterance id as speaker")
    return {name: read_table(data_dir / name, allow_empty=name.startswith("text")) for name in names}


def write_data_dir(data_dir: str | Path, tables: Tables, like: Path | None = None) -> None:
    """Write the tables, spk2utt made anew from utt2spk; feats_type etc. copied from `like`."""
    if not tables["utt2spk"]:
        raise InputError(f"{data_dir}: no utterance would be left; nothing was written, compare the ids of its tables")
    for name, table in {**tables, "spk2utt": invert_utt2spk(tables["utt2spk"])}.items():
        write_table(Path(data_dir) / name, table)
    for name in _PLAIN_FILES:
        if like and (like / name).is_file():
            with atomic_write(Path(data_dir) / name, binary=True) as file:
                file.write((like / name).read_bytes())


def replace_data_dir(data_dir: Path, tables: Tables) -> None:
    """As `write_data_dir`, without the tables that an earlier run, whose input had more, left there."""
    for name in set(table_names(data_dir) if data_dir.is_dir() else ()) - set(tables):
        (data_dir / name).unlink()
    write_data_dir(data_dir, tables)


def restrict(tables: Tables, utts: Collection[str]) -> Tables:
    """The tables with only these utterances, and only the recordings and speakers these need."""
    kept = {
        "utt": set(utts),
        "spk": {spk for utt, spk in tables["utt2spk"].items() if utt in utts},
        "reco": {split_line(value)[0] for utt, value in tables.get("segments", {}).items() if utt in utts},
    }
    return {
        name: {key: value for key, value in table.items() if key in kept[table_key(name, "segments" in tables)]}
        for name, table in tables.items()
    }


def without_audio(tables: Tables) -> Tables:
    """The tables that stay true when audio is changed or cut: no paths, times, lengths, features."""
    return {name: table for name, table in tables.items() if name not in _OF_AUDIO and not name.startswith("reco2")}


def fix_data_dir(data_dir: str | Path) -> dict[str, int]:
    """Keep, in place, the utterances that every table has, sorted and without duplicates.

    Repeated identical lines become one; an id with two different values is removed, since nobody knows which
    one is right. An empty text stays (formatting decides on it), any other empty value counts as missing.

    Returns:
        Lines removed per file.
    Raises:
        InputError: no utt2spk, not UTF-8, or nothing left (nothing is written then).
    """
    data_dir = Path(data_dir)
    names = table_names(data_dir)
    if "utt2spk" not in names:
        raise InputError(f"{data_dir}/utt2spk: missing; where speakers are unknown, use the utterance id as speaker")
    tables = {name: _read_leniently(data_dir / name) for name in names}
    utts = set(tables["utt2spk"])
    for name, table in tables.items():
        if table_key(name, "segments" in tables) == "utt":
            utts &= set(table)
    if "segments" in tables and "wav.scp" in tables:
        utts = {utt for utt in utts if split_line(tables["segments"][utt])[0] in tables["wav.scp"]}
    lines = {name: len(read_lines(data_dir / name)) for name in names}
    write_data_dir(data_dir, restrict(tables, utts))
    return {name: lines[name] - len(read_lines(data_dir / name)) for name in names}


def _read_leniently(path: Path) -> dict[str, str]:
    values: dict[str, set[str]] = {}
    for key, value in map(split_line, read_lines(path)):
        if key and (value.strip() or path.name.startswith("text")):
            values.setdefault(key, set()).add(value)
    table = {key: found.pop() for key, found in values.items() if len(found) == 1}
    if path.name == "segments":
        table = {utt: value for utt, value in table.items() if _is_segment(path, utt, value)}
    return table


def _is_segment(path: Path, utt: str, value: str) -> bool:
    try:
        return bool(parse_segment(path, utt, value))
    except InputError:
        return False


def choose_utts(tables: Tables, count: int, how: str = "random", seed: int = 0) -> list[str]:
    """Ids of `count` utterances.

    Args:
        tables: of the directory to choose from.
        count: how many.
        how: "first" or "last" in id order, "random", "shortest" (needs utt2num_samples or utt2dur), or
            "speakers": whole speakers in random order until there are at least `count`.
        seed: of the random choices; the same seed chooses the same utterances.
    Raises:
        InputError: more wanted than there are.
    """
    utts = sorted(tables["utt2spk"])
    if not 0 < count <= len(utts):
        raise InputError(f"utt2spk: cannot take {count} utterances, there are {len(utts)}; ask for 1 to {len(utts)}")
    if how == "first":
        return utts[:count]
    if how == "last":
        return utts[-count:]
    if how == "shortest":
        length = tables.get("utt2num_samples") or tables.get("utt2dur")
        if not length:
            raise InputError("no utt2num_samples or utt2dur, so lengths are unknown; run stage 3 first")
        return sorted(utts, key=lambda utt: float(length[utt]))[:count]
    if how == "speakers":
        return _choose_speakers(tables["utt2spk"], count, seed)
    return random.Random(seed).sample(utts, count)


def _choose_speakers(utt2spk: dict[str, str], count: int, seed: int) -> list[str]:
    spk2utt = {spk: utts.split() for spk, utts in invert_utt2spk(utt2spk).items()}
    chosen: list[str] = []
    for spk in random.Random(seed).sample(sorted(spk2utt), len(spk2utt)):
        if len(chosen) < count:
            chosen += spk2utt[spk]
    return chosen


def subset_data_dir(source: str | Path, out: str | Path, utts: Collection[str]) -> int:
    """Write a directory with those of `utts` that the source has; returns how many that are.

    Raises:
        InputError: none of them is there, or a broken source.
    """
    tables = read_data_dir(source)
    chosen = set(utts) & set(tables["utt2spk"])
    write_data_dir(out, restrict(tables, chosen), like=Path(source))
    return len(chosen)


def copy_data_dir(
    source: str | Path,
    out: str | Path,
    *,
    utt_prefix: str = "",
    utt_suffix: str = "",
    spk_prefix: str = "",
    spk_suffix: str = "",
) -> None:
    """Copy a directory, with prefixes and suffixes put to utterance and speaker ids (not recordings)."""
    tables = read_data_dir(source)
    write_data_dir(out, rename(tables, (utt_prefix, utt_suffix), (spk_prefix, spk_suffix)), like=Path(source))


def rename(tables: Tables, utt: tuple[str, str], spk: tuple[str, str]) -> Tables:
    """The tables with (prefix, suffix) put to utterance ids and to speaker ids."""
    around = {"utt": utt, "spk": spk, "reco": ("", "")}
    renamed: Tables = {}
    for name, table in tables.items():
        before, after = around[table_key(name, "segments" in tables)]
        renamed[name] = {f"{before}{key}{after}": value for key, value in table.items()}
    renamed["utt2spk"] = {key: f"{spk[0]}{value}{spk[1]}" for key, value in renamed["utt2spk"].items()}
    return renamed


def combine_data_dirs(out: str | Path, sources: Sequence[str | Path]) -> list[str]:
    """Join directories into one.

    A table that not every source has is left out. Where only some sources have segments, the utterances of
    the others become segments that cover their whole file.

    Returns:
        Names of the tables left out.
    Raises:
        InputError: one id with different values in two sources.
    """
    all_tables = [read_data_dir(source) for source in sources]
    forms = {source: "wav.scp" in tables for source, tables in zip(sources, all_tables, strict=True)}
    if len(set(forms.values())) > 1:
        features = next(source for source, has_audio in forms.items() if not has_audio)
        raise InputError(f"{features}: has features where other directories have audio; prepare all alike")
    if any("segments" in tables for tables in all_tables):
        for tables in all_tables:
            tables.setdefault("segments", {utt: f"{utt} 0 -1" for utt in tables["wav.scp"]})
    common = set.intersection(*(set(tables) for tables in all_tables)) - {"spk2utt"}
    combined: Tables = {name: {} for name in sorted(common)}
    for source, tables in zip(sources, all_tables, strict=True):
        for name, table in combined.items():
            for key, value in tables[name].items():
                if table.setdefault(key, value) != value:
                    raise InputError(
                        f"{source}/{name}: {key} has another value in an earlier directory; "
                        "give it new ids with copy_data_dir.sh --utt-prefix"
                    )
    write_data_dir(out, combined, like=Path(sources[0]))
    return sorted(set().union(*all_tables) - common - {"spk2utt"})
