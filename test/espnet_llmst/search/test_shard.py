"""What a job has finished survives the job."""

from espnet_llmst.search.hypothesis import Hypothesis
from espnet_llmst.search.shard import Shard


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
    assert path.read_text() == '{"beam_size": 4}\n'
