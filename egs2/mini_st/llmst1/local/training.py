"""What the trainings of the recipe's tiny foundation models share: options, data, loop, saving."""

import argparse
import itertools
import json
import math
import os
import random
import re
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import torch
import yaml
from espnet2.torch_utils.device_funcs import to_device
from muon import Float32Muon
from tqdm import tqdm
from training_state import fingerprint, load_state, save_state

from espnet_llmst.cli import InputError, get_parser
from espnet_llmst.datadir.kaldi import read_table, text_files
from espnet_llmst.precision import computes_in_bfloat16

SAVE_SECONDS = 300  # from one saved state of a training to the next


def read_sets(dump_dir: Path, split: str, languages: list[str]) -> list[tuple[str, str, str]]:
    """(language, audio path, transcript) of a split, every recording once."""
    found = {}
    for language in languages:
        for set_dir in sorted(dump_dir.glob(f"{split}.{language}-*")):
            texts = read_table(set_dir / f"text.tc.{language}")
            for utt, path in read_table(set_dir / "wav.scp").items():
                found[language, utt] = (language, path, texts[utt])
    return list(found.values())


def training_speech(args: argparse.Namespace, languages: list[str]) -> list[tuple[str, str, str]]:
    """The training utterances of all languages, each of which must be there."""
    for language in languages:
        if not read_sets(args.dump_dir, args.splits[0], [language]):
            place = f"{args.dump_dir}/{args.splits[0]}.{language}-*"
            raise InputError(f"{place}: no {language} speech; run stages 1 to 3 with --directions {language}-<target>")
    return read_sets(args.dump_dir, args.splits[0], languages)


def held_out(dump_dir: Path, splits: list[str]) -> list[dict[str, str]]:
    """Texts of the held-out sets, which no training sentence of a language model may repeat."""
    texts = []
    for split in splits:
        for set_dir in sorted(dump_dir.glob(f"{split}.*")):
            for language, path in text_files(set_dir).items():
                texts += [{language: text} for text in read_table(path).values()]
    return texts


def held_out_sets(args: argparse.Namespace, directions: str) -> list[tuple[Path, str]]:
    """The held-out sets of the directions that a pattern names, and the direction of each."""
    found = []
    for split in dict.fromkeys(args.splits[1:]):
        for set_dir in sorted(args.dump_dir.glob(f"{split}.{directions}")):
            found.append((set_dir, set_dir.name.removeprefix(f"{split}.")))
    return found


def corpus_sentences(args: argparse.Namespace, directions: list[str]) -> list[dict[str, str]]:
    """Training sentences of a corpus with their translations, each pair once."""
    found: dict[tuple, dict[str, str]] = {}
    for direction in directions:
        set_dir = args.dump_dir / f"{args.splits[0]}.{direction}"
        if not set_dir.is_dir():
            raise InputError(f"{set_dir}: no such set; run stages 1 to 3 with --directions {direction}")
        tables = {language: read_table(path) for language, path in text_files(set_dir).items()}
        for utt in next(iter(tables.values())):
            sentence = {language: table[utt] for language, table in tables.items()}
            found[tuple(sentence.items())] = sentence
    return list(found.values())


def spoken(text: str) -> str:
    """A transcript in lower case without punctuation; combining tone marks stay."""
    return " ".join(re.sub(r"[^\w'\u0300-\u036f]+", " ", text.lower().replace("’", "'")).split())


def noisy(text: str, rate: float, rng: random.Random) -> str:
    """The text with this share of its letters lost or doubled, as a recogniser would have it."""
    if not rate:
        return text
    times = rng.choices((1, 0, 2), (1 - rate, 0.7 * rate, 0.3 * rate), k=len(text))
    return "".join(letter * count for letter, count in zip(text, times, strict=True))


def swap_letters(texts: Iterable[str], conf: dict) -> str:
    """The letters that ``swaps`` of the YAML draws from, as often as the texts have them; none without it."""
    return "".join(map(spoken, texts)) if conf.get("swaps") else ""


def heard(text: str, conf: dict, letters: str, rng: random.Random) -> str:
    """The text as a recogniser might write it: ``plain``, ``noise`` and ``swaps`` of the YAML; ``letters`` replace."""
    if conf.get("plain") and rng.random() < conf["plain"]:
        text = spoken(text)
    text = noisy(text, conf.get("noise", 0.0), rng)
    if conf.get("swaps"):
        text = "".join(rng.choice(letters) if rng.random() < conf["swaps"] else letter for letter in text)
    return text


def similar_lengths(lengths: Sequence[int], batch_size: int, rng: random.Random) -> Iterator[list[int]]:
    """Batches for ever, as positions, of about equally long examples in random order; each comes once a round."""
    while True:
        order = sorted(range(len(lengths)), key=lambda i: lengths[i] * rng.uniform(0.9, 1.1))
        groups = [order[i : i + batch_size] for i in range(0, len(order), batch_size)]
        yield from rng.sample(groups, len(groups))


def optimizers(model: torch.nn.Module, lr: float) -> list[torch.optim.Optimizer]:
    """Muon for the hidden matrices, AdamW for embeddings, convolutions, norms and biases.

    Muon reaches the same loss in about half the steps of AdamW, which is what makes training from
    scratch a matter of minutes.
    """
    matrices, rest = [], []
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            (matrices if parameter.ndim == 2 and "embed" not in name else rest).append(parameter)
    if computes_in_bfloat16(matrices[0].device):
        muon = torch.optim.Muon(matrices, lr=lr, weight_decay=0.01, adjust_lr_fn="match_rms_adamw")
    else:
        muon = Float32Muon(matrices, lr=lr, weight_decay=0.01)
    return [
        muon,
        torch.optim.AdamW(rest, lr=lr, weight_decay=0.01, betas=(0.9, 0.98)),
    ]


def take_threads(step: int, alone_after: int | None) -> None:
    """One CPU thread up to the update ``alone_after``, then as many as foundation.sh gives; without it no change.

    A number of updates instead of a look at what else runs: sums depend on how many threads share them, and a
    training is not to depend on what runs beside it.
    """
    given = os.environ.get("FOUNDATION_THREADS")
    if alone_after is not None and given:
        threads = int(given) if step >= alone_after else 1
        if threads != torch.get_num_threads():
            torch.set_num_threads(threads)


def train(
    model: torch.nn.Module,
    batches: Iterator[dict],
    loss_of: Callable[[dict], torch.Tensor],
    steps: int,
    lr: float,
    name: str,
    directory: Path,
    device: str = "cpu",
    alone_after: int | None = None,
) -> None:
    """Train for ``steps`` updates: a short warm-up, then cosine decay to zero; gradients clipped at 1.

    From the update ``alone_after`` on, where it is given, no other training is beside this one.

    Model and batches are on ``device`` meanwhile; the model comes back to the CPU. The state is in ``directory``
    every few minutes, from where a killed training goes on, with the same result.
    """
    optims = optimizers(model.to(device), lr)
    warmup = max(1, steps // 20)
    model.train()
    first = next(batches)
    saved, batches = directory / f"training-{fingerprint(first)}.pt", itertools.chain([first], batches)
    begun, average = load_state(saved, model, optims, batches)
    started = last = time.monotonic()
    with tqdm(total=steps, initial=begun, desc=name, disable=None, mininterval=5) as bar:
        for step in range(begun, steps):
            take_threads(step, alone_after)
            factor = min((step + 1) / warmup, 0.5 * (1 + math.cos(math.pi * step / steps)))
            loss = loss_of(to_device(next(batches), device))
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            for optim in optims:
                optim.param_groups[0]["lr"] = lr * factor
                optim.step()
                optim.zero_grad()
            average = loss.item() if average is None else 0.98 * average + 0.02 * loss.item()
            bar.update()
            bar.set_postfix(loss=f"{average:.3f}")
            seconds = time.monotonic() - started
            if (step + 1) % max(1, steps // 10) == 0:
                print(f"{name}: step {step + 1}/{steps} loss {average:.3f} after {seconds:.0f} s", flush=True)
            if time.monotonic() - last >= SAVE_SECONDS or step + 1 == steps:
                save_state(saved, model, optims, step + 1, average)
                last = time.monotonic()
    model.cpu().eval()


def result(name: str, set_name: str, size: int, metric: str, score: dict) -> dict:
    """One line of ``eval.json``, which ends up in RESULTS.md; also printed."""
    print(f"{name}: {metric} on {set_name}: {score['score']:.2f}", flush=True)
    return {"model": name, "set": set_name, "n": size, "metric": metric, **score}


def wer_results(name: str, args: argparse.Namespace, languages: list[str], wer_of: Callable) -> list[dict]:
    """WER on the held-out sets of each language; ``wer_of(examples, language)`` recognises and scores."""
    results = []
    for split in args.splits[1:]:
        for language in languages:
            examples = read_sets(args.dump_dir, split, [language])
            if examples:
                score = wer_of(examples, language)
                results.append(result(name, f"{split} ({language})", len(examples), "WER", score))
    return results


def begin(unfinished: Path, conf: dict) -> None:
    """Make a model's working folder; one that a training of the same settings left is kept, to go on with."""
    settings, text = unfinished / "settings.json", json.dumps(conf, sort_keys=True)
    if settings.exists() and settings.read_text() == text:
        return
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    settings.write_text(text)


def run_training(
    description: str,
    train_one: Callable[[dict, argparse.Namespace, Path], list[dict]],
    argv: Sequence[str] | None,
) -> None:
    """Read the model's YAML, train it by ``train_one`` and put the finished directory in place.

    ``train_one(conf, args, directory)`` trains, writes the model to ``directory`` and returns results.
    """
    parser = get_parser("local/train_<kind>.py", description)
    parser.add_argument("--model_config", type=Path, required=True, help="conf/foundation/<name>.yaml")
    parser.add_argument("--dump_dir", type=Path, default=Path("dump/raw"))
    parser.add_argument("--splits", nargs=3, default=["train", "dev", "test"], help="Training, held out, held out")
    parser.add_argument("--out_dir", type=Path, required=True)
    args = parser.parse_args(argv)
    conf = yaml.safe_load(args.model_config.read_text(encoding="utf-8"))
    if conf.get("device") == "cuda" and not torch.cuda.is_available():
        raise InputError(f"{args.model_config}: device: cuda, but no GPU is to be seen here; give the job one")
    torch.manual_seed(conf["seed"])
    unfinished = args.out_dir.with_name(args.out_dir.name + ".tmp")
    begin(unfinished, conf)
    results = train_one(conf, args, unfinished)
    for path in (unfinished / "settings.json", *unfinished.glob("training-*")):
        path.unlink(missing_ok=True)
    (unfinished / "eval.json").write_text(json.dumps(results, indent=1))
    shutil.rmtree(args.out_dir, ignore_errors=True)
    os.replace(unfinished, args.out_dir)
