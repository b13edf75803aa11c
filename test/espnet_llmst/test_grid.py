"""Every encoder with every connector and every decoder: loss, gradients, batch invariance, save and reload."""

import itertools

import pytest
import torch

from espnet_llmst.connector.conv_linear import ConvLinearConnector
from espnet_llmst.connector.mlp import MLPConnector
from espnet_llmst.connector.qformer import QFormerConnector
from espnet_llmst.connector.subsampler_transformer import SubsamplerTransformerConnector
from espnet_llmst.decoder.causal_lm import CausalLMDecoder
from espnet_llmst.decoder.seq2seq_lm import Seq2SeqLMDecoder
from espnet_llmst.encoder.espnet_asr import ESPnetASREncoder
from espnet_llmst.encoder.hugging_face import HuggingFaceEncoder
from espnet_llmst.encoder.units import UnitEncoder
from espnet_llmst.espnet_model import ESPnetLLMSTModel
from espnet_llmst.lora import set_trainable

ENCODERS = ("whisper", "wav2vec2", "hubert", "wavlm", "espnet_asr", "units")
CONNECTORS = {
    "mlp": lambda i, o: MLPConnector(i, o),
    "conv_linear": lambda i, o: ConvLinearConnector(i, o, channels=16),
    "qformer": lambda i, o: QFormerConnector(i, o, num_queries=3, num_layers=2, width=16, heads=2, ffn=32),
    "subsampler_transformer": lambda i, o: SubsamplerTransformerConnector(
        i, o, num_layers=1, width=16, heads=2, ffn=32, channels=16
    ),
}
DECODERS = ("llama", "qwen2", "marian ECD", "marian ECED", "t5 ECD", "t5 ECED")


@pytest.fixture(scope="module")
def directories(whisper_dir, wav2vec2_dirs, units_dir, espnet_asr_dir, llama_dir, qwen2_dir, marian_dir, t5_dir):
    decoders = {"llama": llama_dir, "qwen2": qwen2_dir, "marian": marian_dir, "t5": t5_dir}
    encoders = {"whisper": whisper_dir, "espnet_asr": espnet_asr_dir, "units": units_dir}
    return {**encoders, **wav2vec2_dirs, **decoders}


def build(directories, encoder_name, connector_name, decoder_name):
    torch.manual_seed(0)
    if encoder_name == "units":
        encoder = UnitEncoder(directories["hubert"], layer=1, kmeans=directories["units"])
    else:
        encoder_class = ESPnetASREncoder if encoder_name == "espnet_asr" else HuggingFaceEncoder
        encoder = encoder_class(directories[encoder_name])
    kind, _, entry = decoder_name.partition(" ")
    if entry:
        decoder = Seq2SeqLMDecoder(directories[kind], entry="decoder" if entry == "ECD" else "encoder")
    else:
        decoder = CausalLMDecoder(directories[kind])
    connector = CONNECTORS[connector_name](encoder.output_size(), decoder.hidden_size)
    assert connector.output_size() == decoder.hidden_size
    model = ESPnetLLMSTModel(encoder, connector, decoder)
    set_trainable(model, ["postencoder"])
    return model


def make_batch(with_prompt):
    generator = torch.Generator().manual_seed(1)
    lengths = {"speech": [16000, 9000], "prefix": [3, 2], "suffix": [2, 4], "text": [6, 3]}
    if not with_prompt:  # a translator entered at its decoder reads speech alone
        lengths |= {"prefix": [0, 0], "suffix": [0, 0]}
    batch = {}
    for name, sizes in lengths.items():
        full = torch.randint(3, 60, (2, max(sizes)), generator=generator)
        if name == "speech":
            full = 0.1 * torch.randn(2, max(sizes), generator=generator)
        batch[name] = full * (torch.arange(max(sizes)) < torch.tensor(sizes)[:, None])
        batch[f"{name}_lengths"] = torch.tensor(sizes)
    return batch


def row_of(batch, i):
    row = {name: tensor[i : i + 1] for name, tensor in batch.items()}
    return {n: t if n.endswith("_lengths") else t[:, : row[f"{n}_lengths"]] for n, t in row.items()}


@pytest.mark.parametrize(("encoder", "connector", "decoder"), itertools.product(ENCODERS, CONNECTORS, DECODERS))
def test_combination(directories, encoder, connector, decoder):
    model = build(directories, encoder, connector, decoder)
    batch = make_batch(with_prompt="ECD" not in decoder)
    loss, _, weight = model.train()(**batch)
    loss.backward()
    reached = {name for name, p in model.named_parameters() if p.grad is not None}
    assert torch.isfinite(loss) and weight == 9
    assert reached == {name for name, _ in model.named_parameters() if name.startswith("postencoder.")}

    model.eval()
    together = model(**batch)[0]
    singles = [model(**row_of(batch, i)) for i in range(2)]
    torch.testing.assert_close(together, sum(one * w for one, _, w in singles) / 9, atol=1e-4, rtol=1e-4)

    state = {name: tensor + 0.2 * torch.randn(tensor.shape) for name, tensor in model.state_dict().items()}
    again = build(directories, encoder, connector, decoder)
    again.load_state_dict(state)
    model.load_state_dict(state)
    assert torch.equal(again.eval()(**batch)[0], model(**batch)[0]) and not torch.equal(model(**batch)[0], together)
