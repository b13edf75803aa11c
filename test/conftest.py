"""Fixtures: tiny foundation models in the genuine formats, a prompt template, a task config."""

import importlib.util
import os
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile

from espnet_llmst.datadir.kaldi import write_table

os.environ["HF_HUB_OFFLINE"] = "1"  # a test that needs the network is a mistake
REPO = Path(__file__).resolve().parents[1]
SENTENCES = [
    "Marie achète deux billets pour Paris.",
    "Le train part à sept heures et demie.",
    "Où est la gare, s'il vous plaît ?",
    "Marie buys two tickets to Paris.",
    "The train leaves at half past seven.",
    "Where is the station, please?",
    "Translate the French sentence to English.",
    "Transcribe the French sentence to French.",
]


def load_module(path: Path):
    """Import a file of a recipe's ``local`` folder; it may import its neighbours."""
    if str(path.parent) not in sys.path:
        sys.path.append(str(path.parent))
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def tiny_models():
    return load_module(REPO / "egs2/mini_st/llmst1/local/tiny_models.py")


@pytest.fixture(scope="session")
def tiny_translators():
    return load_module(REPO / "egs2/mini_st/llmst1/local/tiny_translators.py")


@pytest.fixture(scope="session")
def marian_dir(tiny_translators, tmp_path_factory):
    import torch

    torch.manual_seed(3)
    directory = str(tmp_path_factory.mktemp("marian"))
    tokenizer = tiny_translators.marian_tokenizer(SENTENCES * 20, SENTENCES * 20, 120, directory)
    for part in (tokenizer, tiny_translators.new_marian(tokenizer, width=32, layers=2, heads=4, ffn=64)):
        part.save_pretrained(directory)
    return directory


@pytest.fixture(scope="session")
def t5_dir(tiny_translators, tmp_path_factory):
    import torch

    torch.manual_seed(4)
    directory = str(tmp_path_factory.mktemp("t5"))
    tokenizer = tiny_translators.t5_tokenizer(SENTENCES * 20, 120, directory)
    for part in (tokenizer, tiny_translators.new_t5(tokenizer, width=32, layers=2, heads=4, ffn=64)):
        part.save_pretrained(directory)
    return directory


@pytest.fixture(scope="session")
def qwen2_dir(tiny_translators, tmp_path_factory):
    import torch

    torch.manual_seed(5)
    directory = str(tmp_path_factory.mktemp("qwen2"))
    tokenizer = tiny_translators.qwen2_tokenizer(SENTENCES * 20, 400)
    for part in (tokenizer, tiny_translators.new_qwen2(tokenizer, width=32, layers=2, heads=4)):
        part.save_pretrained(directory)
    return directory


@pytest.fixture(scope="session")
def wav2vec2_dirs(tiny_models, tmp_path_factory):
    """A checkpoint of each family: wav2vec 2.0 with a CTC head, HuBERT (base form) and WavLM."""
    import torch

    torch.manual_seed(6)
    directories = {}
    for kind, stable, vocab_size in (("wav2vec2", True, 40), ("hubert", False, None), ("wavlm", True, None)):
        directories[kind] = str(tmp_path_factory.mktemp(kind))
        model = tiny_models.new_wav2vec2(32, 2, 4, vocab_size, kind=kind, stable_layer_norm=stable)
        tiny_models.wav2vec2_features(return_attention_mask=stable).save_pretrained(directories[kind])
        model.save_pretrained(directories[kind])
    return directories


@pytest.fixture(scope="session")
def units_dir(wav2vec2_dirs, tmp_path_factory):
    """Eight units of the first layer of the tiny HuBERT."""
    import torch

    from espnet_llmst.encoder.hugging_face import HuggingFaceEncoder
    from espnet_llmst.kmeans import fit_units, write_units

    encoder = HuggingFaceEncoder(wav2vec2_dirs["hubert"], layer=1).eval()
    wave = 0.1 * torch.randn(1, 32000, generator=torch.Generator().manual_seed(8))
    with torch.no_grad():
        centroids, _ = fit_units(encoder(wave, torch.tensor([32000]))[0][0].numpy(), 8, seed=0)
    directory = tmp_path_factory.mktemp("units") / "km8"
    write_units(directory, centroids, {"model": wav2vec2_dirs["hubert"], "layer": 1})
    return str(directory)


@pytest.fixture(scope="session")
def espnet_asr_dir(tiny_models, tmp_path_factory):
    import torch

    torch.manual_seed(7)
    directory = tmp_path_factory.mktemp("espnet_asr")
    config = tiny_models.espnet_asr_config(["<blank>", "<unk>", *"abcdefgh", "<sos/eos>"], width=32, layers=2, heads=4)
    tiny_models.save_espnet_asr(tiny_models.new_espnet_asr(config), config, directory)
    return str(directory)


@pytest.fixture(scope="session")
def whisper_dir(tiny_models, tmp_path_factory):
    import torch

    torch.manual_seed(0)
    directory = tmp_path_factory.mktemp("whisper")
    tokenizer = tiny_models.whisper_tokenizer(SENTENCES, 300)
    features = tiny_models.whisper_features(4)
    model = tiny_models.new_whisper(tokenizer, features, width=32, encoder_layers=2, decoder_layers=1, heads=2)
    for part in (tokenizer, features, model):
        part.save_pretrained(directory)
    return str(directory)


@pytest.fixture(scope="session")
def llama_dir(tiny_models, tmp_path_factory):
    import torch

    torch.manual_seed(1)
    directory = str(tmp_path_factory.mktemp("llama"))
    tokenizer = tiny_models.llama_tokenizer(SENTENCES * 20, 400, directory)
    model = tiny_models.new_llama(tokenizer, width=32, layers=2, heads=4)
    for part in (tokenizer, model):
        part.save_pretrained(directory)
    return directory


@pytest.fixture(scope="session")
def prompt_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("prompt") / "chat.yaml"
    path.write_text(
        "chat: true\ntasks:\n"
        '  st: {prompt: "<speech>\\nTranslate the {src} sentence to {tgt}.", target: "{translation}"}\n'
        '  asr: {prompt: "<speech>\\nTranscribe the {src} sentence to {src}.", target: "{transcript}"}\n'
    )
    return str(path)


@pytest.fixture
def task_config(whisper_dir, llama_dir, prompt_file):
    """Settings of a phase, as they stand in a YAML file."""
    return {
        "encoder": "hugging_face",
        "encoder_conf": {"model": whisper_dir, "lora": {"r": 4, "alpha": 8, "dropout": 0.1}},
        "postencoder": "mlp",
        "postencoder_conf": {"num_layers": 3},
        "decoder": "causal_lm",
        "decoder_conf": {"model": llama_dir, "lora": {"r": 4, "alpha": 8}},
        "trainable": ["postencoder", "encoder.lora", "decoder.lora"],
        "prompt": prompt_file,
    }


@pytest.fixture
def build_model(task_config, tmp_path):
    """Build the model of ``task_config`` with changes, through the task."""

    def build(**changes):
        import torch
        import yaml

        from espnet_llmst.tasks.llmst import LLMSTTask

        path = tmp_path / "config.yaml"
        path.write_text(yaml.safe_dump({**task_config, **changes}))
        torch.manual_seed(2)
        args = LLMSTTask.get_parser().parse_args(["--config", str(path), "--output_dir", str(tmp_path)])
        return LLMSTTask.build_model(args)

    return build


SAMPLES = (16000, 24000, 9000)


@pytest.fixture
def dump_dir(tmp_path):
    """A small formatted corpus: raw/{train,dev}.{fr-en,de-en}."""
    rng = np.random.default_rng(0)
    for split in ("train", "dev"):
        for src in ("fr", "de"):
            set_dir = tmp_path / "raw" / f"{split}.{src}-en"
            utts = [f"{src}_spk-{split}{i}" for i in range(len(SAMPLES))]
            set_dir.mkdir(parents=True)
            for utt, size in zip(utts, SAMPLES, strict=True):
                soundfile.write(set_dir / f"{utt}.flac", 0.1 * rng.standard_normal(size), 16000)
            write_table(set_dir / "wav.scp", {utt: str(set_dir / f"{utt}.flac") for utt in utts})
            write_table(set_dir / "utt2num_samples", {u: str(n) for u, n in zip(utts, SAMPLES, strict=True)})
            write_table(set_dir / "utt2spk", dict.fromkeys(utts, f"{src}_spk"))
            write_table(set_dir / f"text.tc.{src}", {utt: f"Le train {i}." for i, utt in enumerate(utts)})
            write_table(set_dir / "text.tc.en", {utt: f"The train {i}." for i, utt in enumerate(utts)})
    return tmp_path / "raw"
