"""Splitting and filtering lines."""

import pytest

from espnet_llmst.cli import InputError
from espnet_llmst.datadir.lines import filter_scp, split_scp

LINES = [f"u{i:02d} x" for i in range(10)]


@pytest.mark.parametrize("parts", range(1, 11))
def test_parts_are_consecutive_complete_and_even(parts):
    split = split_scp(LINES, parts)
    assert sum(split, []) == LINES
    sizes = {len(part) for part in split}
    assert len(split) == parts and max(sizes) - min(sizes) <= 1


@pytest.mark.parametrize("parts", range(1, 5))
def test_speakers_stay_together(parts):
    utt2spk = dict(zip((line[:3] for line in LINES), "aaaaabbccd", strict=True))
    split = split_scp(LINES, parts, utt2spk)
    assert sum(split, []) == LINES
    speakers = [{utt2spk[line[:3]] for line in part} for part in split]
    assert all(speakers) and sum(map(len, speakers)) == 4


def test_too_many_parts_or_unknown_speaker():
    with pytest.raises(InputError, match="at most 10"):
        split_scp(LINES, 11)
    with pytest.raises(InputError, match="u00"):
        split_scp(LINES, 2, {})


def test_large_tables_split_quickly():
    assert len(split_scp([f"u{i} x" for i in range(300_000)], 32)[0]) in (9375, 9376)


def test_filter():
    lines = ["u1 r1", "u2  r2 x", "u3\tr1"]
    assert filter_scp(lines, {"u1", "u3"}) == ["u1 r1", "u3\tr1"]
    assert filter_scp(lines, {"u1"}, exclude=True) == ["u2  r2 x", "u3\tr1"]
    assert filter_scp(lines, {"r1"}, field=2) == ["u1 r1", "u3\tr1"]
    with pytest.raises(InputError, match="u1 r1"):
        filter_scp(lines, set(), field=3)
