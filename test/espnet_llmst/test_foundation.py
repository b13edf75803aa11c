"""Resolving foundation models."""

import json

import pytest
import yaml

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
