"""Tiny foundation models with their tokenizers, in the genuine formats, weights not yet trained."""

import io
import json
import os
from collections.abc import Iterable

import sentencepiece
import torch
import yaml
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import (
    GenerationConfig,
    HubertConfig,
    HubertForCTC,
    HubertModel,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Wav2Vec2Config,
    Wav2Vec2CTCTokenizer,
    Wav2Vec2FeatureExtractor,
    Wav2Vec2ForCTC,
    Wav2Vec2ForPreTraining,
    WavLMConfig,
    WavLMForCTC,
    WavLMModel,
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


def causal_lm_settings(tokenizer: PreTrainedTokenizerBase, width: int, layers: int, heads: int) -> dict:
    """What the configs of Llama and Qwen2 share; heads share keys and values in pairs."""
    return {
        "vocab_size": len(tokenizer),
        "hidden_size": width,
        "intermediate_size": width * 8 // 3,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": heads // 2,
        "max_position_embeddings": 1024,
        "tie_word_embeddings": True,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }


def new_llama(tokenizer: PreTrainedTokenizerBase, width: int, layers: int, heads: int) -> LlamaForCausalLM:
    """A Llama with random weights."""
    return LlamaForCausalLM(LlamaConfig(**causal_lm_settings(tokenizer, width, layers, heads)))


def byte_level_bpe(sentences: Iterable[str], vocab_size: int) -> dict:
    """Vocabulary and merges of a byte-level BPE, as the constructors of Whisper's and Qwen's tokenizers take them."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    bpe.train_from_iterator(sentences, trainer)
    content = json.loads(bpe.to_str())["model"]
    return {"vocab": content["vocab"], "merges": [tuple(pair) for pair in content["merges"]]}


def whisper_tokenizer(sentences: Iterable[str], vocab_size: int) -> WhisperTokenizer:
    """Byte-level BPE with Whisper's control tokens, one for each of its languages, in Whisper's order."""
    tokenizer = WhisperTokenizer(**byte_level_bpe(sentences, vocab_size))
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
    dropout: float = 0.0,
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
            dropout=dropout,
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


SPEECH_CLASSES = {  # configuration, self-supervised model as published, CTC model
    "wav2vec2": (Wav2Vec2Config, Wav2Vec2ForPreTraining, Wav2Vec2ForCTC),
    "hubert": (HubertConfig, HubertModel, HubertForCTC),
    "wavlm": (WavLMConfig, WavLMModel, WavLMForCTC),
}

# Of self-supervised wav2vec 2.0; published: two groups of 320 vectors, 256 wide, and 100 negatives.
QUANTISER = {"num_codevectors_per_group": 64, "codevector_dim": 64, "proj_codevector_dim": 64, "num_negatives": 50}


def wav2vec2_tokenizer(sentences: Iterable[str], directory: str) -> Wav2Vec2CTCTokenizer:
    """Characters of ``sentences``, with ``|`` between words and ``<pad>`` (0) as CTC's blank.

    Its vocabulary file is left in ``directory``.
    """
    characters = sorted(set().union(*sentences) - {" ", "|"})
    tokens = ["<pad>", "<s>", "</s>", "<unk>", "|", *characters]
    path = f"{directory}/vocab.json"
    with open(path, "w", encoding="utf-8") as file:
        json.dump({token: number for number, token in enumerate(tokens)}, file, ensure_ascii=False)
    return Wav2Vec2CTCTokenizer(path, word_delimiter_token="|")


def wav2vec2_features(do_normalize: bool = True, return_attention_mask: bool = True) -> Wav2Vec2FeatureExtractor:
    """How the waveform enters wav2vec 2.0, HuBERT or WavLM; the large models want both, see ``new_wav2vec2``."""
    return Wav2Vec2FeatureExtractor(
        feature_size=1,
        sampling_rate=16000,
        padding_value=0.0,
        do_normalize=do_normalize,
        return_attention_mask=return_attention_mask,
    )


def new_wav2vec2(
    width: int,
    layers: int,
    heads: int,
    vocab_size: int | None = None,
    kind: str = "wav2vec2",
    stable_layer_norm: bool = True,
    conv_width: int | None = None,
) -> PreTrainedModel:
    """A wav2vec 2.0, HuBERT or WavLM with random weights, 50 frames per second.

    Args:
        width: of the states (published: 1024), a multiple of ``heads``.
        vocab_size: size of the CTC head; None for a self-supervised model without one.
        kind: wav2vec2, hubert or wavlm.
        stable_layer_norm: built as the published large models; else as the base models, whose first
            convolution is normalised over time.
        conv_width: of the convolutions (published: 512); None for ``width``.
    """
    configuration, self_supervised, ctc = SPEECH_CLASSES[kind]
    config = configuration(
        vocab_size=vocab_size or 32,
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        intermediate_size=4 * width,
        conv_dim=(conv_width or width,) * 7,
        conv_kernel=(10, 3, 3, 3, 3, 2, 2),
        conv_stride=(5, 2, 2, 2, 2, 2, 2),
        conv_bias=stable_layer_norm,
        feat_extract_norm="layer" if stable_layer_norm else "group",
        do_stable_layer_norm=stable_layer_norm,
        num_conv_pos_embeddings=32,
        num_conv_pos_embedding_groups=heads,
        layerdrop=0.0,
        hidden_dropout=0.0,  # a CPU draws random numbers slowly
        attention_dropout=0.0,
        activation_dropout=0.0,
        final_dropout=0.0,
        # A CTC model sees all frames: half of them hidden, as by default, is too much for a short training.
        mask_time_prob=0.0 if vocab_size else 0.65,
        mask_time_length=5,  # published: 10, too hard a task for so little speech
        **(QUANTISER if kind == "wav2vec2" else {}),
        ctc_loss_reduction="mean",
        ctc_zero_infinity=True,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )
    return (ctc if vocab_size else self_supervised)(config)


def unigram_tokens(sentences: Iterable[str], vocab_size: int, directory: str) -> list[str]:
    """ESPnet's token list of a SentencePiece unigram model (left in ``directory`` as ``bpe.model``).

    Piece i of the model is token i + 1; ``<unk>`` is its piece 0.
    """
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(sentences),
        model_prefix=f"{directory}/bpe",
        vocab_size=vocab_size,
        model_type="unigram",
        character_coverage=1.0,
        hard_vocab_limit=False,
        unk_id=0,
        bos_id=-1,
        eos_id=-1,
        minloglevel=2,
    )
    os.remove(f"{directory}/bpe.vocab")
    pieces = sentencepiece.SentencePieceProcessor(model_file=f"{directory}/bpe.model")
    return ["<blank>", *(pieces.id_to_piece(i) for i in range(len(pieces))), "<sos/eos>"]


def espnet_asr_config(
    tokens: list[str],
    width: int,
    layers: int,
    heads: int,
    decoder_layers: int = 1,
    stats_file: str | None = None,
    bpe_model: str | None = None,
    spec_augment: dict | None = None,
    units: int | None = None,
    kernel: int = 31,
    dropout: float = 0.0,
    input_layer: str = "conv2d",
    hop_length: int = 160,
    ctc_weight: float = 0.3,
) -> dict:
    """Settings of a joint CTC/attention ASR model with an E-Branchformer, as ESPnet's ``config.yaml`` has them.

    Args:
        tokens: ESPnet's token list: ``<blank>`` first, ``<sos/eos>`` last.
        width: of encoder and decoder.
        stats_file: feature statistics for ``global_mvn``; None for ``utterance_mvn``.
        bpe_model: SentencePiece model of the tokens; None for characters.
        spec_augment: mel ``bands`` and ``frames`` that each of two masks hides at most; None for no SpecAugment.
        units: of the encoder's feed-forward layers and gating; None for four times ``width``.
        kernel: of the encoder's convolutions over time.
        dropout: 0 by default, since a CPU draws random numbers slowly.
        input_layer: conv2d makes one state of four frames, conv1d2, much cheaper, of two.
        hop_length: samples from one frame to the next.
        ctc_weight: the attention decoder's loss has the rest.
    """
    masks, units = {}, units or 4 * width
    if spec_augment:
        masks = {"apply_time_warp": False, "num_freq_mask": 2, "num_time_mask": 2}
        masks |= {"freq_mask_width_range": [0, spec_augment["bands"]]}
        masks |= {"time_mask_width_range": [0, spec_augment["frames"]]}
    encoder = {"output_size": width, "attention_heads": heads, "num_blocks": layers}
    encoder |= {"cgmlp_linear_units": units, "linear_units": units, "use_ffn": True, "macaron_ffn": True}
    encoder |= {"attention_layer_type": "rel_selfattn", "pos_enc_layer_type": "rel_pos", "rel_pos_type": "latest"}
    encoder |= {"input_layer": input_layer, "cgmlp_conv_kernel": kernel, "merge_conv_kernel": kernel}
    decoder = {"attention_heads": heads, "linear_units": 4 * width, "num_blocks": decoder_layers}
    for part in (encoder, decoder):
        part |= {"dropout_rate": dropout, "positional_dropout_rate": 0.0}
    return {
        "token_list": tokens,
        "token_type": "bpe" if bpe_model else "char",
        "bpemodel": bpe_model,
        "init": None,
        "input_size": None,
        "frontend": "default",
        "frontend_conf": {"fs": "16k", "n_fft": 512, "win_length": 400, "hop_length": hop_length, "n_mels": 80},
        "specaug": "specaug" if spec_augment else None,
        "specaug_conf": masks,
        "normalize": "global_mvn" if stats_file else "utterance_mvn",
        "normalize_conf": {"stats_file": stats_file} if stats_file else {},
        "preencoder": None,
        "preencoder_conf": {},
        "encoder": "e_branchformer",
        "encoder_conf": encoder,
        "postencoder": None,
        "postencoder_conf": {},
        "decoder": "transformer",
        "decoder_conf": decoder,
        "ctc_conf": {},
        "model": "espnet",
        "model_conf": {"ctc_weight": ctc_weight, "lsm_weight": 0.1, "report_cer": False, "report_wer": False},
    }


def new_espnet_asr(config: dict) -> torch.nn.Module:
    """ESPnet's ASR model with random weights; ``config`` from ``espnet_asr_config``.

    Its ``forward(speech, speech_lengths, text, text_lengths)`` gives (loss, statistics, weight).
    """
    # Imported here, they take seconds; and espnet2.tasks.asr, which would choose them, needs more packages.
    from espnet2.asr.ctc import CTC
    from espnet2.asr.decoder.transformer_decoder import TransformerDecoder
    from espnet2.asr.encoder.e_branchformer_encoder import EBranchformerEncoder
    from espnet2.asr.espnet_model import ESPnetASRModel
    from espnet2.asr.frontend.default import DefaultFrontend
    from espnet2.asr.specaug.specaug import SpecAug
    from espnet2.layers.global_mvn import GlobalMVN
    from espnet2.layers.utterance_mvn import UtteranceMVN

    tokens, frontend = config["token_list"], DefaultFrontend(**config["frontend_conf"])
    normalize = {"global_mvn": GlobalMVN, "utterance_mvn": UtteranceMVN}[config["normalize"]]
    encoder = EBranchformerEncoder(input_size=frontend.output_size(), **config["encoder_conf"])
    return ESPnetASRModel(
        vocab_size=len(tokens),
        token_list=tokens,
        frontend=frontend,
        specaug=SpecAug(**config["specaug_conf"]) if config["specaug"] else None,
        normalize=normalize(**config["normalize_conf"]),
        preencoder=None,
        encoder=encoder,
        postencoder=None,
        decoder=TransformerDecoder(len(tokens), encoder.output_size(), **config["decoder_conf"]),
        ctc=CTC(len(tokens), encoder.output_size(), **config["ctc_conf"]),
        joint_network=None,
        **config["model_conf"],
    )


def save_espnet_asr(model: torch.nn.Module, config: dict, directory: str) -> None:
    """Write ``valid.acc.ave.pth`` and, when that is complete, ``config.yaml``, as an ESPnet experiment has them."""
    weights, settings = f"{directory}/valid.acc.ave.pth", f"{directory}/config.yaml"
    torch.save(model.state_dict(), f"{weights}.tmp")
    os.replace(f"{weights}.tmp", weights)
    with open(f"{settings}.tmp", "w", encoding="utf-8") as file:
        yaml.safe_dump(config, file, allow_unicode=True, sort_keys=False)
    os.replace(f"{settings}.tmp", settings)
