"""Resolving foundation models."""

import json
from pathlib import Path

import pytest
import yaml
from huggingface_hub.utils import filter_repo_objects

from espnet_llmst.bin import llmst_foundation
from espnet_llmst.cli import InputError
from espnet_llmst.foundation import describe, is_hub_id, missing_models


def test_hub_ids_and_directories(tmp_path):
    assert is_hub_id("openai/whisper-small") and is_hub_id("gpt2")
    for name in ("exp/foundation/llama", "/models/llama", "./llama", str(tmp_path)):
        assert not is_hub_id(name), name


def test_description_is_recorded_and_kept(whisper_dir, llama_dir, tmp_path, capsys):
    config = tmp_path / "1_phase.yaml"
    config.write_text(yaml.safe_dump({"encoder_conf": {"model": whisper_dir}, "decoder_conf": {"model": llama_dir}}))
    out = tmp_path / "foundation.json"
    llmst_foundation.main(["--train_config", str(config), "--out", str(out)])
    entries = json.loads(out.read_text())
    assert entries[llama_dir]["model_type"] == "llama" and len(entries[whisper_dir]["sha256"]) == 64
    before = out.stat().st_mtime_ns
    llmst_foundation.main(["--train_config", str(config), "--out", str(out)])
    assert out.stat().st_mtime_ns == before
    assert describe(llama_dir, {**entries[llama_dir], "sha256": "kept"})["sha256"] == "kept"


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A hub of one repository, whose files arrive as the patterns ask; what was asked for is kept."""
    asked = []

    def snapshot_download(name, **patterns):
        asked.append(name)
        place = tmp_path / "cache" / "0123abcd"
        place.mkdir(parents=True, exist_ok=True)
        files = {file.name: file for file in (tmp_path / "hub").iterdir()}
        for file in filter_repo_objects(files, **patterns):
            (place / file).write_bytes(files[file].read_bytes())
        return str(place)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    (tmp_path / "hub").mkdir()
    (tmp_path / "hub/config.json").write_text('{"model_type": "marian"}')
    return tmp_path / "hub", asked


def test_hub_models_of_every_format(hub):
    """OPUS-MT has torch's weights alone; where there are safetensors, torch's are left on the hub."""
    folder, asked = hub
    for name in ("pytorch_model.bin", "source.spm", "vocab.json", "tf_model.h5"):
        (folder / name).write_text(name)
    found = describe("org/opus-mt")
    assert found["revision"] == "0123abcd" and found["files"].keys() == {"pytorch_model.bin"}
    here = {file.name for file in Path(found["path"]).iterdir()}
    assert here == {"config.json", "pytorch_model.bin", "source.spm", "vocab.json"} and len(asked) == 2


def test_safetensors_are_enough(hub):
    folder, asked = hub
    for name in ("pytorch_model.bin", "model.safetensors", "model.fp32-00001-of-00002.safetensors"):
        (folder / name).write_text(name)
    assert describe("org/llm")["files"].keys() == {"model.safetensors"} and asked == ["org/llm"]


def test_missing_models_are_named(tmp_path, capsys):
    config = tmp_path / "1_phase.yaml"
    config.write_text(
        yaml.safe_dump({"encoder_conf": {"model": f"{tmp_path}/whisper"}, "decoder_conf": {"model": "org/llm"}})
    )
    assert missing_models([f"{tmp_path}/whisper", "org/llm"]) == [f"{tmp_path}/whisper"]
    llmst_foundation.main(["--train_config", str(config), "--list_missing"])
    assert capsys.readouterr().out.split() == [f"{tmp_path}/whisper"]
    with pytest.raises(InputError, match="whisper: no model there"):
        describe(f"{tmp_path}/whisper")
    with pytest.raises(InputError, match="org/llm: cannot be had from the hub"):
        describe("org/llm")
