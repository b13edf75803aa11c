"""Mboshi-French as it is: CR at line ends, headers that promise too much; what cannot be read is dropped by name."""

import os

import pytest
import soundfile
from corpus_mboshi import LIAR, load, write_corpus
from unpack_opus import unpack

from espnet_llmst.cli import InputError
from espnet_llmst.datadir.kaldi import read_table
from espnet_llmst.datadir.validate import validate_data_dir
from espnet_llmst.languages import english_name, iso639_3

prepare = load("prepare_mboshi_french")


@pytest.fixture
def corpus(tmp_path):
    return write_corpus(tmp_path / "clone")


@pytest.fixture
def out(tmp_path):
    return tmp_path / "data"


def run(corpus, out, **options):
    return prepare.prepare_mboshi_french(corpus, out, num_valid=4, **options)


def test_sets(corpus, out):
    summary = run(corpus, out)
    sizes = {name: summary[name]["utterances"] for name in ("train", "dev", "test")}
    assert sizes == {"train": 20, "dev": 4, "test": 6} and summary["groups"] == {"seen": 2, "unseen": 4}
    for name in sizes:
        assert validate_data_dir(out / f"{name}.mdw-fr") == []
    texts = read_table(out / "test.mdw-fr/text.tc.fr")
    assert texts["kouarata_2015-08-13_mdw_elicit_Part2_24"] == "Forêt mange"
    raw = (out / "train.mdw-fr/text.tc.fr").read_bytes()
    assert b"\r" not in raw and "Wa kyéma" in read_table(out / "train.mdw-fr/text.tc.mdw").values()
    assert set(read_table(out / "train.mdw-fr/spk2utt")) == {"abiayi", "kouarata", "martial"}
    assert english_name("mdw") == "Mboshi" and iso639_3("mdw") == "mdw"


def test_the_held_out_slice_depends_on_ids_alone(corpus, out, tmp_path):
    run(corpus, out)
    held = set(read_table(out / "dev.mdw-fr/utt2spk"))
    other = tmp_path / "other"
    (corpus / "full_corpus_newsplit").rename(other)
    run(other, out)  # the folder itself instead of the clone
    assert set(read_table(out / "dev.mdw-fr/utt2spk")) == held


def test_a_sentence_said_twice_is_not_held_out(corpus):
    items, _ = prepare.read_split(corpus / "full_corpus_newsplit/train")
    held = prepare.held_out(items, 4)
    twice = [item._replace(utt=f"{item.utt}_again") for item in items if item.utt in held]
    assert not prepare.held_out(items + twice, 4) & (held | {item.utt for item in twice})


def test_groups_by_translation(corpus, out):
    run(corpus, out)
    groups = read_table(out / "test.mdw-fr.groups")
    assert sorted(utt.rsplit("_", 1)[1] for utt, group in groups.items() if group == "seen") == ["28", "29"]


def test_a_header_that_promises_too_much(corpus, out):
    """What is there is read, and kept by a later run."""
    run(corpus, out)
    path = (read_table(out / "train.mdw-fr/wav.scp") | read_table(out / "dev.mdw-fr/wav.scp"))[LIAR]
    assert path.endswith(f"{LIAR}.flac")
    assert soundfile.info(path).frames == 8000 + 3 * 400
    before = os.stat(path).st_mtime_ns
    run(corpus, out, force=True)
    assert os.stat(path).st_mtime_ns == before


def test_what_cannot_be_used_is_dropped_by_name(corpus, out):
    train = corpus / "full_corpus_newsplit/train"
    names = [path.stem for path in sorted(train.glob("abiayi*.wav"))[:4]]
    (train / f"{names[0]}.fr").unlink()
    (train / f"{names[1]}.mb").write_bytes(b"\xff\xfe\xfa")
    (train / f"{names[2]}.wav").write_bytes(b"no audio")
    (train / f"{names[3]}.fr").write_text("\r\n")
    summary = run(corpus, out)
    lines = [line.split("\t")[:2] for name in ("train", "dev") for line in open(out / f"{name}.mdw-fr/dropped.tsv")]
    reasons = {line[0]: line[1] for line in lines}
    assert reasons[names[0]] == reasons[names[1]] == "unreadable_text"
    assert reasons[names[2]] == "unreadable_audio" and reasons[names[3]] == "empty_text.fr"
    assert summary["train"]["utterances"] + summary["dev"]["utterances"] == 20


def test_finished_sets_are_kept_and_changed_texts_seen(corpus, out):
    run(corpus, out)
    stamp = (out / "test.mdw-fr/.done").stat().st_mtime_ns
    run(corpus, out)
    assert (out / "test.mdw-fr/.done").stat().st_mtime_ns == stamp
    path = next((corpus / "full_corpus_newsplit/dev").glob("*_24.fr"))
    path.write_text("Autre chose\n")
    run(corpus, out)
    assert read_table(out / "test.mdw-fr/text.tc.fr")[path.stem] == "Autre chose"


def test_messages(tmp_path, corpus, out):
    with pytest.raises(InputError, match="no full_corpus_newsplit/train and dev"):
        run(tmp_path / "nowhere", out)
    with pytest.raises(InputError, match="too few to hold out 30; lower --num_valid"):
        prepare.prepare_mboshi_french(corpus, out, num_valid=30)


def test_the_real_corpus(tmp_path, out):
    tar = os.environ.get("MBOSHI_TAR")
    if not tar:
        pytest.skip("set MBOSHI_TAR to the tar of Opus files to test on the real corpus")
    unpack(tar, tmp_path / "clone")
    summary = prepare.prepare_mboshi_french(tmp_path / "clone", out)
    assert {name: summary[name]["utterances"] for name in ("train", "dev", "test")} == {
        "train": 4416,
        "dev": 200,
        "test": 514,
    }
    assert summary["groups"] == {"seen": 65, "unseen": 449}
