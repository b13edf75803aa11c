"""Tiny Whisper and Llama with their tokenizers, in the genuine formats, weights not yet trained."""

import io
import json
from collections.abc import Iterable

import sentencepiece
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    GenerationConfig,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaTokenizer,
    PreTrainedTokenizerBase,
    WhisperConfig,
    WhisperFeatureExtractor,
    WhisperForConditionalGeneration,
    WhisperTokenizer,
)
from transformers.models.whisper.tokenization_whisper import LANGUAGES

CHAT_TEMPLATE = (  # Llama 2's, without a system turn
    "{% for turn in messages %}{% if turn['role'] == 'user' %}"
    "{{ bos_token + '[INST] ' + turn['content'] | trim + ' [/INST]' }}"
    "{% else %}{{ ' ' + turn['content'] | trim + ' ' + eos_token }}{% endif %}{% endfor %}"
)


def llama_tokenizer(sentences: Iterable[str], vocab_size: int, directory: str) -> LlamaTokenizer:
    """A SentencePiece BPE with byte fallback, trained on ``sentences`` (model file left in ``directory``)."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(sentences),
        model_writer=model,
        vocab_size=vocab_size,
        model_type="bpe",
        byte_fallback=True,
        character_coverage=1.0,
        normalization_rule_name="identity",
        hard_vocab_limit=False,
        unk_id=0,
        bos_id=1,
        eos_id=2,
        pad_id=-1,
        minloglevel=2,
    )
    with open(f"{directory}/tokenizer.model", "wb") as file:
        file.write(model.getvalue())
    tokenizer = LlamaTokenizer.from_pretrained(directory, add_bos_token=True)
    tokenizer.pad_token = tokenizer.unk_token
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def new_llama(tokenizer: PreTrainedTokenizerBase, width: int, layers: int, heads: int) -> LlamaForCausalLM:
    """A Llama with random weights; heads share keys and values in pairs."""
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=width,
            intermediate_size=width * 8 // 3,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            num_key_value_heads=heads // 2,
            max_position_embeddings=1024,
            tie_word_embeddings=True,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def whisper_tokenizer(sentences: Iterable[str], vocab_size: int) -> WhisperTokenizer:
    """Byte-level BPE with Whisper's control tokens, one for each of its languages, in Whisper's order."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    bpe.train_from_iterator(sentences, trainer)
    content = json.loads(bpe.to_str())["model"]
    tokenizer = WhisperTokenizer(vocab=content["vocab"], merges=[tuple(pair) for pair in content["merges"]])
    control = ["<|startoftranscript|>", *(f"<|{code}|>" for code in LANGUAGES)]
    control += ["<|translate|>", "<|transcribe|>", "<|startoflm|>", "<|startofprev|>", "<|nospeech|>"]
    tokenizer.add_special_tokens({"additional_special_tokens": [*control, "<|notimestamps|>"]})
    return tokenizer


def whisper_features(window_seconds: int, hop_length: int = 160) -> WhisperFeatureExtractor:
    """Whisper's 80 log-mel bands over a window shorter than the published 30 s."""
    return WhisperFeatureExtractor(feature_size=80, chunk_length=window_seconds, hop_length=hop_length)


def new_whisper(
    tokenizer: WhisperTokenizer,
    features: WhisperFeatureExtractor,
    width: int,
    encoder_layers: int,
    decoder_layers: int,
    heads: int,
) -> WhisperForConditionalGeneration:
    """A Whisper with random weights and the generation settings its ``generate`` needs."""
    ids = {token: tokenizer.convert_tokens_to_ids(token) for token in tokenizer.all_special_tokens}
    start, end = ids["<|startoftranscript|>"], ids["<|endoftext|>"]
    model = WhisperForConditionalGeneration(
        WhisperConfig(
            vocab_size=len(tokenizer),
            num_mel_bins=features.feature_size,
            d_model=width,
            encoder_layers=encoder_layers,
            decoder_layers=decoder_layers,
            encoder_attention_heads=heads,
            decoder_attention_heads=heads,
            encoder_ffn_dim=4 * width,
            decoder_ffn_dim=4 * width,
            max_source_positions=features.nb_max_frames // 2,
            max_target_positions=96,
            pad_token_id=end,
            bos_token_id=end,
            eos_token_id=end,
            decoder_start_token_id=start,
        )
    )
    model.generation_config = GenerationConfig(
        decoder_start_token_id=start,
        pad_token_id=end,
        bos_token_id=end,
        eos_token_id=end,
        max_length=96,
        is_multilingual=True,
        lang_to_id={f"<|{code}|>": ids[f"<|{code}|>"] for code in LANGUAGES},
        task_to_id={task: ids[f"<|{task}|>"] for task in ("transcribe", "translate")},
        no_timestamps_token_id=ids["<|notimestamps|>"],
        return_timestamps=False,
    )
    return model
