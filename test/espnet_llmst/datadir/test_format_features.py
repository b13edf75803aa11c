"""Formatting directories of Kaldi features: normalisation, byte ranges, filters, work done once."""

import kaldiio
import numpy as np
import pytest

from espnet_llmst.cli import InputError
from espnet_llmst.datadir import format_features
from espnet_llmst.datadir.audio import AudioError
from espnet_llmst.datadir.format_features import apply_cmvn, format_feature_dir, matrix_shape, read_matrix, samples_of
from espnet_llmst.datadir.kaldi import invert_utt2spk, read_table, write_table
from espnet_llmst.datadir.validate import validate_data_dir


class Features:
    """A directory of features under construction."""

    def __init__(self, root):
        self.root, self.dir = root, root / "data"
        random = np.random.default_rng(0)
        self.matrices = {
            f"{speaker}-{n}": (random.standard_normal((40 + 10 * n, 5)) * [1, 2, 3, 4, 5] + 7).astype(np.float32)
            for speaker in ("a", "b")
            for n in range(3)
        }
        self.tables = {"utt2spk": {utt: utt[0] for utt in self.matrices}}
        for lang in ("en", "pt"):
            self.tables[f"text.tc.{lang}"] = {utt: f"{lang} {utt}" for utt in self.matrices}
        self.tables["feats.scp"] = self.archive("feats", self.matrices, compression_method=2)
        stats = {}
        for speaker in ("a", "b"):
            frames = np.concatenate([m for utt, m in self.matrices.items() if utt[0] == speaker]).astype(np.float64)
            sums = np.append(frames.sum(0), len(frames)), np.append((frames**2).sum(0), 0)
            stats[speaker] = np.stack(sums)
        self.cmvn = self.archive("cmvn", stats)

    def archive(self, name, matrices, **options):
        path = self.root / f"{name}.ark"
        kaldiio.save_ark(str(path), matrices, scp=str(path.with_suffix(".scp")), **options)
        return read_table(path.with_suffix(".scp"))

    def write(self):
        self.tables["spk2utt"] = invert_utt2spk(self.tables["utt2spk"])
        for name, table in self.tables.items():
            write_table(self.dir / name, table)
        if self.cmvn:
            write_table(self.dir / "cmvn.scp", self.cmvn)
        return self.dir


@pytest.fixture
def features(tmp_path):
    return Features(tmp_path)


@pytest.fixture
def out(tmp_path):
    return tmp_path / "dump"


def dropped(out_dir):
    return dict(line.split("\t")[:2] for line in (out_dir / "dropped.tsv").read_text().splitlines()[1:])


def test_normalised_by_speaker(features, out):
    summary = format_feature_dir(features.write(), out)
    assert summary == {"utterances": 6, "seconds": 3.09, "dropped": 0, "reasons": {}, "clamped": 0}
    assert validate_data_dir(out, wav=False) == [] and (out / "feats_type").read_text() == "kaldi\n"
    feats = read_table(out / "feats.scp")
    assert read_table(out / "utt2num_frames")["a-1"] == "50"
    assert read_table(out / "utt2num_samples")["a-1"] == str(400 + 49 * 160)  # 25 ms, and 10 for each further frame
    for speaker in ("a", "b"):
        own = np.concatenate([m for utt, m in features.matrices.items() if utt[0] == speaker])
        expected = {u: (m - own.mean(0)) / own.std(0) for u, m in features.matrices.items() if u[0] == speaker}
        for utt, matrix in expected.items():
            found = kaldiio.load_mat(feats[utt])  # as ESPnet's type kaldi_ark reads it
            assert found.dtype == np.float32 and np.abs(found - matrix).max() < 0.05  # a byte a value in the input


def test_without_statistics_features_stay(features, out):
    features.cmvn = None
    format_feature_dir(features.write(), out)
    for utt, place in read_table(out / "feats.scp").items():
        expected = read_matrix(features.tables["feats.scp"][utt])
        np.testing.assert_allclose(kaldiio.load_mat(place), expected, atol=1e-3)


def test_compressed_values_by_kaldis_definition(features):
    """Piecewise linear between the column's minimum, quartiles and maximum, which have two bytes each."""
    path, offset = features.tables["feats.scp"]["b-2"].rsplit(":", 1)
    data = open(path, "rb").read()[int(offset) + 5 :]
    least, span, rows, columns = np.frombuffer(data[:16], "<f4,<f4,<i4,<i4")[0]
    assert (rows, columns) == (60, 5)
    marks = least + span * np.frombuffer(data[16 : 16 + 8 * columns], "<u2").reshape(columns, 4) / 65535
    codes = np.frombuffer(data[16 + 8 * columns :][: rows * columns], "u1").reshape(columns, rows)
    expected = [np.interp(row, [0, 64, 192, 255], column) for row, column in zip(codes, marks, strict=True)]
    np.testing.assert_allclose(read_matrix(features.tables["feats.scp"]["b-2"]), np.transpose(expected), atol=1e-3)


@pytest.mark.parametrize("method", [None, 2, 3, 5])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_shape_from_the_header(tmp_path, method, dtype):
    archive = tmp_path / "x.ark"
    matrices = {"one": np.ones((3, 7), dtype), "two": np.eye(6, 43, dtype=dtype)}
    kaldiio.save_ark(str(archive), matrices, scp=str(tmp_path / "x.scp"), compression_method=method)
    places = read_table(tmp_path / "x.scp")
    with open(archive, "rb") as file:
        first, second = (int(places[key].rpartition(":")[2]) for key in ("one", "two"))
        assert matrix_shape(file, first) == (3, 7, second - len("two "))
        assert matrix_shape(file, second) == (6, 43, archive.stat().st_size)
        with pytest.raises(AudioError, match="no Kaldi matrix begins there"):
            matrix_shape(file, first + 1)


def test_bad_utterances_are_dropped_by_name(features, out):
    t = features.tables
    t["feats.scp"]["a-0"] = t["feats.scp"]["a-0"].replace("feats.ark", "gone.ark")
    t["feats.scp"]["a-1"] = "cat feats.ark |"
    t["text.tc.pt"]["a-2"] = "\u200b"
    path, _, offset = t["feats.scp"]["b-0"].rpartition(":")
    t["feats.scp"]["b-0"] = f"{path}:{int(offset) + 3}"
    t["feats.scp"]["b-1"] = features.archive("nan", {"b-1": np.full((50, 5), np.nan, np.float32)})["b-1"]
    del t["text.tc.en"]["b-2"]
    for utt, matrix in {"c-0": np.ones((5, 5)), "c-1": np.ones((3000, 5)), "d-0": np.ones((50, 5))}.items():
        t["feats.scp"] |= features.archive(utt, {utt: matrix.astype(np.float32)})
        t["utt2spk"][utt] = "d" if utt[0] == "d" else "a"
        for lang in ("en", "pt"):
            t[f"text.tc.{lang}"][utt] = "yes"
    t["feats.scp"]["e-0"] = t["feats.scp"]["a-0"]
    t["utt2spk"]["good"] = "a"
    t["feats.scp"]["good"] = features.archive("good", {"good": np.ones((50, 5), np.float32)})["good"]
    for lang in ("en", "pt"):
        t[f"text.tc.{lang}"] |= {"good": "yes", "e-0": "yes"}
    summary = format_feature_dir(features.write(), out, max_duration=20)
    assert summary["utterances"] == 1 and list(read_table(out / "feats.scp")) == ["good"]
    assert dropped(out) == {
        "a-0": "missing_features",
        "a-1": "unreadable_features",
        "a-2": "empty_text.pt",
        "b-0": "unreadable_features",
        "b-1": "unreadable_features",
        "b-2": "missing_text.en",
        "c-0": "too_short",
        "c-1": "too_long",
        "d-0": "missing_cmvn",
        "e-0": "missing_speaker",
    }


def test_test_sets_keep_all_they_can(features, out, capsys):
    features.tables["text.tc.pt"]["a-0"] = ""
    features.tables["feats.scp"]["b-0"] = "gone.ark:5"
    summary = format_feature_dir(features.write(), out, min_duration=0.5, drop=False)
    assert summary["utterances"] == 5 and dropped(out) == {"b-0": "missing_features"}
    assert "lost b-0: missing_features" in capsys.readouterr().err


def test_archive_cut_off_and_statistics_of_other_features(features, out):
    place = features.tables["feats.scp"]["b-2"]
    path = features.root / "feats.ark"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(AudioError, match="unreadable_features: .*the archive is cut off"):
        read_matrix(place)
    with pytest.raises(AudioError, match=r"bad_cmvn: statistics of shape \(2, 5\) for 5 features"):
        apply_cmvn(np.ones((4, 5)), np.ones((2, 5)))
    with pytest.raises(AudioError, match="bad_cmvn"):
        apply_cmvn(np.ones((4, 5)), np.zeros((2, 6)))
    assert np.isfinite(apply_cmvn(np.ones((4, 5)), np.array([[9.0] * 5 + [9]] * 2))).all()  # a constant feature


def test_refused(features, out, tmp_path):
    features.tables["feats.scp"]["b-2"] = features.archive("wide", {"b-2": np.ones((50, 6), np.float32)})["b-2"]
    cmvn, features.cmvn = features.cmvn, None
    with pytest.raises(InputError, match="a-0 has 5 features a frame, b-2 has 6"):
        format_feature_dir(features.write(), out)
    with pytest.raises(InputError, match="is the input directory itself"):
        format_feature_dir(features.dir, features.dir)
    with pytest.raises(InputError, match=r"no text\.tc\.fr"):
        format_feature_dir(features.dir, out, langs=["fr"])
    with pytest.raises(InputError, match="no utterance left .*too_short"):
        format_feature_dir(features.dir, out, min_duration=9)
    (features.dir / "feats.scp").unlink()
    with pytest.raises(InputError, match=r"feats\.scp: missing"):
        format_feature_dir(features.dir, out)
    assert cmvn and samples_of(0) == 0


def test_done_once_and_continued(features, out, monkeypatch, tmp_path):
    monkeypatch.setattr(format_features, "_AT_ONCE", 2)
    first = format_feature_dir(features.write(), out)
    archives = {path.name: path.stat().st_mtime_ns for path in (out / "data").glob("*.ark")}
    assert len(archives) == 3
    with monkeypatch.context() as patch:
        patch.setattr(format_features, "read_data_dir", None)
        assert format_feature_dir(features.dir, out) == first
    (out / ".done").unlink()  # as after a kill: one archive is made anew, two are there
    lost = sorted(archives)[0]
    (out / "data" / lost).unlink()
    assert format_feature_dir(features.dir, out) == first
    again = {path.name: path.stat().st_mtime_ns for path in (out / "data").glob("*.ark")}
    assert again.keys() == archives.keys() and {n for n in again if again[n] != archives[n]} == {lost}
    features.tables["feats.scp"].pop("b-2")  # other input: stale archives go
    for table in ("utt2spk", "text.tc.en", "text.tc.pt"):
        features.tables[table].pop("b-2")
    assert format_feature_dir(features.write(), out)["utterances"] == 5
    assert len(list((out / "data").iterdir())) == 6


def test_processes_do_not_change_the_result(features, tmp_path, monkeypatch):
    monkeypatch.setattr(format_features, "_AT_ONCE", 2)
    for nj in (1, 2):
        format_feature_dir(features.write(), tmp_path / str(nj), nj=nj)
    for name in ("utt2num_frames", "text.tc.pt", "dropped.tsv"):
        assert (tmp_path / "1" / name).read_bytes() == (tmp_path / "2" / name).read_bytes()
    places = (read_table(tmp_path / nj / "feats.scp") for nj in ("1", "2"))
    for one, two in zip(*(table.values() for table in places), strict=True):
        assert np.array_equal(kaldiio.load_mat(one), kaldiio.load_mat(two))
