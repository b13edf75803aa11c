"""The mini_st corpus: layout, disjoint sets, the same samples whatever the number of processes."""

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
from local_modules import LOCAL, load

from espnet_llmst.cli import InputError

prepare = load("prepare_mini_st")
speak = load("speak")
SIZES = {"num_train": 6, "num_dev": 2, "num_test": 2}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    out = tmp_path_factory.mktemp("mini_st")
    return out, prepare.prepare_mini_st(out, ["fr-en", "de-fr"], nj=1, **SIZES)


def table(path: Path) -> dict[str, str]:
    lines = path.read_text(encoding="utf-8").split("\n")
    assert lines[-1] == "" and lines[:-1] == sorted(lines[:-1])
    return dict(line.split(" ", 1) for line in lines[:-1])


def samples(folder: Path) -> dict[str, str]:
    files = sorted(folder.rglob("*.flac"))
    return {f.name: hashlib.sha256(soundfile.read(f, dtype="int16")[0].tobytes()).hexdigest() for f in files}


def test_data_directories(corpus):
    out, summary = corpus
    expected = {"train": 6, "dev": 2, "test": 2}
    assert summary["sets"] == {f"{s}.{d}": n for s, n in expected.items() for d in ("fr-en", "de-fr")}
    for name, count in summary["sets"].items():
        src, tgt = name.split(".")[1].split("-")
        names = ("wav.scp", "utt2spk", "utt2lang", f"text.tc.{src}", f"text.tc.{tgt}")
        tables = [table(out / name / file) for file in names]
        assert all(len(t) == count and list(t) == list(tables[0]) for t in tables)
        for utterance, speaker in tables[1].items():
            assert utterance.startswith(f"{speaker}-{name.split('.')[0]}_") and speaker.startswith(f"{src}_")
        assert set(tables[2].values()) == {src}
        spoken = table(out / name / "spk2utt")
        assert {u: s for s, us in spoken.items() for u in us.split()} == tables[1]


def test_parallel_texts(corpus):
    out, _ = corpus
    sentences = prepare.corpus_sentences(6, 2, 2)
    for name in ("train.fr-en", "dev.de-fr"):
        split, src, tgt = name.replace(".", " ").replace("-", " ").split()
        source, target = (table(out / name / f"text.tc.{lang}") for lang in (src, tgt))
        pairs = {(s[src], s[tgt]) for s in sentences[split]}
        assert {(source[u], target[u]) for u in source} == pairs


def test_audio(corpus):
    out, summary = corpus
    for lang in ("fr", "de"):
        files = sorted((out / "audio" / lang).iterdir())
        assert len(files) == 10 == summary["audio"][lang]["made"]
        for file in files:
            wave, rate = soundfile.read(file, dtype="float32")
            assert (rate, wave.ndim, soundfile.info(file).subtype) == (16000, 1, "PCM_16")
            assert 0.8 < len(wave) / rate < 5
            assert 0.2 < np.abs(wave).max() < 0.95
            edges = np.concatenate([wave[:800], wave[-800:]])
            assert 0 < np.sqrt(np.mean(edges**2)) < 0.1 * np.sqrt(np.mean(wave**2))
    seconds = sum(soundfile.info(f).duration for f in (out / "audio" / "fr").iterdir())
    assert summary["audio"]["fr"]["hours"] == pytest.approx(seconds / 3600, abs=1e-3)


def test_sentences_and_speakers_of_the_sets_differ():
    sets = prepare.corpus_sentences(600, 100, 100)
    assert {split: len(s) for split, s in sets.items()} == {"train": 600, "dev": 100, "test": 100}
    for lang in prepare.grammar.LANGUAGES:
        assert len({s[lang] for split in sets.values() for s in split}) == 800
    assert prepare.corpus_sentences(10, 100, 100)["test"] == sets["test"]
    ways = [way for split in prepare.SPLITS for way in speak.SPEAKERS[split].values()]
    names = [name for split in prepare.SPLITS for name in speak.SPEAKERS[split]]
    assert len(set(ways)) == len(ways) == len(set(names)) == 19


def test_samples_do_not_depend_on_nj_order_or_company(corpus, tmp_path):
    out, _ = corpus
    prepare.prepare_mini_st(tmp_path, ["de-en"], nj=2, audio_dir=tmp_path / "speech", **SIZES)
    assert samples(tmp_path / "speech" / "de") == samples(out / "audio" / "de")
    other = prepare.prepare_mini_st(tmp_path / "other", ["de-en"], nj=1, seed=1, **SIZES)
    assert other["audio"]["de"]["made"] == 10
    assert samples(tmp_path / "other") != samples(out / "audio" / "de")


def test_finished_audio_stays_and_the_rest_is_made_again(tmp_path):
    def make(**options):
        return prepare.prepare_mini_st(tmp_path, ["es-en"], nj=1, **{**SIZES, **options})["audio"]["es"]["made"]

    assert make() == 10
    before = samples(tmp_path)
    files = sorted((tmp_path / "audio" / "es").iterdir())
    files[0].unlink()
    files[1].write_bytes(files[1].read_bytes()[:100])  # broken
    files[2].write_bytes(b"")
    untouched = files[3].stat().st_mtime_ns
    (tmp_path / "audio" / "es" / "left-over.tmp").write_bytes(b"of a killed run")
    assert make() == 3
    assert samples(tmp_path) == before
    assert files[3].stat().st_mtime_ns == untouched
    assert make() == 0
    assert make(seed=1) == 10  # other sentences under the same ids
    assert make(seed=1, force=True) == 10


@pytest.mark.parametrize("variant", sorted({s.variant for w in speak.SPEAKERS.values() for s in w.values()}))
def test_speech_does_not_depend_on_what_was_said_before(variant):
    speaker = speak.Speaker(variant, 50, 180)
    first = speak.record("Anna wohnt in Rom.", "de", speaker, "x")
    speak.record("My key is under the bed.", "en", speak.SPEAKERS["train"]["f02"], "y")
    assert np.array_equal(first, speak.record("Anna wohnt in Rom.", "de", speaker, "x"))
    assert not np.array_equal(first, speak.record("Anna wohnt in Rom.", "de", speaker, "z"))


def test_long_installation_path(tmp_path, monkeypatch):
    import espeakng_loader

    expected, rate = speak.speak("Anna is happy.", "en")
    link = tmp_path / ("x" * 200) / "espeak-ng-data"
    link.parent.mkdir()
    link.symlink_to(espeakng_loader.get_data_path())
    monkeypatch.setattr(espeakng_loader, "get_data_path", lambda: str(link))
    speak._package.cache_clear()
    found, found_rate = speak.speak("Anna is happy.", "en")
    speak._package.cache_clear()
    assert rate == found_rate and np.array_equal(expected, found)


@pytest.mark.parametrize("directions", [["fr-fr"], ["fr"], ["fr-xx"], ["fr-en-de"], []])
def test_bad_direction(tmp_path, directions):
    with pytest.raises(InputError, match="direction"):
        prepare.prepare_mini_st(tmp_path, directions, **SIZES)


def test_bad_numbers_and_voices(tmp_path):
    with pytest.raises(InputError, match="--num_dev 0"):
        prepare.prepare_mini_st(tmp_path, ["fr-en"], num_dev=0)
    with pytest.raises(InputError, match="no such voice"):
        speak.speak("hello", "klingon-tlh")
    with pytest.raises(InputError, match="says nothing"):
        speak.speak("", "en")


def test_data_sh(tmp_path):
    recipe = tmp_path / "recipe"
    (recipe / "utils").mkdir(parents=True)
    template = LOCAL.parents[2] / "TEMPLATE" / "llmst1" / "utils" / "parse_options.sh"
    (recipe / "utils" / "parse_options.sh").symlink_to(template)
    (recipe / "local").mkdir()
    for file in LOCAL.iterdir():
        (recipe / "local" / file.name).symlink_to(file)
    command = ["bash", "local/data.sh", "--directions", "pt-es", "--nj", "1"]
    command += ["--num_train", "3", "--num_dev", "1", "--num_test", "1"]
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    done = subprocess.run(command, cwd=recipe, capture_output=True, text=True, env={**os.environ, "PATH": path})
    assert done.returncode == 0, done.stderr
    assert "data/train.pt-es: 3 utterances" in done.stdout
    assert len(table(recipe / "data" / "test.pt-es" / "wav.scp")) == 1
    assert subprocess.run([*command, "left-over"], cwd=recipe, capture_output=True).returncode != 0
