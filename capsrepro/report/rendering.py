"""The same table as Markdown, LaTeX, HTML, CSV or JSON.

People read the text of a cell, programs its value: CSV and JSON carry full precision, the other
three what tables.py has rounded.
"""

from __future__ import annotations

import csv
import html
import io
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from tabulate import tabulate

Scalar = str | float | int | None
Format = Literal["md", "latex", "html", "csv", "json"]

SUFFIXES: dict[Format, str] = {
    "md": ".md",
    "latex": ".tex",
    "html": ".html",
    "csv": ".csv",
    "json": ".json",
}

# A float may not break across pages; a table longer than this becomes a longtable.
_ROWS_OF_A_PAGE = 40

_LATEX = {
    "\\": r"\textbackslash{}",
    **{character: "\\" + character for character in "&%$#_{}"},
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\ensuremath{<}",
    ">": r"\ensuremath{>}",
    "±": r"\ensuremath{\pm}",
    "ε": r"\ensuremath{\varepsilon}",
    "σ": r"\ensuremath{\sigma}",
    "≈": r"\ensuremath{\approx}",
    "≥": r"\ensuremath{\geq}",
    "≤": r"\ensuremath{\leq}",
    "·": r"\ensuremath{\cdot}",
    "×": r"\ensuremath{\times}",
    "√": r"\ensuremath{\surd}",
    "∞": r"\ensuremath{\infty}",
    "−": r"\ensuremath{-}",
    "–": "--",
    "§": r"\S{}",
}

_STYLE = (
    "body{font:15px/1.5 system-ui,sans-serif;margin:2rem;color:#1a1a1a;background:#fff}"
    "section{overflow-x:auto;margin-bottom:3rem}"
    "table{border-collapse:collapse;border-top:2px solid;border-bottom:2px solid}"
    "caption{text-align:left;font-weight:600;margin-bottom:.5rem}"
    "th,td{padding:.25rem .75rem;text-align:left;vertical-align:top}"
    "th{border-bottom:1px solid}"
    ".number{text-align:right;white-space:nowrap;font-variant-numeric:tabular-nums}"
    "@media(prefers-color-scheme:dark){body{color:#e6e6e6;background:#1a1a1a}}"
)


@dataclass(frozen=True)
class Column:
    """A column: `key` for programs, `title` for people, numbers to the right."""

    key: str
    title: str
    number: bool = False


@dataclass(frozen=True)
class Cell:
    """What people read, and the value or named values behind it."""

    text: str
    value: Scalar | Mapping[str, Scalar] = None


@dataclass(frozen=True)
class Table:
    """A table with the sentences that must stand below it."""

    name: str
    title: str
    columns: tuple[Column, ...]
    rows: tuple[tuple[Cell, ...], ...]
    notes: tuple[str, ...] = ()


def render(tables: Sequence[Table], form: Format) -> str:
    """One document of all the tables, with a newline at its end.

    Args:
        tables: At least one.
        form: A key of SUFFIXES.
    """
    renderers: dict[Format, Callable[[Sequence[Table]], str]] = {
        "md": lambda several: "\n".join(map(_markdown, several)),
        "latex": lambda several: "\n".join(map(_latex, several)),
        "html": _html,
        "csv": lambda several: "\n".join(map(_csv, several)),
        "json": _json,
    }
    return renderers[form](tables)


def _markdown(table: Table) -> str:
    def escaped(text: str) -> str:
        return text.replace("|", r"\|").replace("<", "&lt;").replace("\n", " ")

    grid = tabulate(
        [[escaped(cell.text) for cell in row] for row in table.rows],
        headers=[escaped(column.title) for column in table.columns],
        tablefmt="pipe",
        disable_numparse=True,
        colalign=["right" if column.number else "left" for column in table.columns],
    )
    notes = "".join(f"- {escaped(note)}\n" for note in table.notes)
    return f"### {escaped(table.title)}\n\n{grid}\n" + (f"\n{notes}" if notes else "")


def _latex(table: Table) -> str:
    def escaped(text: str) -> str:
        return "".join(_LATEX.get(character, character) for character in text)

    def line(texts: Sequence[str]) -> str:
        return " & ".join(map(escaped, texts)) + r" \\"

    layout = "".join("r" if column.number else "l" for column in table.columns)
    caption = rf"\caption{{{escaped(table.title)}}}\label{{tab:{table.name}}}"
    head = [r"\toprule", line([column.title for column in table.columns]), r"\midrule"]
    body = [line([cell.text for cell in row]) for row in table.rows]
    notes = [rf"\par\footnotesize {escaped(note)}" for note in table.notes]
    if len(body) > _ROWS_OF_A_PAGE:
        lines = ["% needs booktabs and longtable", rf"\begin{{longtable}}{{{layout}}}"]
        lines += [caption + r"\\", *head, r"\endhead", *body, r"\bottomrule", r"\end{longtable}"]
        return "\n".join(lines + notes) + "\n"
    lines = ["% needs booktabs", r"\begin{table}", r"\centering", caption]
    lines += [rf"\begin{{tabular}}{{{layout}}}", *head, *body, r"\bottomrule", r"\end{tabular}"]
    return "\n".join([*lines, *notes, r"\end{table}"]) + "\n"


def _html(tables: Sequence[Table]) -> str:
    sections = "".join(map(_html_section, tables))
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width">\n'
        f"<title>{html.escape(tables[0].title)}</title>\n<style>{_STYLE}</style>\n</head>\n"
        f"<body>\n{sections}</body>\n</html>\n"
    )


def _html_section(table: Table) -> str:
    kinds = [' class="number"' if column.number else "" for column in table.columns]

    def line(tag: str, texts: Sequence[str]) -> str:
        cells = (
            f"<{tag}{kind}>{html.escape(text)}</{tag}>"
            for kind, text in zip(kinds, texts, strict=True)
        )
        return f"<tr>{''.join(cells)}</tr>\n"

    head = line("th", [column.title for column in table.columns])
    body = "".join(line("td", [cell.text for cell in row]) for row in table.rows)
    notes = "".join(f"<li>{html.escape(note)}</li>\n" for note in table.notes)
    return (
        f"<section>\n<table>\n<caption>{html.escape(table.title)}</caption>\n"
        f"<thead>\n{head}</thead>\n<tbody>\n{body}</tbody>\n</table>\n"
        + (f"<ul>\n{notes}</ul>\n" if notes else "")
        + "</section>\n"
    )


def _csv(table: Table) -> str:
    """Named values get a column each, such as test_error_pct.mean and test_error_pct.sd."""
    flat = [_flat(table.columns, row) for row in table.rows]
    keys: list[tuple[str, str]] = []
    for column in table.columns:
        found = dict.fromkeys(key for row in flat for key in row if key[0] == column.key)
        keys += found or [(column.key, "")]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([".".join(filter(None, key)) for key in keys])
    writer.writerows([row.get(key) for key in keys] for row in flat)
    return text.getvalue()


def _flat(columns: Sequence[Column], row: Sequence[Cell]) -> dict[tuple[str, str], Scalar]:
    values: dict[tuple[str, str], Scalar] = {}
    for column, cell in zip(columns, row, strict=True):
        if isinstance(cell.value, Mapping):
            values |= {(column.key, name): value for name, value in cell.value.items()}
        elif cell.value is not None:
            values[column.key, ""] = cell.value
    return values


def _json(tables: Sequence[Table]) -> str:
    document = {
        "tables": [
            {
                "name": table.name,
                "title": table.title,
                "columns": {column.key: column.title for column in table.columns},
                "rows": [
                    {
                        column.key: dict(cell.value)
                        if isinstance(cell.value, Mapping)
                        else cell.value
                        for column, cell in zip(table.columns, row, strict=True)
                    }
                    for row in table.rows
                ],
                "notes": table.notes,
            }
            for table in tables
        ]
    }
    return json.dumps(document, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
