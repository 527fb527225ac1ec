"""A table of cases, tolerances and measured errors, from the lines that parity.py prints.

    python tests/parity.py FOLDER... > lines.jsonl
    python tests/parity_table.py lines.jsonl             # prints the table
    python tests/parity_table.py lines.jsonl PAGE.md     # puts it between the marks of a page

The marks are the lines `<!-- parity -->` and `<!-- /parity -->`. Cases that the lines do not name
keep the rows that the page has for them.
"""

import json
import sys
from collections.abc import Iterable
from pathlib import Path

BEGIN, END = "<!-- parity -->\n", "<!-- /parity -->\n"
HEAD = "| case | tolerance | error | |\n| --- | --- | --- | --- |\n"


def row(line: dict) -> str:
    """The row of one case."""
    number = lambda value: "" if value is None else f"{value:.1e}"
    said = "" if line["status"] == "pass" else f"{line['status']}: {line['reason']}"
    cells = line["case"], number(line["tolerance"]), number(line["error"]), said.replace("|", "/")
    return f"| {' | '.join(cells)} |"


def rows_of(lines: Iterable[str]) -> dict[str, str]:
    """The rows by their cases, from lines of JSON."""
    found = [json.loads(line) for line in lines if line.strip()]
    return {line["case"]: row(line) for line in found}


def table(rows: dict[str, str]) -> str:
    return HEAD + "".join(f"{rows[case]}\n" for case in sorted(rows))


def fill(page: str, rows: dict[str, str]) -> str:
    """The page with its table brought up to date.

    Raises:
      ValueError: the page has no marks.
    """
    if BEGIN not in page or END not in page:
        raise ValueError(f"the page lacks {BEGIN.strip()} or {END.strip()}")
    before, rest = page.split(BEGIN, 1)
    old, after = rest.split(END, 1)
    there = {
        line.split("|")[1].strip(): line for line in old.splitlines()[2:] if line.startswith("| ")
    }
    return before + BEGIN + table({**there, **rows}) + END + after


def main(arguments: list[str]) -> int:
    if not arguments or arguments[0] in ("-h", "--help") or len(arguments) > 2:
        print(__doc__)
        return 0 if arguments[:1] in (["-h"], ["--help"]) else 2
    rows = rows_of(Path(arguments[0]).read_text().splitlines())
    if len(arguments) == 1:
        print(table(rows), end="")
    else:
        page = Path(arguments[1])
        page.write_text(fill(page.read_text(), rows))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
