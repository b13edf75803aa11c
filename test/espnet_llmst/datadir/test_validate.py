"""Every fault of a data directory is found and named."""

import pytest

from espnet_llmst.cli import InputError
from espnet_llmst.datadir.validate import validate_data_dir


def test_good_directory_has_no_faults(good):
    assert validate_data_dir(good.dir) == []


def test_missing_files(good):
    for name in ("spk2utt", "text.tc.en", "text.tc.de", "wav.scp"):
        (good.dir / name).unlink()
    assert len(validate_data_dir(good.dir)) == 3
    assert len(validate_data_dir(good.dir, text=False, wav=False)) == 1


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("text.tc.de", "a2 x\na1 y\nb1 z\nb2 z\n", ["text.tc.de", "C order", "a1"]),
        ("text.tc.de", "a1 x\na1 y\nb1 z\nb2 z\n", ["text.tc.de:2", "twice"]),
        ("text.tc.de", "a1 x\na2 y\nb1 z\n", ["text.tc.de", "1 ids", "b2", "missing here"]),
        ("utt2lang", "a1 x\na2 y\nb1 z\nb2 z\nc z\n", ["utt2lang", "c ", "only here"]),
        ("spk2utt", "spk-a a1\nspk-b a2 b1 b2\n", ["spk2utt", "does not match"]),
        ("spk2gender", "spk-a m\n", ["spk2gender", "spk-b"]),
        ("utt2dur", "", ["utt2dur", "empty"]),
        ("segments", "a1 r 0 x\n", ["segments", "a1", "r 0 x"]),
    ],
)
def test_faults_name_file_and_id(good, name, content, words):
    (good.dir / name).write_text(content)
    faults = validate_data_dir(good.dir)
    assert len(faults) == 1
    assert all(word in faults[0] for word in words), faults


def test_empty_text_is_left_to_formatting(good):
    good.tables["text.tc.de"]["a1"] = ""
    good.write()
    assert validate_data_dir(good.dir) == []


def test_segments_and_recordings_must_agree(good):
    good.tables["segments"] = {utt: f"r-{utt[0]} 0 1" for utt in good.tables["utt2spk"]}
    good.tables["wav.scp"] = {"r-a": "a.wav", "r-c": "c.wav"}
    good.write()
    (fault,) = validate_data_dir(good.dir)
    assert "wav.scp" in fault and "2 ids differ, e.g. r-b is missing here" in fault


def test_no_directory(tmp_path):
    with pytest.raises(InputError, match="no such data directory"):
        validate_data_dir(tmp_path / "x")
