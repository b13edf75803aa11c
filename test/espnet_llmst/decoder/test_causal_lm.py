"""The language model through our decoder equals plain transformers."""

import pytest
import torch
from transformers import AutoModelForCausalLM, BloomConfig, GenerationConfig, Lfm2Config, MistralConfig

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


def prompts_and_targets(decoder):
    """A batch of very different lengths (prompts (B, L, D) and targets (B, Y)), with gradients to the prompts."""
    generator = torch.Generator().manual_seed(0)
    prompts = torch.randn(4, 30, decoder.hidden_size, generator=generator).requires_grad_()
    targets = torch.randint(3, 60, (4, 9), generator=generator)
    return prompts, torch.tensor([30, 4, 1, 17]), targets, torch.tensor([2, 9, 5, 1])


@pytest.mark.parametrize("kind", ["llama", "qwen2"])
def test_packed_equals_padded(kind, request):
    """Logits, loss and gradients; with checkpointed activations too, which are computed again after the call."""
    model, found = request.getfixturevalue(f"{kind}_dir"), []
    for packing, checkpointing in ((False, False), (True, False), (True, True)):
        decoder = CausalLMDecoder(model, packing=packing).train()
        if checkpointing:
            decoder.lm.gradient_checkpointing_enable()
        prompts, lengths, targets, counts = prompts_and_targets(decoder)
        logits, _ = decoder(prompts, lengths, targets, counts)
        target_N = torch.cat([row[:count] for row, count in zip(targets, counts.tolist(), strict=True)])
        loss = torch.nn.functional.cross_entropy(logits, target_N)
        loss.backward()
        found.append((logits.detach(), loss.detach(), prompts.grad))
    for other in found[1:]:
        torch.testing.assert_close(other[0], found[0][0], atol=1e-5, rtol=1e-5)
        assert abs(other[1] / found[0][1] - 1) < 1e-6
        torch.testing.assert_close(other[2], found[0][2], atol=1e-7, rtol=1e-4)


def test_packing_makes_no_mask_of_all_positions(llama_dir, monkeypatch):
    """Attention sees one segment at a time, and no mask reaches it."""
    from espnet_llmst.decoder import packing

    decoder = CausalLMDecoder(llama_dir, packing=True)
    decoder(*prompts_and_targets(decoder))  # the first batch is tried
    original, seen = packing.scaled_dot_product_attention, []

    def watched(query, key, value, attn_mask=None, **options):
        seen.append((attn_mask, query.size(2), key.size(2)))
        return original(query, key, value, attn_mask, **options)

    monkeypatch.setattr(packing, "scaled_dot_product_attention", watched)
    monkeypatch.setattr(packing, "sdpa_mask", None)  # would fail if it were called
    decoder(*prompts_and_targets(decoder))
    assert seen == [(None, size, size) for size in (32, 13, 6, 18)] * 2


def test_packing_changes_nothing_else(llama_dir):
    """A plain forward pass and `generate` on padded prompts are as without it."""
    found = []
    for packing in (False, True):
        decoder = CausalLMDecoder(llama_dir, packing=packing).eval()
        ids = torch.arange(3, 15)
        config = GenerationConfig(num_beams=2, max_new_tokens=6, do_sample=False, eos_token_id=2, pad_token_id=0)
        prompts = [decoder.embed(ids), decoder.embed(ids[:5])]
        found.append((decoder.lm(ids[None]).logits.detach(), decoder.generate(prompts, config)))
    torch.testing.assert_close(*[logits for logits, _ in found])
    assert torch.equal(*[ids for _, ids in found])


def test_packing_refuses_what_looks_across(llama_dir, tmp_path):
    with pytest.raises(InputError, match="packing: not with attention: eager"):
        CausalLMDecoder(llama_dir, packing=True, attention="eager")
    small = {"vocab_size": 60, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    AutoModelForCausalLM.from_config(BloomConfig(**small)).save_pretrained(tmp_path / "bloom")
    with pytest.raises(InputError, match="packing: BloomForCausalLM has an attention of its own"):
        CausalLMDecoder(str(tmp_path / "bloom"), packing=True)
    small |= {"intermediate_size": 16, "num_key_value_heads": 2, "sliding_window": 20}
    AutoModelForCausalLM.from_config(MistralConfig(**small)).save_pretrained(tmp_path / "mistral")
    decoder = CausalLMDecoder(str(tmp_path / "mistral"), packing=True)
    with pytest.raises(InputError, match="soft cap, sinks or a window"):
        decoder(*prompts_and_targets(decoder))
    small |= {"num_hidden_layers": 2, "layer_types": ["conv", "full_attention"]}
    AutoModelForCausalLM.from_config(Lfm2Config(**small)).save_pretrained(tmp_path / "lfm2")
    decoder = CausalLMDecoder(str(tmp_path / "lfm2"), packing=True)
    with pytest.raises(InputError, match="packing: Lfm2ForCausalLM reads a sequence behind another one"):
        decoder(*prompts_and_targets(decoder))
