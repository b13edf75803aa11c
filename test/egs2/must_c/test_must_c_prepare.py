"""Preparation of MuST-C: every quirk of the real corpus, each with what must come of it.

Kept: segments beyond the end of their talk (clamped), control characters in texts (stripped), any order of keys and
any spelling of numbers in the yaml, talks in sub-folders, talks that come back, other speakers than the file name says,
short lines, noise tags, empty lines of test sets.
Left out of train, by name: repeated segments, empty lines; of every split: missing, empty or unreadable talks, segments
outside their talk, times that are no numbers. Of a test set this is said loudly.
A stop with one line: a missing folder, split or table, tables of different lengths, broken YAML, no talk at all.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import soundfile
import yaml
from corpus_must_c import RECIPE, SPLITS, V1, V2, entries, load_prepare, write_corpus, write_tables, write_talk

from espnet_llmst.cli import InputError
from espnet_llmst.datadir.kaldi import read_table
from espnet_llmst.datadir.validate import validate_data_dir

prepare = load_prepare()


@pytest.fixture
def root(tmp_path):
    return write_corpus(tmp_path / "MuST-C")


@pytest.fixture
def make(root, tmp_path):
    """Prepare the corpus; returns the summary of a set."""

    def make(name="train.en-de", directions=("en-de",), **options):
        return prepare.prepare_must_c(root, tmp_path / "data", directions, **options)["sets"][name]

    return make


@pytest.fixture
def table(tmp_path):
    """A table of a set as a dict."""
    return lambda file, name="train.en-de": read_table(tmp_path / "data" / name / file, allow_empty=True)


@pytest.fixture
def dropped(tmp_path):
    """{utterance: reason} of a set."""

    def dropped(name="train.en-de"):
        rows = (tmp_path / "data" / name / "dropped.tsv").read_text(encoding="utf-8").split("\n")[1:-1]
        return {row.split("\t")[0]: row.split("\t")[1] for row in rows}

    return dropped


def split_dir(root, split="train", tgt="de"):
    return root / f"en-{tgt}" / "data" / split


def utt(position, talk=1, split="train", tgt="de"):
    return f"spk.{talk}-ted_{talk}-{split}.{tgt}-{position:06d}"


# ---- sound corpora


@pytest.mark.parametrize(("form", "release"), [(V1, "v1"), (V2, "v2 or v3")])
def test_releases_give_the_same_directories(tmp_path, capsys, form, release):
    root = write_corpus(tmp_path / "MuST-C", form=form)
    assert prepare.main(["--corpus_dir", str(root), "--out_dir", str(tmp_path / "data"), "--nj", "1"]) == 0
    out = capsys.readouterr().out
    assert f"en-de: MuST-C {release}\n" in out
    assert ("-229697 against the published 229703 (v1)" in out) == (release == "v1")
    assert "tst-HE.en-de: 3 utterances" in out and "dropped 0, clamped 0" in out
    for split in SPLITS:
        set_dir = tmp_path / "data" / f"{split}.en-de"
        assert validate_data_dir(set_dir) == []
        assert len(read_table(set_dir / "text.tc.de")) == (6 if split == "train" else 3)
    train = tmp_path / "data/train.en-de"
    assert (train / "segments").read_text().split("\n")[:2] == [
        f"{utt(1)} ted_1-train.de 0.5 1.75",
        f"{utt(2)} ted_1-train.de 2 3.25",
    ]
    utt2spk = read_table(train / "utt2spk")
    assert utt2spk[utt(4, 12)] == "spk.12"
    assert list(utt2spk) == sorted(utt2spk, key=lambda key: (utt2spk[key], key))  # as Kaldi wants it
    assert read_table(train / "text.tc.de")[utt(4, 12)] == "Satz 3."
    assert set(read_table(train / "utt2lang").values()) == {"en"}
    assert read_table(train / "wav.scp")["ted_1-train.de"] == str(root / "en-de/data/train/wav/ted_1.wav")


def test_all_targets_at_once_have_ids_of_their_own(tmp_path):
    """The journal's 14 targets and Japanese of release 2, given in one string as stage 1 does."""
    tgts = ("ar", "cs", "de", "es", "fa", "fr", "it", "ja", "nl", "pt", "ro", "ru", "tr", "vi", "zh")
    root = write_corpus(tmp_path / "MuST-C", tgts=tgts, splits=SPLITS[:3])
    directions = ", ".join(f"en-{tgt}" for tgt in tgts)
    summary = prepare.prepare_must_c(root, tmp_path / "data", directions)
    assert len(summary["sets"]) == 45 and {s["dropped"] for s in summary["sets"].values()} == {0}
    tables = [read_table(tmp_path / "data" / name / "utt2spk") for name in summary["sets"]]
    ids = [key for table in tables for key in table]
    assert len(set(ids)) == len(ids) == 15 * 12
    assert not any(set(key) & set(" \t/") or key.startswith("-") for key in ids)
    wavs = [key for name in summary["sets"] for key in read_table(tmp_path / "data" / name / "wav.scp")]
    assert len(set(wavs)) == len(wavs)


def test_a_release_without_tst_he(tmp_path, capsys):
    root = write_corpus(tmp_path / "MuST-C", form=V2, splits=SPLITS[:3])
    options = ["--corpus_dir", str(root), "--out_dir", str(tmp_path / "data")]
    assert prepare.main(options) == 0
    assert "tst-HE.en-de: not in this release; score the others (--test_sets tst-COMMON)" in capsys.readouterr().out
    (tmp_path / "data/tst-HE.en-de").mkdir()
    with pytest.raises(InputError, match="tst-HE.en-de: is of another release, this one has no such split; delete it"):
        prepare.main(options)


def test_again_is_skipped_and_forced_is_the_same(make, tmp_path):
    def state():
        files = sorted(path for path in (tmp_path / "data").rglob("*") if path.is_file())
        return {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in files}

    first = make(nj=2)
    before = state()
    assert make() == first and state() == before
    assert make(force=True) == first
    after = state()
    assert {p: b for p, (b, _) in after.items()} == {p: b for p, (b, _) in before.items()}
    assert all(after[path][1] > before[path][1] for path in before)


def test_a_changed_table_is_prepared_again(make, root, table):
    make()
    write_tables(split_dir(root), entries(1, 3))
    assert make()["utterances"] == 3 and set(table("wav.scp")) == {"ted_1-train.de"}


# ---- the yaml


def test_keys_in_any_order_extra_keys_and_spellings_of_numbers(make, root, table):
    """PyYAML takes 9.56E1 and 1e-05 for text and 6 for a whole number; quotes and block style are YAML too."""
    talk = "speaker_id: spk.1, wav: ted_1.wav"
    lines = [
        "- {wav: ted_1.wav, speaker_id: spk.1, offset: 1e-05, duration: 5}",
        f"- {{rW: 9, offset: 2.0E0, uW: 0, note: a b, duration: 1.5e+0, {talk}}}",
        f"- {{duration: '0.5', offset: \"3.5\", {talk}}}",
        "- duration: 1.25\n  offset: 4\n  speaker_id: spk.1\n  wav: ted_1.wav",
        f"-   {{ duration: 1,offset: .5 ,  {talk} }}",
    ]
    write_tables(split_dir(root), lines)
    assert make()["utterances"] == 5
    times = [value.split(" ", 1)[1] for value in table("segments").values()]
    # Times are those of samples: 1e-05 s is before the first one's middle.
    assert times == ["0 5", "2 3.5", "3.5 4", "4 5.25", "0.5 1.5"]


@pytest.mark.parametrize(
    "line",
    [
        "- {a: 1, 'b c': \"2\", \"d\": 'e/f'}",
        "- {a: ' 1 ', b: ''}",
        "- {a: 'x, y: z', b: 'it''s', c: O'Brien, d: \"1\\t2\"}",
        "- {a: 'x: y', b: a:b, c: -1, d: - 1}",
        "- {a: \"x' , b: 'y\"}",
        "- {a: ', b: '}",
        "- {a, b: , c: 1}",
        "- {}",
        "- {a: #b\n  1}",
    ],
)
def test_the_quick_way_reads_what_yaml_reads(tmp_path, line):
    """Or leaves it to YAML."""
    try:
        expected = yaml.load(line, Loader=yaml.BaseLoader)
    except yaml.YAMLError:
        with pytest.raises(InputError, match="no valid YAML"):
            list(prepare._entries(line.split("\n"), tmp_path))
    else:
        assert list(prepare._entries(line.split("\n"), tmp_path)) == expected


@pytest.mark.parametrize("indent", ["", "  "])
def test_plain_lines_are_read_as_yaml_reads_them(tmp_path, monkeypatch, indent):
    segments = [entry for talk in range(40) for entry in entries(talk, 5)]
    lines = [f"{indent}- {V2.format(**entry)}" for entry in segments]
    plain, mixed = tmp_path / "plain.yaml", tmp_path / "mixed.yaml"
    plain.write_text("\n".join(lines) + "\n")
    lines[99] = lines[99].replace("spk.19", "'spk.19'")
    lines.insert(50, f"{indent}# a remark\n\n")
    mixed.write_text("---\n" + "\n".join(lines) + "\n...\n")
    monkeypatch.setattr(prepare, "_CHUNK", 16)
    expected = [prepare.Segment(s["wav"], f"{s['offset']:.6f}", f"{s['duration']:.6f}", s["speaker"]) for s in segments]
    assert list(prepare.read_segments(plain)) == expected
    assert list(prepare.read_segments(mixed)) == expected


def test_the_wav_field_names_the_audio_not_the_speaker(make, root, table):
    segments = [dict(entry, speaker="spk.999") for entry in entries(1, 2)]
    write_tables(split_dir(root), [*segments, "- {offset: 1, duration: 1, wav: ted_12.wav}"])
    make()
    assert table("utt2spk") == {
        "spk.999-ted_1-train.de-000001": "spk.999",
        "spk.999-ted_1-train.de-000002": "spk.999",
        "ted_12-ted_12-train.de-000003": "ted_12",  # no speaker is given
    }
    assert {Path(path).name for path in table("wav.scp").values()} == {"ted_1.wav", "ted_12.wav"}


def test_a_talk_that_comes_back_and_times_that_sort_differently_as_text(make, root, table):
    one, other = entries(1, 3), entries(12, 1)
    write_talk(split_dir(root) / "wav/ted_1.wav", 12.0)
    back = [dict(one[0], offset=offset) for offset in (10.0, 9.0)]
    write_tables(split_dir(root), [*one, *other, *back])
    make()
    assert list(table("text.tc.de").values()) == [f"Satz {i}." for i in (0, 1, 2, 4, 5, 3)]
    starts = [float(value.split()[1]) for value in table("segments").values()]
    assert starts == [0.5, 2.0, 3.5, 10.0, 9.0, 0.5]


def test_sub_folders_blanks_and_like_names_stay_apart(make, root, table):
    names = ["valid/Audio-Monologues/x.wav", "valid_Audio-Monologues_x.wav", "valid/Audio Monologues/x.wav"]
    for seed, name in enumerate(names):
        write_talk(split_dir(root) / "wav" / name, 2.0 + seed)
    segments = [{"wav": name, "speaker": "MARIA L", "offset": 0, "duration": 4} for name in names]
    write_tables(split_dir(root), segments)
    assert make()["utterances"] == 3
    lengths = {key.rsplit("-", 1)[1]: value.split()[2] for key, value in table("segments").items()}
    assert lengths == {"000001": "2", "000002": "3", "000003": "4"}  # each from its own file
    assert all(soundfile.info(path).frames for path in table("wav.scp").values())
    assert not any(set(key) & set(" /") for name in ("segments", "wav.scp", "spk2utt") for key in table(name))


# ---- texts


def test_only_newlines_end_a_line(make, root, table):
    """str.splitlines also splits at these, which shifts all that follows."""
    odd = [f"a{mark}b" for mark in "\u2028\u2029\x85\x1d\x0b\x0c"]
    segments = [*entries(1, 3), *entries(12, 3)]
    write_tables(split_dir(root), segments, {"en": odd, "de": odd})
    make()
    assert list(table("text.tc.en").values()) == ["a b"] * 6


def test_invisible_characters_are_stripped_and_the_rest_stays(make, root, table):
    texts = ["\ufeffHel\x02lo\u200b,\xa0you \t all.", "(Laughter)", "CA: A", "İyi", "می\u200cخواهم", "  two  "]
    write_tables(split_dir(root), [*entries(1, 3), *entries(12, 3)], {"en": texts, "de": texts})
    make()
    assert list(table("text.tc.de").values()) == ["Hello, you all.", "(Laughter)", "CA: A", "İyi", texts[4], "two"]


def test_windows_line_ends_and_a_missing_last_newline(make, root, table):
    txt = split_dir(root) / "txt"
    for path in txt.iterdir():
        path.write_bytes(path.read_bytes().replace(b"\n", b"\r\n").removesuffix(b"\r\n"))
    assert make()["utterances"] == 6
    assert list(table("text.tc.de").values()) == [f"Satz {i}." for i in range(6)]


def test_empty_lines_are_left_out_of_train_and_stay_in_test(make, root, table, dropped, capsys):
    for split in ("train", "tst-COMMON", "dev"):
        segments = entries(1, 3)
        write_talk(split_dir(root, split) / "wav/ted_1.wav", 6.0)
        write_tables(split_dir(root, split), segments, {"en": ["one", "", "three"], "de": ["", "zwei", "drei"]})
    assert make()["reasons"] == {"empty_text.de": 1, "empty_text.en": 1}
    assert dropped() == {utt(1): "empty_text.de", utt(2): "empty_text.en"}
    for split in ("tst-COMMON", "dev"):
        assert list(table("text.tc.de", f"{split}.en-de").values()) == ["", "zwei", "drei"]
    warnings = [line for line in capsys.readouterr().err.split("\n") if line.startswith("WARNING")]
    first = utt(1, split="dev")
    assert warnings[0] == f"WARNING: dev.en-de: {first} is kept, though its de text is empty" and len(warnings) == 4


# ---- segments


def test_repeated_segments_are_left_out_of_train_and_stay_in_test(make, root, table, dropped):
    for split in ("train", "tst-COMMON"):
        write_talk(split_dir(root, split) / "wav/ted_1.wav", 6.0)
        segments = entries(1, 2)
        texts = ["", "Satz 1.", "Satz 0.", "Satz 1.", "anders"]
        write_tables(split_dir(root, split), [*segments, *segments, segments[1]], {"de": texts})
    make()
    # The copy without text does not count as the first one.
    repeated = {utt(4): "duplicate_segment", utt(5): "duplicate_segment"}
    # The audio of the second cannot have the text of the fifth, too.
    assert dropped() == {utt(1): "empty_text.de", utt(2): "contradicting_segment", **repeated}
    assert table("text.tc.de") == {utt(3): "Satz 0."}
    assert len(table("segments", "tst-COMMON.en-de")) == 5


def test_overshooting_segments_are_clamped_and_those_outside_left_out(make, root, table, dropped, tmp_path):
    talk = {"wav": "ted_1.wav", "speaker": "spk.1"}
    spans = [(4.0, 3.5), (-0.5, 1.5), (6.0, 1.0), (7.5, 1.0), (1.0, 0.0), (2.0, -1.0), (0.0, 6.005), (5.0, 0.01)]
    write_tables(split_dir(root), [{**talk, "offset": start, "duration": length} for start, length in spans])
    assert make()["clamped"] == 2
    assert [value.split(" ", 1)[1] for value in table("segments").values()] == ["4 6", "0 1", "0 6", "5 5.01"]
    assert dropped() == {
        utt(3): "segment_outside_audio",
        utt(4): "segment_outside_audio",
        utt(5): "empty_audio",
        utt(6): "empty_audio",
    }
    clamped = (tmp_path / "data/train.en-de/clamped.tsv").read_text().split("\n")
    assert clamped[1:3] == [f"{utt(1)}\t4.00-7.50 s of 6.00 s", f"{utt(2)}\t-0.50-1.00 s of 6.00 s"]


def test_times_that_are_no_numbers(make, root, dropped, capsys):
    for split in ("train", "tst-HE"):
        write_talk(split_dir(root, split) / "wav/ted_1.wav", 6.0)
        odd = [("x", "1"), ("1", ".nan"), ("nan", "1"), ("1", "inf"), ("1:30", "1")]
        lines = [f"- {{duration: {d}, offset: {o}, speaker_id: spk.1, wav: ted_1.wav}}" for o, d in odd]
        write_tables(split_dir(root, split), [*entries(1, 1), *lines])
    make()
    assert dropped() == {utt(i): "bad_times" for i in range(2, 7)}
    lost = [line for line in capsys.readouterr().err.split("\n") if "WARNING" in line]
    assert len(lost) == 5 and "tst-HE.en-de: lost" in lost[0] and "bad_times offset x, duration 1" in lost[0]


def test_bad_talks_are_named_and_looked_at_again_when_they_change(make, root, dropped, capsys):
    for split in ("train", "tst-COMMON"):
        wav = split_dir(root, split) / "wav"
        write_tables(split_dir(root, split), [e for talk in (1, 2, 3, 4, 5, 6) for e in entries(talk, 1)])
        for talk in (1, 3, 5, 6):
            write_talk(wav / f"ted_{talk}.wav", 6.0)
        (wav / "ted_3.wav").write_bytes(b"")
        (wav / "ted_4.wav").write_bytes(b"<html>not found</html>")
        (wav / "ted_5.wav").write_bytes((wav / "ted_5.wav").read_bytes()[:100000])  # cut off while copying
        soundfile.write(wav / "ted_6.wav", [], 16000)
    expected = {"missing_audio": 1, "empty_audio": 2, "unreadable_audio": 2}
    assert make()["reasons"] == expected
    assert set(dropped()) == {utt(i, talk=i) for i in range(2, 7)}
    err = capsys.readouterr().err
    assert err.count("WARNING") == 5 and f"lost {utt(2, 2, 'tst-COMMON')}: missing_audio" in err
    write_talk(split_dir(root) / "wav/ted_2.wav", 6.0)
    assert make()["utterances"] == 2


# ---- broken corpora


def break_counts(root):
    path = split_dir(root, "dev") / "txt/dev.de"
    path.write_text(path.read_text() + "Satz zuviel.\n")


def break_yaml(root):
    path = split_dir(root) / "txt/train.yaml"
    path.write_text(path.read_text() + "- {duration: 3.5, offset: [\n")


def write_yaml(text):
    return lambda root: (split_dir(root) / "txt/train.yaml").write_text(text)


def remove(name):
    return lambda root: (root / "en-de/data" / name).rename(root / "away")


def break_encoding(root):
    (split_dir(root) / "txt/train.de").write_bytes("Satz für Satz\n".encode("latin1") * 6)


BROKEN = {
    "line counts": (break_counts, r"dev/txt: dev.yaml has 3 entries, dev.en 3 lines and dev.de 4 lines"),
    "cut yaml": (break_yaml, r"train.yaml:8: no valid YAML \(.*\); unpack the archive again"),
    "no list": (write_yaml("wav: ted_1.wav\n"), r"train.yaml:1: a list of segments is expected"),
    "no mapping": (write_yaml("- ted_1.wav\n"), r"train.yaml: entry 1 is no mapping of wav, offset, duration"),
    "no offset": (write_yaml("- {duration: 1, wav: ted_1.wav}\n"), r"train.yaml: entry 1 has no 'offset'"),
    "list as wav": (write_yaml("- {duration: 1, offset: 1, wav: [a, b]}\n"), r"entry 1 has no 'wav'"),
    "control character": (write_yaml("- {duration: '\x01', offset: 1}\n"), r"train.yaml: no valid YAML \(.*\); unpack"),
    "empty yaml": (write_yaml(""), r"train.yaml has 0 entries, train.en 6 lines"),
    "no yaml": (remove("train/txt/train.yaml"), r"train.yaml: No such file or directory; unpack the archive again"),
    "no text": (remove("dev/txt/dev.de"), r"dev.de: no such file or folder; unpack the corpus again"),
    "no wav": (remove("train/wav"), r"train.en-de: no utterance left \(e.g. spk.1-ted_1-.*missing_audio .*ted_1.wav"),
    "not UTF-8": (break_encoding, r"train.de:1: not UTF-8; convert it"),
    "no train": (remove("train"), r"en-de/data: no train in it; unpack the archive of en-de again"),
    "no dev": (remove("dev"), r"en-de/data: no dev in it"),
    "no test": (remove("tst-COMMON"), r"en-de/data: no tst-COMMON in it"),
    "no data": (remove("."), r"en-de/data: no such folder; there are: en-fr"),
}


@pytest.mark.parametrize(("spoil", "message"), BROKEN.values(), ids=BROKEN)
def test_a_broken_corpus_stops_with_one_line(root, make, spoil, message):
    (root / "en-fr/data").mkdir(parents=True)
    spoil(root)
    with pytest.raises(InputError, match=message) as caught:
        make()
    assert "\n" not in str(caught.value)


def test_a_missing_direction_says_what_to_do(root, make):
    with pytest.raises(InputError, match=r"en-fr/data: no such folder; there are: en-de"):
        make(directions=["en-fr"])
    (root / "MUSTC_v1.0_en-fr.tar.gz").touch()
    with pytest.raises(InputError, match=r"unpack it: tar -xf .*/MUSTC_v1.0_en-fr.tar.gz -C .*/MuST-C"):
        make(directions=["en-fr"])
    with pytest.raises(InputError, match=r"give the folder above, .*/MuST-C, which holds en-de/data"):
        prepare.prepare_must_c(root / "en-de", root, ["en-de"])
    with pytest.raises(InputError, match="set MUST_C in db.sh"):
        prepare.prepare_must_c(root / "nowhere", root, ["en-de"])


@pytest.mark.parametrize("direction", ["en_de", "en-en", "en-qq", "en", ""])
def test_what_is_no_direction(make, direction):
    with pytest.raises(InputError, match="direction|language code"):
        make(directions=[direction])


def test_a_killed_run_leaves_nothing_half_done(make, root, tmp_path, monkeypatch):
    """The mark comes last: a run that was stopped while writing is repeated."""
    expected = make()
    whole = {path.name: path.read_bytes() for path in (tmp_path / "data/train.en-de").iterdir()}
    corpus = sys.modules["espnet_llmst.datadir.corpus"]
    monkeypatch.setattr(corpus, "_write_tables", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        make(force=True)
    assert not (tmp_path / "data/train.en-de/.done").exists()
    monkeypatch.undo()
    assert make() == expected
    assert {path.name: path.read_bytes() for path in (tmp_path / "data/train.en-de").iterdir()} == whole


# ---- the scripts


def run_data_sh(*options):
    return subprocess.run(
        [str(RECIPE / "local/data.sh"), *options], capture_output=True, text=True, stdin=subprocess.DEVNULL
    )


def test_data_sh_names_the_variable_and_the_readme():
    done = run_data_sh("--must_c", "")
    assert done.returncode == 1
    assert done.stderr.strip().split("\n") == [
        "data.sh: error: MUST_C is empty: put the folder of MuST-C into db.sh (README.md says how to obtain it)"
    ]


def test_command_line_reports_bad_input_in_one_line(root):
    done = run_data_sh("--must_c", str(root), "--directions", "en-fr")
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert done.stderr.startswith(f"prepare_must_c: error: {root}/en-fr/data: no such folder; there are: en-de")


# ---- scale


def write_large(root: Path, count: int) -> None:
    """A train of so many segments, all in one talk."""
    write_corpus(root, splits=SPLITS[1:3])
    talk = split_dir(root) / "wav/ted_1.wav"
    write_talk(talk, 60.0)
    segments = [
        {"wav": talk.name, "speaker": "spk.1", "offset": i * 50.0 / count, "duration": 3 + i % 5} for i in range(count)
    ]
    source = [f"This is what was said in segment {i}, and it is about as long as a sentence is." for i in range(count)]
    target = [
        f"Das wurde in Abschnitt {i} übersetzt, und so lang wäre ein gewöhnlicher Satz auch." for i in range(count)
    ]
    write_tables(split_dir(root), segments, {"en": source, "de": target}, form=V2)


def test_a_large_train_takes_seconds_and_little_memory(tmp_path):
    """MUST_C_SCALE=200000 is the size of the real one: under 2 minutes and 2 GB."""
    count = int(os.environ.get("MUST_C_SCALE", 10000))
    write_large(tmp_path, count)
    command = [sys.executable, str(RECIPE / "local/prepare_must_c.py"), "--corpus_dir", str(tmp_path)]
    environment = {**os.environ, "PYTHONPATH": str(RECIPE.parents[2])}
    process = subprocess.Popen([*command, "--out_dir", str(tmp_path / "data")], env=environment)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    seconds, gigabytes = usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024 / 1e9
    print(f"{count} entries: {seconds:.1f} s of CPU time, {gigabytes:.2f} GB")
    assert process.returncode == 0 and len(read_table(tmp_path / "data/train.en-de/segments")) == count
    assert seconds < 20 + count * 5e-4 and gigabytes < 2
