"""Trains a tiny Whisper from scratch on the recipe's speech and writes it with ``save_pretrained``.

Beside the decoder's cross-entropy, a CTC output on the encoder (dropped afterwards) makes the encoder
align in a few hundred steps. Audio is padded to the model's window and not masked, as Whisper's is.
"""

import json
import os
import random
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import soundfile
import torch
import yaml
from tiny_models import new_whisper, whisper_features, whisper_tokenizer
from torch.nn import functional
from training import train
from transformers import WhisperForConditionalGeneration, WhisperProcessor

from espnet_llmst.cli import get_parser, run
from espnet_llmst.datadir.kaldi import read_table
from espnet_llmst.encoder import whisper
from espnet_llmst.precision import autocast
from espnet_llmst.scoring.metrics import corpus_score


def read_sets(dump_dir: Path, split: str, languages: list[str]) -> list[tuple[str, str, str]]:
    """(language, audio path, transcript) of a split, every recording once."""
    found = {}
    for language in languages:
        for set_dir in sorted(dump_dir.glob(f"{split}.{language}-*")):
            texts = read_table(set_dir / f"text.tc.{language}")
            for utt, path in read_table(set_dir / "wav.scp").items():
                found[language, utt] = (language, path, texts[utt])
    return list(found.values())


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


def loss_function(model, ctc: torch.nn.Linear, ctc_weight: float, masks: dict, precision: str):
    """Weighted sum of the decoder's cross-entropy and the encoder's CTC loss."""

    def loss_of(batch: dict) -> torch.Tensor:
        mel = spec_augment(batch["mel"], **masks)
        with autocast(mel.device, precision):
            states = whisper.encode(model.model.encoder, mel, None)
            decoded = model.model.decoder(
                input_ids=batch["inputs"], encoder_hidden_states=states, use_cache=False
            ).last_hidden_state
            logits, ctc_logits = model.proj_out(decoded), ctc(states)
        loss = functional.cross_entropy(logits.float().transpose(1, 2), batch["labels"])
        lengths = torch.full((len(states),), states.size(1))
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
            mel_BMF.masked_fill_(hidden.unsqueeze(3 - axis), 0.0)
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


def main(argv=None) -> None:
    """Train one model as its YAML file says."""
    parser = get_parser("train_whisper.py", __doc__)
    parser.add_argument("--model_config", type=Path, required=True)
    parser.add_argument("--dump_dir", type=Path, default=Path("dump/raw"))
    parser.add_argument("--splits", nargs=3, default=["train", "dev", "test"], help="For training; for WER")
    parser.add_argument("--out_dir", type=Path, required=True)
    args = parser.parse_args(argv)
    conf = yaml.safe_load(args.model_config.read_text(encoding="utf-8"))
    torch.manual_seed(conf["seed"])
    languages = conf["languages"]
    examples = read_sets(args.dump_dir, args.splits[0], languages)
    print(f"{args.out_dir.name}: {len(examples)} utterances of {' '.join(languages)}", flush=True)
    tokenizer = whisper_tokenizer((text for *_, text in examples), conf["vocab_size"])
    features = whisper_features(conf["window_seconds"])
    model = new_whisper(tokenizer, features, **conf["size"])
    ctc = torch.nn.Linear(conf["size"]["width"], len(tokenizer) + 1)
    both = torch.nn.ModuleDict({"model": model, "ctc": ctc})
    batches = make_batches(
        log_mels(examples, features), examples, tokenizer, conf["batch_size"], random.Random(conf["seed"])
    )
    loss_of = loss_function(model, ctc, conf["ctc_weight"], conf["spec_augment"], conf["autocast"])
    train(both, batches, loss_of, conf["steps"], conf["lr"], args.out_dir.name)
    unfinished = args.out_dir.with_name(args.out_dir.name + ".tmp")
    for part in (tokenizer, features, model):
        part.save_pretrained(unfinished)
    results = []
    for split in args.splits[1:]:
        for language in languages:
            held_out = read_sets(args.dump_dir, split, [language])
            if held_out:
                score = evaluate(unfinished, held_out, language)
                results.append({"model": args.out_dir.name, "set": f"{split} ({language})", "n": len(held_out)})
                results[-1] |= {"metric": "WER", **score}
                print(f"{args.out_dir.name}: WER on {split} ({language}): {score['score']:.2f}", flush=True)
    (unfinished / "eval.json").write_text(json.dumps(results, indent=1))
    shutil.rmtree(args.out_dir, ignore_errors=True)
    os.replace(unfinished, args.out_dir)


if __name__ == "__main__":
    sys.exit(run(main))
