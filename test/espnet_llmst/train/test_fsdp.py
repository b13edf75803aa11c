"""FSDP2 on two processes: the numbers of one, kills that lose nothing, models that anyone can load."""

from training_runs import forked, ranks_train, settings_of, train
from test_ranks import MIXTURE, assert_close


def full(corpus, **changes) -> dict:
    """Settings of full fine-tuning: the whole language model."""
    decoder = {"model": corpus.models["decoder_conf"]["model"]}
    encoder = {"model": corpus.models["encoder_conf"]["model"]}
    settings = {"trainable": ["postencoder", "decoder"], "encoder_conf": encoder, "decoder_conf": decoder, **MIXTURE}
    return settings_of(corpus, **settings, **changes)


def test_two_processes_are_one(mixed_corpus, tmp_path):
    one = train(mixed_corpus, tmp_path / "one", full(mixed_corpus, grad_clip=0.5))
    assert forked(one, tmp_path / "log") == 0, (tmp_path / "log").read_text()
    settings = full(mixed_corpus, grad_clip=0.5, fsdp=True)
    assert ranks_train(mixed_corpus, tmp_path, settings) == [0, 0], (tmp_path / "log.0").read_text()[-3000:]
    assert_close(tmp_path / "exp", tmp_path / "one")
