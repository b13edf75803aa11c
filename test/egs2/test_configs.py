"""Every YAML file that a recipe ships is loaded by what reads it."""

from pathlib import Path

import pytest
import yaml

from espnet_llmst.bin import llmst_inference
from espnet_llmst.prompt import load_template
from espnet_llmst.tasks.llmst import LLMSTTask
from espnet_llmst.train.mixture import expand_mixture

EGS2 = Path(__file__).resolve().parents[2] / "egs2"
PHASES = sorted(EGS2.glob("*/llmst1/conf/*/[0-9]*_*.yaml"))
PROMPTS = sorted(EGS2.glob("*/llmst1/conf/prompt/*.yaml"))
DECODES = sorted(EGS2.glob("*/llmst1/conf/decode*.yaml"))
FOUNDATIONS = sorted(EGS2.glob("*/llmst1/conf/foundation/*.yaml"))


def name(path):
    return str(path.relative_to(EGS2))


def test_every_yaml_is_covered():
    everything = {path for path in EGS2.glob("*/llmst1/**/*.yaml") if not {"exp", "local"} & set(path.parts)}
    assert everything == {*PHASES, *PROMPTS, *DECODES, *FOUNDATIONS} and PHASES


@pytest.mark.parametrize("path", PHASES, ids=name)
def test_phase(path, whisper_dir, llama_dir, marian_dir, monkeypatch, tmp_path):
    """ESPnet accepts the keys, prompt and mixture exist, and the model builds at tiny size."""
    monkeypatch.chdir(path.parents[2])
    args = LLMSTTask.get_parser().parse_args(["--config", str(path), "--output_dir", str(tmp_path)])
    tasks = {part.task for part in expand_mixture(args.mixture, ["fr-en"])}
    assert tasks <= load_template(args.prompt).tasks.keys()
    args.encoder_conf["model"] = whisper_dir
    args.decoder_conf["model"] = marian_dir if args.decoder == "seq2seq_lm" else llama_dir
    model = LLMSTTask.build_model(args)
    assert any(p.requires_grad for p in model.parameters())
    assert isinstance(args.optim_conf["lr"], float)  # "1e-4" without a point is a string in YAML


@pytest.mark.parametrize("path", PROMPTS, ids=name)
def test_prompt(path):
    assert load_template(path).tasks


@pytest.mark.parametrize("path", DECODES, ids=name)
def test_decode(path):
    args = llmst_inference.parse(["--config", str(path), "--output_dir", "x"])
    settings = yaml.safe_load(path.read_text())
    assert {key: getattr(args, key) for key in settings} == settings


@pytest.mark.parametrize("path", FOUNDATIONS, ids=name)
def test_foundation(path):
    settings = yaml.safe_load(path.read_text())
    assert (path.parents[2] / f"local/train_{settings['kind']}.py").is_file()
    if "prompt" in settings:
        load_template(path.parents[2] / settings["prompt"])
