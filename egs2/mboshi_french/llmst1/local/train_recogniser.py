"""Trains a small Whisper from scratch on the corpus's transcripts, CTC beside the decoder; ``save_pretrained``.

Made for a few hours of speech and a slow processor: utterances are cut to their length, batches hold similar lengths,
and the features' hop may be longer than the published 10 ms. ``pretrain:`` of its YAML names speech of other
languages that is learnt first. Transcripts are in lower case without punctuation.

Shapes: B batch, S samples, F mel frames, M mel bands, T encoder frames, D width.
"""

import random
import sys
from collections.abc import Iterator
from pathlib import Path

import soundfile
import torch
from tiny_models import new_whisper, whisper_features, whisper_tokenizer
from torch.nn.utils.rnn import pad_sequence
from train_whisper import loss_function
from training import read_sets, run_training, similar_lengths, spoken, train, training_speech, wer_results
from transformers import WhisperFeatureExtractor, WhisperTokenizer

from espnet_llmst.cli import InputError, run
from espnet_llmst.encoder import whisper
from espnet_llmst.scoring.metrics import corpus_score

CONTROL = ("<|startoftranscript|>", "<|notimestamps|>")  # as of the published models of one language


def log_mel(path: str, features: WhisperFeatureExtractor) -> torch.Tensor:
    """Log-mel features (M, F) of a recording, an even number of frames, at most the model's window."""
    speech_S = torch.from_numpy(soundfile.read(path, dtype="float32")[0])
    filters = torch.as_tensor(features.mel_filters, dtype=torch.float32)
    window = features.nb_max_frames // 2
    frames = 2 * whisper.frame_lengths(torch.tensor(len(speech_S)), features.hop_length, window)
    return whisper.log_mel(speech_S[None], int(frames), filters, features.n_fft, features.hop_length)[0]


def make_batches(mels, texts, tokenizer: WhisperTokenizer, batch_size: int, rng: random.Random) -> Iterator[dict]:
    """Batches for ever of about equally long utterances, in random order."""
    end, control = tokenizer.eos_token_id, tokenizer.convert_tokens_to_ids(list(CONTROL))
    rows = tokenizer(texts, add_special_tokens=False)["input_ids"]
    for group in similar_lengths([mel.size(1) for mel in mels], batch_size, rng):
        targets = [torch.tensor(rows[i]) for i in group]
        inputs = [torch.tensor([*control, *rows[i]]) for i in group]
        labels = [torch.tensor([-100] * (len(control) - 1) + [*rows[i], end]) for i in group]
        yield {
            "mel": pad_mels([mels[i] for i in group]),
            "lengths": torch.tensor([mels[i].size(1) // 2 for i in group]),
            "inputs": pad_sequence(inputs, batch_first=True, padding_value=end),
            "labels": pad_sequence(labels, batch_first=True, padding_value=-100),
            "targets": targets,
        }


def pad_mels(mels: list[torch.Tensor]) -> torch.Tensor:
    """Features (M, F) of several lengths as one tensor (B, M, F)."""
    return pad_sequence([mel.T.float() for mel in mels], batch_first=True).transpose(1, 2)


@torch.inference_mode()
def evaluate(model, ctc, features, tokenizer, examples, language: str) -> dict:
    """WER of the CTC output's best path, one utterance at a time."""
    hyps = []
    for _, path, _ in examples:
        mel = log_mel(path, features)[None]
        states = whisper.encode(model.model.encoder, mel, torch.tensor([mel.size(2) // 2]))
        best = ctc(states)[0].argmax(-1).unique_consecutive().tolist()
        hyps.append(tokenizer.decode([token for token in best if token != ctc.out_features - 1]))
    return corpus_score("WER", hyps, [[spoken(text) for *_, text in examples]], language)


def other_speech(pretrain: dict) -> list[tuple[str, str, str]]:
    """The speech to learn first, as another recipe formatted it."""
    folder, examples = Path(pretrain["dump_dir"]), []
    for language in pretrain["languages"]:
        found = read_sets(folder, pretrain["split"], [language])
        if not found:
            raise InputError(f"{folder}: no {language} speech; run stages 1 to 3 of its recipe first (README.md)")
        examples += found
    return examples


def train_one(conf: dict, args, directory: Path) -> list[dict]:
    """Train one model, write it to ``directory`` and return its WER on the held-out sets."""
    name, languages = args.out_dir.name, conf["languages"]
    examples = training_speech(args, languages)
    first = other_speech(conf["pretrain"]) if "pretrain" in conf else []
    print(f"{name}: {len(examples)} utterances of {' '.join(languages)}, {len(first)} to learn first", flush=True)
    tokenizer = whisper_tokenizer((spoken(text) for *_, text in first + examples), conf["vocab_size"])
    features = whisper_features(conf["window_seconds"], conf["hop_length"])
    model = new_whisper(tokenizer, features, **conf["size"])
    model.generation_config.is_multilingual = False
    del model.generation_config.lang_to_id, model.generation_config.task_to_id
    ctc = torch.nn.Linear(conf["size"]["width"], len(tokenizer) + 1)
    both = torch.nn.ModuleDict({"model": model, "ctc": ctc})
    loss_of = loss_function(
        model, ctc, conf["ctc_weight"], conf["spec_augment"], conf["autocast"], conf["label_smoothing"]
    )
    for part, steps in ((first, conf.get("pretrain", {}).get("steps", 0)), (examples, conf["steps"])):
        if steps:
            mels, texts = [log_mel(path, features).half() for _, path, _ in part], [spoken(text) for *_, text in part]
            batches = make_batches(mels, texts, tokenizer, conf["batch_size"], random.Random(conf["seed"]))
            device, alone_after = conf.get("device", "cpu"), conf.get("alone_after")
            train(both, batches, loss_of, steps, conf["lr"], name, directory, device, alone_after)
    for part in (tokenizer, features, model):
        part.save_pretrained(directory)
    return wer_results(
        name, args, languages, lambda some, language: evaluate(model, ctc, features, tokenizer, some, language)
    )


if __name__ == "__main__":
    sys.exit(run(lambda argv: run_training(__doc__, train_one, argv)))
