"""Sizes by which batches are filled equal what the model reads."""

import numpy as np
from transformers import AutoTokenizer

from espnet_llmst.datadir.kaldi import read_table
from espnet_llmst.prompt import load_template
from espnet_llmst.train.mixture import Part, make_mix
from espnet_llmst.train.preprocessor import LLMSTPreprocessor
from espnet_llmst.train.shapes import write_shapes


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
