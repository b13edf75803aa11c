"""Full-size models without weights: the sizes that the papers, or their architectures, state."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from espnet_llmst import published
from espnet_llmst.bin import llmst_summary
from espnet_llmst.cli import InputError
from espnet_llmst.foundation import models_of
from espnet_llmst.summary import build_empty, read_phase, summarise

EGS2 = Path(__file__).resolve().parents[2] / "egs2"
MUST_C, COVOST2, FLEURS, HOW2 = (EGS2 / f"{name}/llmst1/conf" for name in ("must_c", "covost2", "fleurs", "how2"))


@pytest.fixture(scope="module")
def summary():
    """Summaries by path, each made once."""
    made = {}

    def get(path):
        if path not in made:
            made[path] = summarise(path)
        return made[path]

    return get


def numbers(summary):
    parts = {name: part or {"parameters": 0, "lora": 0} for name, part in summary["parts"].items()}
    return (
        parts["encoder"]["parameters"],
        parts["encoder"]["lora"],
        parts["postencoder"]["parameters"],
        parts["decoder"]["parameters"],
        parts["decoder"]["lora"],
    )


# Whole numbers follow from the layers' shapes: Linear(i, o) has i * o + o, LoRA of rank r on it r * (i + o), and so on.
WAV2VEC2, WHISPER_V2, WHISPER_V3 = 315_437_696, 636_784_640, 636_968_960
LLAMA_7B, LLAMA_13B, TINY_LLAMA = 6_738_415_616, 13_015_864_320, 1_100_048_384
QWEN_3B, QWEN_7B, QWEN_32B = 3_085_938_688, 7_615_616_512, 32_763_876_352
MARIAN, OPUS, T5 = 21_721_088, 234_545_152, 222_903_552
EBR_SMALL, EBR_MEDIUM, WHISPER_SMALL_EN = 25_148_928, 109_616_128, 88_154_112
S_LORA, L_LORA_2B, L_LORA_8B, L_LORA_14B = 94_371_840, 403_701_760, 1_279_262_720, 2_002_780_160
EXACT = {
    MUST_C / "lst_7b_en-de/1_modality_adjustment.yaml": (WAV2VEC2, 0, 6_294_528 + 4_198_400, LLAMA_7B + 2 * 4096, 0),
    MUST_C / "lst_13b_en-de/2_task_finetuning.yaml": (WAV2VEC2, 0, 6_294_528 + 5_248_000, LLAMA_13B + 2 * 5120, 0),
    MUST_C / "lst_7b_strategy_c/1_task_finetuning.yaml": (WAV2VEC2, 0, 10_492_928, LLAMA_7B + 2 * 4096, 39_976_960),
    COVOST2 / "llast_2b/1_dual_lora.yaml": (WHISPER_V2, S_LORA, 11_016_192, TINY_LLAMA, L_LORA_2B),
    COVOST2 / "llast_8b/1_dual_lora.yaml": (WHISPER_V2, S_LORA, 38_809_600, LLAMA_7B, L_LORA_8B),
    COVOST2 / "llast_14b/1_dual_lora.yaml": (WHISPER_V2, S_LORA, 58_997_760, LLAMA_13B, L_LORA_14B),
    COVOST2 / "llast_8b_no_lora/1_no_lora.yaml": (WHISPER_V2, 0, 38_809_600, LLAMA_7B, 0),
    COVOST2 / "llm_srt_3b/3_srt.yaml": (WHISPER_V3, 0, 73_700_352, QWEN_3B, 1_843_200),
    COVOST2 / "llm_srt_7b/3_srt.yaml": (WHISPER_V3, 0, 80_521_728, QWEN_7B, 2_523_136),
    FLEURS / "llm_srt_32b/3_srt.yaml": (WHISPER_V3, 0, 84_458_496, QWEN_32B, 8_388_608),
    FLEURS / "llm_srt_32b/1_asr.yaml": (WHISPER_V3, 0, 84_458_496, QWEN_32B, 0),
    HOW2 / "ecd_ste_ebr_small_marian/1_align.yaml": (EBR_SMALL, 0, 10_579_200, MARIAN, 0),
    HOW2 / "eced_ste_whisper_small_opus/1_align.yaml": (WHISPER_SMALL_EN, 0, 13_398_016, OPUS, 0),
    HOW2 / "eced_qformer_ebr_medium_t5/1_align.yaml": (EBR_MEDIUM, 0, 10_482_432, T5, 0),
    HOW2 / "mt_opus/1_zero_shot.yaml": (0, 0, 0, OPUS, 0),
}
# (encoder, encoder's LoRA, connector, language model, its LoRA) in millions, as the papers print or imply them.
PRINTED = {
    MUST_C / "lst_7b_en-de/1_modality_adjustment.yaml": (315, 0, 10.5, None, 0),
    MUST_C / "lst_13b_en-de/1_modality_adjustment.yaml": (315, 0, 11.5, None, 0),
    COVOST2 / "llast_2b/1_dual_lora.yaml": (None, 94.4, 11.0, None, 404),
    COVOST2 / "llast_8b/1_dual_lora.yaml": (None, 94.4, 38.8, None, 1279),
    COVOST2 / "llast_14b/1_dual_lora.yaml": (None, 94.4, 59.0, None, 2003),
    COVOST2 / "llm_srt_3b/3_srt.yaml": (None, 0, 73.7, None, 1.84),
    COVOST2 / "llm_srt_7b/3_srt.yaml": (None, 0, 80.5, None, 2.52),
    FLEURS / "llm_srt_32b/3_srt.yaml": (None, 0, 84.5, None, 8.39),
    HOW2 / "ecd_ste_ebr_small_marian/1_align.yaml": (None, 0, 10.6, None, 0),
    HOW2 / "ecd_ste_ebr_small_opus/1_align.yaml": (None, 0, 10.8, None, 0),
    HOW2 / "ecd_ste_ebr_medium_marian/1_align.yaml": (None, 0, 11.9, None, 0),
    HOW2 / "ecd_ste_ebr_medium_opus/1_align.yaml": (None, 0, 12.1, None, 0),
    HOW2 / "ecd_ste_whisper_small_marian/1_align.yaml": (88, 0, 13.2, None, 0),
    HOW2 / "ecd_ste_whisper_small_opus/1_align.yaml": (88, 0, 13.4, None, 0),
    HOW2 / "ecd_qformer_ebr_small_marian/1_align.yaml": (None, 0, 9.6, None, 0),
    HOW2 / "ecd_qformer_ebr_small_opus/1_align.yaml": (None, 0, 9.8, None, 0),
    HOW2 / "ecd_qformer_ebr_medium_marian/1_align.yaml": (None, 0, 10.4, None, 0),
    HOW2 / "ecd_qformer_whisper_small_marian/1_align.yaml": (None, 0, 11.1, None, 0),
    HOW2 / "ecd_qformer_whisper_small_opus/1_align.yaml": (None, 0, 11.3, None, 0),
    HOW2 / "ecd_ste_whisper_small_t5/1_align.yaml": (88, 0, None, 223, 0),
}
RATES = {
    MUST_C / "lst_7b_en-de/1_modality_adjustment.yaml": (12.5, None),
    MUST_C / "lst_7b_wav2vec2_base/1_modality_adjustment.yaml": (12.5, None),
    COVOST2 / "llast_8b/1_dual_lora.yaml": (50.0, None),
    COVOST2 / "llm_srt_7b/3_srt.yaml": (None, 80),
    HOW2 / "ecd_ste_ebr_small_marian/1_align.yaml": (6.25, None),
    HOW2 / "eced_ste_whisper_small_opus/1_align.yaml": (None, 375),  # of the window
    HOW2 / "ecd_qformer_whisper_small_opus/1_align.yaml": (None, 100),
    HOW2 / "eced_qformer128_ebr_small_marian/1_align.yaml": (None, 128),
    HOW2 / "e2e/1_decoder.yaml": (25.0, None),
    HOW2 / "mt_opus/1_zero_shot.yaml": (None, None),
}


def name(path):
    return "-".join(path.with_suffix("").parts[-2:]) if isinstance(path, Path) else None


@pytest.mark.parametrize(("path", "expected"), EXACT.items(), ids=name)
def test_exact_parameters(summary, path, expected):
    found = summary(path)
    assert numbers(found) == expected
    assert found["parameters"] == sum(expected)


@pytest.mark.parametrize(("path", "millions"), PRINTED.items(), ids=name)
def test_printed_parameters(summary, path, millions):
    """Each number rounds to the printed one."""
    for number, printed in zip(numbers(summary(path)), millions, strict=True):
        digits = len(str(printed).partition(".")[2])
        assert printed is None or round(number / 1e6, digits) == printed


@pytest.mark.parametrize(("path", "rates"), RATES.items(), ids=name)
def test_speech_rate(summary, path, rates):
    found = summary(path)
    assert (found["vectors_per_second"], found["vectors_per_utterance"]) == pytest.approx(rates)


TRAINED = {
    "lst_7b_en-de/1_modality_adjustment.yaml": 10_492_928 + 2 * 4096,
    "lst_7b_en-de/2_task_finetuning.yaml": 10_492_928 + 2 * 4096 + LLAMA_7B,
    "lst_7b_strategy_c/1_task_finetuning.yaml": 39_976_960,
    "vicuna_7b_mt/1_zero_shot.yaml": 0,
}


@pytest.mark.parametrize(("path", "trained"), TRAINED.items())
def test_trained_part(summary, path, trained):
    found = summary(MUST_C / path)
    assert found["trainable"] == trained == sum(part["trainable"] for part in found["parts"].values() if part)
    assert found["trainable_share"] == trained / found["parameters"]
    # float32, Adam's two moments
    assert found["memory"]["gradients"] == 4 * trained and found["memory"]["optimizer"] == 8 * trained


def test_memory(summary):
    """LLaST-8B: bfloat16 foundation models and model files, float32 adapters; then weights in 4 bits instead of 16."""
    plain = summary(COVOST2 / "llast_8b/1_dual_lora.yaml")["memory"]
    trained = 38_809_600 + S_LORA + L_LORA_8B
    assert plain["weights"] == pytest.approx(2 * (WHISPER_V2 + LLAMA_7B) + 4 * trained, rel=1e-6)
    assert plain["checkpoint"] == 2 * trained
    nf4 = summary(COVOST2 / "llast_8b_nf4/1_dual_lora.yaml")["memory"]
    linear = 32 * (4 * 4096 * 4096 + 3 * 4096 * 11008)  # without embeddings and output head
    assert plain["weights"] - nf4["weights"] == pytest.approx(linear * (2 - 4.127 / 8), rel=1e-4)
    assert nf4["checkpoint"] == plain["checkpoint"]


def test_checkpoints_are_small(summary, tmp_path):
    """LLaST-8B, projector included: 5.65 GB as published; at rank 16 363 MB in float32, 181 MB in bfloat16."""
    published = COVOST2 / "llast_8b/1_dual_lora.yaml"
    assert summary(published)["memory"]["checkpoint"] < 6e9
    settings = yaml.safe_load(published.read_text())
    for part in ("encoder_conf", "decoder_conf"):
        settings[part]["lora"] |= {"r": 16, "alpha": 8}
    number = 38_809_600 + S_LORA // 8 + L_LORA_8B // 32
    for dtype, size in ((None, 4), ("bfloat16", 2)):
        path = tmp_path / f"{dtype}.yaml"
        path.write_text(yaml.safe_dump({**settings, "save_dtype": dtype}))
        found = summary(path)
        assert found["trainable"] == number and found["memory"]["checkpoint"] == size * number
        assert found["memory"]["gradients"] == 4 * number  # training itself stays in float32
    assert found["memory"]["checkpoint"] < 250e6
    names = build_empty(read_phase(path)).state_dict()
    assert all("lora_" in name or name.startswith("postencoder.") for name in names)


def test_e2e_trains_what_it_uses(summary):
    """The baseline's text encoder is not used, its positions are fixed."""
    found = summary(HOW2 / "e2e/2_all.yaml")
    decoder_layers = 6 * (8 * (256 * 256 + 256) + 2 * 256 * 2048 + 2048 + 256 + 3 * 2 * 256)
    assert found["parts"]["decoder"]["trainable"] == 16000 * 256 + decoder_layers
    assert found["parts"]["encoder"]["trainable"] == EBR_SMALL


def test_every_published_model_is_named_by_a_recipe_or_a_mirror():
    """No entry of the table is left without use, but the mirrors and pre-training relatives of those used."""
    configs = [path for conf in (MUST_C, COVOST2, FLEURS, HOW2) for path in conf.glob("*/[0-9]*_*.yaml")]
    configs += EGS2.glob("mboshi_french/llmst1/conf/*_hub/[0-9]*_*.yaml")
    used = set(models_of(sorted(configs)))
    known = {*published.TRANSFORMERS, *published.ESPNET, *published.UNITS}
    assert used <= known
    mirrors = {f"{org}/Llama-2-{form}-hf" for org in ("meta-llama", "NousResearch") for form in ("7b", "13b")}
    mirrors |= {f"{org}/Llama-2-{form}-chat-hf" for org in ("meta-llama", "NousResearch") for form in ("7b", "13b")}
    assert known - used <= mirrors | {"facebook/wav2vec2-large-lv60"}


def test_no_weight_is_made():
    model = build_empty(read_phase(FLEURS / "llm_srt_32b/1_asr.yaml"))
    assert {parameter.device.type for parameter in model.parameters()} == {"meta"}


def test_local_directories(task_config, espnet_asr_dir, marian_dir, build_model, tmp_path):
    """What lies on disk is read from its own configuration and has the parameters that loading it gives."""
    path = tmp_path / "phase.yaml"
    changes = {
        "encoder": "espnet_asr",
        "encoder_conf": {"model": espnet_asr_dir},
        "postencoder": "subsampler_transformer",
        "postencoder_conf": {"num_layers": 1, "width": 16, "heads": 2, "ffn": 32, "channels": 16},
        "decoder": "seq2seq_lm",
        "decoder_conf": {"model": marian_dir},
        "trainable": ["postencoder"],
    }
    for settings in (task_config, {**task_config, **changes}):
        path.write_text(yaml.safe_dump(settings))
        found, real = summarise(path), build_model(**settings)
        assert found["parameters"] == sum(p.numel() for p in real.parameters())
        assert found["trainable"] == sum(p.numel() for p in real.parameters() if p.requires_grad)


def test_added_tokens(task_config, tmp_path):
    path = tmp_path / "phase.yaml"
    decoder_conf = {**task_config["decoder_conf"], "added_tokens": ["<a>", "<b>"]}
    path.write_text(yaml.safe_dump({**task_config, "decoder_conf": decoder_conf, "trainable": ["decoder.added"]}))
    assert summarise(path)["trainable"] == 2 * 32


def test_command(capsys):
    paths = [str(HOW2 / "ecd_ste_ebr_small_marian/1_align.yaml"), str(HOW2 / "mt_t5/1_zero_shot.yaml")]
    command = [sys.executable, "-m", "espnet_llmst.bin.llmst_summary", "--json", *paths]
    found = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)  # and nothing else
    assert [entry["config"] for entry in found] == paths
    assert found[0]["parts"]["postencoder"]["parameters"] == 10_579_200 and found[1]["parts"]["encoder"] is None
    llmst_summary.main(paths)
    out = capsys.readouterr().out
    assert "10,579,200" in out and "6.25 vectors per second" in out and "unicamp-dl/translation-en-pt-t5" in out


def test_bad_input(task_config, tmp_path):
    with pytest.raises(InputError, match="does not exist"):
        summarise(tmp_path / "no.yaml")
    path = tmp_path / "phase.yaml"
    path.write_text(yaml.safe_dump({**task_config, "decoder_conf": {"model": "some/model"}}))
    with pytest.raises(InputError, match="some/model: size unknown; add it"):
        summarise(path)
    (tmp_path / "config.json").write_text("{")
    path.write_text(yaml.safe_dump({**task_config, "decoder_conf": {"model": str(tmp_path)}}))
    with pytest.raises(InputError, match="config.json: not JSON"):
        summarise(path)
    path.write_text(yaml.safe_dump({**task_config, "encoder": "espnet_asr", "encoder_conf": {"model": "exp/no"}}))
    with pytest.raises(InputError, match="exp/no"):
        summarise(path)
