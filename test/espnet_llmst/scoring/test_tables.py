"""A paper's table: rows, columns, seeds, published numbers, agreement."""

import pytest

from espnet_llmst.cli import InputError
from espnet_llmst.scoring.tables import (
    SPEED,
    Cell,
    agreement,
    heading,
    load_table,
    place_cell,
    render_table,
    steps_of,
)

TABLE = """
title: A table
metric: BLEU
rows:
  - {name: small, published: 10.0, method: m, phase: 1_x, sets: [test.a-b]}
  - {name: large, published: 12.25, method: m, phase: 2_y, sets: [test.a-b, test.b-a]}
  - {name: other, published: null, method: n, phase: 1_x, sets: [test.a-b]}
  - {name: theirs, published: 11, method: null}
note: A note.
"""
COLUMNS = """
title: Columns
metric: BLEU
tolerance: 1
columns: {ab: test.a-b, mean: [[test.a-b], [test.b-a]]}
rows:
  - {name: theirs, published: {mean: 9}, method: null}
  - {name: ours, published: {ab: 20.5}, method: m, phase: 1_x}
"""


def entry(name, score, control=None, **more):
    shuffled = None if control is None else {"BLEU": {"score": control}}
    scores = {"BLEU": {"score": score, "ci95": [score - 1, score + 1], "signature": "s"}, **more}
    return {"name": f"decode_beam5/{name}", "scores": scores, "shuffled": shuffled}


@pytest.fixture
def conf(tmp_path):
    """A recipe's conf: m has two phases, n starts from the first of them."""
    for phase, text in {
        "m/1_x": "seed: 0",
        "m/2_y": "seed: 0\ninit_from: previous",
        "n/1_x": "seed: 0\ninit_from: exp/m/1_x/valid.loss.best.pth",
    }.items():
        path = tmp_path / "conf" / f"{phase}.yaml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    (tmp_path / "conf/paper").mkdir()
    return tmp_path / "conf"


@pytest.fixture
def load(conf):
    def write_and_load(text, **options):
        (conf / "paper/t.yaml").write_text(text)
        return load_table(conf / "paper/t.yaml", **options)

    return write_and_load


def test_numbers_of_another_corpus_are_not_subtracted(load):
    experiments = {"m/1_x": [entry("test.a-b", 20.0)]}
    lines = render_table(load(TABLE), experiments), render_table(load("other_corpus: true" + TABLE), experiments)
    assert ["+10.0" in "".join(one) for one in lines] == [True, False]
    assert all("| small | 10.0 | 20.0" in "".join(one) for one in lines)


def cell_of(table, row, experiments):
    return place_cell(table, row, row["places"][0], experiments)


def test_rows_show_published_beside_ours(load):
    experiments = {"m/1_x": [entry("test.a-b", 20.0, 1.5)], "m/2_y": [entry("test.a-b", 30.0), entry("test.b-a", 31.0)]}
    lines = render_table(load(TABLE), experiments)
    assert "| small | 10.0 | 20.0 [19.0, 21.0] | +10.0 | 1.5 | m/1_x |" in lines
    assert "| large | 12.25 | 30.5 | +18.2 | – | m/2_y |" in lines
    assert "| other | – | not run | – | – | n/1_x |" in lines and "| theirs | 11.0 | – | – | – | – |" in lines
    assert (
        lines[-2]
        == "The published order holds in 1 of 1 pairs of rows; in 0 of them the intervals do not overlap. A note."
    )


def test_a_row_needs_all_its_sets(load):
    table = load(TABLE)
    assert cell_of(table, table["rows"][1], {"m/2_y": [entry("test.a-b", 30.0)]}) is None


def test_columns_and_tolerance(load):
    lines = render_table(load(COLUMNS), {"m/1_x": [entry("test.a-b", 20.0), entry("test.b-a", 10.0)]})
    assert "| theirs, mean | 9.0 | – | – | – | – |" in lines
    assert "| ours, ab | 20.5 | 20.0 [19.0, 21.0] | -0.5 (within 1) | – | m/1_x |" in lines
    assert "| ours, mean | – | 15.0 | – | – | m/1_x |" in lines


def test_seeds_have_folders_of_their_own_but_the_yamls(load):
    table = load(TABLE, seeds=[0, 1, 2])
    row = table["rows"][0]
    assert row["experiments"] == [(0, "m/1_x"), (1, "seed1/m/1_x"), (2, "seed2/m/1_x")]
    found = {"m/1_x": [entry("test.a-b", 20.0)], "seed1/m/1_x": [entry("test.a-b", 22.0)]}
    assert "| small | 10.0 | 21.0 ± 1.4 (20.0 22.0), 2 of 3 seeds | +11.0 | – | m/1_x |" in render_table(table, found)
    assert cell_of(table, row, found).interval is None and cell_of(table, row, found).seeds == (20.0, 22.0)
    assert heading(table) == "here, BLEU mean ± SD (each seed)"
    assert heading(load(TABLE.replace("phase: 1_x, sets", "phase: 1_x, seeds: [0, 1], sets", 1))) == (
        "here, BLEU mean ± SD (each seed) or [95 % CI]"
    )


def test_what_is_not_trained_has_no_seeds(load, conf):
    (conf / "n/1_x.yaml").write_text("trainable: []")
    assert load(TABLE, seeds=[1, 2])["rows"][2]["experiments"] == [(None, "n/1_x")]


def test_overrides_have_a_folder_of_their_own(load):
    text = TABLE.replace("phase: 1_x, sets", 'phase: 1_x, overrides: "--optim_conf lr=1.0e-3", sets', 1)
    assert load(text, seeds=[4])["rows"][0]["experiments"] == [(4, "seed4/optim_conf_lr_1.0e_3/m/1_x")]


def test_buckets_and_speed(load):
    table = load(TABLE.replace("sets: [test.a-b]}", "sets: [test.a-b], bucket: 0-5s}", 1))
    found = {"m/1_x": [entry("test.a-b", 20.0, 1.0, buckets={"0-5s": {"n": 4, "BLEU": 33.0}})]}
    assert cell_of(table, table["rows"][0], found) == Cell(33.0, None, None, (33.0,), ("s",))
    table = load(TABLE.replace("metric: BLEU", f"metric: {SPEED}"))
    found = {"m/1_x": [entry("test.a-b", 20.0, n=500, decode_seconds=10.0)]}
    assert cell_of(table, table["rows"][0], found).score == 20.0


def test_a_stale_decode_is_no_result(load):
    stale = {"name": "decode_beam5/test.a-b", "scores": {}, "shuffled": None, "stale": "x has changed"}
    table = load(TABLE)
    assert cell_of(table, table["rows"][0], {"m/1_x": [stale]}) is None
    assert "| small | 10.0 | stale | – | – | m/1_x |" in render_table(table, {"m/1_x": [stale]})


def test_only_scores_of_one_metric_are_put_in_order(load):
    mixed = TABLE.replace(
        "rows:\n", "rows:\n  - {name: words, published: 1.0, metric: WER, method: n, phase: 1_x, sets: [test.a-b]}\n", 1
    )
    found = {
        "m/1_x": [entry("test.a-b", 20.0)],
        "n/1_x": [{**entry("test.a-b", 3.0), "scores": {"WER": {"score": 90.0}}}],
    }
    assert not any("published order" in line for line in render_table(load(mixed), found))


def test_agreement_counts_pairs_and_disjoint_intervals():
    cells = [Cell(1.0, (0.5, 1.5), None), Cell(2.0, (1.6, 2.4), None), Cell(1.5, (1.0, 2.0), None)]
    column = list(zip([5, 6, 7], cells, strict=True))
    assert agreement([column]).startswith("The published order holds in 2 of 3 pairs of rows; in 1 of them")
    assert agreement([column, column]).startswith("The published order holds in 4 of 6")
    seeds = [(5, Cell(1.0, None, None)), (6, Cell(2.0, None, None))]
    assert agreement([seeds]) == "The published order holds in 1 of 1 pairs of rows."
    three = [(5, Cell(1.0, None, None, (0.8, 1.0, 1.2))), (6, Cell(2.0, None, None, (1.3, 2.2, 2.5)))]
    assert agreement([three]).endswith("in 1 of them the intervals or the ranges of their seeds do not overlap.")
    assert "in 0 of them" in agreement([[three[0], (6, Cell(2.0, (1.1, 3.0), None, (2.0,)))]])
    assert agreement([[(5, cells[0]), (5, cells[1])]]) == "No two rows with published numbers were run."


def test_steps_go_back_to_where_a_phase_starts_from(conf):
    assert steps_of(conf, "m", "2_y") == [("m", "1_x"), ("m", "2_y")]
    assert steps_of(conf, "n", "1_x") == [("m", "1_x"), ("n", "1_x")]


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("phase: 1_x, ", "fase: 1_x, ", "t.yaml: unknown key 'fase' of a row"),
        ("metric: BLEU\n", "", "t.yaml: 'metric' is missing"),
        ("metric: BLEU\n", "metric: BLAU\n", "t.yaml: unknown metric 'BLAU'"),
        ("phase: 2_y, ", "", "t.yaml: 'phase' is missing"),
        ("name: other", "name: Small", "t.yaml: two rows are called 'small'"),
        ("phase: 2_y", "phase: 2_z", "2_z.yaml: no such phase"),
    ],
)
def test_bad_tables_are_one_clear_line(load, old, new, message):
    with pytest.raises(InputError, match=message):
        load(TABLE.replace(old, new, 1))


def test_a_published_number_needs_its_column(load):
    with pytest.raises(InputError, match="row ours: 'xy' is no column"):
        load(COLUMNS.replace("ab: 20.5", "xy: 20.5"))
