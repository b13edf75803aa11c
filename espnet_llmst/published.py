"""Architecture numbers of the foundation models that the recipes name, so that a model can be sized without them.

Each entry holds what a model's own ``config.json`` says on the hub, by its name there; of ``exp/foundation/...`` what
a recipe's stage 4 trains. Values that change no size are left out.
"""


def _whisper(width: int, layers: int, heads: int, mel_bins: int = 80, vocab_size: int = 51865) -> dict:
    return {
        "model_type": "whisper",
        "d_model": width,
        "encoder_layers": layers,
        "decoder_layers": layers,
        "encoder_attention_heads": heads,
        "decoder_attention_heads": heads,
        "encoder_ffn_dim": 4 * width,
        "decoder_ffn_dim": 4 * width,
        "num_mel_bins": mel_bins,
        "vocab_size": vocab_size,
        "max_source_positions": 1500,
        "max_target_positions": 448,
    }


def _wav2vec2(width: int, layers: int, heads: int, layer_norm: bool, model_type: str = "wav2vec2") -> dict:
    return {
        "model_type": model_type,
        "hidden_size": width,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "intermediate_size": 4 * width,
        "conv_bias": layer_norm,
        "feat_extract_norm": "layer" if layer_norm else "group",
        "do_stable_layer_norm": layer_norm,
        "vocab_size": 32,
    }


def _llama(width: int, layers: int, heads: int, kv_heads: int, ffn: int, vocab_size: int = 32000) -> dict:
    return {
        "model_type": "llama",
        "hidden_size": width,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "intermediate_size": ffn,
        "vocab_size": vocab_size,
        "tie_word_embeddings": False,
    }


def _qwen2(width: int, layers: int, heads: int, kv_heads: int, ffn: int, vocab_size: int, tied: bool = False) -> dict:
    sizes = _llama(width, layers, heads, kv_heads, ffn, vocab_size)
    return sizes | {"model_type": "qwen2", "tie_word_embeddings": tied}


def _marian(width: int, heads: int, ffn: int, vocab_size: int, max_positions: int) -> dict:
    return {
        "model_type": "marian",
        "d_model": width,
        "encoder_layers": 6,
        "decoder_layers": 6,
        "encoder_attention_heads": heads,
        "decoder_attention_heads": heads,
        "encoder_ffn_dim": ffn,
        "decoder_ffn_dim": ffn,
        "max_position_embeddings": max_positions,
        "vocab_size": vocab_size,
        "pad_token_id": vocab_size - 1,
        "decoder_start_token_id": vocab_size - 1,
    }


def _e_branchformer(width: int, layers: int, heads: int, cgmlp: int) -> dict:
    """An ESPnet ``config.yaml``; depth and width as published, the rest as in ESPnet's LibriSpeech recipe."""
    return {
        "frontend": "default",
        "frontend_conf": {"fs": 16000, "n_fft": 512, "win_length": 400, "hop_length": 160, "n_mels": 80},
        "normalize": "utterance_mvn",
        "encoder": "e_branchformer",
        "encoder_conf": {
            "output_size": width,
            "num_blocks": layers,
            "attention_heads": heads,
            "cgmlp_linear_units": cgmlp,
            "cgmlp_conv_kernel": 31,
            "merge_conv_kernel": 31,
            "linear_units": 1024,
            "use_ffn": True,
            "macaron_ffn": True,
            "input_layer": "conv2d",
        },
    }


_T5_BASE = {
    "model_type": "t5",
    "d_model": 768,
    "d_kv": 64,
    "d_ff": 3072,
    "num_layers": 12,
    "num_decoder_layers": 12,
    "num_heads": 12,
    "vocab_size": 32128,
    "feed_forward_proj": "relu",
}
_LLAMA2_7B = _llama(4096, 32, 32, 32, 11008)
_LLAMA2_13B = _llama(5120, 40, 40, 40, 13824)
_MARIAN_SMALL = _marian(256, 4, 2048, vocab_size=16000, max_positions=512)  # two vocabularies of 8k, joined

TRANSFORMERS = {
    "openai/whisper-base": _whisper(512, 6, 8),
    "openai/whisper-small": _whisper(768, 12, 12),
    "openai/whisper-small.en": _whisper(768, 12, 12, vocab_size=51864),
    "openai/whisper-medium": _whisper(1024, 24, 16),
    "openai/whisper-large-v2": _whisper(1280, 32, 20),
    "openai/whisper-large-v3": _whisper(1280, 32, 20, mel_bins=128, vocab_size=51866),
    "facebook/wav2vec2-base": _wav2vec2(768, 12, 12, layer_norm=False),
    "facebook/wav2vec2-large": _wav2vec2(1024, 24, 16, layer_norm=False),
    "facebook/wav2vec2-large-lv60": _wav2vec2(1024, 24, 16, layer_norm=True),
    "facebook/wav2vec2-xls-r-300m": _wav2vec2(1024, 24, 16, layer_norm=True),
    "facebook/wav2vec2-large-960h-lv60-self": _wav2vec2(1024, 24, 16, layer_norm=True),
    "utter-project/mHuBERT-147": _wav2vec2(768, 12, 12, layer_norm=False, model_type="hubert"),
    "TinyLlama/TinyLlama-1.1B-Chat-v1.0": _llama(2048, 22, 32, 4, 5632),
    "meta-llama/Llama-2-7b-hf": _LLAMA2_7B,
    "meta-llama/Llama-2-7b-chat-hf": _LLAMA2_7B,
    "meta-llama/Llama-2-13b-hf": _LLAMA2_13B,
    "meta-llama/Llama-2-13b-chat-hf": _LLAMA2_13B,
    "NousResearch/Llama-2-7b-hf": _LLAMA2_7B,
    "NousResearch/Llama-2-7b-chat-hf": _LLAMA2_7B,
    "NousResearch/Llama-2-13b-hf": _LLAMA2_13B,
    "NousResearch/Llama-2-13b-chat-hf": _LLAMA2_13B,
    "lmsys/vicuna-7b-v1.5": _LLAMA2_7B,
    "lmsys/vicuna-13b-v1.5": _LLAMA2_13B,
    "croissantllm/CroissantLLMBase": _llama(2048, 24, 16, 16, 5504),
    "croissantllm/CroissantLLMChat-v0.1": _llama(2048, 24, 16, 16, 5504),
    "exp/foundation/internlm2_chat_7b_llama": _llama(4096, 32, 32, 8, 14336, vocab_size=92544),
    "Qwen/Qwen1.5-7B-Chat": _qwen2(4096, 32, 32, 32, 11008, vocab_size=151936),
    "Qwen/Qwen2.5-3B": _qwen2(2048, 36, 16, 2, 11008, vocab_size=151936, tied=True),
    "Qwen/Qwen2.5-7B": _qwen2(3584, 28, 28, 4, 18944, vocab_size=152064),
    "Qwen/Qwen2.5-32B": _qwen2(5120, 64, 40, 8, 27648, vocab_size=152064),
    "Helsinki-NLP/opus-mt-en-fr": _marian(512, 8, 2048, vocab_size=59514, max_positions=512),
    "Helsinki-NLP/opus-mt-tc-big-en-pt": _marian(1024, 16, 4096, vocab_size=54776, max_positions=1024),
    "unicamp-dl/translation-en-pt-t5": _T5_BASE,
    "exp/foundation/t5_en_en": _T5_BASE,
    "exp/foundation/marian_small": _MARIAN_SMALL,
    "exp/foundation/marian_small_en_en": _MARIAN_SMALL,
}
ESPNET = {
    "exp/foundation/ebranchformer_small": _e_branchformer(256, 12, 4, cgmlp=1024),
    "exp/foundation/ebranchformer_medium": _e_branchformer(512, 16, 8, cgmlp=3072),
}

# Discrete units that a recipe's stage 4 makes: paper unknown, the default of LLaST's table 3.
UNITS = {
    "exp/foundation/mhubert147_l11_km1000": {
        "model": "utter-project/mHuBERT-147",
        "layer": 11,
        "units": 1000,
        "width": 768,
    },
}
