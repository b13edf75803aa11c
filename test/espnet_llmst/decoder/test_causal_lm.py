"""The language model through our decoder equals plain transformers."""

import pytest
import torch
from transformers import AutoModelForCausalLM

from espnet_llmst.cli import InputError
from espnet_llmst.decoder.causal_lm import CausalLMDecoder, quantization
from espnet_llmst.prompt import load_tokenizer


def test_target_logits_equal_transformers(llama_dir):
    decoder = CausalLMDecoder(llama_dir).eval()
    reference = AutoModelForCausalLM.from_pretrained(llama_dir).eval()
    ids = torch.randint(3, 60, (3, 12), generator=torch.Generator().manual_seed(0))
    lengths = torch.tensor([12, 9, 4])
    prompt, targets = 3, lengths - 3
    logits, counts = decoder(decoder.embed(ids[:, :prompt]), torch.full((3,), prompt), ids[:, prompt:], targets)
    assert counts.tolist() == [9, 6, 1]
    expected = torch.cat(
        [reference(ids[row : row + 1, :n]).logits[0, prompt - 1 : n - 1] for row, n in enumerate(lengths.tolist())]
    )
    torch.testing.assert_close(logits, expected, atol=1e-5, rtol=1e-5)


def test_lora_starts_as_identity(llama_dir):
    ids = torch.arange(3, 13)[None]
    outputs = []
    for lora in (None, {"r": 4, "alpha": 8}):
        decoder = CausalLMDecoder(llama_dir, lora=lora).eval()
        outputs.append(decoder(decoder.embed(ids[:, :4]), torch.tensor([4]), ids[:, 4:], torch.tensor([6]))[0])
    torch.testing.assert_close(*outputs)
    names = [name for name, _ in decoder.named_parameters() if ".lora_A" in name]
    assert len(names) == 2 * 7 and not any("lm_head" in name for name in names)


def test_added_tokens_start_as_the_mean_and_train_alone(build_model, task_config, llama_dir):
    model = build_model(
        decoder_conf={"model": llama_dir, "added_tokens": ["<sp>", "</sp>"]}, trainable=["decoder.added"]
    )
    tokenizer = load_tokenizer(llama_dir, ["<sp>", "</sp>"])
    ids = torch.tensor(tokenizer("<sp>Le</sp>", add_special_tokens=False)["input_ids"])
    assert ids[0] == len(tokenizer) - 2 and ids[-1] == len(tokenizer) - 1
    table = model.decoder.lm.get_input_embeddings().weight
    embeds = model.decoder.embed(ids)
    torch.testing.assert_close(embeds[0], table.mean(0))
    torch.testing.assert_close(embeds[1:-1], table[ids[1:-1]])
    embeds.sum().backward()
    assert model.decoder.added.weight.grad.shape == (2, table.size(1)) and table.grad is None
    assert model.state_dict().keys() == {"decoder.added.weight"}


def test_quantisation_is_named_or_refused(llama_dir, monkeypatch):
    assert quantization(None, "bfloat16") is None
    with pytest.raises(InputError, match="'int3' must be nf4 or null"):
        CausalLMDecoder(llama_dir, quantize="int3")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(InputError, match="needs bitsandbytes"):
        quantization("nf4", "bfloat16")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name)
    config = quantization("nf4", "bfloat16")
    assert config.load_in_4bit and config.bnb_4bit_use_double_quant and config.bnb_4bit_quant_type == "nf4"
    assert config.bnb_4bit_compute_dtype == torch.bfloat16
