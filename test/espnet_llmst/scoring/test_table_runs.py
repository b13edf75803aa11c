"""What a table needs run, and the table with tests and commands."""

import json

import pytest

from espnet_llmst.bin import llmst_score, llmst_table
from espnet_llmst.cli import run
from espnet_llmst.provenance import content_hash
from espnet_llmst.scoring.table_runs import Settings, command_of, table_runs
from espnet_llmst.scoring.tables import load_table

TABLE = """
title: A table
metric: BLEU
rows:
  - {name: Row A, published: 40, method: m, phase: 1_x, sets: [test.fr-en]}
  - {name: row B, published: 50, method: m, phase: 2_y, sets: [test.fr-en]}
  - {name: row C, published: null, method: n, phase: 1_x, sets: [test.fr-en, "test.de-en (asr)"], decode: decode_x}
"""
REFS = {f"u{i}": f"here are {i} green houses by the wide blue sea" for i in range(30)}


@pytest.fixture
def recipe(tmp_path, monkeypatch):
    """A recipe's folder with the table t; n starts from the first phase of m."""
    phase = "seed: 0\nencoder: null\ndecoder_conf: {model: exp/foundation/none}\n"
    files = {"m/1_x": phase, "m/2_y": phase + "init_from: previous\n"}
    files |= {"n/1_x": phase + "init_from: exp/m/1_x/valid.loss.best.pth\n", "paper/t": TABLE}
    for name, text in files.items():
        path = tmp_path / "conf" / f"{name}.yaml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def decode(folder, spoiled):
    """A scored decode, in which the first so many texts are wrong."""
    hyps = {u: "the wrong words are here" if i < spoiled else text for i, (u, text) in enumerate(REFS.items())}
    for path, table in ((folder / "1best_recog/text", hyps), (folder.parent / "ref", REFS)):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(f"{utt} {text}\n" for utt, text in table.items()))
    command = ["--hyp", f"{folder}/1best_recog/text", "--ref", f"{folder.parent}/ref", "--tgt_lang", "en"]
    assert run(llmst_score.main, [*command, "--out", f"{folder}/scores.json"]) == 0


def test_a_row_brings_the_phases_it_starts_from_once(recipe):
    table = load_table("conf/paper/t.yaml")
    runs = table_runs(table, table["rows"], Settings(train_args="--max_epoch 1"))
    assert [(one.row, one.method, one.phase, one.decodes) for one in runs] == [
        ("row_a", "m", "1_x", True),
        ("row_b", "m", "1_x", False),
        ("row_b", "m", "2_y", True),
        ("row_c", "m", "1_x", False),
        ("row_c", "n", "1_x", True),
    ]
    assert "--stop_stage=6" in runs[1].options and "--directions=fr-en de-en" in runs[4].options
    assert "--inference_config=conf/decode_x.yaml" in runs[4].options
    assert command_of(runs[0]).startswith(
        "./run.sh --method m --phase 1_x --directions fr-en --test_sets test --train_"
    )
    only_scoring = table_runs(table, table["rows"], Settings(stage=8))
    assert all(one.decodes for one in only_scoring) and len(only_scoring) == 3


def test_every_seed_is_an_experiment_of_its_own(recipe, capsys):
    llmst_table.main(["--table", "t", "--rows", "row_b", "--seeds", "0", "7", "--list_runs", "--train_args=--a 1"])
    lines = [line.split("\t") for line in capsys.readouterr().out.splitlines()]
    assert [line[3] for line in lines] == ["--expdir=exp", "--expdir=exp", "--expdir=exp/seed7", "--expdir=exp/seed7"]
    assert "--train_args=--a 1" in lines[1] and "--train_args=--a 1 --seed 7" in lines[3]


def test_a_dry_run_tells_what_is_there(recipe, capsys):
    folder = recipe / "exp/m/1_x"
    decode(folder / "decode_beam5/test.fr-en", 3)
    (folder / ".done").write_text("")
    (recipe / "exp/m/2_y").mkdir()
    (recipe / "exp/m/2_y/.started").write_text(content_hash(recipe / "conf/m/2_y.yaml"))
    capsys.readouterr()
    llmst_table.main(["--table", "t", "--dry_run", "--rows", "m"])
    text = capsys.readouterr().out
    assert "exp/m/1_x: trained; GPU memory: unknown (exp/foundation/none is not there yet)" in text
    assert "exp/m/1_x/decode_beam5/test.fr-en: scored" in text and "exp/m/2_y: begun, goes on" in text
    assert "exp/m/2_y/decode_beam5/test.fr-en: to decode" in text and "row_c" not in text
    (folder / "decode_beam5/ref").write_text("u0 another\n")
    llmst_table.main(["--table", "t", "--dry_run", "--rows", "row_a"])
    assert "ref has changed since this was scored; run stage 8 again" in capsys.readouterr().out


def test_a_dry_run_tells_the_aim_and_does_not_flood(recipe, capsys):
    path = recipe / "conf/paper/t.yaml"
    rows = "rows:\n  - {name: theirs, published: 7.1, method: null}\n"
    path.write_text(
        path.read_text().replace("rows:\n", rows).replace("[test.fr-en]", "[a.fr-en, b.fr-en, c.fr-en, d.fr-en]")
    )
    (recipe / "conf/m/1_x.yaml").write_text(
        "trainable: []\nencoder: null\ndecoder_conf: {model: exp/foundation/none}\n"
    )
    llmst_table.main(["--table", "t", "--dry_run"])
    text = capsys.readouterr().out
    assert "theirs: published 7.1\n" in text and "row_b: row B: published 50" in text
    assert "exp/m/1_x: nothing to train" in text
    assert "exp/m/1_x/decode_beam5/4 sets, a.fr-en to d.fr-en: to decode" in text and "b.fr-en" not in text


def test_the_table_tests_neighbours_and_names_commands(recipe, capsys):
    decode(recipe / "exp/m/1_x/decode_beam5/test.fr-en", 20)
    decode(recipe / "exp/m/2_y/decode_beam5/test.fr-en", 2)
    llmst_table.main(["--table", "t", "--out", "exp/paper_t.md"])
    text = (recipe / "exp/paper_t.md").read_text()
    assert text in capsys.readouterr().out
    rows = {line.split(" |")[0]: line.split("|") for line in text.splitlines() if line.startswith("| ")}
    score = json.loads((recipe / "exp/m/2_y/decode_beam5/test.fr-en/scores.json").read_text())["BLEU"]
    assert rows["| row B"][3].strip().startswith(f"{score['score']:.1f} [")
    assert rows["| row B"][4].strip() == f"{score['score'] - 50:+.1f}" and 0 < float(rows["| row B"][5]) < 0.05
    assert rows["| row B"][7].strip() == "`./run.sh --table t --rows row_b`"
    assert rows["| row C"][3].strip() == "not run" and rows["| Row A"][5].strip() == "–"
    assert f"- `{score['signature']}`" in text and "Seed of training: 0 (the YAML's)." in text


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--table", "x"], "unknown table 'x'; there are: t"),
        (["--table", "t", "--rows", "row_d"], "table t has no row 'row_d' of ours; there are: row_a row_b row_c"),
    ],
)
def test_bad_names_are_one_clear_line(recipe, capsys, options, message):
    assert run(llmst_table.main, options) == 1
    error = capsys.readouterr().err
    assert message in error and len(error.strip().splitlines()) == 1
