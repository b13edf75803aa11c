"""What a job has finished survives the job."""

from espnet_llmst.search.hypothesis import Hypothesis
from espnet_llmst.search.shard import FORMAT, Shard


def hypothesis(text):
    return [Hypothesis([1, 2], -0.5, ["a", "b"], text)]


def test_lines_are_there_at_once_and_a_torn_one_is_forgotten(tmp_path):
    path, settings = tmp_path / "job.1" / "finished.jsonl", {"beam_size": 5, "early_stopping": "never"}
    shard = Shard(path, settings)
    with shard.writing():
        shard.add("u1", hypothesis("été"), None)
        shard.add("u2", hypothesis("zwei"), "deux")
        assert Shard(path, settings).nbest.keys() == {"u1", "u2"}  # without waiting for the end
    path.write_bytes(path.read_bytes()[:-7])
    again = Shard(path, settings)
    assert again.nbest == {"u1": hypothesis("été")} and again.heard == {}
    with again.writing():
        again.add("u3", hypothesis("drei"), "trois")
    last = Shard(path, settings)
    assert last.nbest.keys() == {"u1", "u3"} and last.heard == {"u3": "trois"}


def test_other_settings_begin_anew(tmp_path):
    path = tmp_path / "finished.jsonl"
    with Shard(path, {"beam_size": 5}).writing() as shard:
        shard.add("u1", hypothesis("x"), None)
    other = Shard(path, {"beam_size": 4})
    assert other.nbest == {}
    with other.writing():
        pass
    assert path.read_text() == f'{{"format": {FORMAT}, "beam_size": 4}}\n'


def test_time_of_killed_runs_counts_and_another_share_does_not(tmp_path, monkeypatch):
    path, clock = tmp_path / "finished.jsonl", iter(range(100))
    monkeypatch.setattr("time.monotonic", lambda: float(next(clock)))
    for utt in ("u1", "u2"):
        with Shard(path, {}).writing() as shard:
            shard.add(utt, hypothesis("x"), "y")
    again = Shard(path, {})
    assert again.seconds == {"u1": 1.0, "u2": 1.0}
    again.keep({"u2": 16000})
    assert again.nbest.keys() == again.heard.keys() == again.seconds.keys() == {"u2"}
