"""What the preparations of all corpora share: checks, reports, data directories written whole."""

import json
from functools import partial

import numpy as np
import pytest

from espnet_llmst.cli import InputError
from espnet_llmst.datadir import corpus as module
from espnet_llmst.datadir.corpus import (
    Dropped,
    Item,
    check_audio,
    compare_counts,
    drop_empty,
    prepare_set,
    probe_audio,
    write_tsv,
)
from espnet_llmst.datadir.kaldi import read_table
from espnet_llmst.datadir.validate import validate_data_dir


class Source:
    """A corpus to be prepared: its items, its table, and how often it was read."""

    def __init__(self, root, items):
        self.items, self.dropped, self.reads = items, [], 0
        self.table = root / "table.tsv"
        self.table.write_text("a table")
        self.out = root / "set"

    def read(self):
        self.reads += 1
        return list(self.items), list(self.dropped)

    def prepare(self, **options):
        return prepare_set(self.out, self.read, [self.table], **{"whole": False, **options})

    def lines(self, name):
        return (self.out / name).read_text(encoding="utf-8").split("\n")[:-1]


def item(utt, audio, en="hello", de="hallo", **options):
    return Item(utt, f"spk{utt[0]}", "en", audio, {"en": en, "de": de}, **options)


@pytest.fixture
def source(corpus, tmp_path):
    """Two utterances in files of their own, 1 s each."""
    files = [corpus.audio(f"{utt}.wav", corpus.tone(1)) for utt in ("a1", "b1")]
    return Source(tmp_path, [item("a1", files[0], de="Straße\u2028 1 "), item("b1", files[1])])


@pytest.fixture
def talk(corpus, tmp_path):
    """Three segments of a talk of 10 s; the last overshoots it."""
    wav = corpus.audio("talk.wav", corpus.tone(10))
    spans = {"a1": (0.5, 3.25), "a2": (3.25, 6.0), "a3": (8.0, 12.0)}
    items = [item(utt, wav, recording="talk", start=s, end=e) for utt, (s, e) in spans.items()]
    return Source(tmp_path, items)


def test_files(source):
    summary = source.prepare()
    assert summary == {"utterances": 2, "hours": 0.001, "dropped": 0, "reasons": {}, "clamped": 0}
    assert validate_data_dir(source.out) == []
    assert source.lines("text.tc.de") == ["a1 Straße 1", "b1 hallo"]
    assert source.lines("utt2lang") == ["a1 en", "b1 en"] and source.lines("spk2utt") == ["spka a1", "spkb b1"]
    assert source.lines("wav.scp") == [f"{i.utt} {i.audio}" for i in source.items]
    assert not (source.out / "segments").exists()


def test_segments_are_clamped(talk):
    summary = talk.prepare()
    assert (summary["utterances"], summary["clamped"]) == (3, 1)
    assert talk.lines("segments") == ["a1 talk 0.5 3.25", "a2 talk 3.25 6", "a3 talk 8 10"]
    assert talk.lines("wav.scp") == [f"talk {talk.items[0].audio}"]
    assert talk.lines("clamped.tsv") == ["utt\tdetail", "a3\t8.00-12.00 s of 10.00 s"]
    assert validate_data_dir(talk.out) == []


def test_a_segment_mostly_outside_its_audio_stays_in_test_sets_only(talk):
    talk.items[2] = talk.items[2]._replace(end=12.5)  # 2 of 4.5 s are there
    assert talk.prepare()["reasons"] == {"segment_outside_audio": 1}
    assert talk.lines("dropped.tsv")[1] == "a3\tsegment_outside_audio\tmore than half of it: 8.00-12.50 s of 10.00 s"
    summary = talk.prepare(whole=True)
    assert (summary["utterances"], summary["clamped"]) == (3, 1)


def test_times_are_those_of_whole_samples_at_any_rate(corpus, tmp_path):
    wav = corpus.audio("cd.wav", corpus.tone(2, rate=44100), rate=44100)
    source = Source(tmp_path, [item("a", wav, recording="r", start=0.1, end=1.00001), item("b", wav, recording="r")])
    source.prepare()
    frames = [[round(float(t) * 44100, 2) for t in line.split()[2:]] for line in source.lines("segments")]
    assert frames == [[4410, 44100], [0, 88200]]


def test_training_sets_lose_empty_texts_and_test_sets_do_not(source, capsys):
    source.items[0] = source.items[0]._replace(texts={"en": "x", "de": "\u200b "})
    assert source.prepare()["reasons"] == {"empty_text.de": 1}
    assert source.lines("dropped.tsv") == ["utt\treason\tdetail", "a1\tempty_text.de\t"]
    assert source.prepare(whole=True)["utterances"] == 2
    assert source.lines("text.tc.de") == ["a1 ", "b1 hallo"] and capsys.readouterr().err == ""


def bad_file(path, corpus, kind):
    if kind == "empty":
        path.write_bytes(b"")
    elif kind == "text":
        path.write_bytes(b"not audio at all")
    elif kind == "cut":
        corpus.audio(path.name, corpus.tone(2))
        path.write_bytes(path.read_bytes()[:20000])
    elif kind == "no samples":
        corpus.audio(path.name, np.zeros(0))
    elif kind == "not finite":
        corpus.audio(path.name, np.full(16000, np.nan, np.float32), subtype="FLOAT")


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("missing", "missing_audio"),
        ("empty", "empty_audio"),
        ("no samples", "empty_audio"),
        ("text", "unreadable_audio"),
        ("cut", "unreadable_audio"),
        ("not finite", "unreadable_audio"),
    ],
)
def test_bad_audio_is_named(source, corpus, capsys, kind, reason):
    path = corpus.root / "audio/bad.wav"
    bad_file(path, corpus, kind)
    source.items.append(item("c1", str(path)))
    assert source.prepare(whole=True)["reasons"] == {reason: 1}
    assert source.lines("dropped.tsv")[1].startswith(f"c1\t{reason}\t{path}")
    (warning,) = capsys.readouterr().err.strip().split("\n")
    assert warning.startswith(f"WARNING: {source.out}: lost c1: {reason} {path}")
    assert source.prepare(force=True)["dropped"] == 1 and capsys.readouterr().err == ""  # training: a count will do
    assert probe_audio(str(path)).reason == reason


def test_segments_that_cannot_be_cut(talk):
    wav = talk.items[0].audio
    for utt, start, end in (("b1", 10.0, 11.0), ("b2", 4.0, 4.0), ("b3", 5.0, 4.0), ("b4", -2.0, -1.0)):
        talk.items.append(item(utt, wav, recording="talk", start=start, end=end))
    reasons = dict(line.split("\t")[:2] for line in (talk.prepare(), talk.lines("dropped.tsv")[1:])[1])
    outside, empty = "segment_outside_audio", "empty_audio"
    assert reasons == {"b1": outside, "b2": empty, "b3": empty, "b4": outside}


def test_what_the_reader_left_out_is_reported_too(source, capsys):
    source.dropped.append(Dropped("z9", "bad_times", "one\ttwo\nthree"))
    assert source.prepare(whole=True)["reasons"] == {"bad_times": 1}
    assert source.lines("dropped.tsv")[1] == "z9\tbad_times\tone two three"
    assert "lost z9: bad_times" in capsys.readouterr().err


def test_finished_sets_are_skipped_until_something_changes(source, corpus):
    def reads(**options):
        before = source.reads
        source.prepare(**options)
        return source.reads - before

    options = {"settings": {"pair": ("en", "de"), "n": {"a": 1}}}
    missing = corpus.root / "audio/late.wav"
    source.items.append(item("c1", str(missing)))
    assert reads(**options) == 1
    files = {path: path.stat().st_mtime_ns for path in source.out.iterdir()}
    assert reads(**options) == 0 and {p: p.stat().st_mtime_ns for p in source.out.iterdir()} == files
    assert reads(**options, nj=2) == 0
    assert reads(**options, force=True) == 1
    assert reads(settings={}) == 1 and reads(settings={}, whole=True) == 1 and reads(settings={}, whole=True) == 0
    source.table.write_text("another table")
    assert reads(settings={}, whole=True) == 1
    corpus.audio("late.wav", corpus.tone(1))  # what was missing is there now
    assert reads(settings={}, whole=True) == 1 and reads(settings={}, whole=True) == 0
    assert len(source.lines("utt2spk")) == 3
    (source.out / "text.tc.de").unlink()
    assert reads(settings={}, whole=True) == 1
    (source.out / ".done").write_text("[]")
    assert reads(settings={}, whole=True) == 1


def test_same_bytes_every_time_and_no_left_overs(talk):
    def contents():
        return {path.name: path.read_bytes() for path in talk.out.iterdir()}

    talk.prepare()
    before = contents()
    (talk.out / "text.tc.fr").write_text("a1 of another run\n")
    (talk.out / ".99999999.456.tmp").write_text("of a killed run")
    talk.items.reverse()
    talk.prepare(force=True, nj=2)
    assert contents() == before


def test_a_kill_leaves_no_mark(source, monkeypatch):
    source.prepare()

    def killed(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "_write_tables", killed)
    with pytest.raises(KeyboardInterrupt):
        source.prepare(force=True)
    assert not (source.out / ".done").exists() and not list(source.out.glob("*.tmp"))
    monkeypatch.undo()
    reads = source.reads
    source.prepare()
    assert source.reads == reads + 1 and json.loads((source.out / ".done").read_text())["summary"]["utterances"] == 2


def test_errors(source, corpus, tmp_path):
    good, other = source.items
    source.items = [good, good]
    with pytest.raises(InputError, match="utterance id a1 occurs 2 times in the corpus; keep one of them"):
        source.prepare()
    source.items = [good._replace(recording="r"), other._replace(recording="r")]
    with pytest.raises(InputError, match="recording r is both .*a1.wav and .*b1.wav; give them different names"):
        source.prepare()
    source.items = [good._replace(utt="a 1")]
    with pytest.raises(InputError, match="'a 1': ids take no white space"):
        source.prepare()
    source.items = [good._replace(audio="/nowhere.wav")]
    with pytest.raises(InputError, match=r"no utterance left \(e.g. a1: missing_audio /nowhere.wav"):
        source.prepare()
    source.items = []
    with pytest.raises(InputError, match=r"no utterance left \(its tables are empty\)"):
        source.prepare()
    source.table.unlink()
    with pytest.raises(InputError, match="table.tsv: no such file or folder; unpack the corpus again"):
        source.prepare()
    assert not (source.out / ".done").exists()


def test_audio_is_opened_once_and_by_several_processes(talk, source, monkeypatch):
    calls = []
    monkeypatch.setattr(module, "run_jobs", lambda function, paths, *_: calls.extend(paths) or map(function, paths))
    assert len(check_audio(talk.items, 1, "talk", False)[0]) == 3 and calls == [talk.items[0].audio]
    monkeypatch.undo()
    assert check_audio(source.items, 2, "x", False) == check_audio(source.items, 1, "x", False)


def test_drop_empty_names_the_first_language():
    make = partial(item, audio="x.wav")
    kept, dropped = drop_empty([make("a"), make("b", en="", de=""), make("c", en="")])
    assert [i.utt for i in kept] == ["a"]
    assert dropped == [Dropped("b", "empty_text.de"), Dropped("c", "empty_text.en")]


def test_write_tsv(tmp_path):
    write_tsv(tmp_path / "x.tsv", [("a", "b\tc"), ("d", "e\nf")])
    assert (tmp_path / "x.tsv").read_text() == "a\tb c\nd\te f\n"


def test_compare_counts():
    published = {"v1": 229703, "v2": 250000}
    assert compare_counts("train", 229703, published) == "train: 229703 utterances, as published (v1)"
    assert compare_counts("train", 229700, published).endswith("-3 against the published 229703 (v1)")
    assert compare_counts("train", 5, {}) == "train: 5 utterances (no published number is known)"


def test_tables_can_be_read_again(talk):
    talk.prepare()
    assert {name: len(read_table(talk.out / name)) for name in ("segments", "text.tc.en", "wav.scp")} == {
        "segments": 3,
        "text.tc.en": 3,
        "wav.scp": 1,
    }
