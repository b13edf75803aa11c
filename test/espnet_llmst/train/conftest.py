"""A tiny corpus for whole trainings; see training_runs.py."""

import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile

from espnet_llmst.datadir.kaldi import write_table

EXAMPLES = 10  # five batches of two: one batch is left over when two are accumulated


@pytest.fixture(scope="session")
def corpus(whisper_dir, llama_dir, prompt_file, tmp_path_factory):
    """Data and settings from which `settings_of` makes phases; what trainings import is imported here, once."""
    import matplotlib.figure  # noqa: F401
    import peft  # noqa: F401
    import torch.utils.tensorboard  # noqa: F401

    import espnet_llmst.tasks.llmst  # noqa: F401

    directory, rng = tmp_path_factory.mktemp("corpus"), np.random.default_rng(0)
    for role in ("train", "valid"):
        utts = [f"{role}{i}" for i in range(EXAMPLES)]
        for i, utt in enumerate(utts):
            soundfile.write(directory / f"{utt}.flac", 0.1 * rng.standard_normal(4000 + 500 * i), 16000)
        tables = {
            "wav.scp": {utt: str(directory / f"{utt}.flac") for utt in utts},
            "utt2task": dict.fromkeys(utts, "st fr en"),
            "text": {utt: f"The train {i} leaves." for i, utt in enumerate(utts)},
            "shape": dict.fromkeys(utts, "10"),
        }
        for name, table in tables.items():
            write_table(directory / role / name, table)
    models = {
        "encoder": "hugging_face",
        "encoder_conf": {"model": whisper_dir, "lora": {"r": 4, "alpha": 8, "dropout": 0.1}},
        "decoder": "causal_lm",
        "decoder_conf": {"model": llama_dir, "lora": {"r": 4, "alpha": 8, "dropout": 0.1}},
        "prompt": prompt_file,
    }
    return SimpleNamespace(directory=directory, models=models)


@pytest.fixture(scope="session")
def mixed_corpus(corpus, tmp_path_factory):
    """The same with every second utterance as a text (mt), and adapters without dropout."""
    directory = tmp_path_factory.mktemp("mixed") / "corpus"
    shutil.copytree(corpus.directory, directory)
    for role in ("train", "valid"):
        tasks = {f"{role}{i}": ("mt" if i % 2 == 0 else "st") + " fr en" for i in range(EXAMPLES)}
        write_table(directory / role / "utt2task", tasks)
    prompt = directory / "prompt.yaml"
    prompt.write_text(
        'tasks:\n  st: {prompt: "<speech>\\n{src} {tgt}:", target: "{translation}"}\n'
        '  mt: {prompt: "{src} {tgt}:", target: "{translation}"}\n'
    )
    models = {**corpus.models, "prompt": str(prompt)}
    for part in ("encoder_conf", "decoder_conf"):
        models[part] = {**models[part], "lora": {"r": 4, "alpha": 8}}
    return SimpleNamespace(directory=directory, models=models)
