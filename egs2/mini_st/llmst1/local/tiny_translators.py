"""Tiny Marian and T5 translators and a tiny Qwen2 with their tokenizers, in the genuine formats, untrained."""

import json
from collections.abc import Iterable
from pathlib import Path

import sentencepiece
from tiny_models import byte_level_bpe, causal_lm_settings
from transformers import (
    MarianConfig,
    MarianMTModel,
    MarianTokenizer,
    PreTrainedTokenizerBase,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen2Tokenizer,
    T5Config,
    T5ForConditionalGeneration,
    T5Tokenizer,
)


def train_pieces(sentences: Iterable[str], prefix: Path, vocab_size: int, **ids: int) -> None:
    """Write ``<prefix>.model``: SentencePiece unigram pieces of ``sentences``."""
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(sentences),
        model_prefix=str(prefix),
        vocab_size=vocab_size,
        model_type="unigram",
        character_coverage=1.0,
        normalization_rule_name="identity",
        hard_vocab_limit=False,
        minloglevel=2,
        **ids,
    )


def marian_tokenizer(sources: list[str], targets: list[str], vocab_size: int, directory: str) -> MarianTokenizer:
    """Marian's pair of piece models over one joint vocabulary, its files left in ``directory``."""
    folder = Path(directory)
    pieces: dict[str, int] = {"</s>": 0, "<unk>": 1}
    for name, sentences in (("source", sources), ("target", targets)):
        train_pieces(sentences, folder / name, vocab_size, bos_id=-1, eos_id=0, unk_id=1)
        (folder / f"{name}.model").rename(folder / f"{name}.spm")
        model = sentencepiece.SentencePieceProcessor(model_file=str(folder / f"{name}.spm"))
        for i in range(model.get_piece_size()):
            pieces.setdefault(model.id_to_piece(i), len(pieces))
    pieces["<pad>"] = len(pieces)
    (folder / "vocab.json").write_text(json.dumps(pieces, ensure_ascii=False), encoding="utf-8")
    return MarianTokenizer(
        str(folder / "source.spm"), str(folder / "target.spm"), str(folder / "vocab.json"), separate_vocabs=False
    )


def new_marian(
    tokenizer: PreTrainedTokenizerBase, width: int, layers: int, heads: int, ffn: int, dropout: float = 0.0
) -> MarianMTModel:
    """A Marian with random weights, its decoder started by the padding token as in the published models."""
    return MarianMTModel(
        MarianConfig(
            vocab_size=len(tokenizer),
            d_model=width,
            encoder_layers=layers,
            decoder_layers=layers,
            encoder_attention_heads=heads,
            decoder_attention_heads=heads,
            encoder_ffn_dim=ffn,
            decoder_ffn_dim=ffn,
            dropout=dropout,
            max_position_embeddings=512,
            scale_embedding=True,
            activation_function="swish",
            pad_token_id=tokenizer.pad_token_id,
            eos_token_id=tokenizer.eos_token_id,
            decoder_start_token_id=tokenizer.pad_token_id,
            forced_eos_token_id=None,
        )
    )


def t5_tokenizer(sentences: Iterable[str], vocab_size: int, directory: str) -> T5Tokenizer:
    """T5's pieces: padding 0, end 1, unknown 2; no sentinels."""
    train_pieces(sentences, Path(directory) / "spiece", vocab_size, pad_id=0, eos_id=1, unk_id=2, bos_id=-1)
    return T5Tokenizer.from_pretrained(directory, extra_ids=0)


def new_t5(tokenizer: PreTrainedTokenizerBase, width: int, layers: int, heads: int, ffn: int):
    """A T5 with random weights."""
    return T5ForConditionalGeneration(
        T5Config(
            vocab_size=len(tokenizer),
            d_model=width,
            d_kv=width // heads,
            d_ff=ffn,
            num_layers=layers,
            num_heads=heads,
            dropout_rate=0.0,
            feed_forward_proj="gated-gelu",
            pad_token_id=tokenizer.pad_token_id,
            eos_token_id=tokenizer.eos_token_id,
            decoder_start_token_id=tokenizer.pad_token_id,
        )
    )


def qwen2_tokenizer(sentences: Iterable[str], vocab_size: int) -> Qwen2Tokenizer:
    """Qwen's byte-level BPE; padding and end of sequence are ``<|endoftext|>``, as in the base models."""
    return Qwen2Tokenizer(**byte_level_bpe(sentences, vocab_size))


def new_qwen2(tokenizer: PreTrainedTokenizerBase, width: int, layers: int, heads: int) -> Qwen2ForCausalLM:
    """A Qwen2 with random weights."""
    return Qwen2ForCausalLM(Qwen2Config(**causal_lm_settings(tokenizer, width, layers, heads)))
