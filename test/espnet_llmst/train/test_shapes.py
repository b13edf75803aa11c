"""Sizes by which batches are filled equal what the model reads."""

import numpy as np
import pytest
import torch
import yaml
from espnet2.samplers.sorted_batch_sampler import SortedBatchSampler
from transformers import AutoTokenizer

from espnet_llmst.bin import llmst_mix
from espnet_llmst.datadir.kaldi import read_table, write_table
from espnet_llmst.prompt import load_template
from espnet_llmst.summary import build_empty, read_phase, speech_sizes
from espnet_llmst.train.mixture import Part, make_mix
from espnet_llmst.train.preprocessor import LLMSTPreprocessor
from espnet_llmst.train.shapes import write_shapes
from espnet_llmst.train.token_batches import read_sizes

CONNECTORS = {
    "mlp": {},
    "conv_linear": {"channels": 16},
    "qformer": {"num_queries": 3, "num_layers": 2, "width": 16, "heads": 2, "ffn": 32},
    "subsampler_transformer": {"num_layers": 1, "width": 16, "heads": 2, "ffn": 32, "channels": 16},
}


@pytest.mark.parametrize("pad", [False, True])
@pytest.mark.parametrize(("connector", "conf"), CONNECTORS.items())
def test_positions_equal_what_the_model_reads(connector, conf, pad, build_model, task_config, tmp_path):
    """Vectors of the real model; frames of its encoder, all of the window with ``pad_to_30s``."""
    task_config["encoder_conf"] |= {"pad_to_30s": pad}
    model = build_model(postencoder=connector, postencoder_conf=conf)
    seen = []
    model.encoder.encoder.layers[0].register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].size(1)))
    measure = speech_sizes(build_empty(read_phase(tmp_path / "config.yaml")))
    for samples in (500, 16000, 30001):
        (vectors_TD,) = model._read_speech(torch.zeros(1, samples), torch.tensor([samples]), None)
        assert measure(samples) == (len(vectors_TD), seen.pop())


def test_a_mix_with_positions(dump_dir, prompt_file, llama_dir, tmp_path):
    template, tokenizer = load_template(prompt_file), AutoTokenizer.from_pretrained(llama_dir)
    make_mix(dump_dir, "train", [Part("st", "fr", "en")], template, tmp_path / "mix")
    write_shapes(tmp_path / "mix", tmp_path / "stats", template, tokenizer, lambda samples: (samples // 1000, 7))
    text, sizes = read_table(tmp_path / "stats/text_shape"), read_sizes(tmp_path / "stats/position_shape")
    samples = read_table(tmp_path / "mix/utt2num_samples")
    assert sizes == {utt: (int(samples[utt]) // 1000 + int(text[utt]), 7) for utt in samples}
    write_shapes(tmp_path / "mix", tmp_path / "stats", template, tokenizer)
    assert not (tmp_path / "stats/position_shape").exists()


@pytest.mark.parametrize("mixed", [False, True])
def test_equally_long_examples_of_all_tasks_share_batches(prompt_file, llama_dir, tmp_path, mixed):
    """ESPnet's sorted batches hold one task without ``mix_ties``; lengths stay sorted with it."""
    (tmp_path / "mix").mkdir()
    names = [(task, tgt, i) for task, tgt in (("asr", "fr"), ("st", "en")) for i in range(40)]
    tasks = {f"{task}.fr-{tgt}.u{i:02}": f"{task} fr {tgt}" for task, tgt, i in names}
    sizes = {uid: 16000 if uid[-2] < "2" else 32000 for uid in tasks}
    write_table(tmp_path / "mix/utt2task", tasks)
    write_table(tmp_path / "mix/text", dict.fromkeys(tasks, "oui"))
    write_table(tmp_path / "mix/utt2num_samples", {uid: str(size) for uid, size in sizes.items()})
    tokenizer = AutoTokenizer.from_pretrained(llama_dir)
    write_shapes(tmp_path / "mix", tmp_path / "stats", load_template(prompt_file), tokenizer, mix_ties=mixed)
    batches = list(SortedBatchSampler(10, str(tmp_path / "stats/speech_shape"), sort_batch="ascending"))
    assert sorted(sum(map(list, batches), [])) == sorted(tasks)
    assert all(len({sizes[uid] for uid in batch}) == 1 for batch in batches)
    assert {len({uid.split(".")[0] for uid in batch}) for batch in batches} == ({2} if mixed else {1})
    assert set(read_table(tmp_path / "stats/text_shape")) == set(tasks)


def test_shapes_equal_the_examples(dump_dir, prompt_file, llama_dir, tmp_path):
    template = load_template(prompt_file)
    make_mix(dump_dir, "train", [Part("st", "fr", "en"), Part("asr", "fr", "fr")], template, tmp_path / "mix")
    write_shapes(tmp_path / "mix", tmp_path / "stats", template, AutoTokenizer.from_pretrained(llama_dir))
    speech, text = read_table(tmp_path / "stats/speech_shape"), read_table(tmp_path / "stats/text_shape")
    preprocess = LLMSTPreprocessor(llama_dir, prompt_file)
    tables = {name: read_table(tmp_path / "mix" / name) for name in ("utt2task", "text", "utt2num_samples")}
    for uid, samples in tables["utt2num_samples"].items():
        wave = np.zeros(int(samples), dtype=np.float32)
        arrays = preprocess(uid, {"speech": wave, "task": tables["utt2task"][uid], "text": tables["text"][uid]})
        assert int(text[uid]) == sum(len(arrays[name]) for name in ("prefix", "suffix", "text"))
        assert int(speech[uid]) == int(samples) // 320


def test_stage_5_writes_positions_when_batches_are_filled_by_them(dump_dir, task_config, tmp_path):
    path = tmp_path / "1_st.yaml"
    path.write_text(yaml.safe_dump({**task_config, "mixture": [{"task": "st"}], "batch_type": "tokens"}))
    options = ["--train_config", str(path), "--directions", "fr-en", "--data_dir", str(dump_dir)]
    llmst_mix.main([*options, "--out_dir", str(tmp_path / "mix"), "--stats_dir", str(tmp_path / "stats")])
    for role in ("train", "valid"):
        text = read_table(tmp_path / "stats" / role / "text_shape")
        frames = read_table(tmp_path / "stats" / role / "speech_shape")
        sizes = read_sizes(tmp_path / "stats" / role / "position_shape")
        assert sizes == {utt: (int(frames[utt]) + int(text[utt]), int(frames[utt])) for utt in text}
