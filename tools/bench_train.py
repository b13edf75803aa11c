"""Times a training step of this project against the naive one, each improvement added in turn, in one run.

    OMP_NUM_THREADS=1 python tools/bench_train.py --durations covost --json bench_train.json

Random speech is read by a frozen Whisper encoder, LST's connector (a quarter of the frames) and a frozen Llama; the
connector is trained. Encoder, connector, language model, loss, collation, cache and batch sampler are the project's own
(only `naive_loss` is made here). Weights are random and written to a temporary directory; nothing is downloaded.

Ways, each with all that stands before it unless said otherwise:

- naive: Whisper padded to 30 s (``pad_to_30s``), states cut to the real length; random batches of ``--batch_size``,
  padded, with a mask; the language model writes logits at all positions and transformers computes its loss from
  ``labels``;
- unpadded: Whisper reads just the utterance (``pad_to_30s: false``, the default);
- targets: logits at the positions that predict a target, right padding without a mask (the default);
- buckets: batches of like length up to ``--batch_bins`` vectors and tokens (``batch_type: numel``);
- packed: buckets, laid end to end (``decoder_conf: {packing: true}``);
- cached: buckets, the encoder's states from disk (``model_conf: {cache_encoder: ...}``);
- cached_packed: both.

A step is forward, backward, clipping and AdamW; its learning rate is 0, so that every way computes the same loss. Times
are CPU seconds of one thread (GPU: wall); the order of the ways alternates from round to round and ratios are taken
inside a round. Padded and unpadded Whisper are different functions of the speech: the losses of all unpadded ways are
compared with each other, the naive one with this project's way on a Whisper padded to 30 s.

Shapes: B batch, L length, V vocabulary.
"""

import argparse
import json
import math
import random
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import NormalDist
from typing import Any

import numpy as np
import torch
import transformers
from espnet2.samplers.build_batch_sampler import build_batch_sampler
from torch.nn.utils.rnn import pad_sequence
from torch.utils import flop_counter
from transformers import LlamaConfig, LlamaForCausalLM, WhisperConfig, WhisperFeatureExtractor, WhisperModel

from espnet_llmst.connector.conv_linear import ConvLinearConnector
from espnet_llmst.datadir.kaldi import write_table
from espnet_llmst.decoder.causal_lm import CausalLMDecoder
from espnet_llmst.encoder.hugging_face import HuggingFaceEncoder
from espnet_llmst.espnet_model import ESPnetLLMSTModel
from espnet_llmst.lora import set_trainable
from espnet_llmst.precision import autocast
from espnet_llmst.train.collate import collate

RATE, TOLERANCE, PROMPT = 16000, 1e-6, (10, 10)  # tokens before and after the speech
WAYS = ("naive", "unpadded", "targets", "buckets", "packed", "cached", "cached_packed")
# Seconds by quantile, and target tokens per second of speech (speed.md): CoVoST-2 normal, MuST-C log-normal.
DURATIONS = {
    "covost": (lambda q: min(15.0, max(1.0, NormalDist(5.5, 2.0).inv_cdf(q))), 2.6),
    "must_c": (lambda q: min(17.7, max(0.6, math.exp(NormalDist(math.log(7.1) - 0.75**2 / 2, 0.75).inv_cdf(q)))), 4.3),
}
PRESETS = {  # Whisper: width, layers, heads; language model: width, layers, heads, key-value heads, inner width
    "tiny": {"whisper": (384, 4, 6), "lm": (384, 6, 6, 6, 1024), "vocabulary": 32000, "dtype": "float32"},
    "tiny512": {"whisper": (384, 4, 6), "lm": (512, 8, 8, 8, 1376), "vocabulary": 32000, "dtype": "float32"},
    "llast_8b": {  # LLaST-8B's shape and ranks (arXiv 2407.15415), with LST's connector; needs a GPU of 80 GB
        "whisper": (1280, 32, 20),
        "lm": (4096, 32, 32, 32, 11008),
        "vocabulary": 32000,
        "dtype": "bfloat16",
        "lora": ({"r": 128, "alpha": 64}, {"r": 512, "alpha": 256}),
    },
}


def naive_loss(model: ESPnetLLMSTModel, text, text_lengths, **inputs) -> torch.Tensor:
    """Mean loss per target token with logits everywhere, as most code for speech and language models computes it."""
    prompts = model.embed_prompts(**inputs)
    targets = [row[:length] for row, length in zip(text, text_lengths.tolist(), strict=True)]
    pairs = list(zip(prompts, targets, strict=True))
    rows = [torch.cat([prompt, model.decoder.embed(ids)]) for prompt, ids in pairs]
    labels = [torch.cat([ids.new_full((len(prompt),), -100), ids]) for prompt, ids in pairs]
    masks = [torch.ones(len(row), dtype=torch.long, device=text.device) for row in rows]
    return model.decoder.lm(
        inputs_embeds=pad_sequence(rows, batch_first=True),
        attention_mask=pad_sequence(masks, batch_first=True),
        labels=pad_sequence(labels, batch_first=True, padding_value=-100),
        use_cache=False,
    ).loss


def make_foundation(preset: dict, directory: Path, device: str) -> None:
    """Random weights of both foundation models in ``save_pretrained`` form."""
    torch.manual_seed(0)
    width, layers, heads = preset["whisper"]
    features = WhisperFeatureExtractor(feature_size=80)
    whisper = WhisperConfig(d_model=width, encoder_layers=layers, encoder_attention_heads=heads, num_mel_bins=80)
    whisper.update({"encoder_ffn_dim": 4 * width, "decoder_layers": 1, "decoder_attention_heads": heads})
    width, layers, heads, kv_heads, inner = preset["lm"]
    llama = LlamaConfig(hidden_size=width, num_hidden_layers=layers, num_attention_heads=heads, intermediate_size=inner)
    llama.update({"num_key_value_heads": kv_heads, "vocab_size": preset["vocabulary"]})
    features.save_pretrained(directory / "whisper")
    dtype = getattr(torch, preset["dtype"])
    with torch.device(device):
        for name, kind, config in (("whisper", WhisperModel, whisper), ("lm", LlamaForCausalLM, llama)):
            kind._from_config(config, dtype=dtype).save_pretrained(directory / name)


def make_work(args, vocabulary: int) -> dict[str, dict[str, np.ndarray]]:
    """Utterances as the preprocessor gives them: noise of the wanted durations, random tokens."""
    quantile, tokens_per_second = DURATIONS[args.durations]
    rng, work = np.random.default_rng(1), {}
    seconds = [quantile((n + 0.5) / args.utterances) for n in range(args.utterances)]
    random.Random(1).shuffle(seconds)
    for n, duration in enumerate(seconds):
        count = max(3, round(duration * tokens_per_second * rng.uniform(0.8, 1.2)))
        tokens = {
            name: rng.integers(3, vocabulary, size) for name, size in zip(("prefix", "suffix"), PROMPT, strict=True)
        }
        speech = 0.1 * rng.standard_normal(round(duration * RATE)).astype(np.float32)
        work[f"utt{n:04d}"] = {"speech": speech, **tokens, "text": rng.integers(3, vocabulary, count)}
    return work


def make_batches(work: dict, args, directory: Path, bucketed: bool, device: str) -> list[dict[str, torch.Tensor]]:
    """Collated batches of ESPnet's sampler: random ones of a fixed size, or like lengths up to a budget."""
    shapes = directory / "shapes"
    lengths = {
        u: len(a["speech"]) // 1280 + sum(len(a[k]) for k in ("prefix", "suffix", "text")) for u, a in work.items()
    }
    write_table(shapes, {utt: str(length) for utt, length in lengths.items()})
    kind = "numel" if bucketed else "unsorted"
    sampler = build_batch_sampler(kind, args.batch_size, args.batch_bins, [str(shapes)])
    batches = [collate([(utt, work[utt]) for utt in utts])[1] for utts in sampler]
    return [{name: tensor.to(device) for name, tensor in batch.items()} for batch in batches]


def make_model(preset: dict, directory: Path, device: str) -> ESPnetLLMSTModel:
    """Encoder, connector and language model; the large preset with LoRA on both foundation models, as LLaST."""
    encoder_lora, decoder_lora = preset.get("lora", (None, None))
    dtype = preset["dtype"]
    encoder = HuggingFaceEncoder(str(directory / "whisper"), lora=encoder_lora, dtype=dtype)
    decoder = CausalLMDecoder(str(directory / "lm"), lora=decoder_lora, dtype=dtype, packing=True)
    torch.manual_seed(2)
    width = encoder.output_size()  # also of the convolutions, as LST has it
    connector = ConvLinearConnector(width, decoder.hidden_size, channels=width)
    model = ESPnetLLMSTModel(encoder, connector, decoder, autocast=dtype)
    set_trainable(model, ["postencoder", *(["encoder.lora", "decoder.lora"] if encoder_lora else [])])
    return model.to(device=device, dtype=torch.float32).train()  # what is trained in float32, as ESPnet's task does


def choose_way(model: ESPnetLLMSTModel, way: str, directory: Path) -> None:
    """Set the options of a way."""
    model.encoder.pad_to_30s = way in ("naive", "padded")
    model.decoder.packing = way.endswith("packed")
    model.cache_folder = str(directory / "cache") if way.startswith("cached") else None
    model.cache = None


def clock() -> float:
    """Seconds: of the CPU, or of the wall where a GPU works."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
        return time.perf_counter()
    return time.process_time()


def epoch(model: ESPnetLLMSTModel, optimizer, way: str, batches: list[dict[str, torch.Tensor]]) -> tuple[float, float]:
    """One step on each batch; seconds, and the summed loss of all target tokens."""
    trained, total, started = [p for p in model.parameters() if p.requires_grad], 0.0, clock()
    for batch in batches:
        if way in ("naive", "unpadded"):
            with autocast(batch["speech"].device, model.precision):
                loss = naive_loss(model, **batch)
        else:
            loss = model(**batch)[0]
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        total += loss.item() * int(batch["text_lengths"].sum())
    model.train()  # writes what the cache has computed
    return clock() - started, total


def bench(args, directory: Path) -> dict:
    """Run every way in every round."""
    preset, device = PRESETS[args.preset], "cuda" if torch.cuda.is_available() else "cpu"
    make_foundation(preset, directory, device)
    model = make_model(preset, directory, device)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.0, weight_decay=0.0)
    work = make_work(args, preset["vocabulary"])
    random_ones, buckets = (make_batches(work, args, directory, bucketed, device) for bucketed in (False, True))
    ways = [way for way in args.ways if not way.startswith("cached") or "lora" not in preset]  # LoRA changes the states

    def run(way: str, batches: list[dict[str, torch.Tensor]] | None = None) -> tuple[float, float]:
        choose_way(model, way, directory)
        kind = random_ones if way in ("naive", "unpadded", "targets") else buckets
        return epoch(model, optimizer, way, batches or kind)

    naive, padded = (run(way, random_ones[:1])[1] for way in ("naive", "padded"))
    if any(way.startswith("cached") for way in ways):
        run("cached")  # computes the states
    seconds, losses, gigabytes = {way: [] for way in ways}, {}, {}
    for number in range(args.rounds):
        for way in ways if number % 2 == 0 else ways[::-1]:
            if device == "cuda":
                torch.cuda.reset_peak_memory_stats()
            spent, losses[way] = run(way)
            seconds[way].append(spent)
            gigabytes[way] = torch.cuda.max_memory_allocated() / 1e9 if device == "cuda" else math.nan
            print(f"round {number + 1}: {way}: {spent:.2f} s", flush=True)
    counted = dict.fromkeys([*ways, "packed"]) if args.flop else ["packed"] if args.peak_tflops else []
    return {
        "device": device,
        "seconds": seconds,
        "peak_gigabytes": gigabytes,
        "loss_differs": loss_differences(losses, naive, padded),
        "flop": {way: count_flop(lambda way=way: run(way)) for way in counted},
        "target_tokens": sum(len(arrays["text"]) for arrays in work.values()),
        "durations": [len(arrays["speech"]) / RATE for arrays in work.values()],
    }


def count_flop(function: Callable[[], Any]) -> int:
    """Operations of matrix products, forward and backward; a GPU's kernel for packed sequences is not counted."""
    aten = torch.ops.aten
    attention = {  # of the CPU, which torch leaves out
        aten._scaled_dot_product_flash_attention_for_cpu: lambda q, k, v, *rest, **options: (
            flop_counter.sdpa_flop_count(q, k, v)
        ),
        aten._scaled_dot_product_flash_attention_for_cpu_backward: lambda gradient, q, k, v, *rest, **options: (
            flop_counter.sdpa_backward_flop_count(gradient, q, k, v)
        ),
    }
    with flop_counter.FlopCounterMode(display=False, custom_mapping=attention) as counter:
        function()
    return counter.get_total_flops()


def ratios(result: dict) -> dict[str, list[float]]:
    """How many times faster than the first way each way is, round by round."""
    first = next(iter(result["seconds"].values()))
    return {way: [a / b for a, b in zip(first, own, strict=True)] for way, own in result["seconds"].items()}


def loss_differences(losses: dict[str, float], naive: float, padded: float) -> dict[str, float]:
    """Relative differences of the summed losses; the naive way's from ours on padded speech, for one batch."""
    unpadded = {way: loss for way, loss in losses.items() if way != "naive"}
    first = next(iter(unpadded.values()), 1.0)
    return {"naive": abs(naive / padded - 1)} | {way: abs(loss / first - 1) for way, loss in unpadded.items()}


def print_table(result: dict, args) -> None:
    """One line for each way."""
    seconds = result["durations"]
    print(
        f"\n{args.preset}, {args.durations}: {len(seconds)} utterances, mean {statistics.mean(seconds):.1f} s, longest "
        f"{max(seconds):.1f} s, {result['target_tokens']} target tokens; {result['device']}"
    )
    head = f"{'':14}{'tokens/s':>10}{'ratio':>8}  {'[lowest..highest]':20}{'loss differs by':>16}"
    print(f"{head}{'GB':>8}{'GFLOP':>8}{'MFU %':>8}")
    for way, found in ratios(result).items():
        spent = statistics.median(result["seconds"][way])
        flop = result["flop"]
        use = 100 * flop["packed"] / spent / args.peak_tflops / 1e12 if args.peak_tflops else math.nan
        print(
            f"{way:14}{result['target_tokens'] / spent:10.1f}{statistics.median(found):8.2f}  "
            f"{f'[{min(found):.2f}..{max(found):.2f}]':20}{result['loss_differs'].get(way, math.nan):16.1e}"
            f"{result['peak_gigabytes'][way]:8.1f}"
            f"{flop.get(way, math.nan) / 1e9:8.0f}{use:8.1f}"
        )


def main() -> None:
    """Print a table; write JSON when asked. A loss that differs is an error."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--durations", choices=list(DURATIONS), default="covost")
    parser.add_argument("--preset", choices=list(PRESETS), default="tiny")
    parser.add_argument("--utterances", type=int, default=96)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS))
    parser.add_argument("--batch_size", type=int, default=8, help="Of the random batches")
    parser.add_argument("--batch_bins", type=int, default=1024, help="Vectors and tokens of the other batches")
    parser.add_argument("--flop", action="store_true", help="Count each way's operations: what its ratio can be")
    parser.add_argument("--peak_tflops", type=float, help="Of the device (H100 in bfloat16: 989), for utilisation")
    parser.add_argument("--json")
    args = parser.parse_args()
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    with tempfile.TemporaryDirectory() as directory:
        result = bench(args, Path(directory))
    result |= {"ratios": ratios(result), "settings": vars(args)}
    print_table(result, args)
    if args.json:
        Path(args.json).write_text(json.dumps(result, indent=1), encoding="utf-8")
    if PRESETS[args.preset]["dtype"] == "float32" and max(result["loss_differs"].values()) > TOLERANCE:
        raise SystemExit(f"the losses differ by more than {TOLERANCE}")


if __name__ == "__main__":
    main()
