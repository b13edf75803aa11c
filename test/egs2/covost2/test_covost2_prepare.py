"""CoVoST-2 and Common Voice: what preparation makes of every quirk of the real corpora.

Kept: all of dev and test that can be heard (faults of their texts are said), clips named without .mp3, texts with
quotes of any kind, texts "NA", "None", "null". Dropped from train by name: placeholders, empty texts, contradicting
rows, clips also tested on, clips without transcript. Dropped by name everywhere: missing, empty and unreadable clips.
One clear message: missing, empty, cut-off tables, missing columns, no clips at all, directions CoVoST-2 has not.
"""

import os
import re
import shutil
import subprocess
import sys
import tarfile

import pytest
import yaml
from corpus_covost2 import COLUMNS_4, COLUMNS_17, LOCAL, RELEASE_4, Corpus, dropped, read, write_clip, write_rows

from espnet_llmst.cli import InputError
from espnet_llmst.languages import english_name, iso639_3

sys.path.insert(0, str(LOCAL))
import common_voice
import prepare_common_voice
import prepare_covost2


@pytest.fixture
def fr(tmp_path):
    return Corpus(tmp_path / "cv", "fr")


def prepare(corpus, out, directions=("fr-en",), **options):
    return prepare_covost2.prepare_covost2(corpus.write(), out, list(directions), **options)


def texts(out, name, lang):
    return read(out / name / f"text.tc.{lang}")


# ---- the sound corpus


def test_sets_are_those_of_version_2(fr, tmp_path):
    """train is train and train_covost; dev and test have no dev_covost, test_covost."""
    out = tmp_path / "data"
    summaries = prepare(fr, out)
    assert {name: s["utterances"] for name, s in summaries.items()} == {
        "train.fr-en": 4,
        "dev.fr-en": 1,
        "test.fr-en": 2,
    }
    assert list(texts(out, "train.fr-en", "fr")) == [fr.utt(n) for n in range(4)]
    assert list(texts(out, "dev.fr-en", "fr")) == [fr.utt(4)]
    assert texts(out, "test.fr-en", "fr") == {fr.utt(6): "Phrase 6.", fr.utt(7): "Phrase 7."}
    assert texts(out, "test.fr-en", "en") == {fr.utt(6): "Sentence 6.", fr.utt(7): "Sentence 7."}
    assert read(out / "test.fr-en/wav.scp") == {fr.utt(n): str(fr.clip(n)) for n in (6, 7)}
    assert set(read(out / "test.fr-en/utt2lang").values()) == {"fr"}
    assert dropped(out / "train.fr-en") == {}


def test_speakers_are_short_unique_and_the_same_in_all_sets(fr, tmp_path):
    """Clips 0, 3, 6 are of one speaker; ids that differ in their last digit only stay apart."""
    fr.clips[1]["client_id"] = "0" * 127 + "1"
    out = tmp_path / "data"
    prepare(fr, out)
    train, test = read(out / "train.fr-en/utt2spk"), read(out / "test.fr-en/utt2spk")
    assert train[fr.utt(0)] == train[fr.utt(3)] == test[fr.utt(6)] and len(train[fr.utt(0)]) == 24
    assert len({train[fr.utt(0)], train[fr.utt(1)], train[fr.utt(2)]}) == 3
    assert read(out / "train.fr-en/spk2utt")[train[fr.utt(0)]] == f"{fr.utt(0)} {fr.utt(3)}"
    assert common_voice.speaker_of("spk1") == "spk1"


def test_unknown_speaker_is_the_utterance(fr, tmp_path):
    fr.clips[6]["client_id"] = ""
    prepare(fr, tmp_path / "data")
    assert read(tmp_path / "data/test.fr-en/utt2spk")[fr.utt(6)] == fr.utt(6)


def test_later_releases_have_other_columns_in_another_order(tmp_path):
    """Columns are found by name; both targets of one source have the same utterances."""
    en = Corpus(tmp_path / "cv", "en", ("de", "zh-CN"), columns=COLUMNS_17)
    en.clips[6]["translation.zh-CN"] = "你好。"
    out = tmp_path / "data"
    prepare(en, out, ["en-zh-CN", "en-de"])
    assert (
        texts(out, "test.en-de", "en")
        == texts(out, "test.en-zh-CN", "en")
        == {
            en.utt(6): "Phrase 6.",
            en.utt(7): "Phrase 7.",
        }
    )
    assert texts(out, "test.en-zh-CN", "zh-CN")[en.utt(6)] == "你好。"


def test_columns_of_translation_tables_in_any_order(fr, tmp_path):
    fr.write()
    rows = [row | {"translation": row["translation.en"], "quality": "5"} for row in fr.clips.values()]
    write_rows(fr.table(), "split quality translation path", rows)
    prepare_covost2.prepare_covost2(fr.root, tmp_path / "data", ["fr-en"])
    assert texts(tmp_path / "data", "test.fr-en", "en")[fr.utt(6)] == "Sentence 6."


@pytest.mark.parametrize(
    "text",
    [
        '"She\'ll be all right."',
        '“Is my name Melchizedek?", said the old man.',
        '"Shall we stop this one?", another commander said.',
        'He said "no',
        '"',
        "NA",
        "None",
        "null",
        "nan",
    ],
)
def test_quotes_are_text_and_so_are_words_for_nothing(fr, tmp_path, text):
    """An unbalanced quote swallows no row, in either table."""
    fr.clips[0]["sentence"] = fr.clips[6]["sentence"] = fr.clips[7]["translation.en"] = text
    summaries = prepare(fr, tmp_path / "data")
    assert [s["utterances"] for s in summaries.values()] == [4, 1, 2]
    assert texts(tmp_path / "data", "test.fr-en", "fr")[fr.utt(6)] == text
    assert texts(tmp_path / "data", "test.fr-en", "en")[fr.utt(7)] == text


def test_escapes_that_writers_leave_are_undone():
    """Only a field that is CSV-quoted as a whole loses its quotes."""
    expected = {
        '"Er sagte ""ja"" zu mir."': 'Er sagte "ja" zu mir.',
        '"""Ja."""': '"Ja."',
        '""Ja""': '""Ja""',
        '"Ja", sagte er, "nein"': '"Ja", sagte er, "nein"',
        '""': '""',
        '\\"Ja\\"': '"Ja"',
        "a\\b": "a\\b",
    }
    assert {text: common_voice.plain(text) for text in expected} == expected


def test_only_newlines_end_rows(fr, tmp_path):
    """Other line separators, and a carriage return at the end, do not shift texts; they become blanks."""
    fr.clips[6]["sentence"] = "Un\u2028deux\x85trois\x1dquatre\x0b."
    root = fr.write()
    fr.table().write_bytes(fr.table().read_bytes().replace(b"\n", b"\r\n"))
    prepare_covost2.prepare_covost2(root, tmp_path / "data", ["fr-en"])
    assert texts(tmp_path / "data", "test.fr-en", "fr") == {fr.utt(6): "Un deux trois quatre .", fr.utt(7): "Phrase 7."}


@pytest.mark.parametrize("named_in", ["both", "validated"])
def test_clips_named_without_extension(fr, tmp_path, named_in):
    """As in Common Voice 1 to 3, where files do have it."""
    fr.write()
    tables = [fr.folder / "validated.tsv", *([fr.table()] if named_in == "both" else [])]
    for table in tables:
        table.write_text(table.read_text().replace(".mp3", ""))
    prepare_covost2.prepare_covost2(fr.root, tmp_path / "data", ["fr-en"])
    assert read(tmp_path / "data/test.fr-en/wav.scp")[fr.utt(6)] == str(fr.clip(6))


def test_other_clip_names_get_their_language(tmp_path):
    """Ids are then unique over languages."""
    ja = Corpus(tmp_path / "cv", "ja")
    ja.clips[6]["path"] = "train0001.mp3"
    ja.write()
    write_clip(ja.folder / "clips/train0001.mp3")
    prepare_covost2.prepare_covost2(ja.root, tmp_path / "data", ["ja-en"])
    assert list(read(tmp_path / "data/test.ja-en/wav.scp")) == [ja.utt(7), "ja_train0001"]


def test_clips_converted_to_another_format(fr, tmp_path):
    root = fr.write()
    fr.clip(6).rename(fr.clip(6).with_suffix(".wav"))
    prepare_covost2.prepare_covost2(root, tmp_path / "data", ["fr-en"])
    assert read(tmp_path / "data/test.fr-en/wav.scp")[fr.utt(6)].endswith(f"{fr.utt(6)}.wav")


def test_chinese_table_named_zh(tmp_path):
    """covost_v2.zh_en.tsv with clips common_voice_zh-CN_*: sets are called zh-CN-en."""
    zh = Corpus(tmp_path / "cv", "zh-CN")
    zh.write()
    zh.table().rename(zh.folder / "covost_v2.zh_en.tsv")
    prepare_covost2.prepare_covost2(zh.root, tmp_path / "data", ["zh-CN-en"])
    assert list(texts(tmp_path / "data", "test.zh-CN-en", "zh-CN")) == [zh.utt(6), zh.utt(7)]


# ---- where things lie


def test_root_may_be_release_folder_or_single_archive(fr, tmp_path):
    """The root above the releases, a release, and a language's own folder give the same data."""
    root = fr.write()
    found = []
    for place in (root, root / RELEASE_4, root / RELEASE_4 / "fr"):
        out = tmp_path / f"data{len(found)}"
        prepare_covost2.prepare_covost2(place, out, ["fr-en"])
        found.append({name: (out / f"train.fr-en/{name}").read_bytes() for name in ("wav.scp", "text.tc.en")})
    shutil.move(fr.folder, tmp_path / "unpacked")  # an archive has no language folder
    assert common_voice.find_language(tmp_path / "unpacked", "fr") == tmp_path / "unpacked"
    with pytest.raises(InputError, match="unpacked: no folder de"):
        common_voice.find_language(tmp_path / "unpacked", "de")
    assert found[0] == found[1] == found[2]


def test_language_in_two_releases_is_not_guessed(fr, tmp_path):
    shutil.copytree(fr.write() / RELEASE_4, fr.root / "cv-corpus-19.0-2024-09-13")
    with pytest.raises(InputError, match="fr is in several releases .*cv-corpus-19.0.*; give the folder of one"):
        prepare_covost2.prepare_covost2(fr.root, tmp_path / "data", ["fr-en"])


@pytest.mark.parametrize("name", ["covost_v2.fr_en.tsv", "covost_v2.fr_en.tsv.tar.gz", "fr/covost_v2.fr_en.tar.gz"])
def test_tables_in_a_folder_of_their_own(fr, tmp_path, name):
    """Plain or packed; archives are read in place, files with dots in front (macOS) are not the table."""
    expected = read_after(prepare, fr, tmp_path / "one")
    place = tmp_path / "covost2" / name
    place.parent.mkdir(parents=True)
    if name.endswith(".gz"):
        (tmp_path / "._covost_v2.fr_en.tsv").write_text("no table")
        with tarfile.open(place, "w:gz") as archive:
            archive.add(tmp_path / "._covost_v2.fr_en.tsv", "._covost_v2.fr_en.tsv")
            archive.add(fr.table(), fr.table().name)
        fr.table().unlink()
    else:
        shutil.move(fr.table(), place)
    prepare_covost2.prepare_covost2(fr.root, tmp_path / "two", ["fr-en"], covost2_dir=tmp_path / "covost2")
    assert read(tmp_path / "two/train.fr-en/text.tc.en") == expected


def read_after(make, corpus, out):
    make(corpus, out)
    return read(out / "train.fr-en/text.tc.en")


@pytest.mark.parametrize("validated", [True, False])
def test_tables_already_split(fr, tmp_path, validated):
    """covost_v2.fr_en.{train,dev,test}.tsv carry transcripts and speakers: validated.tsv is not needed."""
    prepare(fr, tmp_path / "one")
    split_table(fr)
    if not validated:
        (fr.folder / "validated.tsv").unlink()
    prepare_covost2.prepare_covost2(fr.root, tmp_path / "two", ["fr-en"])
    for name in ("train.fr-en/text.tc.fr", "test.fr-en/text.tc.en", "train.fr-en/utt2spk", "test.fr-en/wav.scp"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()
    (fr.folder / "covost_v2.fr_en.dev.tsv").unlink()
    with pytest.raises(InputError, match="covost_v2.fr_en.dev.tsv: missing beside the other splits"):
        prepare_covost2.prepare_covost2(fr.root, tmp_path / "three", ["fr-en"])


def split_table(corpus):
    """What get_covost_splits.py makes of a table."""
    corpus.table().unlink()
    for split in ("train", "dev", "test"):
        of = [split, "train_covost"] if split == "train" else [split]
        rows = [row | {"translation": row["translation.en"]} for row in corpus.clips.values() if row["split"] in of]
        path = corpus.folder / f"covost_v2.fr_en.{split}.tsv"
        write_rows(path, "path sentence translation client_id", rows)


# ---- bad items


@pytest.mark.parametrize("text", ["[TO REMOVE]", "[TO REJECT] Eh", "[TO REMOVED]", "A [DO NOT REMOVE] b", "TO REMOVE"])
def test_placeholders(fr, tmp_path, capsys, text):
    """Dropped from train, kept in test with a word."""
    fr.clips[1]["translation.en"] = fr.clips[6]["translation.en"] = text
    prepare(fr, tmp_path / "data")
    assert dropped(tmp_path / "data/train.fr-en") == {fr.utt(1): "placeholder_text"}
    assert texts(tmp_path / "data", "test.fr-en", "en")[fr.utt(6)] == text
    assert f"{fr.utt(6)} is kept, though its en text is a placeholder: {text}" in capsys.readouterr().err


def test_ordinary_brackets_and_words_are_no_placeholders(fr, tmp_path):
    fr.clips[0]["translation.en"], fr.clips[1]["translation.en"] = "I want to remove it.", "[Laughs] Yes."
    prepare(fr, tmp_path / "data")
    assert dropped(tmp_path / "data/train.fr-en") == {}


def test_empty_texts(fr, tmp_path, capsys):
    """Dropped from train; test keeps the utterance and says so. A text of invisible characters is empty."""
    fr.clips[0]["translation.en"], fr.clips[1]["sentence"], fr.clips[6]["translation.en"] = "", "\u200b ", ""
    prepare(fr, tmp_path / "data")
    reasons = {fr.utt(0): "empty_text.en", fr.utt(1): "empty_text.fr"}
    assert dropped(tmp_path / "data/train.fr-en") == reasons
    assert texts(tmp_path / "data", "test.fr-en", "en")[fr.utt(6)] == ""
    assert f"{fr.utt(6)} is kept, though its en text is empty" in capsys.readouterr().err


def test_bad_clips(fr, tmp_path, capsys):
    """Zero bytes, no MP3, cut off within the first frame, missing: named in train, and loudly in test."""
    root = fr.write()
    for number in (0, 6):
        fr.clip(number).write_bytes(b"")
    fr.clip(1).write_bytes(b"<html>404</html>" * 100)
    fr.clip(2).unlink()
    summaries = prepare_covost2.prepare_covost2(root, tmp_path / "data", ["fr-en"])
    reasons = {fr.utt(0): "empty_audio", fr.utt(1): "unreadable_audio", fr.utt(2): "missing_audio"}
    assert dropped(tmp_path / "data/train.fr-en") == reasons
    assert list(texts(tmp_path / "data", "test.fr-en", "en")) == [fr.utt(7)]
    assert summaries["test.fr-en"]["dropped"] == 1
    assert f"lost {fr.utt(6)}: empty_audio" in capsys.readouterr().err


def test_clips_that_validated_does_not_have(fr, tmp_path, capsys):
    """The inner join of CoVoST-2's own program, said by name: later releases have lost clips."""
    root = fr.write()
    rows = [row for number, row in fr.clips.items() if number not in (1, 7)]
    write_rows(fr.folder / "validated.tsv", COLUMNS_4, rows)
    prepare_covost2.prepare_covost2(root, tmp_path / "data", ["fr-en"])
    assert dropped(tmp_path / "data/train.fr-en") == {fr.utt(1): "not_validated"}
    assert list(texts(tmp_path / "data", "test.fr-en", "en")) == [fr.utt(6)]
    assert f"lost {fr.utt(7)}: not_validated" in capsys.readouterr().err


def test_rows_that_come_twice(fr, tmp_path, capsys):
    """Equal ones become one. With two translations nobody knows which is right: train has neither, test the first."""
    fr.clips[20] = dict(fr.clips[0])
    fr.clips[21] = fr.clips[1] | {"translation.en": "Other."}
    fr.clips[22] = fr.clips[6] | {"translation.en": "Other."}
    prepare(fr, tmp_path / "data")
    assert list(texts(tmp_path / "data", "train.fr-en", "en")) == [fr.utt(0), fr.utt(2), fr.utt(3)]
    assert dropped(tmp_path / "data/train.fr-en") == {fr.utt(0): "duplicate_row", fr.utt(1): "contradicting_row"}
    assert texts(tmp_path / "data", "test.fr-en", "en")[fr.utt(6)] == "Sentence 6."
    assert f"{fr.utt(6)}: contradicting_row" in capsys.readouterr().err


def test_transcripts_that_contradict(fr, tmp_path, capsys):
    """A clip with two sentences in validated.tsv is not trained on; test keeps it with the first."""
    root = fr.write()
    again = [fr.clips[number] | {"sentence": "Autre."} for number in (1, 6)]
    write_rows(fr.folder / "validated.tsv", COLUMNS_4, [*fr.clips.values(), *again])
    prepare_covost2.prepare_covost2(root, tmp_path / "data", ["fr-en"])
    assert dropped(tmp_path / "data/train.fr-en") == {fr.utt(1): "contradicting_row"}
    assert texts(tmp_path / "data", "test.fr-en", "fr")[fr.utt(6)] == "Phrase 6."
    assert f"{fr.utt(6)} is kept with the first" in capsys.readouterr().err


def test_clips_that_are_also_tested_on(fr, tmp_path):
    fr.clips[20] = fr.clips[6] | {"split": "train"}
    prepare(fr, tmp_path / "data")
    assert dropped(tmp_path / "data/train.fr-en") == {fr.utt(6): "in_dev_or_test"}
    assert list(texts(tmp_path / "data", "test.fr-en", "en")) == [fr.utt(6), fr.utt(7)]


def test_rows_that_are_none(fr, tmp_path, capsys):
    """Named by file and line, the others stay as they are; empty lines are nothing."""
    root = fr.write()
    lines = fr.table().read_text().split("\n")
    lines[2:2] = ["common_voice_fr_9.mp3\tno split", "a\tb\tc\td", "", "common_voice_fr_8.mp3\tOdd.\tholdout"]
    fr.table().write_text("\n".join(lines))
    prepare_covost2.prepare_covost2(root, tmp_path / "data", ["fr-en"])
    assert dropped(tmp_path / "data/train.fr-en") == {
        "common_voice_fr_8.mp3": "unknown_split",
        "covost_v2.fr_en.tsv:3": "malformed_row",
        "covost_v2.fr_en.tsv:4": "malformed_row",
    }
    assert len(texts(tmp_path / "data", "train.fr-en", "en")) == 4
    assert "covost_v2.fr_en.tsv:3: 2 fields instead of 3" in capsys.readouterr().err


# ---- a corpus that is broken


def breaks(fr, spoil):
    """A name for each way to break a corpus, and the message it must give."""
    validated, table = fr.folder / "validated.tsv", fr.table()
    ways = {
        "no table": (table.unlink, "covost_v2.fr_en.tsv: neither this table nor"),
        "empty table": (lambda: table.write_bytes(b""), "covost_v2.fr_en.tsv: the file is empty"),
        "header only": (lambda: table.write_text("path\ttranslation\tsplit\n"), "no row of split train"),
        "no column": (lambda: table.write_text("path\ttext\tsplit\n"), "no column 'translation' .*path, text, split"),
        "cut in a row": (lambda: cut(table, b"Sentence 7"), "the file ends within a row"),
        "cut in a letter": (lambda: (sub(table, "Sentence 7", "é"), cut(table, b"\xc3")), "the file ends within a row"),
        "cut in a split": (lambda: cut(table, b"\tte"), "ends within its split"),
        "latin-1": (lambda: table.write_bytes(table.read_bytes() + b"a\t\xe9t\xe9\ttest\n"), ":11: not UTF-8"),
        "no validated": (validated.unlink, "validated.tsv: missing"),
        "no sentences": (lambda: validated.write_text("client_id\tpath\n"), "no column 'sentence'"),
        "validated cut": (lambda: cut(validated, b"Phrase"), "validated.tsv:10: the file ends within a row"),
        "other corpus": (lambda: sub(validated, "_fr_", "_xx_"), "has none of the 4 clips .*Common Voice release 4"),
        "no clips": (lambda: shutil.rmtree(fr.folder / "clips"), "fr/clips: no such folder"),
        "empty clips": (lambda: [p.unlink() for p in fr.folder.glob("clips/*")], "nor any other of the 4 of .* exists"),
        "no language": (lambda: fr.folder.rename(fr.folder.parent / "de"), r"no folder fr \(there are: de\)"),
        "packed": (lambda: (shutil.rmtree(fr.folder), (fr.root / "fr.tar.gz").write_bytes(b"x")), "not unpacked"),
        "no root": (lambda: shutil.rmtree(fr.root), "cv: no such folder; give the root of Common Voice"),
    }
    ways[spoil][0]()
    return ways[spoil][1]


def cut(path, behind):
    data = path.read_bytes()
    path.write_bytes(data[: data.rindex(behind) + len(behind)])


def sub(path, old, new):
    path.write_text(path.read_text().replace(old, new))


@pytest.mark.parametrize(
    "spoil",
    "no table,empty table,header only,no column,cut in a row,cut in a letter,cut in a split,latin-1,no validated,"
    "no sentences,validated cut,other corpus,no clips,empty clips,no language,packed,no root".split(","),
)
def test_broken_corpora_are_one_clear_message(fr, tmp_path, capsys, spoil):
    """One line on stderr that names the file, status 1, no directory that looks finished."""
    root = fr.write()
    message = breaks(fr, spoil)
    options = ["--corpus_dir", str(root), "--out_dir", str(tmp_path / "data"), "--directions", "fr-en"]
    assert prepare_covost2.run(prepare_covost2.main, options) == 1
    error = capsys.readouterr().err
    assert len(error.strip().split("\n")) == 1 and re.search(message, error), error
    assert not list(tmp_path.glob("data/*/.done"))


@pytest.mark.parametrize("content", [b"", b"not gzip", None])
def test_broken_archive_of_a_table(fr, tmp_path, content):
    """Empty (as en_ja once was), something else, or cut off."""
    root = fr.write()
    path = fr.folder / "covost_v2.fr_en.tsv.tar.gz"
    with tarfile.open(path, "w:gz") as archive:
        archive.add(fr.table(), fr.table().name)
    fr.table().unlink()
    path.write_bytes(path.read_bytes()[:150] if content is None else content)
    with pytest.raises(InputError, match="tar.gz: cannot be read"):
        prepare_covost2.prepare_covost2(root, tmp_path / "data", ["fr-en"])


@pytest.mark.parametrize("direction", ["fr-de", "en-en", "en-fr", "zh-en", "fr_en", "fr", "ko-en", "en-es"])
def test_directions_that_covost2_does_not_have(tmp_path, direction):
    with pytest.raises(InputError, match=f"direction '{direction}' is not of CoVoST-2; give <source>-en"):
        prepare_covost2.prepare_covost2(tmp_path, tmp_path, ["fr-en", direction])


def test_36_directions_and_their_published_counts():
    """21 into English, 15 from it; every code has a name and a tag."""
    codes = [*prepare_covost2.TO_ENGLISH, *prepare_covost2.FROM_ENGLISH]
    assert (len(prepare_covost2.TO_ENGLISH), len(prepare_covost2.FROM_ENGLISH)) == (21, 15)
    assert all(english_name(code) and len(iso639_3(code)) == 3 for code in codes)
    published = yaml.safe_load(prepare_covost2.PUBLISHED.read_text())
    assert set(published["covost2"]) == {"en", *(f"{code}-en" for code in prepare_covost2.TO_ENGLISH)}
    # Into English, dev and test are Common Voice's own.
    for code in prepare_covost2.TO_ENGLISH:
        assert published["covost2"][f"{code}-en"][1:] == published["common_voice_4"][code][1:]


# ---- again


def test_twice_is_the_same_and_the_second_time_skipped(fr, tmp_path):
    out = tmp_path / "data"
    first = prepare(fr, out)
    before = {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in out.rglob("*") if path.is_file()}
    assert prepare_covost2.prepare_covost2(fr.root, out, ["fr-en"]) == first
    assert {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in before} == before
    prepare_covost2.prepare_covost2(fr.root, out, ["fr-en"], nj=2, force=True)
    assert {path: path.read_bytes() for path in before} == {path: data for path, (data, _) in before.items()}
    assert all(path.stat().st_mtime_ns > time for path, (_, time) in before.items())


def test_a_completed_corpus_is_taken_up(fr, tmp_path):
    """Clips or rows that come later are found without --force."""
    root, out = fr.write(), tmp_path / "data"
    moved = fr.clip(1).rename(tmp_path / "elsewhere.mp3")
    assert prepare_covost2.prepare_covost2(root, out, ["fr-en"])["train.fr-en"]["utterances"] == 3
    shutil.move(moved, fr.clip(1))
    assert prepare_covost2.prepare_covost2(root, out, ["fr-en"])["train.fr-en"]["utterances"] == 4
    fr.add("train")
    assert prepare(fr, out)["train.fr-en"]["utterances"] == 5


def test_command_line(fr, tmp_path, capsys):
    """Directions in any form; one line for each set, with what was dropped and the published number."""
    fr.clips[1]["translation.en"] = "[TO REMOVE]"
    command = ["--corpus_dir", str(fr.write()), "--out_dir", str(tmp_path / "data"), "--nj", "1"]
    assert prepare_covost2.main([*command, "--directions", "fr-en,", " fr-en"]) == 0
    out = capsys.readouterr().out.splitlines()
    assert RELEASE_4 in out[0]
    data = tmp_path / "data/train.fr-en"
    assert out[1].startswith(f"{data}: 3 utterances, 0.00 h, dropped 1 (placeholder_text 1; see {data}/dropped.tsv)")
    assert out[1].endswith("-207371 against the published 207374 (CoVoST-2)")
    assert len(out) == 4


# ---- Common Voice alone


def test_common_voice_sets(tmp_path):
    """train.<lang>, dev.<lang>, test.<lang> of its own tables; ids and speakers as in CoVoST-2."""
    en = Corpus(tmp_path / "cv", "en", ("de",), columns=COLUMNS_17)
    en.clips[0]["sentence"] = 'He said "no'
    out = tmp_path / "data"
    prepare(en, out, ["en-de"])
    summaries = prepare_common_voice.prepare_common_voice(en.root, out, ["en"])
    assert {name: s["utterances"] for name, s in summaries.items()} == {"train.en": 3, "dev.en": 1, "test.en": 2}
    assert texts(out, "train.en", "en")[en.utt(0)] == 'He said "no'
    for name in ("wav.scp", "utt2spk", "utt2lang"):
        assert read(out / "train.en" / name).items() <= read(out / "train.en-de" / name).items()
    assert not list((out / "train.en").glob("text.tc.de"))


def test_common_voice_leaves_out_what_is_tested_elsewhere(tmp_path):
    """Clips of given sets are not trained on: another release may train on a clip that CoVoST-2 tests with."""
    en = Corpus(tmp_path / "cv", "en", ("de",))
    out = tmp_path / "data"
    prepare(en, out, ["en-de"])
    later = Corpus(tmp_path / "cv19", "en", ())
    later.clips[6]["split"], later.clips[0]["split"] = "train", "test"
    arguments = ["--corpus_dir", str(later.write()), "--out_dir", str(out), "--langs", "en"]
    assert prepare_common_voice.main([*arguments, "--exclude", str(out / "test.en-de"), str(out / "dev.en-de")]) == 0
    assert dropped(out / "train.en") == {en.utt(6): "excluded"}
    assert list(texts(out, "test.en", "en")) == [en.utt(0), en.utt(7)]


def test_common_voice_bad_items(tmp_path, capsys):
    ja = Corpus(tmp_path / "cv", "ja")
    ja.clips[0]["sentence"] = ja.clips[6]["sentence"] = ""
    root = ja.write()
    ja.clip(1).write_bytes(b"")
    prepare_common_voice.prepare_common_voice(root, tmp_path / "data", ["ja"])
    assert dropped(tmp_path / "data/train.ja") == {ja.utt(0): "empty_text.ja", ja.utt(1): "empty_audio"}
    assert list(texts(tmp_path / "data", "test.ja", "ja")) == [ja.utt(6), ja.utt(7)]
    assert f"test.ja: {ja.utt(6)} is kept, though its ja text is empty" in capsys.readouterr().err
    (ja.folder / "dev.tsv").unlink()
    with pytest.raises(InputError, match="ja/dev.tsv: missing .*delta segments"):
        prepare_common_voice.prepare_common_voice(root, tmp_path / "data", ["ja"])
    with pytest.raises(InputError, match="no folder qqq"):
        prepare_common_voice.prepare_common_voice(root, tmp_path / "data", ["qqq"])


# ---- data.sh


@pytest.fixture
def recipe(tmp_path):
    """A recipe's folder with data.sh and what it reads, and a db.sh that is not filled in."""
    folder = tmp_path / "repo/egs2/covost2/llmst1"
    (folder / "local").mkdir(parents=True)
    for file in LOCAL.glob("*.*"):
        (folder / "local" / file.name).symlink_to(file)
    (folder / "utils").symlink_to(LOCAL.parents[2] / "TEMPLATE/llmst1/utils")
    (folder / "db.sh").write_text("COMMONVOICE=\nCOVOST2=\n")
    return folder


def data_sh(recipe, *options):
    path = f"{os.path.dirname(sys.executable)}:{os.environ['PATH']}"
    command = ["bash", "local/data.sh", "--nj", "1", *options]
    return subprocess.run(command, cwd=recipe, capture_output=True, text=True, env={**os.environ, "PATH": path})


def test_data_sh_names_the_variable(recipe):
    done = data_sh(recipe, "--directions", "fr-en")
    assert done.returncode == 1 and "Set COMMONVOICE (and COVOST2" in done.stderr and "README.md" in done.stderr


def test_data_sh(recipe, fr, tmp_path):
    """Roots from db.sh or options; --asr_langs makes Common Voice's sets without the clips tested on."""
    (recipe / "db.sh").write_text(f"COMMONVOICE={fr.write()}\nCOVOST2=\n")
    (tmp_path / "covost2").mkdir()
    shutil.move(fr.table(), tmp_path / "covost2")
    fr.clips[7]["split"] = "train"
    write_rows(fr.folder / "train.tsv", COLUMNS_4, [fr.clips[0], fr.clips[7]])
    options = ["--covost2_dir", str(tmp_path / "covost2"), "--asr_langs", "fr", "--force", "true"]
    done = data_sh(recipe, "--directions", "fr-en", *options)
    assert done.returncode == 0, done.stderr
    assert len(read(recipe / "data/test.fr-en/wav.scp")) == 2
    assert dropped(recipe / "data/train.fr") == {fr.utt(7): "excluded"}
    assert data_sh(recipe, "left-over").returncode == 2
