"""Every YAML file that a recipe ships is loaded by what reads it."""

from pathlib import Path

import pytest
import yaml

from espnet_llmst.bin import llmst_inference
from espnet_llmst.prompt import load_template, render_instruction, render_target
from espnet_llmst.scoring.tables import decode_of, load_table
from espnet_llmst.summary import build_empty
from espnet_llmst.tasks.llmst import LLMSTTask
from espnet_llmst.train.mixture import expand_mixture

EGS2 = Path(__file__).resolve().parents[2] / "egs2"
PHASES = sorted(EGS2.glob("*/llmst1/conf/*/[0-9]*_*.yaml"))
PROMPTS = sorted(EGS2.glob("*/llmst1/conf/prompt/*.yaml"))
DECODES = sorted(EGS2.glob("*/llmst1/conf/decode*.yaml"))
FOUNDATIONS = sorted(EGS2.glob("*/llmst1/conf/foundation/*.yaml"))
PAPERS = sorted(EGS2.glob("*/llmst1/conf/paper/*.yaml"))


def name(path):
    return str(path.relative_to(EGS2))


def test_every_yaml_is_covered():
    found = EGS2.glob("*/llmst1/**/*.yaml")
    everything = {path for path in found if not {"exp", "local"} & set(path.relative_to(EGS2).parts)}
    assert everything == {*PHASES, *PROMPTS, *DECODES, *FOUNDATIONS, *PAPERS} and PHASES


@pytest.fixture
def speech_models(whisper_dir, espnet_asr_dir, wav2vec2_dirs, units_dir):
    """Settings that put a tiny model in the place of an encoder's own."""
    units = {"model": wav2vec2_dirs["hubert"], "layer": 1, "kmeans": units_dir}
    return {"hugging_face": {"model": whisper_dir}, "espnet_asr": {"model": espnet_asr_dir}, "units": units, None: {}}


@pytest.mark.parametrize("path", PHASES, ids=name)
def test_phase(path, speech_models, llama_dir, marian_dir, monkeypatch, tmp_path):
    """ESPnet accepts the keys, the prompt renders all of the mixture, and the model builds.

    Those of models that stage 4 trains from scratch are built at tiny size, those of published models at full size
    without weights.
    """
    monkeypatch.chdir(path.parents[2])
    args = LLMSTTask.get_parser().parse_args(["--config", str(path), "--output_dir", str(tmp_path)])
    template = load_template(args.prompt)
    for part in expand_mixture(args.mixture, ["fr-en"]):
        assert ("<speech>" in render_instruction(template, part.task, part.src, part.tgt)) == (part.task != "mt")
        assert "X" in render_target(template, part.task, part.src, part.tgt, "X", "X")
    if {"mini_st", "mboshi_french"} & set(path.parts) and not path.parent.name.endswith("_hub"):
        args.encoder_conf |= speech_models[args.encoder]
        args.decoder_conf["model"] = marian_dir if args.decoder == "seq2seq_lm" else llama_dir
        model = LLMSTTask.build_model(args)
    else:
        model = build_empty(args)
    assert any(p.requires_grad for p in model.parameters()) == bool(args.trainable)
    # "1e-4" without a point is a string in YAML.
    assert isinstance(args.optim_conf.get("lr"), float) or not args.trainable


@pytest.mark.parametrize("path", PROMPTS, ids=name)
def test_prompt(path):
    assert load_template(path).tasks


@pytest.mark.parametrize("path", DECODES, ids=name)
def test_decode(path):
    args = llmst_inference.parse(["--config", str(path), "--output_dir", "x"])
    settings = yaml.safe_load(path.read_text())
    assert {key: getattr(args, key) for key in settings} == settings


@pytest.mark.parametrize("path", PAPERS, ids=name)
def test_paper(path):
    table = load_table(path)  # every method and phase is there
    for row in table["rows"]:
        assert not row["method"] or (path.parents[1] / f"{decode_of(table, row)}.yaml").is_file(), row


@pytest.mark.parametrize("path", FOUNDATIONS, ids=name)
def test_foundation(path):
    settings = yaml.safe_load(path.read_text())
    assert (path.parents[2] / f"local/train_{settings['kind']}.py").is_file()
    if "prompt" in settings:
        load_template(path.parents[2] / settings["prompt"])
