"""What is wrong with a data directory: the checks behind validate_data_dir.sh."""

from itertools import pairwise
from pathlib import Path

from espnet_llmst.cli import InputError
from espnet_llmst.datadir.kaldi import invert_utt2spk, parse_segment, read_table, table_key, table_names

Tables = dict[str, dict[str, str]]


def validate_data_dir(data_dir: str | Path, *, text: bool = True, wav: bool = True) -> list[str]:
    """Check that tables are complete, sorted and agree on their ids; audio files are not opened.

    Empty texts are no fault here: what to do with them is decided when audio is formatted.

    Args:
        data_dir: a Kaldi data directory.
        text: want at least one text table.
        wav: want wav.scp.
    Returns:
        One line per fault, each naming file, id and remedy; empty when all is well.
    Raises:
        InputError: no such directory.
    """
    data_dir = Path(data_dir)
    names = table_names(data_dir)
    wanted = ["utt2spk", "spk2utt"] + (["wav.scp"] if wav else [])
    faults = [f"{data_dir / name}: missing; prepare the directory again" for name in wanted if name not in names]
    if text and not any(name.startswith("text") for name in names):
        faults.append(f"{data_dir}: no text table, e.g. text.tc.en; prepare the directory again")
    tables: Tables = {}
    for name in names:
        try:
            tables[name] = read_table(data_dir / name, allow_empty=name.startswith("text"))
            _check_order(data_dir / name, list(tables[name]))
            if name == "segments":
                for utt, value in tables[name].items():
                    parse_segment(data_dir / name, utt, value)
        except InputError as error:
            faults.append(str(error))
    return faults or _disagreements(data_dir, tables)


def _check_order(path: Path, ids: list[str]) -> None:
    if not ids:
        raise InputError(f"{path}: empty; prepare the directory again")
    for before, after in pairwise(ids):
        if before > after:
            raise InputError(f"{path}: {after} comes after {before}, not in C order; run fix_data_dir.sh")


def _disagreements(data_dir: Path, tables: Tables) -> list[str]:
    utt2spk, segments = tables["utt2spk"], tables.get("segments", {})
    expected = {
        "utt": set(utt2spk),
        "spk": set(utt2spk.values()),
        "reco": {value.split()[0] for value in segments.values()},
    }
    faults = []
    for name, table in tables.items():
        wrong = sorted(expected[table_key(name, "segments" in tables)].symmetric_difference(table))
        if wrong:
            where = "only here" if wrong[0] in table else "missing here"
            faults.append(
                f"{data_dir / name}: {len(wrong)} ids differ, e.g. {wrong[0]} is {where}; run fix_data_dir.sh"
            )
    spk2utt = {spk: " ".join(sorted(utts.split())) for spk, utts in tables["spk2utt"].items()}
    if not faults and spk2utt != invert_utt2spk(utt2spk):
        faults.append(f"{data_dir / 'spk2utt'}: does not match utt2spk; run fix_data_dir.sh")
    return faults
