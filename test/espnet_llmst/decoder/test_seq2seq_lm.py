"""A translator through our decoder equals plain transformers, entered at its encoder or at its decoder."""

import pytest
import torch
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

from espnet_llmst.cli import InputError
from espnet_llmst.decoder.seq2seq_lm import Seq2SeqLMDecoder
from espnet_llmst.lora import set_train_mode, set_trainable
from espnet_llmst.search.generate import SearchOptions, search

LENGTHS = (9, 4, 6)


@pytest.fixture(params=["marian_dir", "t5_dir"])
def directory(request):
    return request.getfixturevalue(request.param)


@pytest.fixture
def parts(directory):
    """Our decoders, the plain model, source ids, and the prompts that stand for them at either entry."""
    plain = AutoModelForSeq2SeqLM.from_pretrained(directory).eval()
    decoders = {entry: Seq2SeqLMDecoder(directory, entry=entry).eval() for entry in ("encoder", "decoder")}
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():  # lively enough not to repeat one token
        for model in (plain, *decoders.values()):
            for parameter in model.parameters():
                parameter.mul_(2)
    sources = [torch.randint(3, 60, (n,), generator=generator) for n in LENGTHS]
    scale = getattr(plain.get_encoder(), "embed_scale", 1.0)  # Marian scales ids' embeddings, not ready-made ones
    prompts = {
        "encoder": [decoders["encoder"].embed(ids).detach() * scale for ids in sources],
        "decoder": [plain.get_encoder()(ids[None]).last_hidden_state[0].detach() for ids in sources],
    }
    return plain, decoders, sources, prompts


@pytest.mark.parametrize("entry", ["encoder", "decoder"])
def test_logits_equal_transformers(parts, entry):
    plain, decoders, sources, prompts = parts
    targets = torch.randint(3, 60, (3, 7), generator=torch.Generator().manual_seed(1))
    lengths = torch.tensor([7, 3, 5])
    padded = torch.nn.utils.rnn.pad_sequence(prompts[entry], batch_first=True)
    logits, counts = decoders[entry](padded, torch.tensor(LENGTHS), targets, lengths)
    assert counts.sum() == len(logits) == 15
    start = torch.tensor([plain.config.decoder_start_token_id])
    expected = torch.cat(
        [
            plain(input_ids=ids[None], decoder_input_ids=torch.cat([start, y[: n - 1]])[None]).logits[0]
            for ids, y, n in zip(sources, targets, lengths.tolist(), strict=True)
        ]
    )
    torch.testing.assert_close(logits, expected, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("entry", ["encoder", "decoder"])
def test_what_gets_no_gradient_is_never_trained(parts, entry):
    """Marian's tables of positions, and the text encoder where speech enters behind it; dropout acts all the same."""
    plain, decoders, _, prompts = parts
    decoder = decoders[entry]
    set_trainable(decoder, ["lm"])
    set_train_mode(decoder)
    padded = torch.nn.utils.rnn.pad_sequence(prompts[entry], batch_first=True).requires_grad_()
    logits, _ = decoder(padded, torch.tensor(LENGTHS), torch.full((3, 7), 5), torch.tensor([7, 3, 5]))
    logits.square().sum().backward()
    for name, parameter in decoder.named_parameters():
        assert parameter.requires_grad == (parameter.grad is not None), name
        assert not (parameter.requires_grad and "embed_positions" in name)
    assert decoder.lm.get_decoder().training
    trained = [name for name, p in decoder.lm.get_encoder().named_parameters() if p.requires_grad]
    assert any("layer" in name or "block" in name for name in trained) == (entry == "encoder")


@pytest.mark.parametrize("entry", ["encoder", "decoder"])
@pytest.mark.parametrize("beam_size", [1, 3])
def test_hypotheses_equal_transformers_one_by_one(parts, directory, entry, beam_size):
    plain, decoders, sources, prompts = parts
    tokenizer = AutoTokenizer.from_pretrained(directory)
    options = SearchOptions(beam_size=beam_size, max_new_tokens=12)
    found = search(decoders[entry], tokenizer, prompts[entry], options)
    special = {tokenizer.eos_token_id, tokenizer.pad_token_id}
    for ids, ((ours, score),) in zip(sources, found, strict=True):
        output = plain.generate(ids[None], num_beams=beam_size, do_sample=False, max_new_tokens=12, max_length=None)
        assert [i for i in ours if i not in special] == [i for i in output[0].tolist() if i not in special]
        assert score < 0


def test_unknown_entry_is_one_clear_line(t5_dir):
    with pytest.raises(InputError, match="'middle' must be encoder"):
        Seq2SeqLMDecoder(t5_dir, entry="middle")


def test_text_alone_is_read_as_transformers_reads_it(parts):
    plain, decoders, sources, _ = parts
    for ids in sources:
        prompt = decoders["encoder"].scale_text(decoders["encoder"].embed(ids))
        states, _ = decoders["encoder"]._states(prompt[None], torch.tensor([len(ids)]))
        torch.testing.assert_close(states.last_hidden_state, plain.get_encoder()(ids[None]).last_hidden_state)
    with pytest.raises(InputError, match="needs entry: encoder"):
        decoders["decoder"].scale_text(torch.zeros(3, 32))


def test_random_weights_of_the_same_shape(directory):
    loaded, fresh = Seq2SeqLMDecoder(directory), Seq2SeqLMDecoder(directory, random_init=True)
    ours, theirs = fresh.state_dict(), loaded.state_dict()
    assert [(name, value.shape) for name, value in ours.items()] == [(n, v.shape) for n, v in theirs.items()]
    matrices = [n for n, v in ours.items() if v.ndim == 2 and "position" not in n and "bias" not in n]
    assert matrices and not any(torch.equal(ours[name], theirs[name]) for name in matrices)


def test_more_positions_than_a_marian_has_is_one_line(marian_dir):
    decoder = Seq2SeqLMDecoder(marian_dir, entry="encoder")
    most = decoder.lm.config.max_position_embeddings
    with pytest.raises(InputError, match=f"MarianMTModel reads at most {most} positions, not {most + 1}"):
        decoder.states_of([torch.zeros(most + 1, decoder.hidden_size)])
