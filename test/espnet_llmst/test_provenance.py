"""Hashes of what a result is made from."""

import os

from espnet_llmst import provenance
from espnet_llmst.provenance import changed_input, content_hash, inputs_of


def test_content_decides_not_time(tmp_path):
    file, other = tmp_path / "model.pth", tmp_path / "gone.pth"
    file.write_bytes(b"weights")
    other.write_bytes(b"more")
    inputs = inputs_of([file, other, None, "org/model"])
    assert set(inputs) == {str(file), str(other)}
    os.utime(file, ns=(1, 1))
    other.unlink()
    assert changed_input(inputs) is None
    file.write_bytes(b"WEIGHTS")
    assert changed_input(inputs) == str(file)


def test_paths_are_those_of_the_recipe(tmp_path, monkeypatch):
    (tmp_path / "conf").mkdir()
    (tmp_path / "conf/a.yaml").write_text("beam_size: 5")
    monkeypatch.chdir(tmp_path)
    inputs = inputs_of(["conf/a.yaml"])
    (tmp_path / "conf/a.yaml").write_text("beam_size: 1")
    monkeypatch.chdir(tmp_path.parent)
    assert changed_input(inputs, tmp_path) == "conf/a.yaml" and changed_input(inputs) is None


def test_a_directory_counts_by_weights_and_configuration(tmp_path):
    (tmp_path / "model.safetensors").write_bytes(b"1")
    (tmp_path / "config.json").write_text("{}")
    before = content_hash(tmp_path)
    (tmp_path / "log").write_text("another run")
    assert content_hash(tmp_path) == before
    (tmp_path / "model.safetensors").write_bytes(b"2")
    assert content_hash(tmp_path) != before


def test_a_large_file_is_read_once(tmp_path, monkeypatch):
    monkeypatch.setattr(provenance, "LARGE", 4)
    file = tmp_path / "model.pth"
    file.write_bytes(b"12345")
    found = content_hash(file)
    provenance._file_hash.cache_clear()
    with monkeypatch.context() as context:
        context.setattr(provenance, "_blocks", lambda path: 1 / 0)
        assert content_hash(file) == found
    file.write_bytes(b"54321")
    os.utime(file, ns=(1, 1))
    assert content_hash(file) != found


def test_a_table_of_speech_counts_by_the_audio_it_names(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "wav.scp").write_text("u1 a.flac\nu2 b.ark:13\nu3 b.ark:99\n")
    (tmp_path / "a.flac").write_bytes(b"a")
    assert inputs_of(["wav.scp"]) == {}  # not all of it is there
    (tmp_path / "b.ark").write_bytes(b"b")
    inputs = inputs_of(["wav.scp"])
    os.utime(tmp_path / "a.flac", ns=(1, 1))
    monkeypatch.chdir(tmp_path.parent)
    assert changed_input(inputs, tmp_path) is None
    (tmp_path / "b.ark").write_bytes(b"B!")
    assert changed_input(inputs, tmp_path) == "wav.scp"
    with monkeypatch.context() as context:
        context.setattr(provenance, "_blocks", lambda path: 1 / 0)
        assert changed_input(inputs, tmp_path) == "wav.scp"  # the audio is read once
