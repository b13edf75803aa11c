"""Preparation of FLEURS: every form and every quirk of the real corpus, each with what must come of it.

Kept: every recording of a sentence, test recordings of any length, 16-bit, 32-bit and float samples, texts with
CSV's doubled quotes (un-doubled), tables of 8 columns or without their empty last fields, ids that one side lacks
(their recordings are listed as unpaired), incomplete unpacked folders beside the archive.
Left out by name, in test sets loudly: recordings that the archive lacks or that cannot be read, rows whose columns are
shifted, second rows of a recording, recordings that two sentences claim; in train also those without text.
A stop with one line: a missing language, table, archive or shard, a truncated table, archive or parquet file, a Git LFS
pointer, no common sentence, no direction.
"""

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
from corpus_fleurs import RECIPE, Row, edit_table, load, rows_of, table_path, write_archive, write_corpus

from espnet_llmst.bin import llmst_mix
from espnet_llmst.cli import InputError
from espnet_llmst.datadir.format_audio import format_data_dir
from espnet_llmst.datadir.kaldi import read_table
from espnet_llmst.datadir.validate import validate_data_dir
from espnet_llmst.languages import iso639_3

prepare, tables = load("prepare_fleurs"), load("fleurs_tables")
FORMS = ("archive", "folder", "nested", "bare", "lhotse", "parquet", "numbered", "sharded")


@pytest.fixture
def root(tmp_path):
    return write_corpus(tmp_path / "FLEURS")


@pytest.fixture
def make(root, tmp_path):
    """Prepare the corpus; returns the summary of a set."""

    def make(name="test.en_us-de_de", directions=("en_us-de_de",), **options):
        return prepare.prepare_fleurs(root, tmp_path / "data", directions, **options)["sets"][name]

    return make


@pytest.fixture
def table(tmp_path):
    """A table of a set as a dict."""
    return lambda file, name="test.en_us-de_de": read_table(tmp_path / "data" / name / file, allow_empty=True)


@pytest.fixture
def listed(tmp_path):
    """Lines of a .tsv of a set, split into fields."""

    def listed(file="dropped.tsv", name="test.en_us-de_de"):
        lines = (tmp_path / "data" / name / file).read_text(encoding="utf-8").split("\n")
        return [line.split("\t") for line in lines[1:-1]]

    return listed


def utt(row, lang="en_us"):
    return f"{lang}_{row.sentence:04d}_{row.file[:-4]}"


def archive(root, split="test", lang="en_us"):
    return root / "data" / lang / "audio" / f"{split}.tar.gz"


def replace_audio(root, wavs, split="test"):
    """Write the archive of English anew with some recordings replaced (None: left out)."""
    members = {row.file: row.wav() for row in rows_of("en_us", split)} | wavs
    write_archive(archive(root, split), {f"{split}/{name}": data for name, data in members.items() if data is not None})


def contents(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


# ---- forms


@pytest.mark.parametrize("form", FORMS)
def test_every_form_gives_the_same_sets(tmp_path, form):
    out = tmp_path / "data"
    done = prepare.prepare_fleurs(write_corpus(tmp_path / "F", form), out, ["en_us-de_de cmn_hans_cn-en_us"], nj=1)
    assert {name: (found["utterances"], found["unpaired"]) for name, found in done["sets"].items()} == {
        "train.en_us-de_de": (4, 1),
        "dev.en_us-de_de": (2, 0),
        "test.en_us-de_de": (3, 1),
        "train.cmn_hans_cn-en_us": (4, 0),
        "dev.cmn_hans_cn-en_us": (2, 0),
        "test.cmn_hans_cn-en_us": (4, 0),
    }
    for split in ("train", "dev", "test"):
        set_dir, rows = out / f"{split}.en_us-de_de", rows_of("en_us", split)
        translations = {row.sentence: row.text for row in rows_of("de_de", split)}
        kept = {utt(row): row for row in rows if row.sentence in translations}
        assert read_table(set_dir / "text.tc.en_us") == {name: kept[name].text for name in sorted(kept)}
        assert read_table(set_dir / "text.tc.de_de") == {u: translations[kept[u].sentence] for u in sorted(kept)}
        assert read_table(set_dir / "utt2spk") == {name: name for name in sorted(kept)}
        assert set(read_table(set_dir / "utt2lang").values()) == {"en_us"}
        assert validate_data_dir(set_dir) == []
        for name, path in read_table(set_dir / "wav.scp").items():
            samples, rate = soundfile.read(path)
            assert rate == 16000 and len(samples) == kept[name].samples and Path(path).is_absolute()
            assert not Path(path).name.startswith(".") and np.abs(samples).max() == pytest.approx(0.3, abs=1e-3)


@pytest.mark.parametrize("subtype", ["PCM_16", "PCM_32", "FLOAT"])
def test_unpacked_audio_is_16_bit_flac_that_formatting_takes_as_it_is(tmp_path, subtype):
    root = write_corpus(tmp_path / "F", subtype=subtype)
    prepare.prepare_fleurs(root, tmp_path / "data", ["en_us-de_de", "en_us-cmn_hans_cn"], tmp_path / "downloads")
    row = rows_of("en_us", "dev")[0]
    path = tmp_path / f"downloads/en_us/dev/{row.file[:-4]}.flac"
    assert (soundfile.info(path).subtype, soundfile.info(path).samplerate) == ("PCM_16", 16000)
    (tmp_path / "one.wav").write_bytes(row.wav(subtype))
    np.testing.assert_allclose(soundfile.read(path)[0], soundfile.read(tmp_path / "one.wav")[0], atol=1 / 32000)
    for tgt in ("de_de", "cmn_hans_cn"):
        format_data_dir(tmp_path / f"data/dev.en_us-{tgt}", tmp_path / f"dump/{tgt}")
        assert read_table(tmp_path / f"dump/{tgt}/wav.scp")[utt(row)] == str(path)
        assert not (tmp_path / f"dump/{tgt}/data").exists()


def test_a_folder_that_lacks_recordings_gives_way_to_the_archive(root, make, table):
    row = rows_of("en_us", "test")[0]
    folder = root / "data/en_us/audio/test"
    folder.mkdir()
    (folder / row.file).write_bytes(row.wav()[:500])
    assert make()["utterances"] == 3 and make()["dropped"] == 0
    assert all(path.endswith(".flac") for path in table("wav.scp").values())


def test_a_folder_without_archive_serves_as_it_is(tmp_path):
    root = write_corpus(tmp_path / "F", "folder")
    row = next(row for row in rows_of("en_us", "test") if row.sentence == 1914)
    (root / "data/en_us/audio/test" / row.file).unlink()
    done = prepare.prepare_fleurs(root, tmp_path / "data", ["en_us-de_de"])["sets"]["test.en_us-de_de"]
    assert (done["utterances"], done["reasons"]) == (2, {"missing_audio": 1})
    assert not (tmp_path / "data/audio").exists()


def test_what_was_unpacked_serves_when_the_archive_is_gone(root, make, table):
    make()
    before = table("wav.scp")
    shutil.rmtree(root / "data/en_us/audio")
    assert make()["utterances"] == 3 and table("wav.scp") == before


# ---- pairs


def test_the_translation_is_that_of_the_first_recording_by_file_name(root, make, table):
    def reworded(lines):
        files = [line.split("\t")[1] for line in lines]
        return [
            line.replace("Museum", f"M{sorted(files).index(file)}") for line, file in zip(lines, files, strict=True)
        ]

    edit_table(root, "de_de", "test", reworded)
    make()
    assert set(table("text.tc.de_de").values()) == {"Das M0 ist zu."} and len(table("text.tc.de_de")) == 3
    edit_table(root, "de_de", "test", lambda lines: [line.replace("Das M0 ist zu.", "") for line in lines][::-1])
    make()
    assert set(table("text.tc.de_de").values()) == {"Das M1 ist zu."}


def test_a_recording_has_its_own_transcription(root, make, table):
    first, second, *_ = (row for row in rows_of("en_us", "test") if row.sentence == 1914)
    edit_table(
        root, "en_us", "test", lambda lines: [li.replace("museum", "zoo") if first.file in li else li for li in lines]
    )
    make()
    texts = table("text.tc.en_us")
    assert (texts[utt(first)], texts[utt(second)]) == ("The zoo is closed.", "The museum is closed.")


def test_sentences_that_one_side_lacks_are_listed(make, listed):
    assert make()["unpaired"] == 1 and make()["dropped"] == 0
    (lost,) = (row for row in rows_of("en_us", "test") if row.sentence == 1675)
    assert listed("unpaired.tsv") == [[utt(lost), "no de_de recording of sentence 1675"]]
    summary = make()
    assert "3 utterances" in prepare.describe("test.en_us-de_de", summary)
    assert "1 more recordings have no de_de sentence" in prepare.describe("test.en_us-de_de", summary)


def test_ids_of_another_split_do_not_pair(root, make, table):
    edit_table(root, "de_de", "dev", lambda lines: [*lines, Row(1675, 9, "Wir trafen uns am Hafen.").line()])
    assert make()["utterances"] == 3


def test_no_common_sentence_is_a_stop(root, make):
    edit_table(root, "de_de", "dev", lambda lines: [Row(77, 9, "Nichts.").line()])
    with pytest.raises(InputError, match=r"en_us/dev.tsv: none of its sentence ids is in .*de_de/dev.tsv"):
        make()


# ---- texts


@pytest.mark.parametrize(
    ("raw", "text"),
    [
        # the whole text was escaped
        ('"Alle Substantive, auch das Wort ""you"", sind groß."', 'Alle Substantive, auch das Wort "you", sind groß.'),
        ('"""Komm!"", sagte er."', '"Komm!", sagte er.'),
        ('"Er sagte ""ja"""', 'Er sagte "ja"'),
        ('"""Ganz."""', '"Ganz."'),
        # only the quotes within were
        ('""Ganz.""', '"Ganz."'),
        ('""you"" und ""me""', '"you" und "me"'),
        # unbalanced: an opening quote that was not escaped belongs to the text
        ('"Das ist es, um das es sich handelt"", sagte er.', '"Das ist es, um das es sich handelt", sagte er.'),
        ('"Das ist es, um das es sich handelt"", sagte er."', '"Das ist es, um das es sich handelt", sagte er.'),
        ('"Er sagte: ""Das ist es."', 'Er sagte: "Das ist es."'),
        ('Das ist es, um das es sich handelt"", sagte er.', 'Das ist es, um das es sich handelt", sagte er.'),
        ('"Er kam"", sagte sie, ""und ging"', '"Er kam", sagte sie, "und ging"'),
        # nothing is escaped
        ('"Er kam", sagte sie, "und ging."', '"Er kam", sagte sie, "und ging."'),
        ('"Er kam."', '"Er kam."'),
        ('5" breit', '5" breit'),
        ('""', ""),
    ],
)
def test_doubled_quotes(raw, text):
    assert tables.unquote(raw) == text


def test_texts_arrive_clean_on_both_sides(root, make, table):
    odd = {
        "The museum is closed.": '"The  museum\u00a0is ""closed""."',
        "Das Museum ist zu.": 'Das Museum deutet.x""  zu.',
    }
    for lang in ("en_us", "de_de"):
        edit_table(root, lang, "test", lambda lines: [_replaced(line, odd) for line in lines])
    make()
    assert set(table("text.tc.en_us").values()) == {'The museum is "closed".'}
    assert set(table("text.tc.de_de").values()) == {'Das Museum deutet.x" zu.'}


def _replaced(line, texts):
    fields = line.split("\t")
    return "\t".join([*fields[:2], texts.get(fields[2], fields[2]), *fields[3:]])


def test_joiners_of_persian_survive(tmp_path):
    root, word = write_corpus(tmp_path / "F", langs=("en_us", "de_de")), "می\u200cروم"
    for split in ("train", "dev", "test"):
        edit_table(root, "de_de", split, lambda lines: [_replaced(line, {line.split("\t")[2]: word}) for line in lines])
    (root / "data/de_de").rename(root / "data/fa_ir")
    prepare.prepare_fleurs(root, tmp_path / "data", ["en_us-fa_ir"])
    assert set(read_table(tmp_path / "data/test.en_us-fa_ir/text.tc.fa_ir").values()) == {word}


def test_empty_texts_are_dropped_from_train_only(root, make, listed, table):
    for split in ("train", "test"):
        edit_table(
            root,
            "en_us",
            split,
            lambda lines: [_replaced(line, {line.split("\t")[2]: ""}) for line in lines[:1]] + lines[1:],
        )
    assert make()["utterances"] == 3 and "" in table("text.tc.en_us").values()
    row = rows_of("en_us", "train")[0]
    assert listed(name="train.en_us-de_de") == [[utt(row), "empty_text.en_us", ""]]


# ---- rows


def test_eight_columns_and_missing_last_fields(root, make):
    edit_table(root, "en_us", "test", lambda lines: [lines[0] + "\t17", lines[1].rsplit("\t", 1)[0], *lines[2:]])
    edit_table(root, "de_de", "test", lambda lines: ["\t".join(line.split("\t")[:3]) for line in lines])
    assert make()["utterances"] == 3 and make()["dropped"] == 0


def test_crlf_and_empty_lines(root, make, table):
    edit_table(root, "en_us", "test", lambda lines: [f"{line}\r" for line in lines] + [""])
    assert make()["utterances"] == 3 and set(table("text.tc.en_us").values()) == {"The museum is closed."}


def test_a_truncated_table_is_a_stop(root, make):
    path = table_path(root, "de_de", "test")
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(InputError, match=r"de_de/test.tsv: truncated: line 3 breaks off; download it again"):
        make()


def test_shifted_rows_are_named_not_read(root, make, listed, capsys):
    victim = next(row for row in rows_of("en_us", "test") if row.sentence == 1914)

    def shifted(lines):
        lines = [line.replace("museum is", "museum\tis", 1) if victim.file in line else line for line in lines]
        return [*lines, "the rest of a broken line", "12\t../evil/7.wav\tx\tx\tx |\t12\tMALE"]

    edit_table(root, "en_us", "test", shifted)
    assert make()["utterances"] == 2
    reasons = {detail: (name, reason) for name, reason, detail in listed()}
    number = 1 + [row.file for row in rows_of("en_us", "test")].index(victim.file)
    path = table_path(root, "en_us", "test")
    assert reasons == {
        f"{path}:{number}: the columns are shifted: the sixth is not a number of samples": (
            f"en_us_test_line_{number}",
            "malformed_row",
        ),
        f"{path}:5: 1 tab-separated columns instead of 7": ("en_us_test_line_5", "malformed_row"),
        f"{path}:6: the file name is '../evil/7.wav'": ("en_us_test_line_6", "malformed_row"),
    }
    assert "WARNING" in capsys.readouterr().err


def test_repeated_file_names(root, make, listed):
    """The same row again: one stays. Two sentences for one recording: nobody knows which, so none stays."""
    first, second, *_ = (row for row in rows_of("en_us", "test") if row.sentence == 1914)
    claim = Row(1675, int(second.file[:-4]), "We met at the harbour.").line()
    edit_table(root, "en_us", "test", lambda lines: [*lines, first.line(), claim])
    assert make()["utterances"] == 2
    path = table_path(root, "en_us", "test")
    files = [row.file for row in rows_of("en_us", "test")]
    at = {row.file: files.index(row.file) + 1 for row in (first, second)}
    assert sorted(listed()) == sorted(
        [
            [utt(first), "duplicate_file_name", f"{path}:5: {first.file} is also in {path}:{at[first.file]}"],
            [utt(second), "ambiguous_file_name", f"{path}:{at[second.file]}: {second.file} is also in {path}:6"],
            [
                f"en_us_1675_{second.file[:-4]}",
                "ambiguous_file_name",
                f"{path}:6: {second.file} is also in {path}:{at[second.file]}",
            ],
        ]
    )


# ---- audio


def test_long_and_short_recordings_are_kept(root, make, table):
    long, short, *_ = (row for row in rows_of("en_us", "test") if row.sentence == 1914)
    wavs = {row.file: Row(1914, 5555, "", seconds).wav() for row, seconds in ((long, 43.4), (short, 0.084))}
    replace_audio(root, wavs)
    assert make()["utterances"] == 3
    assert [soundfile.info(table("wav.scp")[utt(row)]).frames for row in (long, short)] == [694400, 1344]


def test_bad_recordings_are_named(root, make, listed, capsys):
    cut, none, gone = (row for row in rows_of("en_us", "test") if row.sentence == 1914)
    replace_audio(root, {cut.file: cut.wav()[:9000], none.file: b"", gone.file: None})
    edit_table(root, "en_us", "test", lambda lines: [*lines, Row(1914, 10**18, "The museum is closed.").line()])
    replace_audio(root, {cut.file: cut.wav()[:9000], none.file: b"", gone.file: None, f"{10**18}.wav": gone.wav()})
    assert make()["utterances"] == 1
    assert {name: reason for name, reason, _ in listed()} == {
        utt(cut): "unreadable_audio",
        utt(none): "empty_audio",
        utt(gone): "missing_audio",
    }
    assert f"{gone.file} is not in {archive(root)}" in [detail for _, _, detail in listed()]
    assert f"lost {utt(gone)}: missing_audio" in capsys.readouterr().err


def test_stereo_or_another_rate_is_left_to_formatting(root, make, table, tmp_path):
    row = next(row for row in rows_of("en_us", "test") if row.sentence == 1914)
    soundfile.write(tmp_path / "odd.wav", np.full((48000, 2), 0.1), 48000)
    replace_audio(root, {row.file: (tmp_path / "odd.wav").read_bytes()})
    assert make()["utterances"] == 3 and table("wav.scp")[utt(row)].endswith(f"/{row.file}")


def test_no_recording_at_all_is_a_stop(root, make):
    replace_audio(root, {row.file: None for row in rows_of("en_us", "test")} | {"1.wav": b"x"})
    with pytest.raises(InputError, match=r"test.en_us-de_de: no utterance left .*missing_audio"):
        make()


# ---- archives


@pytest.mark.parametrize("keep", [0, 5, 0.3, 0.9, -5])
def test_a_truncated_archive_is_one_clear_message(root, make, tmp_path, keep):
    data = archive(root).read_bytes()
    archive(root).write_bytes(data[: keep if isinstance(keep, int) else int(keep * len(data))])
    with pytest.raises(InputError, match=r"en_us/audio/test.tar.gz: truncated or damaged \(.*download it again"):
        make()
    assert (
        not (tmp_path / "data/audio/en_us/test").exists() and not (tmp_path / "data/test.en_us-de_de/wav.scp").exists()
    )
    archive(root).write_bytes(data)
    assert make()["utterances"] == 3


def test_a_pointer_of_git_lfs(root, make):
    pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 3\n"
    archive(root).write_text(pointer)
    with pytest.raises(InputError, match="test.tar.gz: is a Git LFS pointer, not the file itself; run 'git lfs pull'"):
        make()
    table_path(root, "de_de", "dev").write_text(pointer)
    with pytest.raises(InputError, match="de_de/dev.tsv: is a Git LFS pointer"):
        make()


def test_members_stay_in_their_folder(root, make, tmp_path):
    rows = rows_of("en_us", "test")
    members = {row.file: row.wav() for row in rows}
    write_archive(
        archive(root), {f"../../../../{name}": data for name, data in members.items()} | {"/tmp/._1.wav": b"x"}
    )
    before = set(tmp_path.iterdir())
    assert make()["utterances"] == 3
    assert set(tmp_path.iterdir()) - before == {tmp_path / "data"}
    names = {path.name for path in (tmp_path / "data/audio/en_us/test").iterdir()}
    assert names == {row.file.replace("wav", "flac") for row in rows} | {".source"}


def test_a_full_disk_is_one_clear_message(make, tmp_path, monkeypatch):
    def full(source, file):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(shutil, "copyfileobj", full)
    with pytest.raises(
        InputError, match=r"train.tar.gz: cannot be unpacked to .*\(No space left on device\); make room"
    ):
        make()
    assert not list((tmp_path / "data/audio/en_us").glob("*train*/*"))


def test_a_kill_leaves_nothing_half_written(root, make, tmp_path):
    code = (
        f"import os, signal, sys; sys.path.insert(0, {str(RECIPE / 'local')!r}); import fleurs_audio, prepare_fleurs\n"
        "fleurs_audio.to_flac = lambda path: os.kill(os.getpid(), signal.SIGKILL)\n"
        f"prepare_fleurs.prepare_fleurs({str(root)!r}, {str(tmp_path / 'data')!r}, ['en_us-de_de'])\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    audio = tmp_path / "data/audio/en_us"
    assert (audio / ".train.tmp").is_dir() and not (audio / "train").exists()
    assert make()["utterances"] == 3 and not (audio / ".train.tmp").exists()


def test_several_processes_make_the_same(root, tmp_path, monkeypatch):
    audio = load("fleurs_audio")
    monkeypatch.setattr(audio, "_FILES_PER_PROCESS", 4)  # the four test recordings get two
    one, two = (audio.unpack([archive(root)], tmp_path / f"{nj}/test", nj) for nj in (1, 2))
    assert contents(one) == contents(two) and len(contents(one)) == 5


def test_a_new_archive_is_unpacked_anew(root, make, table):
    make()
    row = next(row for row in rows_of("en_us", "test") if row.sentence == 1914)
    replace_audio(root, {row.file: Row(1914, 5555, "", 1.5).wav()})
    make()
    assert soundfile.info(table("wav.scp")[utt(row)]).frames == 24000


# ---- parquet


@pytest.mark.parametrize("form", ["parquet", "sharded"])
def test_truncated_or_missing_parquet(tmp_path, form):
    root = write_corpus(tmp_path / "F", form)
    path = sorted(root.glob("en_us/fleurs-test*"))[0]
    if form == "sharded":
        path.unlink()
        message = r"en_us/fleurs-test-00001-of-00002.parquet: its neighbour 0 is missing"
    else:
        path.write_bytes(path.read_bytes()[:-100])
        message = r"en_us/fleurs-test.parquet: truncated or damaged"
    with pytest.raises(InputError, match=message):
        prepare.prepare_fleurs(root, tmp_path / "data", ["en_us-de_de"])


def test_parquet_without_audio_bytes_or_column(tmp_path):
    import pyarrow.parquet as parquet

    root = write_corpus(tmp_path / "F", "parquet")
    path = root / "en_us/fleurs-test.parquet"
    rows = parquet.read_table(path)
    data = rows.to_pydict()
    data["audio"][0]["bytes"] = None
    parquet.write_table(type(rows).from_pydict(data), path)
    done = prepare.prepare_fleurs(root, tmp_path / "data", ["en_us-cmn_hans_cn"])["sets"]
    assert done["test.en_us-cmn_hans_cn"]["reasons"] == {"missing_audio": 1}
    parquet.write_table(rows.drop_columns(["raw_transcription"]), path)
    with pytest.raises(InputError, match="fleurs-test.parquet: column raw_transcription is missing"):
        prepare.prepare_fleurs(root, tmp_path / "data", ["en_us-cmn_hans_cn"])


def test_without_pyarrow_the_message_says_so(tmp_path, monkeypatch):
    root = tmp_path / "F"
    (root / "en_us").mkdir(parents=True)
    (root / "en_us/fleurs-train.parquet").write_bytes(b"PAR1")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(
        InputError, match="fleurs-train.parquet: the Python package pyarrow reads it; pip install pyarrow"
    ):
        prepare.prepare_fleurs(root, tmp_path / "data", ["en_us-de_de"])


# ---- again, and what is missing


def test_again_is_the_same_and_skips(root, make, tmp_path):
    directions = ["en_us-de_de,en_us-cmn_hans_cn"]
    make(directions=directions)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "data").rglob("*") if path.is_file()}
    made = contents(tmp_path / "data")
    make(directions=directions)
    locks = {path for path in before if path.suffix == ".lock"}
    assert {p: p.stat().st_mtime_ns for p in before if p not in locks} == {
        p: t for p, t in before.items() if p not in locks
    }
    make(directions=directions, force=True)
    again = contents(tmp_path / "data")
    for name in set(made) - {name for name in made if name.endswith(".done")}:
        assert made[name] == again[name], name
    for name in (name for name in made if name.endswith(".done")):
        assert json.loads(made[name]) == json.loads(again[name])


def test_utterances_of_several_directions_are_the_same_recordings(make, table):
    make(directions=["en_us-de_de", "en_us-cmn_hans_cn"])
    german, chinese = table("wav.scp"), table("wav.scp", "test.en_us-cmn_hans_cn")
    assert german.items() <= chinese.items() and len(chinese) == 4


@pytest.mark.parametrize(
    ("directions", "message"),
    [
        ([], "no direction: give at least one"),
        (["en_us"], "direction 'en_us': give <source>-<target>"),
        (["en_us-en_us"], "give <source>-<target>"),
        (["en-de"], "no folder en or data/en; there are cmn_hans_cn, de_de, en_us; get it, or correct --directions"),
    ],
)
def test_bad_directions(make, directions, message):
    with pytest.raises(InputError, match=message):
        make(directions=directions)


def test_missing_parts_are_named_before_anything_is_unpacked(root, make, tmp_path):
    path = table_path(root, "de_de", "test")
    path.unlink()
    with pytest.raises(InputError, match=r"data/de_de/test.tsv: missing, and there are no parquet files of test"):
        make()
    path.write_text("")
    with pytest.raises(InputError, match=r"data/de_de/test.tsv: no row of FLEURS's form; download it again"):
        make()
    path.write_bytes("1\t2.wav\tfür\n".encode("latin1"))
    with pytest.raises(InputError, match=r"data/de_de/test.tsv:1: not UTF-8"):
        make()
    archive(root, "dev").unlink()
    with pytest.raises(InputError, match=r"data/en_us/audio/dev.tar.gz: missing, and so is its unpacked folder"):
        make()
    assert not (tmp_path / "data").exists()


def test_the_target_language_needs_no_audio(root, make):
    shutil.rmtree(root / "data/de_de/audio")
    assert make()["utterances"] == 3


def test_command_line(root, tmp_path):
    command = [sys.executable, RECIPE / "local/prepare_fleurs.py", "--corpus_dir", root, "--out_dir", tmp_path / "d"]
    environment = {**os.environ, "PYTHONPATH": str(RECIPE.parents[2])}
    run = lambda *more: subprocess.run([*command, *more], capture_output=True, text=True, env=environment)  # noqa: E731
    done = run("--directions", "en_us-de_de en_us-cmn_hans_cn", "--nj", "2")
    assert done.returncode == 0, done.stderr
    assert "FLEURS en_us test: 4 utterances, -643 against the published 647 (google/fleurs)" in done.stdout
    assert f"{tmp_path}/d/test.en_us-de_de: 3 utterances" in done.stdout and "no de_de sentence" in done.stdout
    archive(root).write_bytes(archive(root).read_bytes()[:300])
    done = run("--directions", "en_us-de_de")
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert done.stderr.splitlines()[-1].startswith(f"prepare_fleurs: error: {archive(root)}: truncated")


# ---- Common Voice beside FLEURS


def conf(method):
    return sorted((RECIPE / "conf" / method).glob("[0-9]*.yaml"))


def directions_of(method, capsys):
    llmst_mix.main(["--list_directions", "--train_config", *map(str, conf(method))])
    return capsys.readouterr().out.split()


@pytest.mark.parametrize(
    ("method", "langs"),
    [
        ("llm_srt_3b", "en de fr ru ja zh-CN"),
        ("llm_srt_7b_15x14", "en de fr ru ja zh-CN id it nl pt es vi ko th yue"),
        ("llm_srt_3b_fleurs", ""),
        ("llm_srt_3b_direct", ""),
    ],
)
def test_languages_of_common_voice_have_the_tags_of_fleurs(method, langs, capsys):
    directions = directions_of(method, capsys)
    found = load("common_voice_langs").common_voice_langs(conf(method), directions)
    assert found == langs.split()
    sources = {direction.split("-")[0] for direction in directions}
    assert {iso639_3(lang) for lang in found} == ({iso639_3(lang) for lang in sources} if found else set())
