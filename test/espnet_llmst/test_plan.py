"""Plans: budgets that hold, steps of an epoch, the search for what fits."""

import json

import pytest
import torch
import yaml
from torch._subclasses.fake_tensor import FakeTensorMode

from espnet_llmst import plan as plans
from espnet_llmst.bin import llmst_plan
from espnet_llmst.cli import InputError
from espnet_llmst.datadir.kaldi import write_table
from espnet_llmst.plan import budget_for, largest_that_fits, load_phase, plan, read_shapes, sizes_of
from espnet_llmst.step_memory import Shape, step_memory, without_content
from espnet_llmst.summary import speech_sizes
from espnet_llmst.train.token_batches import fill_batches

GIB = 2**30
QFORMER = {
    "postencoder": "qformer",
    "postencoder_conf": {"num_queries": 8, "num_layers": 2, "width": 16, "heads": 2, "ffn": 32},
}


@pytest.fixture
def phase(task_config, tmp_path):
    """A phase's YAML and its stats: utterances of 0.2 to 3 s, long ones with more text."""

    def write(**changes):
        path = tmp_path / "phase.yaml"
        path.write_text(yaml.safe_dump({**task_config, "batch_type": "sorted", "batch_size": 8, **changes}))
        frames = {f"utt{n}": 10 + n for n in range(140)}
        write_table(tmp_path / "stats/speech_shape", {utt: str(n) for utt, n in frames.items()})
        write_table(tmp_path / "stats/text_shape", {utt: str(20 + n // 3) for utt, n in frames.items()})
        return path, tmp_path / "stats"

    return write


@pytest.mark.parametrize("changes", [{}, QFORMER], ids=["mlp", "qformer"])
def test_suggested_batches_fit(changes, phase):
    """No batch of the suggested budget, run by itself, needs more than the memory asked for; and not far less."""
    path, stats = phase(**changes)
    memory = 0.03
    found = plan(path, memory, stats, 2, Shape(0, 1))
    _, model = load_phase(path)
    measure, shapes = speech_sizes(model), read_shapes(stats)
    sizes = {utt: sizes_of(shape, measure) for utt, shape in shapes.items()}
    budget = found["suggested"]
    batches = fill_batches(sizes, budget["batch_bins"], budget["batch_frames"], 2)
    assert budget["batches"] == budget["updates"] == len(batches) > 2
    without_content(model, FakeTensorMode(allow_non_fake_inputs=True))
    most = 0
    for batch in (batches[0], batches[-1]):
        longest = Shape(*(max(getattr(shapes[utt], name) for utt in batch) for name in ("samples", "tokens")))
        most = max(most, sum(step_memory(model, -(-len(batch) // 2), longest).values()) + sum(found["state"].values()))
    assert 0.6 * memory * GIB < most < memory * GIB
    assert found["configured"]["batches"] == 17 and found["configured"]["bytes"] > sum(found["state"].values())


@pytest.mark.parametrize("room", [0, 1, 2, 7, 8, 1000])
def test_search_ends_at_the_largest_that_fits(room):
    tried = []

    def attempt(number: int) -> None:
        tried.append(number)
        if number > room:
            raise torch.OutOfMemoryError("CUDA out of memory")

    assert largest_that_fits(attempt) == room and len(tried) == len(set(tried)) <= 22


def test_other_errors_are_not_taken_for_a_full_memory():
    def attempt(_: int) -> None:
        raise RuntimeError("mat1 and mat2 shapes")

    with pytest.raises(RuntimeError, match="mat1"):
        largest_that_fits(attempt)


def test_command(phase, capsys):
    path, stats = phase(accum_grad=2)
    llmst_plan.main([str(path), "--gpu_memory", "0.03", "--stats_dir", str(stats), "--json"])
    (found,) = json.loads(capsys.readouterr().out)
    assert found["suggested"]["updates"] == found["suggested"]["batches"] // 2
    assert found["longest"]["seconds"] == 149 * 0.02 and found["longest"]["tokens"] == 20 + 149 // 3
    text = plans.as_text(found)
    assert "batch_type: tokens, batch_bins: " in text and "as configured: 17 batches, 8 updates an epoch" in text


def test_bad_input(phase, units_dir, wav2vec2_dirs):
    with pytest.raises(InputError, match="trains nothing"):
        load_phase(phase(trainable=[])[0])
    units = {"model": wav2vec2_dirs["hubert"], "layer": 1, "kmeans": units_dir}
    with pytest.raises(InputError, match="number of units depends on what is said"):
        load_phase(phase(encoder="units", encoder_conf=units, trainable=["postencoder"])[0])
    with pytest.raises(InputError, match="--gpus and --tokens must be above 0"):
        llmst_plan.main(["x.yaml", "--gpu_memory", "0"])
    with pytest.raises(InputError, match="--gpu_memory: the model's state and a step's fixed part take all of it"):
        budget_for(-1.0, plans.Costs(0, 1, 1), 1.0)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_trying_needs_a_gpu(phase):
    with pytest.raises(InputError, match="--try_gpu: torch finds no GPU"):
        plans.try_on_gpu(phase()[0], {})
