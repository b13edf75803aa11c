"""The language model through our decoder equals plain transformers."""

import torch
from transformers import AutoModelForCausalLM

from espnet_llmst.decoder.causal_lm import CausalLMDecoder


def test_target_logits_equal_transformers(llama_dir):
    decoder = CausalLMDecoder(llama_dir).eval()
    reference = AutoModelForCausalLM.from_pretrained(llama_dir).eval()
    ids = torch.randint(3, 60, (3, 12), generator=torch.Generator().manual_seed(0))
    lengths = torch.tensor([12, 9, 4])
    predicts = (torch.arange(12) >= 2) & (torch.arange(12) < lengths[:, None] - 1)
    logits, counts = decoder(decoder.embed(ids), lengths, predicts, predicts.sum(1))
    assert counts.tolist() == [9, 6, 1]
    expected = torch.cat(
        [reference(ids[row : row + 1, :n]).logits[0][predicts[row, :n]] for row, n in enumerate(lengths.tolist())]
    )
    torch.testing.assert_close(logits, expected, atol=1e-5, rtol=1e-5)


def test_lora_starts_as_identity(llama_dir):
    ids = torch.arange(3, 13)[None]
    mask = torch.ones(1, 10, dtype=torch.bool)
    outputs = []
    for lora in (None, {"r": 4, "alpha": 8}):
        decoder = CausalLMDecoder(llama_dir, lora=lora).eval()
        outputs.append(decoder(decoder.embed(ids), torch.tensor([10]), mask, mask.sum(1))[0])
    torch.testing.assert_close(*outputs)
    names = [name for name, _ in decoder.named_parameters() if ".lora_A" in name]
    assert len(names) == 2 * 7 and not any("lm_head" in name for name in names)
