"""Tables: reading, refusing, writing; which files are texts and what keys a file."""

import pytest

from espnet_llmst.cli import InputError
from espnet_llmst.datadir import kaldi


def test_round_trip_is_c_sorted_and_keeps_line_separators_inside_texts(tmp_path):
    table = {"b": "x\u2028y \u0085 z\u001d", "B": "  two  blanks".strip(), "é": "\u3000wide", "a": ""}
    kaldi.write_table(tmp_path / "sub/text", table)
    assert [line[:1] for line in (tmp_path / "sub/text").read_text("utf-8").split("\n")] == [
        "B",
        "a",
        "b",
        "é",
        "",
    ]
    assert kaldi.read_table(tmp_path / "sub/text", allow_empty=True) == table
    assert [path.name for path in (tmp_path / "sub").iterdir()] == ["text"]


def test_tabs_bom_and_carriage_returns_are_understood(tmp_path):
    (tmp_path / "t").write_bytes("\ufeffa\t1 2\r\nb   3\r\n".encode())
    assert kaldi.read_table(tmp_path / "t") == {"a": "1 2", "b": "3"}


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"a 1\nb 2\na 3\n", ["t:3", " a ", "twice"]),
        (b"a 1\nb \n", ["t:2", " b ", "no value"]),
        (b"a 1\n\nb 2\n", ["t:2", "empty line"]),
        (b"a 1\nb \xff\n", ["t:2", "UTF-8"]),
    ],
)
def test_bad_tables_are_named_with_file_line_and_id(tmp_path, content, words):
    (tmp_path / "t").write_bytes(content)
    with pytest.raises(InputError) as error:
        kaldi.read_table(tmp_path / "t")
    assert all(word in str(error.value) for word in words)
    assert "\n" not in str(error.value)


def test_not_unique_keeps_the_first(tmp_path):
    (tmp_path / "t").write_text("a 1\na 2\n")
    assert kaldi.read_table(tmp_path / "t", unique=False) == {"a": "1"}


def test_missing_file_is_an_input_error(tmp_path):
    with pytest.raises(InputError, match="nowhere"):
        kaldi.read_table(tmp_path / "nowhere")


@pytest.mark.parametrize("table", [{"a b": "x"}, {"": "x"}, {"a": "x\ny"}, {"a\u2003b": "x"}])
def test_tables_that_would_be_corrupt_are_not_written(tmp_path, table):
    with pytest.raises(InputError):
        kaldi.write_table(tmp_path / "t", table)
    assert not list(tmp_path.iterdir())


def test_atomic_write_leaves_the_old_file_when_interrupted(tmp_path):
    (tmp_path / "f").write_text("old")
    with pytest.raises(RuntimeError), kaldi.atomic_write(tmp_path / "f") as file:
        file.write("new")
        raise RuntimeError
    assert (tmp_path / "f").read_text() == "old"
    assert len(list(tmp_path.iterdir())) == 1


def test_text_files_prefer_true_case_and_skip_plain_and_references(tmp_path):
    for name in (
        "text",
        "text.lc.en",
        "text.tc.en",
        "text.lc.rm.de",
        "text.tc.de.1",
        "text.tc.zh-CN",
        "text.tc",
    ):
        (tmp_path / name).touch()
    found = {lang: path.name for lang, path in kaldi.text_files(tmp_path).items()}
    assert found == {"de": "text.lc.rm.de", "en": "text.tc.en", "zh-CN": "text.tc.zh-CN"}


def test_table_key():
    assert kaldi.table_key("wav.scp", True) == "reco"
    assert kaldi.table_key("wav.scp", False) == "utt"
    assert [
        kaldi.table_key(n, True) for n in ("segments", "utt2dur", "text.tc.de", "spk2gender", "reco2dur", ".done")
    ] == [
        "utt",
        "utt",
        "utt",
        "spk",
        "reco",
        None,
    ]


@pytest.mark.parametrize("value", ["rec 1", "rec 1 x", "rec nan 2", "rec 0 inf", ""])
def test_malformed_segments(value):
    with pytest.raises(InputError, match="segments: u1"):
        kaldi.parse_segment("segments", "u1", value)


def test_segment_end_minus_one_is_the_recordings_end():
    assert kaldi.parse_segment("segments", "u1", "rec 0.5 -1") == ("rec", 0.5, None)


def test_speaker_maps_invert():
    utt2spk = {"u2": "s", "u1": "s", "u3": "t"}
    assert kaldi.invert_utt2spk(utt2spk) == {"s": "u1 u2", "t": "u3"}
    assert kaldi.invert_spk2utt(kaldi.invert_utt2spk(utt2spk).items()) == utt2spk
    with pytest.raises(InputError, match="u1"):
        kaldi.invert_spk2utt([("s", "u1"), ("t", "u1")])
