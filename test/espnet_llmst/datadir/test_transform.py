"""Fixing, subsetting, copying, combining data directories."""

import pytest

from espnet_llmst.cli import InputError
from espnet_llmst.datadir import transform
from espnet_llmst.datadir.kaldi import read_table
from espnet_llmst.datadir.validate import validate_data_dir


def segmented(corpus):
    """Give the corpus two recordings with two segments each."""
    corpus.tables["segments"] = {utt: f"r-{utt[0]} {utt[1]} {int(utt[1]) + 1}" for utt in corpus.tables["utt2spk"]}
    corpus.tables["wav.scp"] = {"r-a": "a.wav", "r-b": "b.wav"}
    corpus.tables["reco2dur"] = {"r-a": "9", "r-b": "9"}
    return corpus.write()


def test_fix_keeps_the_intersection_and_says_what_went(good):
    (good.dir / "text.tc.de").write_text("b2 vier\nb1 drei\n\na1 eins\na1 eins\nc neu\n")
    (good.dir / "spk2gender").write_text("spk-a m\nspk-b f\nspk-c f\n")
    removed = transform.fix_data_dir(good.dir)
    assert removed["wav.scp"] == 1 and removed["text.tc.de"] == 3 and removed["spk2gender"] == 1
    assert list(read_table(good.dir / "text.tc.de")) == ["a1", "b1", "b2"]
    assert read_table(good.dir / "spk2utt") == {"spk-a": "a1", "spk-b": "b1 b2"}
    assert validate_data_dir(good.dir) == []


def test_fix_removes_an_id_with_two_different_texts_and_keeps_an_empty_text(good):
    (good.dir / "text.tc.de").write_text("a1 eins\na1 zwei\na2\nb1 drei\nb2 vier\n")
    transform.fix_data_dir(good.dir)
    assert read_table(good.dir / "text.tc.de", allow_empty=True) == {"a2": "", "b1": "drei", "b2": "vier"}
    assert "a1" not in read_table(good.dir / "wav.scp")


def test_fix_with_segments(good):
    segmented(good)
    (good.dir / "wav.scp").write_text("r-b b.wav\nr-c c.wav\n")
    (good.dir / "segments").write_text("a1 r-a 1 2\nb1 r-b 1 2\nb2 r-b x 3\n")
    transform.fix_data_dir(good.dir)
    assert list(read_table(good.dir / "utt2lang")) == ["b1"]
    assert read_table(good.dir / "wav.scp") == {"r-b": "b.wav"}
    assert read_table(good.dir / "reco2dur") == {"r-b": "9"}
    assert validate_data_dir(good.dir) == []


def test_fix_writes_nothing_when_nothing_would_be_left(good):
    (good.dir / "text.tc.de").write_text("x y\n")
    before = {path.name: path.read_bytes() for path in good.dir.iterdir()}
    with pytest.raises(InputError, match="no utterance"):
        transform.fix_data_dir(good.dir)
    assert {path.name: path.read_bytes() for path in good.dir.iterdir()} == before


def test_subset_takes_every_table_along(good, tmp_path):
    segmented(good)
    (good.dir / "feats_type").write_text("raw\n")
    assert transform.subset_data_dir(good.dir, tmp_path / "s", ["b2", "nobody"]) == 1
    assert read_table(tmp_path / "s/wav.scp") == {"r-b": "b.wav"}
    assert read_table(tmp_path / "s/text.tc.de") == {"b2": "hallo b2"}
    assert (tmp_path / "s/feats_type").read_text() == "raw\n"
    assert validate_data_dir(tmp_path / "s") == []


def test_choices(good):
    tables = transform.read_data_dir(good.dir)
    assert transform.choose_utts(tables, 2, "first") == ["a1", "a2"]
    assert transform.choose_utts(tables, 1, "last") == ["b2"]
    chosen = transform.choose_utts(tables, 3, seed=7)
    assert chosen == transform.choose_utts(tables, 3, seed=7) and len(set(chosen)) == 3
    assert len(transform.choose_utts(tables, 3, "speakers")) == 4
    assert {utt[0] for utt in transform.choose_utts(tables, 2, "speakers")} in ({"a"}, {"b"})
    tables["utt2dur"] = {"a1": "10", "a2": "9", "b1": "2", "b2": "1"}
    assert transform.choose_utts(tables, 2, "shortest") == ["b2", "b1"]
    with pytest.raises(InputError, match="there are 4"):
        transform.choose_utts(tables, 5)


def test_copy_with_prefixes(good, tmp_path):
    segmented(good)
    transform.copy_data_dir(good.dir, tmp_path / "c", utt_prefix="x-", spk_prefix="y-", utt_suffix="-z")
    assert read_table(tmp_path / "c/segments")["x-a1-z"] == "r-a 1 2"
    assert read_table(tmp_path / "c/spk2utt")["y-spk-b"] == "x-b1-z x-b2-z"
    assert set(read_table(tmp_path / "c/wav.scp")) == {"r-a", "r-b"}
    assert validate_data_dir(tmp_path / "c") == []


def test_combine_restores_the_whole_and_reports_lost_tables(good, tmp_path):
    transform.subset_data_dir(good.dir, tmp_path / "1", ["a1", "b2"])
    transform.subset_data_dir(good.dir, tmp_path / "2", ["a2", "b1"])
    (tmp_path / "2/utt2lang").unlink()
    assert transform.combine_data_dirs(tmp_path / "all", [tmp_path / "1", tmp_path / "2"]) == ["utt2lang"]
    for name in ("wav.scp", "text.tc.de", "utt2spk", "spk2utt"):
        assert (tmp_path / "all" / name).read_bytes() == (good.dir / name).read_bytes()


def test_combine_of_segmented_and_whole_files(good, tmp_path):
    transform.copy_data_dir(good.dir, tmp_path / "whole", utt_prefix="w-", spk_prefix="w-")
    segmented(good)
    transform.combine_data_dirs(tmp_path / "all", [tmp_path / "whole", good.dir])
    segments = read_table(tmp_path / "all/segments")
    assert segments["w-a1"] == "w-a1 0 -1" and segments["a1"] == "r-a 1 2"
    assert validate_data_dir(tmp_path / "all") == []


def test_combine_refuses_one_id_with_two_meanings(good, tmp_path):
    transform.copy_data_dir(good.dir, tmp_path / "2")
    (tmp_path / "2/text.tc.de").write_text("a1 anders\na2 hallo a2\nb1 hallo b1\nb2 hallo b2\n")
    with pytest.raises(InputError, match=r"2/text.tc.de: a1 .*utt-prefix"):
        transform.combine_data_dirs(tmp_path / "all", [good.dir, tmp_path / "2"])


def test_no_utt2spk(good):
    (good.dir / "utt2spk").unlink()
    for function in (transform.read_data_dir, transform.fix_data_dir):
        with pytest.raises(InputError, match="utt2spk: missing"):
            function(good.dir)
