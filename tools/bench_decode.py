"""Times the decoding engine against transformers' ``generate`` and ESPnet's two ways, on the same work in one run.

    python tools/bench_decode.py --utterances 24 --rounds 2 --json bench.json

A Llama with random weights (hidden 512, 8 layers, vocabulary 32,000: 58 M parameters) reads prompts of random vectors;
where an answer ends is set by a schedule that every way obeys. Times are CPU seconds of one thread (GPU: wall), the
order of the ways alternates from round to round, and ratios are taken inside a round.

- engine: ours, 16 utterances at a time;
- hf_1, hf_8: ``generate`` one by one, and in batches of 8 of about equal length;
- espnet_hf: as ESPnet 202511's hugging_face_decoder runs a causal model: the prompt is repeated once per beam by hand
  and once more by ``generate``;
- espnet_nocache: ESPnet's BatchBeamSearch with the whole forward pass as its scorer, repaired to see the speech. Its
  search ends by rules of its own, so its hypotheses differ.

Shapes: N utterances, K beams, V vocabulary, L prompt length, D width.
"""

import argparse
import json
import statistics
import time

import torch
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, LogitsProcessor, LogitsProcessorList

import espnet_llmst.search.engine as engine_module
from espnet_llmst.search.beams import Beams
from espnet_llmst.search.engine import Engine, Prompt
from espnet_llmst.search.options import SearchOptions

EOS, LATE, NOW = 2, -20.0, -0.01  # log-probability of the end of sequence before and from the target length on
WAYS = ("engine", "hf_1", "hf_8", "espnet_hf", "espnet_nocache")


class ScheduledBeams(Beams):
    """Beams whose utterances end by the schedule; a prompt's limit is its target length."""

    def admit(self, rows: slice, limits: torch.Tensor, seeds: list[int]) -> None:
        if not hasattr(self, "target_N"):
            self.target_N = torch.zeros_like(self.limit_N)
        super().admit(rows, torch.full_like(limits, self.options.max_new_tokens), seeds)
        self.target_N[rows] = limits

    def _change(self, logits_NKV: torch.Tensor, norm_NK: torch.Tensor, rows: slice) -> None:
        due_N = self.length_N[rows] + 1 >= self.target_N[rows]
        logits_NKV[..., EOS] = torch.where(due_N, NOW, LATE)[:, None] + norm_NK


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
    model = LlamaForCausalLM(config)
    for parameter in model.parameters():
        if parameter.ndim == 2:
            parameter.data.mul_(3)
    return model.to(device, dtype).eval()


def make_work(args, width: int, device: str, dtype: torch.dtype) -> list[tuple[torch.Tensor, int]]:
    """Prompts (L, D), the longest first, each with the length of its answer."""
    generator = torch.Generator().manual_seed(1)
    work = []
    for _ in range(args.utterances):
        size = 20 + int(torch.randint(args.frames[0], args.frames[1] + 1, (1,), generator=generator))
        target = int(torch.randint(args.answer[0], args.answer[1] + 1, (1,), generator=generator))
        work.append((torch.randn(size, width, generator=generator).to(device, dtype), target))
    return sorted(work, key=lambda item: -len(item[0]))


class Decoder:
    """What the engine needs of a decoder."""

    def __init__(self, lm) -> None:
        self.lm = lm


def run_engine(model, work, args) -> tuple[list[list[int]], int]:
    """Ours; also the peak of bytes that keys and values took."""
    options = SearchOptions(beam_size=args.beams, max_new_tokens=64, min_new_tokens=1)
    engine = Engine(Decoder(model), EOS, options, rows=args.rows)
    found = dict(engine.decode(Prompt(str(n), embeds, target) for n, (embeds, target) in enumerate(work)))
    return [found[str(n)][0][0] for n in range(len(work))], engine.peak_bytes


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


def timed(function, *arguments):
    """Result and seconds: of the CPU, or of the wall where a GPU works."""
    clock = time.monotonic if torch.cuda.is_available() else time.process_time
    started = clock()
    result = function(*arguments)
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return result, clock() - started


@torch.inference_mode()
def bench(args) -> dict:
    """Run every way in every round; seconds per utterance, ratios and whether the hypotheses agree."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    dtype = getattr(torch, args.dtype)
    model = make_model(args.layers, args.width, args.vocabulary, device, dtype)
    work = make_work(args, args.width, device, dtype)
    ways = {
        "engine": lambda: run_engine(model, work, args),
        "hf_1": lambda: run_hf(model, work, args, 1),
        "hf_8": lambda: run_hf(model, work, args, 8),
        "espnet_hf": lambda: run_hf(model, work, args, 1, args.beams),
        "espnet_nocache": lambda: run_nocache(model, work, args),
    }
    seconds, answers, peak = {way: [] for way in args.ways}, {}, 0
    engine_module.Beams = ScheduledBeams
    for number in range(args.rounds):
        for way in args.ways if number % 2 == 0 else reversed(args.ways):
            answer, spent = timed(ways[way])
            if way == "engine":
                answer, peak = answer
            count = min(args.nocache, len(work)) if way == "espnet_nocache" else len(work)
            seconds[way].append(spent / count)
            answers[way] = answer
            print(f"round {number + 1}: {way}: {spent / count:.3f} s per utterance", flush=True)
    same = {
        way: sum(a == b for a, b in zip(answers["engine"], answers[way], strict=True))
        for way in args.ways
        if way in ("hf_1", "hf_8", "espnet_hf")
    }
    ratios = {
        way: statistics.median(other / own for own, other in zip(seconds["engine"], seconds[way], strict=True))
        for way in args.ways
    }
    return {
        "seconds_per_utterance": seconds,
        "same_hypotheses": same,
        "utterances": len(work),
        "ratio_hf_single": ratios.get("hf_1"),
        "ratio_hf_batched": ratios.get("hf_8"),
        "ratio_espnet_hf": ratios.get("espnet_hf"),
        "ratio_espnet_nocache": ratios.get("espnet_nocache"),
        "kv_bytes_ratio": kv_bytes_of_generate(model, work, args) / max(1, peak),
        "settings": {name: value for name, value in vars(args).items() if name != "json"},
    }


def main() -> None:
    """Print a table; write JSON when asked."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--utterances", type=int, default=24)
    parser.add_argument("--frames", type=int, nargs=2, default=[60, 400], help="Speech vectors of a prompt")
    parser.add_argument("--answer", type=int, nargs=2, default=[15, 40], help="Tokens of an answer")
    parser.add_argument("--beams", type=int, default=5)
    parser.add_argument("--rows", type=int, default=16, help="Utterances at work in the engine")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--nocache", type=int, default=2, help="Utterances for the way without cache")
    parser.add_argument("--ways", nargs="+", default=list(WAYS), choices=WAYS)
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--vocabulary", type=int, default=32000)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--json")
    args = parser.parse_args()
    torch.set_num_threads(1)
    result = bench(args)
    print(f"\n{'':16}s/utt (median)   times the engine's   same hypotheses")
    for way, spent in result["seconds_per_utterance"].items():
        ratio = statistics.median(spent) / statistics.median(result["seconds_per_utterance"]["engine"])
        same = f"{result['same_hypotheses'][way]}/{result['utterances']}" if way in result["same_hypotheses"] else "–"
        print(f"{way:16}{statistics.median(spent):10.3f}{ratio:18.2f}{same:>18}")
    print(f"keys and values of generate: {result['kv_bytes_ratio']:.2f} times the engine's")
    if args.json:
        with open(args.json, "w", encoding="utf-8") as file:
            json.dump(result, file, indent=1)


if __name__ == "__main__":
    main()
