"""Language models with random weights, one of each kind that the engine decodes."""

import torch
from transformers import (
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MarianConfig,
    MarianMTModel,
    Qwen2Config,
    Qwen2ForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
)

WIDTH, VOCABULARY, EOS = 32, 97, 5
SIZES = {"vocab_size": VOCABULARY, "hidden_size": WIDTH, "num_hidden_layers": 2, "num_attention_heads": 4}
CAUSAL = SIZES | {"intermediate_size": 64, "max_position_embeddings": 512}
ENDS = {"bos_token_id": 1, "eos_token_id": EOS, "pad_token_id": 0}
MODELS = {
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**CAUSAL, **ENDS)),
    "qwen2": lambda: Qwen2ForCausalLM(Qwen2Config(**CAUSAL, **ENDS, num_key_value_heads=2)),
    "gpt_neox": lambda: GPTNeoXForCausalLM(GPTNeoXConfig(**CAUSAL, **ENDS)),
    "marian": lambda: MarianMTModel(
        MarianConfig(
            vocab_size=VOCABULARY,
            d_model=WIDTH,
            encoder_layers=1,
            decoder_layers=2,
            encoder_attention_heads=4,
            decoder_attention_heads=4,
            encoder_ffn_dim=64,
            decoder_ffn_dim=64,
            scale_embedding=True,
            pad_token_id=96,
            eos_token_id=EOS,
            decoder_start_token_id=96,
            forced_eos_token_id=None,
            max_position_embeddings=64,
        )
    ),
    "t5": lambda: T5ForConditionalGeneration(
        T5Config(
            vocab_size=VOCABULARY,
            d_model=WIDTH,
            d_kv=8,
            d_ff=64,
            num_layers=2,
            num_heads=4,
            relative_attention_num_buckets=8,
            relative_attention_max_distance=20,
            pad_token_id=0,
            eos_token_id=EOS,
            decoder_start_token_id=0,
        )
    ),
}


def make_lively(model) -> None:
    """Larger weights: a small random model repeats one token."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 2 and not any(word in name for word in ("position", "relative", "shared")):
                parameter.mul_(1.5 if isinstance(model, T5ForConditionalGeneration) else 6)
