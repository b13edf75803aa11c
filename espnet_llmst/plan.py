"""The largest batches that a GPU's memory holds: by arithmetic for any GPU, or by trying on one that is there.

Memory of a step grows with the positions of the language model and with the frames of the encoder, padding included;
how much with each follows from steps of different shapes, see `espnet_llmst.step_memory`.
"""

from argparse import Namespace
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import mean

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from espnet_llmst.cli import InputError
from espnet_llmst.datadir.kaldi import read_table
from espnet_llmst.espnet_model import ESPnetLLMSTModel
from espnet_llmst.step_memory import Shape, batch_of, can_be_run, step_memory, without_content
from espnet_llmst.summary import build_empty, memory_of, read_phase, speech_sizes
from espnet_llmst.tasks.llmst import training_batches
from espnet_llmst.train.shapes import SAMPLES_PER_FRAME
from espnet_llmst.train.token_batches import TOKENS, fill_batches

MARGIN = 0.1  # of the memory: CUDA's own, fragments of the allocator, kernels' workspaces
ROWS = 2  # of a trial step
TEXT = 64  # tokens by which two trial steps differ


@dataclass(frozen=True)
class Costs:
    """Bytes of activations: ``fixed`` for a step, then for each position and each encoder frame of its batch."""

    fixed: float
    position: float
    frame: float

    def of(self, positions: float, frames: float) -> float:
        """Bytes of a batch of so many, padding included."""
        return self.fixed + self.position * positions + self.frame * frames


def sizes_of(shape: Shape, measure: Callable | None) -> tuple[int, int]:
    """(positions, encoder frames) of an utterance."""
    vectors, frames = measure(shape.samples) if measure and shape.samples else (0, 1)
    return vectors + shape.tokens, frames


def read_shapes(directory: Path) -> dict[str, Shape]:
    """The utterances of a stats folder of stage 5 (``stats/train``)."""
    frames, tokens = read_table(directory / "speech_shape"), read_table(directory / "text_shape")
    return {utt: Shape(int(n) * SAMPLES_PER_FRAME, int(tokens[utt])) for utt, n in frames.items()}


def costs_of(model: ESPnetLLMSTModel, long: Shape, short: Shape, measure: Callable | None) -> tuple[Costs, dict]:
    """Costs of a model of `without_content`, and what a batch of ``ROWS`` long utterances takes by part."""

    def total(rows: int, shape: Shape) -> float:
        return sum(step_memory(model, rows, shape).values())

    by_part = step_memory(model, ROWS, long)
    both, one = sum(by_part.values()), total(1, long)
    row = (both - one) / (ROWS - 1)
    fixed = max(0.0, one - row)
    more = Shape(long.samples, long.tokens + TEXT)
    position = max(0.0, (total(ROWS, more) - both) / (ROWS * TEXT))
    # A Q-Former's queries cost the same in every utterance, hence most per frame in a short one.
    rows = [(row, long), ((total(ROWS, short) - fixed) / ROWS, short)]
    sizes = [(size, *sizes_of(shape, measure)) for size, shape in rows]
    frame = max(0.0, *((size - position * positions) / frames for size, positions, frames in sizes))
    return Costs(fixed, position, frame), by_part


def budget_for(room: float, costs: Costs, frames_per_position: float) -> tuple[int, int]:
    """(batch_bins, batch_frames) of one GPU that has so many bytes for activations.

    Raises:
        InputError: there is no room for any batch.
    """
    bins = (room - costs.fixed) / (costs.position + costs.frame * frames_per_position)
    if bins < 1:
        raise InputError(
            "--gpu_memory: the model's state and a step's fixed part take all of it; take more GPUs (FSDP), fewer "
            "trained parts, a smaller lora: r, or dtype: bfloat16"
        )
    return int(bins), max(1, int(bins * frames_per_position))


def largest_that_fits(attempt: Callable[[int], object]) -> int:
    """The largest number with which ``attempt`` does not run out of memory: doubled, then bisected; 0 for none."""
    fits, fails = 0, None
    while fails is None or fails - fits > 1:
        number = max(1, 2 * fits) if fails is None else (fits + fails) // 2
        try:
            attempt(number)
            fits = number
        except torch.OutOfMemoryError:
            fails = number
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
    return fits


def try_on_gpu(path: Path, found: dict) -> dict[str, int]:
    """How many of a plan's longest utterances a step holds on the GPU at hand, and the bytes it then takes.

    Weights are whatever lies in memory, for only their sizes matter.

    Raises:
        InputError: no GPU, weights in 4 bits, which cannot be made without the model, or not one utterance fits.
    """
    args, model = load_phase(path)
    if not torch.cuda.is_available():
        raise InputError("--try_gpu: torch finds no GPU; leave it out to plan by arithmetic")
    if args.decoder_conf.get("quantize"):
        raise InputError("--try_gpu: decoder_conf.quantize needs the model's weights; leave it out")
    model.to_empty(device="cuda")
    optimizer = torch.optim.AdamW(p for p in model.parameters() if p.requires_grad)
    shape = Shape(round(found["longest"]["seconds"] * 16000), found["longest"]["tokens"])

    def step(rows: int) -> None:
        try:
            model(**{name: tensor.cuda() for name, tensor in batch_of(rows, shape).items()})[0].backward()
            optimizer.step()  # from the first time on its state is there
        finally:
            optimizer.zero_grad()

    rows = largest_that_fits(step)
    if not rows:
        raise InputError("--try_gpu: this GPU does not hold one utterance of that length")
    torch.cuda.reset_peak_memory_stats()
    step(rows)
    return {"fit": rows, "bytes": torch.cuda.max_memory_allocated()}


def load_phase(path: Path) -> tuple[Namespace, ESPnetLLMSTModel]:
    """A phase's settings and its model on the meta device, as it will train on a GPU.

    Raises:
        InputError: it trains nothing, or shapes alone do not tell its memory.
    """
    args = read_phase(path)
    if not args.trainable:
        raise InputError(f"{path}: trains nothing")
    model = build_empty(args)
    if not can_be_run(model):
        raise InputError(f"{path}: the number of units depends on what is said, so memory cannot be told in advance")
    model.cache_folder = None  # in the first epoch the encoder is run
    if model.precision == "auto":
        model.precision = "bfloat16"
    return args, model.train()


def plan(path: Path, gpu_memory: float, stats: Path | None, gpus: int, longest: Shape) -> dict:
    """Expected memory of a phase on each GPU, and the largest batches.

    Args:
        path: the phase's YAML.
        gpu_memory: of each GPU, in GiB; a tenth is left free.
        stats: folder with the phase's ``speech_shape`` and ``text_shape`` (stage 5); or None.
        gpus: processes of the training; each holds the whole model (DDP).
        longest: the longest utterance, without ``stats``.

    Returns:
        config; state: bytes of weights, gradients, optimizer; activations: bytes by part of ``ROWS`` of the longest;
        costs, see `Costs`; longest: its seconds, tokens, positions, and how many such fit on a GPU; suggested:
        batch_bins and batch_frames of all GPUs, and with ``stats`` batches and updates of an epoch; with ``stats``
        also configured: batches, updates and the largest batch's bytes as the YAML has it.

    Raises:
        InputError: see `load_phase` and `budget_for`.
    """
    args, model = load_phase(path)
    measure = speech_sizes(model) if model.encoder is not None else None
    memory = memory_of(model, args.decoder_conf.get("quantize"))
    state = {name: memory[name] for name in ("weights", "gradients", "optimizer")}
    shapes = read_shapes(stats) if stats else {"longest": longest}
    sizes = {utt: sizes_of(shape, measure) for utt, shape in shapes.items()}
    order = sorted(shapes, key=lambda utt: (sizes[utt][1], sizes[utt][0]))
    long, most = shapes[order[-1]], sizes[order[-1]]
    without_content(model, FakeTensorMode(allow_non_fake_inputs=True))
    costs, by_part = costs_of(model, long, shapes[order[0]], measure)
    room = gpu_memory * 2**30 * (1 - MARGIN) - sum(state.values())
    bins, frames = budget_for(room, costs, mean(f for _, f in sizes.values()) / mean(p for p, _ in sizes.values()))
    found = {
        "config": str(path),
        "state": state,
        "activations": by_part,
        "costs": vars(costs),
        "longest": {
            "seconds": long.samples / 16000,
            "tokens": long.tokens,
            "positions": most[0],
            "fit": int((room - costs.fixed) / (costs.of(*most) - costs.fixed)),
        },
        "suggested": {"batch_bins": bins * gpus, "batch_frames": frames * gpus},
    }
    if stats:
        batches = fill_batches(sizes, bins * gpus, frames * gpus, gpus)
        found["suggested"] |= steps_of(batches, args.accum_grad)
        batches = configured_batches(args, stats, sizes, gpus)
        found["configured"] = steps_of(batches, args.accum_grad)
        found["configured"]["bytes"] = sum(state.values()) + max(_bytes(batch, sizes, costs, gpus) for batch in batches)
    return found


def configured_batches(args: Namespace, stats: Path, sizes: dict, gpus: int) -> list[tuple[str, ...]]:
    """An epoch's batches by the settings of the phase."""
    if args.batch_type == TOKENS:
        return fill_batches(sizes, args.batch_bins, args.batch_frames, gpus)
    files = [str(stats / "speech_shape"), str(stats / "text_shape")]
    changes = {"train_shape_file": files, "distributed": False, "min_batch_size": gpus}
    return training_batches(Namespace(**{**vars(args), **changes}))


def steps_of(batches: list, accum_grad: int) -> dict[str, int]:
    """Batches and updates of an epoch."""
    return {"batches": len(batches), "updates": len(batches) // accum_grad}


def _bytes(batch: tuple[str, ...], sizes: dict, costs: Costs, gpus: int) -> float:
    rows = -(-len(batch) // gpus)
    return costs.of(*(rows * max(sizes[utt][n] for utt in batch) for n in range(2)))


def as_text(found: dict) -> str:
    """A plan for the terminal."""
    state, longest, suggested = found["state"], found["longest"], found["suggested"]
    parts = ", ".join(f"{name} {size / 2**30:.2f}" for name, size in found["activations"].items())
    lines = [
        found["config"],
        f"  state (GiB): {', '.join(f'{name} {size / 2**30:.2f}' for name, size in state.items())}",
        f"  activations (GiB) of {ROWS} of the longest utterances, {longest['seconds']:.1f} s, "
        f"{longest['tokens']} tokens, {longest['positions']} positions: {parts}",
        f"  of each GPU's memory {MARGIN:.0%} is left free; {longest['fit']} such utterances fit on one",
        f"  suggested: batch_type: {TOKENS}, " + ", ".join(f"{name}: {size}" for name, size in suggested.items()),
    ]
    if "configured" in found:
        now = found["configured"]
        lines.append(
            f"  as configured: {now['batches']} batches, {now['updates']} updates an epoch; "
            f"the largest takes {now['bytes'] / 2**30:.1f} GiB of each GPU"
        )
    if "tried" in found:
        tried = found["tried"]
        lines.append(f"  tried: {tried['fit']} of the longest fit on this GPU, with {tried['bytes'] / 2**30:.1f} GiB")
    return "\n".join(lines)
