"""How2 as it really is, and as it may be broken.

Kept: odd video names, merged segments, audio of every kind, segments that overshoot by a little, messy texts.
Dropped by name: videos without audio, audio that cannot be read, impossible times, training pairs without a text.
Refused in one line: missing tables, tables that disagree, no Portuguese, no audio at all, archives cut off.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import soundfile
from corpus_how2 import LOCAL, REPO, VIDEOS, How2, load, numbers

from espnet_llmst.cli import InputError
from espnet_llmst.datadir.kaldi import read_table
from espnet_llmst.datadir.validate import validate_data_dir
from espnet_llmst.languages import english_name, iso639_3

prepare = load("prepare_how2")


@pytest.fixture(scope="module")
def recordings(tmp_path_factory):
    corpus = How2(tmp_path_factory.mktemp("recordings"))
    corpus.all_audio()
    return corpus.root / "audio"


@pytest.fixture
def corpus(tmp_path, recordings):
    corpus = How2(tmp_path)
    shutil.copytree(recordings, corpus.root / "audio")
    return corpus


@pytest.fixture
def out(tmp_path):
    return tmp_path / "data"


def dropped(set_dir: Path) -> dict[str, str]:
    rows = [line.split("\t") for line in (set_dir / "dropped.tsv").read_text().splitlines()[1:]]
    return {row[0]: row[1] for row in rows}


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file() and path.name != ".done"}


def refused(corpus, out, **options) -> str:
    with pytest.raises(InputError) as error:
        prepare.prepare_how2(corpus.root, out, **options)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_sets_as_published(corpus, out):
    summaries = prepare.prepare_how2(corpus.write(), out)
    assert {name: s["utterances"] for name, s in summaries.items()} == {
        "train.en-pt": 12,
        "val.en-pt": 4,
        "dev5.en-pt": 8,
    }
    assert all(s["dropped"] == s["clamped"] == 0 for s in summaries.values())
    for name in summaries:
        assert validate_data_dir(out / name) == [] and dropped(out / name) == {}


def test_odd_names_and_merged_segments(corpus, out):
    """Ids never begin with - or _; the video is 11 characters, whatever they are; audio and texts are its own."""
    prepare.prepare_how2(corpus.write(), out)
    for split, segments in corpus.segments.items():
        set_dir = out / f"{split}.en-pt"
        cuts, wavs = read_table(set_dir / "segments"), read_table(set_dir / "wav.scp")
        texts = {lang: read_table(set_dir / f"text.tc.{lang}") for lang in ("en", "pt")}
        assert list(cuts) == sorted(f"how2_{segment}" for segment in segments)
        assert set(read_table(set_dir / "spk2utt")) == {f"how2_{video}" for video in VIDEOS[split]} == set(wavs)
        for segment in segments:
            utt, first = f"how2_{segment}", numbers(segment)[0]
            recording, start, end = cuts[utt].split()
            assert recording == read_table(set_dir / "utt2spk")[utt] == f"how2_{segment[:11]}"
            assert (float(start), float(end)) == pytest.approx((first + 0.25, first + 1.05))
            assert os.path.isabs(wavs[recording]) and Path(wavs[recording]).stem == segment[:11]
            assert texts["en"][utt] == f"Now, this is step {segment[12:]}; don't worry."
            assert texts["pt"][utt] == f"Agora, este é o passo {segment[12:]}; não se preocupe."
    assert set(read_table(out / "train.en-pt/utt2lang").values()) == {"en"}


def test_one_form_of_the_texts_is_enough(corpus, out, tmp_path):
    expected = prepare.prepare_how2(corpus.write(), out) and contents(out)
    for forms in ({"en": {"plain"}, "pt": {"keyed"}}, {"en": {"keyed"}, "pt": {"plain"}}):
        shutil.rmtree(out), shutil.rmtree(corpus.root / "data")
        corpus.forms = forms
        prepare.prepare_how2(corpus.write(), out)
        assert contents(out) == expected


def test_portuguese_from_the_translation_package(corpus, out):
    corpus.pack_translations()
    prepare.prepare_how2(corpus.write(), out)
    texts = read_table(out / "dev5.en-pt/text.tc.pt")
    assert texts["how2___0_1_2_3_4_3_4"] == "Agora, este é o passo 3_4; não se preocupe." and len(texts) == 8


def test_no_portuguese_says_where_to_get_it(corpus, out):
    corpus.forms["pt"] = set()
    corpus.write()
    message = refused(corpus, out)
    assert "data/train/text.pt: missing" in message and "translations.pt.bz2" in message and "form" in message


def test_no_english_says_where_to_get_it(corpus, out):
    corpus.forms["en"] = set()
    corpus.write()
    message = refused(corpus, out)
    assert "data/train/text.en: missing" in message and "scripts/install.sh" in message


def test_translation_package_cut_off(corpus, out):
    path = corpus.pack_translations()
    path.write_bytes(path.read_bytes()[:-20])
    corpus.write()
    assert "translations.pt.bz2: cannot be unpacked" in refused(corpus, out)


def test_messy_texts_become_one_clean_line(corpus, out):
    segment = f"{VIDEOS['train'][0]}_1"
    corpus.texts["train"]["pt"][segment] = "\ufeffE\u0301  \u00a0isso\u2028a\u00ed\u200b\x07 mesmo\u0085."
    corpus.texts["train"]["en"][segment] = 'He said "5"" wide"\x1d, right? '
    prepare.prepare_how2(corpus.write(), out)
    assert read_table(out / "train.en-pt/text.tc.pt")[f"how2_{segment}"] == "É isso aí mesmo ."
    assert read_table(out / "train.en-pt/text.tc.en")[f"how2_{segment}"] == 'He said "5"" wide" , right?'
    assert len(read_table(out / "train.en-pt/text.tc.pt")) == 12


def test_texts_with_carriage_returns(corpus, out):
    for texts in corpus.texts["val"].values():
        texts.update({segment: text + "\r" for segment, text in texts.items()})
    prepare.prepare_how2(corpus.write(), out)
    assert all("\r" not in text for text in read_table(out / "val.en-pt/text.tc.pt").values())


def test_videos_without_audio_are_dropped_and_named(corpus, out, capsys):
    """As is normal by now; the rest is kept, and a test set does not shrink without a word."""
    for video in ("_-q2W4e6R8t", "--Kd9sLw_2x"):
        next(corpus.root.rglob(f"{video}.*")).unlink()
    corpus.write()
    assert prepare.main(["--corpus_dir", str(corpus.root), "--out_dir", str(out)]) is None
    assert set(dropped(out / "train.en-pt").values()) == set(dropped(out / "dev5.en-pt").values()) == {"missing_audio"}
    assert len(read_table(out / "train.en-pt/segments")) == 8 and len(read_table(out / "dev5.en-pt/segments")) == 4
    printed = capsys.readouterr()
    assert "train.en-pt: 8 utterances" in printed.out and "1 videos have no audio: _-q2W4e6R8t" in printed.out
    assert "dev5.en-pt: 4 utterances, -2301 against the published 2305" in printed.out
    assert "lost how2_--Kd9sLw_2x_0: missing_audio" in printed.err and "_-q2W4e6R8t" not in printed.err


def test_no_audio_at_all(corpus, out, tmp_path):
    shutil.rmtree(corpus.root / "audio")
    corpus.write()
    message = refused(corpus, out)
    assert "no audio of any of 3 videos" in message and "--feats_type kaldi" in message
    assert "nowhere: no such folder" in refused(corpus, out, audio_dir=tmp_path / "nowhere")


def test_audio_in_film_containers(corpus, out):
    """Not read, but told with the command that converts; another form of the same video counts instead."""
    both, only = VIDEOS["train"][0], VIDEOS["train"][1]
    next(corpus.root.rglob(f"{only}.*")).unlink()
    for video in (both, only):
        (corpus.root / "audio" / f"{video}.m4a").write_bytes(b"\0\0\0\x20ftypM4A ")
    prepare.prepare_how2(corpus.write(), out)
    assert set(dropped(out / "train.en-pt")) == {f"how2_{s}" for s in corpus.segments["train"] if s.startswith(only)}
    detail = (out / "train.en-pt/dropped.tsv").read_text().splitlines()[1]
    assert "\tunreadable_audio\t" in detail and f"{only}.m4a: .m4a cannot be read; convert with ffmpeg" in detail
    assert 'ffmpeg -i "./$f"' in detail  # names that begin with - are no options
    for path in [*corpus.root.rglob("*.wav"), *corpus.root.rglob("*.flac"), *corpus.root.rglob("*.mp3")]:
        path.rename(path.with_suffix(".m4a"))
    assert "m4a cannot be read; convert with ffmpeg" in refused(corpus, out)


def test_bad_audio_is_dropped_by_its_reason(corpus, out):
    empty, noise, short = VIDEOS["train"]
    for video in VIDEOS["train"]:
        next(corpus.root.rglob(f"{video}.*")).unlink()
    (corpus.root / "audio" / f"{empty}.wav").touch()
    (corpus.root / "audio" / f"{noise}.wav").write_bytes(b"<html>404</html>")
    corpus.audio(short, rate=48000, seconds=3.8)
    summary = prepare.prepare_how2(corpus.write(), out)["train.en-pt"]
    assert summary["reasons"] == {"empty_audio": 4, "unreadable_audio": 4}
    # The last segment overshoots the audio by a quarter of a second: it is clamped.
    assert summary["clamped"] == 1 and summary["utterances"] == 4
    assert read_table(out / "train.en-pt/segments")[f"how2_{short}_3_4"].split()[1:] == ["3.25", "3.8"]


def test_impossible_times(corpus, out):
    video = VIDEOS["train"][0]
    corpus.segments["train"] |= {
        f"{video}_0": f"{video} 1.00 1.00",
        f"{video}_1": f"{video} 900.00 901.00",
        f"{video}_2": f"{video} nan 3.00",
        f"{video}_3_4": f"{VIDEOS['train'][1]} 3.25 4.05",
    }
    prepare.prepare_how2(corpus.write(), out)
    expected = {"0": "empty_audio", "1": "segment_outside_audio", "2": "bad_times", "3_4": "bad_times"}
    assert dropped(out / "train.en-pt") == {f"how2_{video}_{name}": reason for name, reason in expected.items()}


def test_missing_texts_thin_out_training_only(corpus, out):
    corpus.texts["train"]["pt"][f"{VIDEOS['train'][2]}_0"] = ""
    corpus.texts["train"]["en"][f"{VIDEOS['train'][2]}_1"] = " \u200b"
    corpus.texts["dev5"]["pt"][f"{VIDEOS['dev5'][1]}_0"] = ""
    summaries = prepare.prepare_how2(corpus.write(), out)
    assert summaries["train.en-pt"]["reasons"] == {"empty_text.en": 1, "empty_text.pt": 1}
    assert summaries["dev5.en-pt"]["utterances"] == 8
    assert read_table(out / "dev5.en-pt/text.tc.pt", allow_empty=True)["how2___0_1_2_3_4_0"] == ""


@pytest.mark.parametrize("name", ["text.pt", "text.en", "text.id.pt", "text.id.en", "id", "segments"])
@pytest.mark.parametrize("split", ["train", "dev5"])
def test_tables_of_different_length(corpus, out, split, name):
    """A lost line would shift the rest: nothing is written."""
    path = corpus.write() / "data" / split / name
    path.write_text("".join(path.read_text().splitlines(keepends=True)[1:]))
    message = refused(corpus, out)
    assert f"data/{split}/" in message and ("lines, but" in message or "segments, " in message)
    assert not (out / f"{split}.en-pt/text.tc.pt").exists()


def test_two_forms_that_disagree(corpus, out):
    path = corpus.write() / "data/val/text.pt"
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join([lines[1], lines[0], *lines[2:]]))
    assert "data/val/text.pt: the text of 0_1-2__3--4_0 is not the one in" in refused(corpus, out)


@pytest.mark.parametrize("name", ["segments", "text.id.pt", "id"])
def test_duplicate_ids(corpus, out, name):
    path = corpus.write() / "data/train" / name
    path.write_text(path.read_text() + path.read_text().splitlines(keepends=True)[0])
    message = refused(corpus, out)
    assert f"data/train/{name}" in message and "occurs" in message and "-aB3dE5gH7__0" in message


@pytest.mark.parametrize("name", ["train/segments", "val/segments"])
def test_missing_table(corpus, out, name):
    corpus.dropped_tables.add(name)
    corpus.write()
    assert f"data/{name}: missing" in refused(corpus, out)


def test_order_is_lost_without_id(corpus, out):
    corpus.dropped_tables.add("dev5/id")
    corpus.forms["en"] = {"plain"}
    corpus.write()
    message = refused(corpus, out)
    assert "data/dev5/id: missing" in message and "text.en has its order" in message


def test_wrong_folder(corpus, out, tmp_path):
    with pytest.raises(InputError, match="no data/train.*give the folder how2-300h-v1"):
        prepare.prepare_how2(tmp_path / "elsewhere", out)
    (tmp_path / "big/data/tr_2000h_utt").mkdir(parents=True)
    with pytest.raises(InputError, match="2000 h release has no Portuguese"):
        prepare.prepare_how2(tmp_path / "big", out)
    shutil.rmtree(corpus.write() / "data/val")
    assert "data/val/segments: missing" in refused(corpus, out)


def test_text_in_another_encoding(corpus, out):
    path = corpus.write() / "data/train/text.pt"
    path.write_bytes(path.read_text().encode("latin-1"))
    assert "text.pt:1: not UTF-8" in refused(corpus, out)


@pytest.mark.parametrize("folder", ["how2-300h-v1", ""])
def test_the_folder_or_the_one_around_it(corpus, out, folder, tmp_path):
    corpus.write()
    assert prepare.prepare_how2(tmp_path / folder, out)["val.en-pt"]["utterances"] == 4


def test_audio_elsewhere_behind_a_link(corpus, out, tmp_path):
    (corpus.root / "audio").rename(tmp_path / "disk")
    (corpus.root / "audio").symlink_to(tmp_path / "disk")
    (tmp_path / "disk/loop").symlink_to(tmp_path / "disk")
    assert prepare.prepare_how2(corpus.write(), out)["train.en-pt"]["utterances"] == 12
    (corpus.root / "audio").unlink()
    assert prepare.prepare_how2(corpus.root, out, audio_dir=tmp_path / "disk")["train.en-pt"]["utterances"] == 12


@pytest.mark.parametrize("directions", [["en-de"], ["pt-en"], ["en-pt fr-en"], []])
def test_only_en_pt(corpus, out, directions):
    corpus.write()
    assert "How2 has English speech with Portuguese text: give en-pt" in refused(corpus, out, directions=directions)


def test_again(corpus, out, monkeypatch):
    """The same bytes when made again; a second run reads nothing; more audio, or a new text, is noticed."""
    video = next(corpus.root.rglob(f"{VIDEOS['train'][1]}.*"))
    hidden = video.rename(video.with_suffix(".hidden"))
    prepare.prepare_how2(corpus.write(), out)
    first = contents(out)
    prepare.prepare_how2(corpus.root, out, force=True)
    assert contents(out) == first
    with monkeypatch.context() as patch:
        patch.setattr(prepare, "read_split", None)
        prepare.prepare_how2(corpus.root, out)
    hidden.rename(video)
    assert prepare.prepare_how2(corpus.root, out)["train.en-pt"]["utterances"] == 12
    corpus.texts["val"]["en"]["0_1-2__3--4_0"] = "Something else."
    prepare.prepare_how2(corpus.write(), out)
    assert read_table(out / "val.en-pt/text.tc.en")["how2_0_1-2__3--4_0"] == "Something else."


def test_processes_do_not_change_the_result(corpus, out, tmp_path):
    prepare.prepare_how2(corpus.write(), out)
    prepare.prepare_how2(corpus.root, tmp_path / "other", nj=2)
    other = {
        path.replace(str(tmp_path / "other"), str(out)): data for path, data in contents(tmp_path / "other").items()
    }
    assert other == contents(out)


def test_languages_are_known():
    assert (english_name("en"), english_name("pt")) == ("English", "Portuguese")
    assert (iso639_3("en"), iso639_3("pt")) == ("eng", "por")


def test_data_sh(corpus, tmp_path):
    recipe = tmp_path / "recipe"
    (recipe / "utils").mkdir(parents=True)
    (recipe / "utils/parse_options.sh").symlink_to(REPO / "egs2/TEMPLATE/llmst1/utils/parse_options.sh")
    (recipe / "local").symlink_to(LOCAL)
    (recipe / "local").unlink()
    shutil.copytree(LOCAL, recipe / "local", ignore=shutil.ignore_patterns("__pycache__"))
    corpus.write()
    environment = {k: v for k, v in os.environ.items() if k != "HOW2"}
    environment["PATH"] = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    command = ["bash", "local/data.sh", "--directions", "en-pt", "--nj", "1", "--force", "false"]

    def call(*more, **variables):
        return subprocess.run(
            [*command, *more], cwd=recipe, capture_output=True, text=True, env={**environment, **variables}
        )

    unset = call()
    assert unset.returncode == 1 and "HOW2 is not set" in unset.stderr and "README.md" in unset.stderr
    done = call("--corpus_dir", str(corpus.root))
    assert done.returncode == 0, done.stderr
    assert "data/train.en-pt: 12 utterances" in done.stdout
    assert call(HOW2=str(corpus.root)).returncode == 0
    wrong = call("--corpus_dir", str(tmp_path / "nowhere"))
    assert wrong.returncode == 1 and "Traceback" not in wrong.stderr and len(wrong.stderr.splitlines()) == 1
    assert call("left-over").returncode == 2


def test_stage_3_cuts_the_right_piece(corpus, out, tmp_path):
    """16 kHz mono; what is heard in an utterance is the tone of its number."""
    import numpy as np

    from espnet_llmst.datadir.format_audio import format_data_dir

    prepare.prepare_how2(corpus.write(), out)
    format_data_dir(out / "dev5.en-pt", tmp_path / "dump", drop=False)
    wavs = read_table(tmp_path / "dump/wav.scp")
    assert len(wavs) == 8
    for utt, path in wavs.items():
        wave, rate = soundfile.read(path)
        assert rate == 16000 and wave.ndim == 1
        middle = wave[2000:10000]  # half a second, within the tone
        heard = np.abs(np.fft.rfft(middle)).argmax() * rate / len(middle)
        assert heard == pytest.approx(300 + 100 * numbers(utt[5:])[0], abs=10)
