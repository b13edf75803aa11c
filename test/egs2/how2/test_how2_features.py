"""How2's published features: ARK_PATH resolved, every entry checked in its archive.

Kept: entries as published, lists of the split or of the archives' folder. Dropped by name: segments without
an entry, of another width, without frames, without statistics. Refused in one line: archives missing, cut off,
or not those of the list.
"""

import shutil

import numpy as np
import pytest
from corpus_how2 import ARCHIVES, VIDEOS, How2, load, save

from espnet_llmst.cli import InputError
from espnet_llmst.datadir.format_features import format_feature_dir, read_matrix
from espnet_llmst.datadir.kaldi import read_table

prepare = load("prepare_how2")
ONE = f"{VIDEOS['train'][0]}_1"


@pytest.fixture
def corpus(tmp_path):
    corpus = How2(tmp_path)
    corpus.features()
    return corpus


@pytest.fixture
def out(tmp_path):
    return tmp_path / "data"


def make(corpus, out, **options):
    return prepare.prepare_how2(corpus.root, out, feats_type="kaldi", **options)


def refused(corpus, out, **options) -> str:
    with pytest.raises(InputError) as error:
        make(corpus, out, **options)
    assert "\n" not in str(error.value)
    return str(error.value)


def dropped(set_dir):
    rows = [line.split("\t") for line in (set_dir / "dropped.tsv").read_text().splitlines()[1:]]
    return {row[0]: row[1] for row in rows}


def test_sets_with_features(corpus, out):
    summaries = make(corpus, corpus.write() and out)
    assert {name: s["utterances"] for name, s in summaries.items()} == {
        "train.en-pt": 12,
        "val.en-pt": 4,
        "dev5.en-pt": 8,
    }
    for split, segments in corpus.segments.items():
        set_dir = out / f"{split}.en-pt"
        feats = read_table(set_dir / "feats.scp")
        assert set(feats) == {f"how2_{segment}" for segment in segments} == set(read_table(set_dir / "text.tc.pt"))
        assert set(read_table(set_dir / "utt2num_frames").values()) == {"78"}  # 0.8 s
        assert set(read_table(set_dir / "cmvn.scp")) == {f"how2_{video}" for video in VIDEOS[split]}
        assert not (set_dir / "wav.scp").exists() and not (set_dir / "segments").exists()
        assert (set_dir / "feats_type").read_text() == "kaldi\n" and dropped(set_dir) == {}
        for utt, place in feats.items():
            path, _, offset = place.rpartition(":")
            assert path.startswith(str(corpus.root)) and "ARK_PATH" not in path
            with open(path, "rb") as file:  # the archive has the segment's own name before the matrix
                file.seek(int(offset) - len(utt) + 4)
                assert file.read(len(utt) - 4).decode() == f"{utt[5:]} "
            assert read_matrix(place).shape == (78, 43)


def test_byte_distances_are_those_of_the_published_archives(corpus):
    """From one entry to the next: the next key, a blank, 5 + 16 + 344 bytes and 43 for each frame."""
    scp = read_table(corpus.root / ARCHIVES / "raw_fbank_pitch_all_181506.1.scp")
    places = [(key, int(value.rpartition(":")[2])) for key, value in scp.items()]
    for (_, before), (key, after) in zip(places[:-1], places[1:], strict=True):
        assert after - before == len(key) + 1 + 5 + 16 + 344 + 43 * 78


def test_stage_3_normalises_each_video(corpus, out, tmp_path):
    make(corpus, corpus.write() and out)
    summary = format_feature_dir(out / "train.en-pt", tmp_path / "dump", min_duration=0.2, max_duration=20)
    assert summary["utterances"] == 12 and summary["seconds"] == pytest.approx(12 * 0.795)
    feats, speakers = read_table(tmp_path / "dump/feats.scp"), read_table(tmp_path / "dump/utt2spk")
    for video in VIDEOS["train"]:
        frames = np.concatenate([read_matrix(feats[utt]) for utt in feats if speakers[utt] == f"how2_{video}"])
        assert frames.shape == (4 * 78, 43)
        assert np.abs(frames.mean(0)).max() < 0.05 and np.abs(frames.std(0) - 1).max() < 0.05


def test_lists_beside_the_archives(corpus, out):
    """Where a split has no lists of its own, as train in the repository, those of all splits serve."""
    for split in VIDEOS:
        for name in ("feats.scp", "cmvn.scp"):
            (corpus.root / "data" / split / name).unlink()
    assert make(corpus, corpus.write() and out)["train.en-pt"]["utterances"] == 12


def test_archives_elsewhere(corpus, out, tmp_path):
    (corpus.root / ARCHIVES).rename(tmp_path / "disk")
    corpus.write()
    assert "no *.ark below" in refused(corpus, out)
    assert make(corpus, out, feats_dir=tmp_path / "disk")["dev5.en-pt"]["utterances"] == 8
    for scp in (corpus.root / "data").rglob("*.scp"):  # as install.sh leaves them
        scp.write_text(scp.read_text().replace("ARK_PATH", str(tmp_path / "disk")))
    assert make(corpus, out, feats_dir=tmp_path / "disk")["dev5.en-pt"]["utterances"] == 8


def test_another_archive_of_the_same_kind_beside(corpus, out):
    shutil.copytree(corpus.root / ARCHIVES, corpus.root / "features/fbank_pitch_181516")
    for path in (corpus.root / "features/fbank_pitch_181516").iterdir():
        path.rename(path.with_name(path.name.replace("181506", "181516")))
    assert make(corpus, corpus.write() and out)["train.en-pt"]["utterances"] == 12


def test_segments_without_features(corpus, out, capsys):
    for split, segment in (("train", ONE), ("dev5", f"{VIDEOS['dev5'][0]}_0")):
        scp = corpus.root / "data" / split / "feats.scp"
        scp.write_text("".join(line for line in scp.read_text().splitlines(True) if not line.startswith(f"{segment} ")))
    make(corpus, corpus.write() and out)
    assert dropped(out / "train.en-pt") == {f"how2_{ONE}": "missing_features"}
    assert "lost how2_--Kd9sLw_2x_0: missing_features" in capsys.readouterr().err


def test_video_without_statistics(corpus, out):
    scp = corpus.root / "data/train/cmvn.scp"
    scp.write_text("".join(scp.read_text().splitlines(True)[1:]))
    summary = make(corpus, corpus.write() and out)["train.en-pt"]
    assert summary["reasons"] == {"missing_cmvn": 4} and summary["utterances"] == 8


def test_entries_of_another_kind(corpus, out):
    folder = corpus.root / ARCHIVES
    wide = {ONE: np.zeros((5, 40), np.float32), f"{ONE[:11]}_2": np.zeros((0, 43), np.float32)}
    places = save(folder / "odd.ark", wide)
    scp = corpus.root / "data/train/feats.scp"
    lines = [line.split() for line in scp.read_text().splitlines()]
    scp.write_text("".join(f"{key} {places.get(key, value)}\n" for key, value in lines))
    make(corpus, corpus.write() and out)
    assert dropped(out / "train.en-pt") == {
        f"how2_{ONE}": "unreadable_features",
        f"how2_{ONE[:11]}_2": "empty_features",
    }


def test_features_thin_out_training_by_empty_texts(corpus, out):
    corpus.texts["train"]["pt"][ONE] = ""
    corpus.texts["val"]["pt"]["0_1-2__3--4_0"] = ""
    summaries = make(corpus, corpus.write() and out)
    assert summaries["train.en-pt"]["reasons"] == {"empty_text.pt": 1} and summaries["val.en-pt"]["dropped"] == 0


@pytest.mark.parametrize("cut", [20, 4000])
def test_archive_cut_off(corpus, out, cut):
    path = corpus.root / ARCHIVES / "raw_fbank_pitch_all_181506.2.ark"
    path.write_bytes(path.read_bytes()[:-cut])
    corpus.write()
    message = refused(corpus, out)
    assert "raw_fbank_pitch_all_181506.2.ark: ends at byte" in message and "fetch it again" in message


def test_archive_missing(corpus, out):
    (corpus.root / ARCHIVES / "raw_fbank_pitch_all_181506.2.ark").unlink()
    corpus.write()
    assert "there is no raw_fbank_pitch_all_181506.2.ark below" in refused(corpus, out)


def test_list_of_another_archive(corpus, out):
    """Features of one segment would get the text of another."""
    folder = corpus.root / ARCHIVES
    first, second = (folder / f"raw_fbank_pitch_all_181506.{n}.ark" for n in (1, 2))
    data = first.read_bytes()
    first.write_bytes(second.read_bytes())
    second.write_bytes(data)
    corpus.write()
    assert "not the archive of its list" in refused(corpus, out)


def test_no_features_at_all(corpus, out):
    shutil.rmtree(corpus.root / ARCHIVES)
    corpus.write()
    message = refused(corpus, out)
    assert "no *.ark below" in message and "github.com/srvk/how2-dataset" in message


def test_from_features_to_audio_and_back(corpus, out):
    corpus.all_audio()
    corpus.write()
    make(corpus, out)
    first = {path.name: path.read_bytes() for path in (out / "val.en-pt").iterdir() if path.name != ".done"}
    prepare.prepare_how2(corpus.root, out)
    names = {path.name for path in (out / "val.en-pt").iterdir()}
    assert "wav.scp" in names and not {"feats.scp", "cmvn.scp", "feats_type", "utt2num_frames"} & names
    make(corpus, out)
    again = {path.name: path.read_bytes() for path in (out / "val.en-pt").iterdir() if path.name != ".done"}
    assert {name: again[name] for name in first} == first and "wav.scp" not in again


def test_again(corpus, out, monkeypatch):
    make(corpus, corpus.write() and out)
    with monkeypatch.context() as patch:
        patch.setattr(load("how2_features"), "read_split", None)
        assert make(corpus, out)["train.en-pt"]["utterances"] == 12
    corpus.texts["val"]["en"]["0_1-2__3--4_0"] = "Something else."
    make(corpus, corpus.write() and out)
    assert read_table(out / "val.en-pt/text.tc.en")["how2_0_1-2__3--4_0"] == "Something else."
