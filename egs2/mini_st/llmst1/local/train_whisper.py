"""Trains a tiny Whisper from scratch on the recipe's speech and writes it with ``save_pretrained``.

Beside the decoder's cross-entropy, a CTC output on the encoder (dropped afterwards) makes the encoder
align in a few hundred steps. Audio is padded to the model's window and not masked, as Whisper's is.
"""

import random
import sys
from collections.abc import Iterator
from pathlib import Path

import soundfile
import torch
from tiny_models import new_whisper, whisper_features, whisper_tokenizer
from torch.nn import functional
from training import run_training, train, training_speech, wer_results
from transformers import WhisperForConditionalGeneration, WhisperProcessor

from espnet_llmst.cli import run
from espnet_llmst.encoder import whisper
from espnet_llmst.precision import autocast
from espnet_llmst.scoring.metrics import corpus_score


def log_mels(examples, features) -> torch.Tensor:
    """Log-mel features (N, M, F) of all examples, padded to the window."""
    window = features.nb_max_frames
    filters = torch.as_tensor(features.mel_filters, dtype=torch.float32)
    mels = []
    for _, path, _ in examples:
        speech, _ = soundfile.read(path, dtype="float32")
        mel = whisper.log_mel(torch.from_numpy(speech)[None], window, filters, features.n_fft, features.hop_length)
        mels.append(mel[0])
    return torch.stack(mels)


def make_batches(mels, examples, tokenizer, batch_size: int, rng: random.Random) -> Iterator[dict]:
    """Random batches for ever: decoder input and labels with Whisper's control tokens, CTC targets."""
    end = tokenizer.eos_token_id
    rows = []
    for language, _, text in examples:
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        control = ["<|startoftranscript|>", f"<|{language}|>", "<|transcribe|>", "<|notimestamps|>"]
        rows.append((tokenizer.convert_tokens_to_ids(control), ids))
    order: list[int] = []
    while True:
        if len(order) < batch_size:
            order = rng.sample(range(len(rows)), len(rows))
        picked, order = order[:batch_size], order[batch_size:]
        length = max(len(rows[i][0]) + len(rows[i][1]) for i in picked)
        inputs = torch.full((batch_size, length), end)
        labels = torch.full((batch_size, length), -100)
        for row, i in enumerate(picked):
            control, ids = rows[i]
            inputs[row, : len(control) + len(ids)] = torch.tensor(control + ids)
            labels[row, len(control) - 1 : len(control) + len(ids)] = torch.tensor([*ids, end])
        targets = [torch.tensor(rows[i][1]) for i in picked]
        yield {"mel": mels[picked], "inputs": inputs, "labels": labels, "targets": targets}


def loss_function(
    model, ctc: torch.nn.Linear, ctc_weight: float, masks: dict, precision: str, label_smoothing: float = 0.0
):
    """Weighted sum of the decoder's cross-entropy and the encoder's CTC loss.

    A batch with ``lengths`` is encoded without its padding; without, all of the window is attended.
    """

    def loss_of(batch: dict) -> torch.Tensor:
        mel = spec_augment(batch["mel"], **masks)
        with autocast(mel.device, precision):
            states = whisper.encode(model.model.encoder, mel, batch.get("lengths"))
            decoded = model.model.decoder(
                input_ids=batch["inputs"], encoder_hidden_states=states, use_cache=False
            ).last_hidden_state
            logits, ctc_logits = model.proj_out(decoded), ctc(states)
        loss = functional.cross_entropy(
            logits.float().transpose(1, 2), batch["labels"], label_smoothing=label_smoothing
        )
        lengths = batch.get("lengths", torch.full((len(states),), states.size(1)))
        target_lengths = torch.tensor([len(t) for t in batch["targets"]])
        aligned = functional.ctc_loss(
            ctc_logits.float().log_softmax(-1).transpose(0, 1),
            torch.cat(batch["targets"]),
            lengths,
            target_lengths,
            blank=ctc.out_features - 1,
            zero_infinity=True,
        )
        return loss + ctc_weight * aligned

    return loss_of


def spec_augment(mel_BMF: torch.Tensor, bands: int, frames: int) -> torch.Tensor:
    """Zero up to ``bands`` mel bands and up to ``frames`` frames of each example, twice."""
    mel_BMF = mel_BMF.clone()
    size, num_bands, num_frames = mel_BMF.shape
    for _ in range(2):
        for axis, limit, total in ((1, bands, num_bands), (2, frames, num_frames)):
            width = torch.randint(0, limit + 1, (size, 1))
            start = torch.randint(0, total, (size, 1))
            places = torch.arange(total)[None]
            hidden = (places >= start) & (places < start + width)
            mel_BMF.masked_fill_(hidden.unsqueeze(3 - axis).to(mel_BMF.device), 0.0)
    return mel_BMF


def evaluate(directory: Path, examples, language: str) -> dict:
    """WER of the saved checkpoint through transformers' own ``generate``, greedy."""
    processor = WhisperProcessor.from_pretrained(directory)
    model = WhisperForConditionalGeneration.from_pretrained(directory).eval()
    mels = log_mels(examples, processor.feature_extractor)
    hyps = []
    for batch in mels.split(50):
        mask = torch.ones(batch.size(0), batch.size(2), dtype=torch.long)
        ids = model.generate(batch, attention_mask=mask, language=language, task="transcribe")
        hyps += processor.batch_decode(ids, skip_special_tokens=True)
    return corpus_score("WER", [h.strip() for h in hyps], [[text for *_, text in examples]], language)


def train_one(conf: dict, args, directory: Path) -> list[dict]:
    """Train one model, write it to ``directory`` and return its WER on the held-out sets."""
    name, languages = args.out_dir.name, conf["languages"]
    examples = training_speech(args, languages)
    print(f"{name}: {len(examples)} utterances of {' '.join(languages)}", flush=True)
    tokenizer = whisper_tokenizer((text for *_, text in examples), conf["vocab_size"])
    features = whisper_features(conf["window_seconds"])
    model = new_whisper(tokenizer, features, **conf["size"])
    model.set_attn_implementation("eager")  # on a CPU its backward pass takes half the time of the fused one
    ctc = torch.nn.Linear(conf["size"]["width"], len(tokenizer) + 1)
    both = torch.nn.ModuleDict({"model": model, "ctc": ctc})
    batches = make_batches(
        log_mels(examples, features), examples, tokenizer, conf["batch_size"], random.Random(conf["seed"])
    )
    loss_of = loss_function(model, ctc, conf["ctc_weight"], conf["spec_augment"], conf["autocast"])
    train(both, batches, loss_of, conf["steps"], conf["lr"], name, directory)
    for part in (tokenizer, features, model):
        part.save_pretrained(directory)
    return wer_results(name, args, languages, lambda examples, language: evaluate(directory, examples, language))


if __name__ == "__main__":
    sys.exit(run(lambda argv: run_training(__doc__, train_one, argv)))
