"""Tables as plain lines: splitting them into parts and filtering them by a list of ids."""

from collections import deque
from collections.abc import Collection, Iterable, Sequence

from espnet_llmst.cli import InputError
from espnet_llmst.datadir.kaldi import split_line


def split_scp(lines: Sequence[str], parts: int, utt2spk: dict[str, str] | None = None) -> list[list[str]]:
    """Split lines into consecutive parts whose sizes differ by at most one.

    Args:
        lines: lines of a table, `<id> ...`.
        parts: number of parts.
        utt2spk: where given, a speaker's consecutive lines stay in one part (sizes then differ more).
    Raises:
        InputError: fewer lines (or speakers) than parts; a line whose id is not in utt2spk.
    """
    groups = deque([[line] for line in lines] if utt2spk is None else _speaker_groups(lines, utt2spk))
    if not 1 <= parts <= len(groups):
        what = "lines" if utt2spk is None else "speakers"
        raise InputError(f"cannot split {len(groups)} {what} into {parts} parts; use at most {len(groups)} (--nj)")
    split: list[list[str]] = []
    done = 0
    for part in range(parts):
        taken: list[str] = []
        # A part fills up to its fair share of all lines, and leaves one group to each part still to come.
        share = len(lines) * (part + 1) // parts
        while len(groups) > parts - part - 1 and (not taken or done + len(groups[0]) <= share):
            taken += groups[0]
            done += len(groups.popleft())
        split.append(taken)
    return split


def _speaker_groups(lines: Sequence[str], utt2spk: dict[str, str]) -> list[list[str]]:
    groups: list[list[str]] = []
    last = None
    for line in lines:
        utt = split_line(line)[0]
        if utt not in utt2spk:
            raise InputError(f"utt2spk: utterance {utt} is missing; run fix_data_dir.sh on the directory")
        if utt2spk[utt] != last:
            groups.append([])
        last = utt2spk[utt]
        groups[-1].append(line)
    return groups


def filter_scp(lines: Iterable[str], ids: Collection[str], field: int = 1, exclude: bool = False) -> list[str]:
    """The lines whose `field` (counted from 1) is, or with exclude is not, among ids.

    Raises:
        InputError: a line with too few fields.
    """
    kept = []
    for line in lines:
        fields = split_line(line) if field == 1 else [word for word in line.replace("\t", " ").split(" ") if word]
        if len(fields) < field or not fields[0]:
            raise InputError(f"line {line!r}: no field {field}; choose another -f")
        if (fields[field - 1] in ids) != exclude:
            kept.append(line)
    return kept
