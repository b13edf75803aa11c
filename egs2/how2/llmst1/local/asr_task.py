"""An ESPnet task that trains a recogniser: encoder, attention decoder and CTC, all of them ESPnet's.

ESPnet's own ASR task wants packages that nothing else here needs (einops, g2p_en), and nltk data from the network
as soon as it is imported. The options of this one have the same names, so its ``config.yaml`` is one of ESPnet's.

Shapes: B batch, S samples, F feature frames, M features of a frame, L tokens.
"""

import argparse
from collections.abc import Sequence

import numpy as np
import sentencepiece
import torch
from espnet2.asr.ctc import CTC
from espnet2.asr.decoder.abs_decoder import AbsDecoder
from espnet2.asr.decoder.transformer_decoder import TransformerDecoder
from espnet2.asr.encoder.abs_encoder import AbsEncoder
from espnet2.asr.encoder.conformer_encoder import ConformerEncoder
from espnet2.asr.encoder.e_branchformer_encoder import EBranchformerEncoder
from espnet2.asr.espnet_model import ESPnetASRModel
from espnet2.asr.frontend.abs_frontend import AbsFrontend
from espnet2.asr.frontend.default import DefaultFrontend
from espnet2.asr.specaug.abs_specaug import AbsSpecAug
from espnet2.asr.specaug.specaug import SpecAug
from espnet2.layers.abs_normalize import AbsNormalize
from espnet2.layers.global_mvn import GlobalMVN
from espnet2.layers.utterance_mvn import UtteranceMVN
from espnet2.tasks.abs_task import AbsTask
from espnet2.train.class_choices import ClassChoices
from espnet2.utils.get_default_kwargs import get_default_kwargs
from espnet2.utils.nested_dict_action import NestedDictAction
from espnet2.utils.types import int_or_none, str_or_none
from torch.nn.utils.rnn import pad_sequence

from espnet_llmst.tasks.llmst import LLMSTTask

CHOICES = {
    "frontend": ClassChoices("frontend", {"default": DefaultFrontend}, AbsFrontend, default="default", optional=True),
    "specaug": ClassChoices("specaug", {"specaug": SpecAug}, AbsSpecAug, default=None, optional=True),
    "normalize": ClassChoices(
        "normalize",
        {"utterance_mvn": UtteranceMVN, "global_mvn": GlobalMVN},
        AbsNormalize,
        default="utterance_mvn",
        optional=True,
    ),
    "encoder": ClassChoices(
        "encoder",
        {"e_branchformer": EBranchformerEncoder, "conformer": ConformerEncoder},
        AbsEncoder,
        default="e_branchformer",
    ),
    "decoder": ClassChoices("decoder", {"transformer": TransformerDecoder}, AbsDecoder, default="transformer"),
}


class ASRTask(AbsTask):
    """Joint CTC/attention speech recognition, with the trainer and the schedules of `LLMSTTask`."""

    num_optimizers = 1
    trainer = LLMSTTask.trainer
    class_choices_list = list(CHOICES.values())

    @classmethod
    def add_task_arguments(cls, parser: argparse.ArgumentParser) -> None:
        """Those of ESPnet's ASR task that a config of ours sets."""
        group = parser.add_argument_group("Speech recognition")
        group.add_argument("--token_list", default=None, help="Tokens (YAML only), <blank> first, <sos/eos> last")
        group.add_argument("--token_type", default="bpe", help="For ESPnet's own tools")
        group.add_argument("--bpemodel", type=str_or_none, help="SentencePiece model of the tokens")
        group.add_argument("--input_size", type=int_or_none, help="Features a frame; unset: waveforms are read")
        group.add_argument("--init", type=str_or_none, help="For ESPnet's own tools: not used")
        group.add_argument("--model", default="espnet", help="For ESPnet's own tools")
        group.add_argument("--ctc_conf", action=NestedDictAction, default=get_default_kwargs(CTC))
        group.add_argument("--model_conf", action=NestedDictAction, default=get_default_kwargs(ESPnetASRModel))
        for choices in cls.class_choices_list:
            choices.add_arguments(group)
        parser.set_defaults(num_att_plot=0, use_matplotlib=False, use_tensorboard=False, required=["output_dir"])

    @classmethod
    def build_collate_fn(cls, args: argparse.Namespace, train: bool):
        """Right padding."""
        return collate

    @classmethod
    def build_preprocess_fn(cls, args: argparse.Namespace, train: bool) -> "Preprocessor":
        """Text to tokens."""
        return Preprocessor(args.bpemodel)

    @classmethod
    def required_data_names(cls, train: bool = True, inference: bool = False) -> tuple[str, ...]:
        """Names in ``--*_data_path_and_name_and_type``."""
        return ("speech",) if inference else ("speech", "text")

    @classmethod
    def optional_data_names(cls, train: bool = True, inference: bool = False) -> tuple[str, ...]:
        """None."""
        return ()

    @classmethod
    def build_model(cls, args: argparse.Namespace) -> ESPnetASRModel:
        """The model that the settings describe; with ``input_size`` it has no front-end."""
        if args.input_size is not None:
            args.frontend, args.frontend_conf = None, {}
        parts = {}
        for name in ("frontend", "specaug", "normalize"):
            chosen = CHOICES[name].get_class(getattr(args, name))
            parts[name] = None if chosen is None else chosen(**getattr(args, f"{name}_conf"))
        size = parts["frontend"].output_size() if parts["frontend"] else args.input_size
        encoder = CHOICES["encoder"].get_class(args.encoder)(input_size=size, **args.encoder_conf)
        vocabulary, width = len(args.token_list), encoder.output_size()
        decoder = CHOICES["decoder"].get_class(args.decoder)(
            vocab_size=vocabulary, encoder_output_size=width, **args.decoder_conf
        )
        return ESPnetASRModel(
            vocab_size=vocabulary,
            token_list=args.token_list,
            **parts,
            preencoder=None,
            encoder=encoder,
            postencoder=None,
            decoder=decoder,
            ctc=CTC(vocabulary, width, **args.ctc_conf),
            joint_network=None,
            **args.model_conf,
        )

    @classmethod
    def build_optimizers(cls, args: argparse.Namespace, model: torch.nn.Module) -> list[torch.optim.Optimizer]:
        """As of `LLMSTTask`: its schedules learn how long the training is."""
        return LLMSTTask.build_optimizers(args, model)


class Preprocessor:
    """Text to token ids: piece i of the model is token i + 1, behind ``<blank>``."""

    def __init__(self, model: str) -> None:
        self.pieces = sentencepiece.SentencePieceProcessor(model_file=model)

    def __call__(self, uid: str, data: dict) -> dict[str, np.ndarray]:
        """``speech`` (S,) or (F, M) as float32 and ``text`` (L,) of one utterance."""
        return {
            "speech": np.asarray(data["speech"], dtype=np.float32),
            "text": np.array(self.pieces.encode(data["text"]), dtype=np.int64) + 1,
        }


def collate(data: Sequence[tuple[str, dict[str, np.ndarray]]]) -> tuple[list[str], dict[str, torch.Tensor]]:
    """Examples padded on the right, tokens by -1, with ``<name>_lengths`` (B,)."""
    batch = {}
    for name, padding in (("speech", 0.0), ("text", -1)):
        arrays = [torch.from_numpy(np.ascontiguousarray(example[name])) for _, example in data]
        batch[name] = pad_sequence(arrays, batch_first=True, padding_value=padding)
        batch[f"{name}_lengths"] = torch.tensor([len(array) for array in arrays])
    return [uid for uid, _ in data], batch
