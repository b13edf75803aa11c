"""A paper's table: rows, published numbers, agreement."""

import pytest

from espnet_llmst.cli import InputError
from espnet_llmst.scoring.tables import Cell, agreement, load_table, render_table, row_cell

TABLE = """
title: A table
metric: BLEU
rows:
  - {name: small, published: 10.0, method: m, phase: 1_x, sets: [test.a]}
  - {name: large, published: 12.0, method: m, phase: 2_y, sets: [test.a, test.b]}
  - {name: other, published: null, method: n, phase: 1_x, sets: [test.a]}
note: A note.
"""


def entry(name, score, control=None):
    shuffled = None if control is None else {"BLEU": {"score": control}}
    return {
        "name": f"decode_beam5/{name}",
        "scores": {"BLEU": {"score": score, "ci95": [score - 1, score + 1]}},
        "shuffled": shuffled,
    }


@pytest.fixture
def table(tmp_path):
    (tmp_path / "t.yaml").write_text(TABLE)
    return load_table(tmp_path / "t.yaml")


def test_rows_show_published_beside_ours(table):
    experiments = {"m/1_x": [entry("test.a", 20.0, 1.5)], "m/2_y": [entry("test.a", 30.0), entry("test.b", 31.0)]}
    lines = render_table(table, experiments)
    assert "| small | 10.0 | 20.0 [19.0, 21.0] | 1.5 | m/1_x |" in lines
    assert "| large | 12.0 | 30.5 | – | m/2_y |" in lines and "| other | – | not run | – | n/1_x |" in lines
    assert (
        lines[-2]
        == "The published order holds in 1 of 1 pairs of rows; in 0 of them the intervals do not overlap. A note."
    )


def test_a_row_needs_all_its_sets(table):
    assert row_cell(table, table["rows"][1], {"m/2_y": [entry("test.a", 30.0)]}) is None


def test_agreement_counts_pairs_and_disjoint_intervals():
    cells = [Cell(1.0, (0.5, 1.5), None), Cell(2.0, (1.6, 2.4), None), Cell(1.5, (1.0, 2.0), None)]
    assert agreement([5, 6, 7], cells).startswith("The published order holds in 2 of 3 pairs of rows; in 1 of them")
    assert agreement([5, 5], cells[:2]) == "No two rows with published numbers were run."


def test_bad_tables_are_one_clear_line(tmp_path):
    path = tmp_path / "t.yaml"
    path.write_text(TABLE.replace("phase: 1_x, ", "fase: 1_x, ", 1))
    with pytest.raises(InputError, match="t.yaml: unknown key 'fase' of a row"):
        load_table(path)
    path.write_text(TABLE.replace("metric: BLEU\n", ""))
    with pytest.raises(InputError, match="t.yaml: 'metric' is missing"):
        load_table(path)
