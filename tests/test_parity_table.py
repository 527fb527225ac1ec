import json

import parity_table
import pytest


def line(case, error=1e-6, status="pass", reason=""):
    return json.dumps(
        {"case": case, "status": status, "error": error, "tolerance": 1e-4, "reason": reason}
    )


def test_new_rows_replace_old_ones_and_others_stay(tmp_path):
    page, lines = tmp_path / "page.md", tmp_path / "lines.jsonl"
    page.write_text(f"before\n{parity_table.BEGIN}{parity_table.END}after\n")
    lines.write_text("\n".join([line("b"), line("a", 2e-6)]))
    assert parity_table.main([str(lines), str(page)]) == 0
    lines.write_text(line("b", None, "known_difference", "x | y"))
    assert parity_table.main([str(lines), str(page)]) == 0
    *_, a, b, _, last = page.read_text().splitlines()
    assert a == "| a | 1.0e-04 | 2.0e-06 |  |"
    assert b == "| b | 1.0e-04 |  | known_difference: x / y |"
    assert (page.read_text().startswith("before\n"), last) == (True, "after")


def test_a_page_without_marks_is_refused():
    with pytest.raises(ValueError, match="lacks"):
        parity_table.fill("no table", {})
