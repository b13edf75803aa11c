"""One example becomes arrays, a list of examples a batch."""

import pickle

import numpy as np

from espnet_llmst.train.collate import collate
from espnet_llmst.train.preprocessor import LLMSTPreprocessor


def example(samples, text, channels=1):
    speech = np.ones((samples, channels) if channels > 1 else samples, dtype=np.float32)
    return {"speech": speech, "task": "st fr en", "text": text}


def test_arrays_and_batch(llama_dir, prompt_file):
    preprocess = pickle.loads(pickle.dumps(LLMSTPreprocessor(llama_dir, prompt_file)))
    examples = [(str(i), preprocess(str(i), example(n, "The train."))) for i, n in enumerate((5, 3))]
    ids, batch = collate(examples)
    assert ids == ["0", "1"] and batch["speech"].shape == (2, 5) and batch["speech_lengths"].tolist() == [5, 3]
    assert batch["speech"][1].tolist() == [1, 1, 1, 0, 0]
    assert batch["text"][0, -1] == preprocess.tokenizer.eos_token_id
    assert set(batch) == {f"{n}{s}" for n in ("speech", "prefix", "suffix", "text") for s in ("", "_lengths")}


def test_stereo_is_mixed_down_and_decoding_needs_no_target(llama_dir, prompt_file):
    arrays = LLMSTPreprocessor(llama_dir, prompt_file, train=False)("", example(4, "", channels=2))
    assert arrays["speech"].shape == (4,) and "text" not in arrays


def test_text_translation_reads_no_speech(llama_dir, tmp_path):
    path = tmp_path / "mt.yaml"
    path.write_text('tasks: {mt: {prompt: "{transcript} in {tgt}:", target: "{translation}"}}')
    data = {**example(4, "The train."), "task": "mt fr en", "transcript": "Le train."}
    arrays = LLMSTPreprocessor(llama_dir, str(path))("", data)
    assert arrays["speech"].shape == (0,) and arrays["suffix"].shape == (0,) and len(arrays["prefix"]) > 3
