"""Times the decoding engine against transformers' ``generate`` and ESPnet's two ways, on the same work in one run.

    python tools/bench_decode.py --utterances 24 --rounds 2 --json bench.json
    python tools/bench_decode.py --preset llast_8b --json gpu.json

A Llama with random weights (hidden 512, 8 layers, vocabulary 32,000: 58 M parameters) reads prompts of random vectors;
where an answer ends is set by a schedule that every way obeys. Times are CPU seconds of one thread (GPU: wall), the
order of the ways alternates from round to round, and ratios are taken inside a round. The preset llast_8b is for a
GPU: the language model of LLaST-8B (Llama 2 7B) in bfloat16, prompts of 5 s at two rates of vectors, short answers;
``--scale`` makes it small. Beside each time stands what the arithmetic of the model's size allows on a device of
``--tflops`` and ``--terabytes``. The speech encoder is not part of it.

- engine: ours, ``--rows`` utterances at a time;
- engine_graphs: the same by CUDA graphs, which two runs of the same work before the clock starts have captured (on a
  CPU: its static steps, without graphs);
- hf_1, hf_8, hf_<n>: ``generate`` one by one, and in batches of n of about equal length;
- espnet_hf: as ESPnet 202511's hugging_face_decoder runs a causal model: the prompt is repeated once per beam by hand
  and once more by ``generate``;
- espnet_nocache: ESPnet's BatchBeamSearch with the whole forward pass as its scorer, repaired to see the speech. Its
  search ends by rules of its own, so its hypotheses differ.

Shapes: N utterances, K beams, V vocabulary, L prompt length, D width.
"""

import argparse
import gc
import json
import re
import statistics
import time
from functools import partial
from pathlib import Path

import torch
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, LogitsProcessor, LogitsProcessorList

import espnet_llmst.search.engine as engine_module
from espnet_llmst.search.beams import Beams
from espnet_llmst.search.engine import Engine, Prompt
from espnet_llmst.search.options import SearchOptions

EOS, LATE, NOW = 2, -20.0, -0.01  # log-probability of the end of sequence before and from the target length on
WAYS = ("engine", "hf_1", "hf_8", "espnet_hf", "espnet_nocache")
PRESETS = {
    "llast_8b": {
        "layers": 32,
        "width": 4096,
        "dtype": "bfloat16",
        "seconds": 5.0,
        "vectors_per_second": [50.0, 12.5],
        "answer": [6, 20],
        "utterances": 192,
        "rows": 64,
        "ways": ["engine", "engine_graphs", "hf_16", "hf_64"],
    }
}


class ScheduledBeams(Beams):
    """Beams whose utterances end by the schedule; a prompt's limit is its target length."""

    def admit(self, rows: slice, limits: torch.Tensor, seeds: list[int]) -> None:
        if not hasattr(self, "target_N"):
            self.target_N = torch.zeros_like(self.limit_N)
        super().admit(rows, torch.full_like(limits, self.options.max_new_tokens), seeds)
        self.target_N[rows] = limits

    def _change(self, logits_NKV: torch.Tensor, norm_NK: torch.Tensor, rows: slice) -> None:
        due_N = self.length_N[rows] + 1 >= self.target_N[rows]
        logits_NKV[..., EOS] = torch.full_like(norm_NK, LATE).masked_fill(due_N[:, None], NOW) + norm_NK


class Schedule(LogitsProcessor):
    """The same for ``generate``, whose rows are utterances times beams."""

    def __init__(self, targets: list[int], rows_each: int) -> None:
        self.target = torch.tensor(targets).repeat_interleave(rows_each)

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        scores[:, EOS] = torch.where(input_ids.size(1) + 1 >= self.target.to(scores.device), NOW, LATE)
        return scores


def make_model(layers: int, width: int, vocabulary: int, device: str, dtype: torch.dtype) -> LlamaForCausalLM:
    """Random weights, scaled so that the next token is far from uniform."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=width,
        intermediate_size=width * 43 // 16,
        num_hidden_layers=layers,
        num_attention_heads=width // 64,
        num_key_value_heads=width // 64,
        max_position_embeddings=4096,
    )
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    with torch.device(device):  # billions of weights are drawn where they stay
        model = LlamaForCausalLM(config)
    torch.set_default_dtype(before)
    for parameter in model.parameters():
        if parameter.ndim == 2:
            parameter.data.mul_(3)
    return model.to(device, dtype).eval()


def make_work(args, frames: list[int], device: str, dtype: torch.dtype) -> list[tuple[torch.Tensor, int]]:
    """Prompts (L, D) of so many vectors and 20 of text, the longest first, each with the length of its answer."""
    generator = torch.Generator().manual_seed(1)
    work = []
    for _ in range(args.utterances):
        size = 20 + int(torch.randint(frames[0], frames[1] + 1, (1,), generator=generator))
        target = int(torch.randint(args.answer[0], args.answer[1] + 1, (1,), generator=generator))
        work.append((torch.randn(size, args.width, generator=generator).to(device, dtype), target))
    return sorted(work, key=lambda item: -len(item[0]))


class Decoder:
    """What the engine needs of a decoder."""

    def __init__(self, lm) -> None:
        self.lm = lm


def make_engine(model, args, graphs: bool) -> Engine:
    """Ours."""
    options = SearchOptions(beam_size=args.beams, max_new_tokens=64, min_new_tokens=1)
    return Engine(Decoder(model), EOS, options, rows=args.rows, graphs=graphs)


def run_engine(engine: Engine, work) -> list[list[int]]:
    """Decode by the engine."""
    found = dict(engine.decode(Prompt(str(n), embeds, target) for n, (embeds, target) in enumerate(work)))
    return [found[str(n)][0][0] for n in range(len(work))]


def run_hf(model, work, args, batch: int, by_hand: int = 1) -> list[list[int]]:
    """``generate`` on batches padded on the left; ``by_hand`` repeats each prompt before."""
    answers = []
    for start in range(0, len(work), batch):
        group = work[start : start + batch]
        length = max(len(embeds) for embeds, _ in group)
        embeds_NLD = group[0][0].new_zeros(len(group), length, group[0][0].size(1))
        mask_NL = torch.zeros(len(group), length, dtype=torch.long, device=embeds_NLD.device)
        for n, (embeds, _) in enumerate(group):
            embeds_NLD[n, length - len(embeds) :], mask_NL[n, length - len(embeds) :] = embeds, 1
        targets = [target for _, target in group for _ in range(by_hand)]
        config = GenerationConfig(
            num_beams=args.beams, max_new_tokens=64, do_sample=False, eos_token_id=EOS, pad_token_id=0
        )
        ids = model.generate(
            inputs_embeds=embeds_NLD.repeat_interleave(by_hand, 0),
            attention_mask=mask_NL.repeat_interleave(by_hand, 0),
            generation_config=config,
            logits_processor=LogitsProcessorList([Schedule(targets, args.beams)]),
        )[::by_hand].tolist()
        answers += [row[: row.index(EOS)] if EOS in row else row for row in ids]
    return answers


def run_nocache(model, work, args) -> list[list[int]]:
    """ESPnet's beam search, whose scorer computes prompt and hypothesis anew in every step."""
    from espnet.nets.batch_beam_search import BatchBeamSearch
    from espnet.nets.scorer_interface import BatchScorerInterface

    class Scorer(torch.nn.Module, BatchScorerInterface):
        def batch_score(self, ys, states, xs):
            text = model.get_input_embeddings()(ys[:, 1:])
            logits = model(inputs_embeds=torch.cat([xs, text], 1), use_cache=False).logits[:, -1]
            scores = logits.float().log_softmax(-1)
            scores[:, EOS] = NOW if ys.size(1) >= self.target else LATE
            return scores, [None] * len(ys)

    scorer, vocabulary = Scorer(), model.config.vocab_size
    search = BatchBeamSearch(
        beam_size=args.beams,
        weights={"lm": 1.0},
        scorers={"lm": scorer},
        sos=1,
        eos=EOS,
        vocab_size=vocabulary,
        token_list=[str(n) for n in range(vocabulary)],
    )
    answers = []
    for embeds, target in work[:: max(1, len(work) // args.nocache)][: args.nocache]:
        scorer.target = target
        best = search(x=embeds, maxlenratio=-64)[0]
        answers.append([i for i in best.yseq.tolist()[1:] if i != EOS])
    return answers


def kv_bytes_of_generate(model, work, args) -> int:
    """Keys and values that ``generate`` holds for the rows the engine has at work, at their ends."""
    config = model.config
    width = config.hidden_size // config.num_attention_heads
    position = 2 * config.num_hidden_layers * config.num_key_value_heads * width * model.dtype.itemsize
    group = work[: args.rows]
    return sum(args.beams * (len(embeds) + target) for embeds, target in group) * position


def roofline(model, work, args) -> dict[str, float]:
    """Milliseconds per utterance at the device's ceilings, a prompt computed and read once for all its beams.

    A step reads the weights and what is kept of all rows, or waits for their products if those take longer.
    """
    config, (flops, speed) = model.config, (args.tflops * 1e12, args.terabytes * 1e12)
    head = config.vocab_size * config.hidden_size
    matrices = sum(parameter.numel() for parameter in model.parameters() if parameter.ndim == 2) - head  # a table
    position = 2 * config.num_hidden_layers * config.hidden_size * model.dtype.itemsize
    length = statistics.mean(len(embeds) for embeds, _ in work)
    answer, rows = statistics.mean(target for _, target in work), min(args.rows, len(work))
    attention = 2 * config.num_hidden_layers * config.hidden_size * length**2
    prefill = (2 * (matrices - head) * length + attention) / flops
    weights = max(matrices * model.dtype.itemsize / speed, 2 * matrices * rows * args.beams / flops)
    step = weights + rows * position * (length + args.beams * answer / 2) / speed
    parts = {"prefill": 1000 * prefill, "decode": 1000 * answer * step / rows}
    return parts | {"total": sum(parts.values())}


def timed(function) -> tuple[list[list[int]], float, float | None]:
    """Result, seconds (of the CPU, or of the wall where a GPU works) and gigabytes of the GPU at the peak."""
    on_gpu = torch.cuda.is_available()
    if on_gpu:
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
    clock = time.monotonic if on_gpu else time.process_time
    started = clock()
    result = function()
    if on_gpu:
        torch.cuda.synchronize()
    return result, clock() - started, torch.cuda.max_memory_allocated() / 1e9 if on_gpu else None


class Bench:
    """One workload, decoded by every way; what was measured so far is in ``seconds``, ``answers`` and the rest."""

    def __init__(self, model, work, args) -> None:
        self.model, self.work, self.args = model, work, args
        self.seconds: dict[str, list[float]] = {way: [] for way in args.ways}
        self.answers, self.memory, self.failed, self.first, self.peak = {}, {}, {}, {}, 0
        engine_module.Beams = ScheduledBeams

    def run(self, way: str) -> None:
        """Decode once by one way; one that runs out of memory is left out from then on."""
        model, work, args, engine = self.model, self.work, self.args, None
        if way.startswith("engine"):
            engine = make_engine(model, args, way == "engine_graphs")
            function = partial(run_engine, engine, work)
        elif way == "espnet_nocache":
            function = partial(run_nocache, model, work, args)
        else:
            batch, by_hand = (1, args.beams) if way == "espnet_hf" else (int(way[3:]), 1)
            function = partial(run_hf, model, work, args, batch, by_hand)
        try:
            if way == "engine_graphs":  # an extent's first step runs as it is, its second is captured
                self.first[way] = (timed(function)[1] + timed(function)[1]) / len(work)
            elif torch.cuda.is_available() and not self.seconds[way]:
                function()  # kernels are loaded and chosen
            self.answers[way], spent, self.memory[way] = timed(function)
        except torch.OutOfMemoryError:
            self.failed[way] = "out of memory"
            print(f"{way}: out of memory", flush=True)
        else:
            count = min(args.nocache, len(work)) if way == "espnet_nocache" else len(work)
            self.seconds[way].append(spent / count)
            print(f"round {len(self.seconds[way])}: {way}: {1000 * spent / count:.1f} ms per utterance", flush=True)
        if way == "engine" and engine.peak_bytes:
            self.peak = engine.peak_bytes
        del engine, function
        gc.collect()
        torch.cuda.empty_cache()

    def result(self) -> dict:
        """All figures: seconds per utterance, ratios, and how many hypotheses agree with the engine's."""
        measured = {way: seconds for way, seconds in self.seconds.items() if seconds}
        own, answers = measured.get("engine", []), self.answers
        ratios = {
            way: statistics.median(other / ours for ours, other in zip(own, seconds, strict=False))
            for way, seconds in measured.items()
            if own
        }
        same = {
            way: sum(a == b for a, b in zip(answers["engine"], answers[way], strict=True))
            for way in measured
            if own and way not in ("engine", "espnet_nocache")
        }
        return {
            "seconds_per_utterance": measured,
            "with_captures": self.first,
            "failed": self.failed,
            "same_hypotheses": same,
            "utterances": len(self.work),
            "mean_prompt": statistics.mean(len(embeds) for embeds, _ in self.work),
            "ratios": ratios,
            "ratio_hf_single": ratios.get("hf_1"),
            "ratio_hf_batched": min(
                (ratios[way] for way in ratios if re.fullmatch(r"hf_[2-9]|hf_\d\d+", way)), default=None
            ),
            "ratio_espnet_hf": ratios.get("espnet_hf"),
            "ratio_espnet_nocache": ratios.get("espnet_nocache"),
            "kv_bytes_ratio": kv_bytes_of_generate(self.model, self.work, self.args) / self.peak if self.peak else None,
            "gigabytes": self.memory,
            "roofline_ms": roofline(self.model, self.work, self.args),
        }


def print_table(result: dict) -> None:
    """One line for each way."""
    print(f"\n{'':16}ms/utt (median)   times the engine's   same hypotheses   GB of the GPU")
    for way, spent in result["seconds_per_utterance"].items():
        ratio, memory = result["ratios"].get(way), result["gigabytes"][way]
        same = f"{result['same_hypotheses'][way]}/{result['utterances']}" if way in result["same_hypotheses"] else "–"
        ratio, memory = (f"{number:.2f}" if number else "–" for number in (ratio, memory))
        print(f"{way:16}{1000 * statistics.median(spent):15.1f}{ratio:>21}{same:>18}{memory:>16}")
    for way, reason in result["failed"].items():
        print(f"{way:16}{reason:>15}")
    parts = ", ".join(f"{name} {value:.3g}" for name, value in result["roofline_ms"].items())
    print(f"roofline, ms per utterance: {parts}; mean prompt {result['mean_prompt']:.0f}")
    if result["kv_bytes_ratio"]:
        print(f"keys and values of generate: {result['kv_bytes_ratio']:.2f} times the engine's")


@torch.inference_mode()
def bench(args) -> list[dict]:
    """Every workload by every way in every round; printed, and written after each run when asked."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    dtype = getattr(torch, args.dtype)
    model = make_model(args.layers, args.width, args.vocabulary, device, dtype)
    name = torch.cuda.get_device_name() if device == "cuda" else "cpu"
    spans = [[round(args.seconds * rate)] * 2 for rate in args.vectors_per_second or []]
    results = []
    for frames in spans or [args.frames]:
        one = Bench(model, make_work(args, frames, device, dtype), args)
        settings = {name: value for name, value in vars(args).items() if name != "json"}
        results.append({})
        for number in range(args.rounds):
            for way in args.ways if number % 2 == 0 else reversed(args.ways):
                if way not in one.failed:
                    one.run(way)
                results[-1] = one.result() | {"frames": frames, "device": name, "settings": settings}
                if args.json:
                    args.json.write_text(json.dumps(results, indent=1), encoding="utf-8")
        print_table(results[-1])
    return results


def way_of(text: str) -> str:
    """A known way, or ``hf_<batch>``."""
    if text in (*WAYS, "engine_graphs") or re.fullmatch(r"hf_[1-9]\d*", text):
        return text
    raise argparse.ArgumentTypeError(f"'{text}' is none of {', '.join(WAYS)}, engine_graphs, hf_<batch>")


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    """Options; a preset's stand in for those that are not given."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--preset", choices=PRESETS)
    parser.add_argument("--scale", type=float, default=1.0, help="Makes the preset's model and work smaller")
    parser.add_argument("--utterances", type=int, default=24)
    parser.add_argument("--frames", type=int, nargs=2, default=[60, 400], help="Speech vectors of a prompt")
    parser.add_argument("--seconds", type=float, default=5.0, help="Of speech, with --vectors_per_second")
    parser.add_argument("--vectors_per_second", type=float, nargs="+", help="Instead of --frames; a table for each")
    parser.add_argument("--answer", type=int, nargs=2, default=[15, 40], help="Tokens of an answer")
    parser.add_argument("--beams", type=int, default=5)
    parser.add_argument("--rows", type=int, default=16, help="Utterances at work in the engine")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--nocache", type=int, default=2, help="Utterances for the way without cache")
    parser.add_argument("--ways", nargs="+", default=list(WAYS), type=way_of)
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--vocabulary", type=int, default=32000)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--tflops", type=float, default=790.0, help="Products of the device, for the roofline (H200)")
    parser.add_argument("--terabytes", type=float, default=4.3, help="A second of its memory (H100: about 3)")
    parser.add_argument("--json", type=Path)
    preset = parser.parse_known_args(argv)[0]
    if preset.preset:
        values, scale = PRESETS[preset.preset], preset.scale
        sizes = {name: max(1, round(scale * values[name])) for name in ("layers", "utterances", "rows")}
        width = max(64, round(scale * values["width"] / 64) * 64)
        parser.set_defaults(**values | sizes | {"width": width, "vocabulary": max(100, round(scale * 32000))})
    return parser.parse_args(argv)


def main() -> None:
    """Print a table; write JSON when asked."""
    torch.set_num_threads(1)
    bench(parse())


if __name__ == "__main__":
    main()
