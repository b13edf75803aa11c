"""BLEU of some validation utterances, decoded by this project's search after each epoch: ``valid.bleu``.

    valid_bleu: {utterances: 50, beam_size: 1}       # further keys: `espnet_llmst.search.options.SearchOptions`
    best_model_criterion: [[valid, bleu, max]]

The reporter takes it like any value of ESPnet's, so best models, ``patience``, plots, tensorboard and wandb know it.
"""

import copy
import dataclasses

from espnet2.iterators.abs_iter_factory import AbsIterFactory
from espnet2.train.dataset import ESPnetDataset
from espnet2.train.reporter import SubReporter
from torch.distributed.fsdp import FSDPModule

from espnet_llmst.cli import InputError
from espnet_llmst.prompt import split_srt
from espnet_llmst.scoring.metrics import bleu_tokenizer, corpus_score
from espnet_llmst.search.options import SearchOptions
from espnet_llmst.train import ranks
from espnet_llmst.train.rng import get_rng_state, set_rng_state
from espnet_llmst.train.state import Training

UTTERANCES = 50


def check_valid_bleu(training: Training, factory: AbsIterFactory) -> None:
    """Refuse, before anything is trained, what `register_bleu` could not do or nobody asked it for.

    Raises:
        InputError: unknown keys, a data set that is not read by utterance, nothing to translate in it, parameters that
            are spread over processes (FSDP), a search or tokenizer that cannot be had, or a criterion by BLEU without
            ``valid_bleu``.
    """
    options, settings = training.options, training.options.valid_bleu
    if not settings:
        criteria = [*options.best_model_criterion, options.early_stopping_criterion, options.val_scheduler_criterion]
        if any(tuple(criterion[:2]) == ("valid", "bleu") for criterion in criteria):
            raise InputError("valid.bleu is a criterion but never computed: add valid_bleu: {utterances: 50}")
        return
    known = {field.name for field in dataclasses.fields(SearchOptions)} | {"utterances"}
    if unknown := sorted(set(settings) - known):
        raise InputError(f"valid_bleu: unknown: {', '.join(unknown)}; known: {', '.join(sorted(known))}")
    if any(isinstance(module, FSDPModule) for module in training.model.modules()):
        raise InputError("valid_bleu: not with FSDP, whose processes must all work on the same utterance; remove it")
    if not isinstance(getattr(factory, "dataset", None), ESPnetDataset):
        raise InputError("valid_bleu: needs a validation set read by utterance (iterator_type: sequence)")
    search_options(settings)
    for task in set(choose_utterances(factory.dataset, settings.get("utterances", UTTERANCES)).values()):
        bleu_tokenizer(task.split()[2])


def search_options(settings: dict) -> dict:
    """Those of the search among ``valid_bleu``'s keys, greedy by default.

    Raises:
        InputError: they contradict each other.
    """
    options = {"beam_size": 1} | {key: value for key, value in settings.items() if key != "utterances"}
    SearchOptions(**options)
    return options


def choose_utterances(dataset: ESPnetDataset, number: int) -> dict[str, str]:
    """Evenly spaced utterances of a set with their tasks, "<task> <src> <tgt>"; transcription is left out.

    Every rank must call this: each knows but the utterances that it reads (ESPnet splits the tables), all choose alike.

    Raises:
        InputError: there is none.
    """
    parts = ranks.gather(dict(dataset.loader_dict["task"]))
    tasks = {utt: task for part in parts for utt, task in part.items() if not task.startswith("asr ")}
    if not tasks or number < 1:
        raise InputError("valid_bleu: needs utterances: 1 or more, and a validation set with a translation task")
    utts, number = sorted(tasks), min(number, len(tasks))
    return {utt: tasks[utt] for utt in (utts[n * len(utts) // number] for n in range(number))}


def register_bleu(training: Training, factory: AbsIterFactory, reporter: SubReporter) -> None:
    """Decode and score; every rank must call this: each decodes what it reads, and all know the score.

    The random generators are left as they were.
    """
    from espnet_llmst.inference import Speech2Text  # late: it knows the task, which knows the trainer

    settings = training.options.valid_bleu
    chosen = choose_utterances(factory.dataset, settings.get("utterances", UTTERANCES))
    preprocess = copy.copy(factory.dataset.preprocess)
    preprocess.train = False
    rng = get_rng_state()
    training.model.eval()
    speech2text = Speech2Text.of_model(training.model, preprocess, **search_options(settings))
    share = {utt: task for utt, task in chosen.items() if utt in factory.dataset.loader_dict["task"]}
    found = ranks.gather(translate(speech2text, factory.dataset, share))
    set_rng_state(rng)
    pairs = {utt: pair for part in found for utt, pair in part.items()}
    reporter.register({"bleu": bleu({utt: pairs[utt] for utt in chosen}, chosen)})
    reporter.next()


def translate(speech2text, dataset: ESPnetDataset, tasks: dict[str, str]) -> dict[str, tuple[str, str]]:
    """Hypothesis and reference of each utterance; of srt, what stands behind the tags."""
    shown, texts = dataset.loader_dict.get("transcript"), dataset.loader_dict["text"]
    template, pairs = speech2text.preprocess.template, {}
    for name in sorted(set(tasks.values())):
        task, src, tgt = name.split()
        utts = [utt for utt in tasks if tasks[utt] == name]
        speech = None if task == "mt" else [dataset[utt][1]["speech"] for utt in utts]
        found = speech2text(speech, task, src, tgt, [shown[utt] for utt in utts] if shown else None)
        for utt, nbest in zip(utts, found, strict=True):
            pair = (nbest[0].text, texts[utt])
            if task == "srt":
                pair = tuple((split_srt(template, src, tgt, text) or ("", ""))[1] for text in pair)
            pairs[utt] = pair
    return pairs


def bleu(pairs: dict[str, tuple[str, str]], tasks: dict[str, str]) -> float:
    """Corpus BLEU of (hypothesis, reference) with the target language's tokenizer; of several languages the mean."""
    by_language: dict[str, list[tuple[str, str]]] = {}
    for utt, pair in pairs.items():
        by_language.setdefault(tasks[utt].split()[2], []).append(pair)
    scores = []
    for language, found in by_language.items():
        hyps, refs = zip(*found, strict=True)
        scores.append(corpus_score("BLEU", hyps, [refs], language, n_bootstrap=0)["score"])
    return sum(scores) / len(scores)
