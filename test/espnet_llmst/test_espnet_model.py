"""The joined model: loss, gradients, modes and checkpoints."""

import pytest
import torch

from espnet_llmst.cli import InputError
from espnet_llmst.espnet_model import foundation_names


@pytest.fixture
def batch():
    generator = torch.Generator().manual_seed(0)

    def ids(*lengths):
        rows = torch.randint(3, 60, (len(lengths), max(lengths)), generator=generator)
        return rows * (torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]), torch.tensor(lengths)

    speech = 0.1 * torch.randn(3, 20000, generator=generator)
    values = {"speech": (speech, torch.tensor([20000, 9000, 14000]))}
    values |= {"prefix": ids(4, 2, 3), "suffix": ids(5, 6, 3), "text": ids(7, 3, 5)}
    result = {}
    for name, (tensor, lengths) in values.items():
        result |= {name: tensor, f"{name}_lengths": lengths}
    return result


def row(batch, i):
    lengths = {k: v[i : i + 1] for k, v in batch.items() if k.endswith("_lengths")}
    return lengths | {k: v[i : i + 1, : lengths[f"{k}_lengths"]] for k, v in batch.items() if k not in lengths}


def test_batch_loss_is_the_token_weighted_mean_of_single_losses(build_model, batch):
    model = build_model().eval()
    loss, stats, weight = model(**batch)
    singles = [model(**row(batch, i)) for i in range(3)]
    assert weight.item() == 15 and [int(w) for *_, w in singles] == [7, 3, 5]
    torch.testing.assert_close(loss, sum(one * w for one, _, w in singles) / 15, atol=1e-5, rtol=1e-5)


def test_loss_equals_transformers_own(build_model, batch):
    model = build_model().eval()
    one = row(batch, 1)
    loss, _, _ = model(**one)
    prompt = model.embed_prompts(*_args(one))[0]
    embeds = torch.cat([prompt, model.decoder.embed(one["text"])[0]])[None]
    labels = torch.cat([torch.full((1, len(prompt)), -100), one["text"]], dim=1)
    torch.testing.assert_close(loss[0], model.decoder.lm(inputs_embeds=embeds, labels=labels).loss)


def _args(one):
    return [one[f"{n}{s}"] for n in ("speech", "prefix", "suffix") for s in ("", "_lengths")]


@pytest.mark.parametrize(
    "trainable",
    [
        ["postencoder"],
        ["postencoder", "encoder.lora", "decoder.lora"],
        ["decoder.lora"],
        ["postencoder", "decoder"],
    ],
)
def test_gradient_reaches_exactly_the_trainable_set(build_model, batch, trainable):
    model = build_model(trainable=trainable).train()
    for _ in range(2):  # LoRA's A gets a gradient once B is no longer zero
        optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
        optimizer.zero_grad()
        model(**batch)[0].backward()
        optimizer.step()
    reached = {n for n, p in model.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}
    expected = {n for n, _ in model.named_parameters() if any(_belongs(n, entry) for entry in trainable)}
    expected.discard("encoder.encoder.embed_positions.weight")
    assert reached == expected and reached


def _belongs(name, entry):
    part, _, kind = entry.partition(".")
    return name.startswith(f"{part}.") and (not kind or "lora_" in name)


def test_frozen_parts_are_in_eval_mode_and_lora_dropout_is_not(build_model):
    model = build_model(trainable=["postencoder", "encoder.lora"]).train()
    modes = {name: module.training for name, module in model.named_modules()}
    dropouts = [n for n in modes if n.endswith("lora_dropout.default")]
    trained = [n for n in modes if n.startswith("postencoder") or n in dropouts and n.startswith("encoder")]
    assert trained and all(modes[n] for n in trained)
    frozen = [n for n in modes if n.startswith(("encoder.encoder", "decoder")) and n not in trained]
    frozen = [n for n in frozen if "lora_" not in n or n in dropouts]  # the decoder's adapters are of an earlier phase
    assert any(n in dropouts for n in frozen) and not any(modes[n] for n in frozen if n != "")
    assert not any(module.training for module in model.eval().modules())


def test_checkpoint_holds_trained_tensors_only_and_loads_strictly(build_model, batch):
    model = build_model().train()
    state = model.state_dict()
    assert state.keys() == {n for n, p in model.named_parameters() if p.requires_grad}
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.01)
    other = build_model()
    other.load_state_dict(model.state_dict())
    torch.testing.assert_close(other.eval()(**batch)[0], model.eval()(**batch)[0], rtol=0, atol=0)
    name = next(iter(state))
    with pytest.raises(RuntimeError, match="Missing key"):
        other.load_state_dict({k: v for k, v in state.items() if k != name})
    with pytest.raises(RuntimeError, match="Unexpected key"):
        other.load_state_dict({**state, "decoder.nothing": torch.zeros(1)})


def test_a_later_phase_keeps_what_an_earlier_one_trained(build_model):
    first = build_model(trainable=["postencoder"])
    second = build_model(trainable=["decoder.lora"])
    assert any(name.startswith("postencoder") for name in foundation_names(second))
    second.load_state_dict({**second.state_dict(), **first.state_dict()})
    assert first.state_dict().keys() < second.state_dict().keys()


def test_trainable_entry_without_parameters_is_one_clear_line(build_model, task_config):
    with pytest.raises(InputError, match="'encoder.lora' selects no parameter; give that part a lora"):
        build_model(encoder_conf={"model": task_config["encoder_conf"]["model"]})
    with pytest.raises(InputError, match="the parts are: encoder, postencoder, decoder"):
        build_model(trainable=["connector"])


def test_dtype_change_spares_frozen_weights(build_model, task_config):
    model = build_model(decoder_conf={**task_config["decoder_conf"], "dtype": "bfloat16"})
    model.to(dtype=torch.float32)
    dtypes = {p.requires_grad: p.dtype for n, p in model.named_parameters() if n.startswith("decoder")}
    assert dtypes == {True: torch.float32, False: torch.bfloat16}


def test_bfloat16_autocast_is_close_to_float32(build_model, batch):
    exact = build_model().eval()(**batch)[0]
    mixed = build_model(model_conf={"autocast": "bfloat16"}).eval()(**batch)[0]
    assert mixed != exact and abs(mixed - exact) < 0.05


def test_float32_leaves_the_autocast_of_use_amp_in_force(build_model, batch):
    model = build_model().eval()
    loss, *_ = model(**batch)
    with torch.autocast("cpu", torch.bfloat16):
        mixed, *_ = model(**batch)
    torch.testing.assert_close(mixed, loss, rtol=0.02, atol=0.02)
    assert mixed != loss


def test_whispers_positions_stay_as_published(build_model):
    model = build_model(trainable=["encoder", "postencoder"])
    frozen = [name for name, p in model.encoder.named_parameters() if not p.requires_grad]
    assert frozen == ["encoder.embed_positions.weight"]
    assert model.train().encoder.encoder.training


def silence(batch, rows):
    """The batch with the speech of some rows taken away: prompts of the task mt."""
    lengths = batch["speech_lengths"].clone()
    lengths[rows] = 0
    return batch | {"speech_lengths": lengths}


def test_prompts_without_speech_mix_with_those_that_have_it(build_model, batch):
    model = build_model().eval()
    mixed = model.embed_prompts(*_args(silence(batch, [1])))
    spoken = model.embed_prompts(*_args(batch))
    torch.testing.assert_close(mixed[0], spoken[0], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(mixed[1], model.decoder.embed(row(batch, 1)["prefix"])[0])


SMALL = {"num_layers": 2, "width": 16, "heads": 2, "ffn": 32}
CONNECTORS = {
    "mlp": {},
    "conv_linear": {"channels": 16},
    "qformer": {**SMALL, "num_queries": 3},
    "subsampler_transformer": {**SMALL, "channels": 16},
}


@pytest.mark.parametrize("connector", CONNECTORS)
def test_a_batch_without_speech_gives_zero_gradients(connector, build_model, batch):
    """To the speech parts that are trained: of several processes all use the same parameters in every batch."""
    trained = {"trainable": ["postencoder", "encoder.lora"], "postencoder_conf": CONNECTORS[connector]}
    model = build_model(postencoder=connector, **trained)
    loss = model(**silence(batch, [0, 1, 2]))[0]
    loss.backward()
    for name, parameter in model.named_parameters():
        assert not parameter.requires_grad or (parameter.grad == 0).all(), name
    frozen = build_model(postencoder=connector, **{**trained, "trainable": ["decoder.lora"]})
    assert torch.equal(loss, frozen(**silence(batch, [0, 1, 2]))[0])


def test_a_model_without_encoder_reads_text_and_refuses_speech(build_model, batch):
    model = build_model(encoder=None, postencoder=None, trainable=["decoder.lora"]).eval()
    assert model.encoder is None and torch.isfinite(model(**silence(batch, [0, 1, 2]))[0])
    with pytest.raises(InputError, match="reads text only"):
        model(**batch)
    with pytest.raises(InputError, match="give both, or null for both"):
        build_model(encoder=None)
