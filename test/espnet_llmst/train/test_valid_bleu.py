"""BLEU on validation utterances: a value like any other, which changes nothing of the training."""

import re
from types import SimpleNamespace

import pytest
import sacrebleu
import torch
from training_runs import assert_equal, forked, models_in, ranks_train, settings_of, train

from espnet_llmst.cli import InputError
from espnet_llmst.prompt import load_template
from espnet_llmst.train.valid_bleu import bleu, choose_utterances, translate

ASKED = {
    "valid_bleu": {"utterances": 4, "max_new_tokens": 8},
    "best_model_criterion": [["valid", "bleu", "max"], ["valid", "loss", "min"]],
}
GUESS = "The train 3 leaves."  # of every utterance


class Data(dict):
    """A data set as far as the choice and the references go; the speech of an utterance is its name."""

    def __init__(self, tasks: dict[str, str], texts: dict[str, str]) -> None:
        super().__init__({utt: (utt, {"speech": utt}) for utt in tasks})
        self.loader_dict = {"task": tasks, "text": texts}


def always_guess() -> None:
    """Replace the search by one that gives the same answer for all speech."""
    from espnet_llmst.inference import Speech2Text

    Speech2Text.__call__ = lambda self, speech, *args: [[SimpleNamespace(text=GUESS)]] * len(speech)


def test_training_is_the_same_and_files_know_bleu(corpus, tmp_path):
    plain, asked = settings_of(corpus), settings_of(corpus, **ASKED, use_matplotlib=True, use_tensorboard=True)
    assert forked(train(corpus, tmp_path / "plain", plain), tmp_path / "log") == 0
    assert forked(train(corpus, tmp_path / "asked", asked), tmp_path / "log") == 0, (tmp_path / "log").read_text()
    models, others = models_in(tmp_path / "asked"), models_in(tmp_path / "plain")
    assert_equal(models["checkpoint.pth"], others["checkpoint.pth"])  # random generators included
    assert_equal(models["2epoch.pth"], others["2epoch.pth"])
    assert {"valid.bleu.best.pth", "valid.bleu.ave_2best.pth"} < models.keys()
    assert (tmp_path / "asked/images/bleu.png").stat().st_size > 3000
    assert len(re.findall(r"\depoch results: .*\[valid\] .*bleu=\d", (tmp_path / "log").read_text())) == 2


def test_value_alone_and_with_two_processes(corpus, tmp_path):
    """sacreBLEU's own figure for the chosen utterances, and the same from two halves."""

    def guessing(rank, training):
        return lambda: (always_guess(), training())[1]

    settings = settings_of(corpus, **ASKED)
    assert forked(guessing(0, train(corpus, tmp_path / "exp", settings)), tmp_path / "log") == 0
    (tmp_path / "two").mkdir()
    status = ranks_train(corpus, tmp_path / "two", settings, wrap=guessing)
    assert status == [0, 0], (tmp_path / "two/log.0").read_text()
    expected = sacrebleu.corpus_bleu([GUESS] * 4, [[f"The train {n} leaves." for n in (0, 2, 5, 7)]]).score
    assert 5 < expected < 95  # some words are right, not all
    for directory in (tmp_path / "exp", tmp_path / "two/exp"):
        stats = torch.load(directory / "checkpoint.pth", weights_only=True)["reporter"]["stats"]
        assert [stats[epoch]["valid"]["bleu"] for epoch in (1, 2)] == pytest.approx([expected] * 2)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"valid_bleu": {"beams": 3}}, "valid_bleu: unknown: beams; known: .*beam_size"),
        ({"valid_bleu": {"utterances": 0}}, "valid_bleu: needs utterances: 1 or more"),
        ({"valid_bleu": {"beam_size": 0}}, "search: needs 1 <= nbest <= beam_size"),
        ({"best_model_criterion": [["valid", "bleu", "max"]]}, "valid.bleu is a criterion but never computed"),
    ],
)
def test_what_cannot_be_done_is_said_before_training(changes, message, corpus, tmp_path):
    assert forked(train(corpus, tmp_path / "exp", settings_of(corpus, **changes)), tmp_path / "log") == 1
    log = (tmp_path / "log").read_text()
    assert re.search(f": error: .*{message}", log) and "epoch started" not in log


def test_choice_is_even_and_leaves_transcription_out():
    tasks = {f"utt{n}": "asr fr fr" if n % 2 else "st fr en" for n in range(10)}
    assert choose_utterances(Data(tasks, {}), 2) == {"utt0": "st fr en", "utt4": "st fr en"}
    assert len(choose_utterances(Data(tasks, {}), 50)) == 5
    with pytest.raises(InputError, match="translation task"):
        choose_utterances(Data({"utt1": "asr fr fr"}, {}), 2)


def test_srt_is_scored_behind_its_tags(tmp_path):
    path = tmp_path / "prompt.yaml"
    path.write_text(
        'languages: iso639_3\ntasks:\n  srt: {prompt: "<speech> {src} {tgt}", '
        'target: "{transcript}<|{src}|><|{tgt}|>{translation}"}\n'
    )
    texts = {"a": "Le train.<|fra|><|eng|>The train.", "b": "La gare.<|fra|><|eng|>The station."}
    said = {"a": "Un train.<|fra|><|eng|>A train.", "b": "no tags"}

    def speech2text(speech, task, src, tgt, transcripts):
        return [[SimpleNamespace(text=said[utt])] for utt in speech]

    speech2text.preprocess = SimpleNamespace(template=load_template(path))
    tasks = dict.fromkeys(texts, "srt fr en")
    found = translate(speech2text, Data(tasks, texts), tasks)
    assert found == {"a": ("A train.", "The train."), "b": ("", "The station.")}


def test_each_language_has_its_tokenizer():
    pairs = {"en": ("The train leaves at seven.", "The train leaves at nine."), "zh": ("火车七点开。", "火车九点开。")}
    scores = [
        sacrebleu.corpus_bleu([hyp], [[ref]], tokenize=name).score
        for (hyp, ref), name in zip(pairs.values(), ("13a", "zh"), strict=True)
    ]
    assert bleu(pairs, {"en": "st fr en", "zh": "st fr zh"}) == pytest.approx(sum(scores) / 2)
