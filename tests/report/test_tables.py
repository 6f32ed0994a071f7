"""Golden tables in five formats, and what every table must say or never say.

After a deliberate change: `UPDATE_GOLDEN=1 pytest tests/report/test_tables.py`, then read the diff.
"""

from __future__ import annotations

import csv
import io
import json
import os
import time
from collections.abc import Callable, Sequence
from html.parser import HTMLParser
from pathlib import Path

import pytest

from capsrepro.claims import Claim, load_claims
from capsrepro.records import Record
from capsrepro.report.formatting import epsilon, explain, mean_and_sd, plain, quantity
from capsrepro.report.page import all_tables
from capsrepro.report.rendering import SUFFIXES, Cell, Column, Format, Table, render
from capsrepro.report.statistics import summarise
from capsrepro.report.verdicts import Verdict
from capsrepro.schema.params import Params

GOLDEN = Path(__file__).parent / "golden"
FORMATS: list[Format] = ["md", "latex", "html", "csv", "json"]

Make = Callable[..., Record]
MakeAll = Callable[..., list[Record]]
MakeClaim = Callable[..., Claim]


@pytest.fixture
def records(
    trained: MakeAll,
    run_record: Make,
    attacked: Make,
    on_disk: Callable[[Sequence[Record]], list[Record]],
) -> list[Record]:
    """Three models: one complete, one attacked, one with a failed and a missing seed."""
    baseline = trained("cnn-baseline", [0.39, 0.41, 0.40], metrics={"parameters": 35_445_522.0})
    routed = trained("capsnet-r3-recon", [0.25, 0.26, 0.25], metrics={"parameters": 8_215_568.0})
    lone = trained("capsnet-r1-recon", [0.31])
    failed = run_record("mnist/capsnet-r1-recon/seed-2", failure="loss is NaN at step 120")
    short = trained("mnist-short/capsnet-r3-recon", [2.1, 2.3, 2.2])
    evaluations = [
        attacked(run, {0.0: 99.75, 8 / 255: 96.25 - run.seed, 0.3: 41.5 + run.seed})
        for run in routed
    ]
    evaluations += [attacked(run, {8 / 255: 91.2}, loss="cross-entropy") for run in baseline[:1]]
    return on_disk([*baseline, *routed, *lone, failed, *short, *evaluations])


@pytest.fixture
def claims(claim: MakeClaim) -> list[Claim]:
    attack = {"attack": "fgsm", "epsilon": 0.3, "epsilon_unit": "raw-pixels"}
    return [
        claim(id="sabour2017/mnist/capsnet-r3-recon/test-error"),
        claim(
            id="sabour2017/mnist/cnn-baseline/test-error",
            model="cnn-baseline",
            value=0.39,
            verbatim="0.39",
            locator="Table 1, row 1",
        ),
        claim(
            id="sabour2017/mnist/capsnet-r3-recon/parameters",
            metric="parameters",
            value=8.2e6,
            verbatim="8.2M",
            test_size=None,
            locator="§5",
        ),
        claim(
            "ordering",
            id="sabour2017/mnist/capsnet-r3-recon-over-cnn-baseline",
            worse="cnn-baseline",
            verbatim="0.25 against 0.39",
        ),
        claim(
            "bound",
            id="sabour2017/mnist/capsnet-r3-recon/bound",
            metric="accuracy_pct",
            relation=">=",
            value=20.0,
            verbatim="20 % & more <always> | ever_",
            condition=attack,
        ),
        claim(
            id="sabour2017/mnist/capsnet-r3-recon/figure",
            metric="accuracy_pct",
            value=41.5,
            verbatim="≈ .415",
            source="figure",
            reading_error=1.0,
            condition={**attack, "epsilon_unit": "standardised-pixels"},
        ),
        claim(id="sabour2017/mnist/wan2013/test-error", cited_from="Wan et al. 2013", model="wan"),
    ]


@pytest.mark.parametrize("name", ["mnist", "mnist-short", "claims", "verdicts"])
@pytest.mark.parametrize("form", FORMATS)
def test_golden(
    name: str, form: Format, records: list[Record], claims: list[Claim], params: Params
) -> None:
    path = GOLDEN / f"{name}{SUFFIXES[form]}"
    text = render(all_tables(records, claims, params)[name], form)
    if os.environ.get("UPDATE_GOLDEN"):
        path.write_bytes(text.encode())
    assert text == path.read_bytes().decode()


def test_json_holds_what_was_measured(
    records: list[Record], claims: list[Claim], params: Params
) -> None:
    (table,) = json.loads(render(all_tables(records, claims, params)["mnist"], "json"))["tables"]
    rows = {row["model"]["name"]: row for row in table["rows"]}
    expected = summarise([0.25, 0.26, 0.25], 0.95)
    routed = rows["capsnet-r3-recon"]
    assert routed["test_error_pct"] == {"mean": expected.mean, "sd": expected.sd, "n": 3}
    assert tuple(routed["interval"].values()) == expected.interval
    assert routed["resolution_pp"]["test_images"] == 10_000
    assert routed["verdict"] == "reproduced"
    assert rows["capsnet-r1-recon"]["seeds"] == {"n": 1, "failed": "2", "missing": "1"}


def test_csv_is_rectangular_and_unrounded(
    records: list[Record], claims: list[Claim], params: Params
) -> None:
    for name, tables in all_tables(records, claims, params).items():
        lines = list(csv.reader(io.StringIO(render(tables, "csv"))))
        assert len({len(line) for line in lines}) == 1, name
        assert len(set(lines[0])) == len(lines[0]), name
    tables = all_tables(records, claims, params)["mnist"]
    rows = {row["model.name"]: row for row in csv.DictReader(io.StringIO(render(tables, "csv")))}
    assert float(rows["capsnet-r3-recon"]["test_error_pct.mean"]) == 0.76 / 3


class _Tags(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.links: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in ("meta",):
            self.open.append(tag)
        self.links += [value or "" for key, value in attrs if key in ("src", "href")]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_html_is_whole_and_needs_nothing_else(
    records: list[Record], claims: list[Claim], params: Params
) -> None:
    for tables in all_tables(records, claims, params).values():
        page = render(tables, "html")
        parser = _Tags()
        parser.feed(page)
        assert (parser.open, parser.links) == ([], [])
        assert "<always>" not in page


HOSTILE = r"100 % & $5 #1 a_b {x} ~ ^ \ < > | ± ε 8/255 – § <script>"


@pytest.mark.parametrize(
    ("form", "expected"),
    [
        ("md", r"100 % & $5 #1 a_b {x} ~ ^ \ &lt; > \| ± ε 8/255 – § &lt;script>"),
        (
            "latex",
            r"100 \% \& \$5 \#1 a\_b \{x\} \textasciitilde{} \textasciicircum{} "
            r"\textbackslash{} \ensuremath{<} \ensuremath{>} | \ensuremath{\pm} "
            r"\ensuremath{\varepsilon} 8/255 -- \S{} \ensuremath{<}script\ensuremath{>}",
        ),
        ("html", "&amp; $5 #1 a_b {x} ~ ^ \\ &lt; &gt; | ± ε 8/255 – § &lt;script&gt;"),
    ],
)
def test_nothing_escapes_its_cell(form: Format, expected: str) -> None:
    cell = Cell(HOSTILE, HOSTILE)
    table = Table("t", HOSTILE, (Column("a", HOSTILE),), ((cell,),), (HOSTILE,))
    assert render([table], form).count(expected) >= 4


def test_a_long_table_may_break_across_pages() -> None:
    columns = (Column("n", "n", number=True),)
    long = Table("t", "t", columns, tuple((Cell(str(i), i),) for i in range(41)))
    assert r"\begin{longtable}{r}" in render([long], "latex")


def test_several_tables_make_one_document() -> None:
    tables = [Table(name, name, (Column("a", "a"),), ((Cell("1", 1),),)) for name in "xy"]
    assert [one["name"] for one in json.loads(render(tables, "json"))["tables"]] == ["x", "y"]
    assert render(tables, "html").count("<table>") == 2
    assert render(tables, "md").count("### ") == 2


def test_versions_have_tables_of_their_own(trained: MakeAll, params: Params) -> None:
    newer = params.protocols["mnist"].model_copy(update={"version": "1.1"})
    later = params.model_copy(update={"protocols": {"mnist": newer}})
    tables = all_tables(trained("capsnet-r3-recon", [0.25]), [], later)["mnist"]
    assert [table.name for table in tables] == ["mnist-1.1", "mnist-1.0"]
    assert tables[1].rows[0][0].text == "capsnet-r3-recon (superseded)"


def test_a_single_seed_shows_no_spread(trained: MakeAll, params: Params) -> None:
    (table,) = all_tables(trained("capsnet-r3-recon", [0.25]), [], params)["mnist"]
    row = {c.key: cell.text for c, cell in zip(table.columns, table.rows[2], strict=True)}
    assert (row["test_error_pct"], row["interval"]) == ("0.25 ± –", "–")
    assert row["seeds"] == "1 (missing 1, 2)"


def test_uncommitted_code_is_told(trained: MakeAll, params: Params) -> None:
    (run,) = trained("capsnet-r3-recon", [0.25])
    dirty = run.model_copy(update={"code": run.code.model_copy(update={"git_dirty": True})})
    (table,) = all_tables([dirty], [], params)["mnist"]
    assert "capsnet-r3-recon: run from uncommitted code: seed 0." in table.notes


def test_attacks_are_not_among_the_results_but_named_below_them(
    trained: MakeAll, attacked: Make, params: Params
) -> None:
    runs = trained("capsnet-r3-recon", [0.25, 0.26])
    sound = [attacked(run, {0.1: 60.0}) for run in runs]
    (table,) = all_tables([*runs, *sound], [], params)["mnist"]
    assert not any("0.1" in column.key or "zero" in column.key for column in table.columns)
    (told,) = [note for note in table.notes if "mnist-robustness" in note]
    assert told.endswith("no check found masked gradients or a broken attack.")

    hidden = [attacked(run, {0.1: 60.0}, metrics={"zero_gradient_pct": 7.8}) for run in runs]
    (table,) = all_tables([*runs, *hidden], [], params)["mnist"]
    (told,) = [note for note in table.notes if "mnist-robustness" in note]
    assert told.endswith("may be less robust than they seem there: capsnet-r3-recon (fgsm).")

    (table,) = all_tables(runs, [], params)["mnist"]
    assert "under attack" not in " ".join(table.notes)


def test_every_plus_minus_is_named(
    records: list[Record], claims: list[Claim], params: Params
) -> None:
    for tables in all_tables(records, claims, params).values():
        for table in tables:
            shown = any("±" in cell.text for row in table.rows for cell in row)
            assert not shown or "standard deviation" in " ".join(table.notes)


@pytest.mark.parametrize(
    ("value", "text"),
    [(10_000, "10,000"), (1 / 150, "0.00667"), (0.5, "0.5"), (0, "0"), (1e-5, "1e-05"), (3.0, "3")],
)
def test_plain_numbers(value: float, text: str) -> None:
    assert plain(value) == text


@pytest.mark.parametrize(
    ("size", "text"), [(0.0, "0"), (8 / 255, "8/255"), (76 / 255, "76/255"), (0.3, "0.3"), (1, "1")]
)
def test_epsilons(size: float, text: str) -> None:
    assert epsilon(size) == text


def test_quantities() -> None:
    assert mean_and_sd("test_error_pct", summarise([0.25, 0.26, 0.25], 0.95)) == "0.25 ± 0.006"
    assert mean_and_sd("accuracy_pct", summarise([81.23], 0.95)) == "81.2 ± –"
    assert quantity("parameters", 8_215_568.0) == "8,215,568"
    assert quantity("test_loss", 0.0123456) == "0.01235"
    assert explain(Verdict("reproduced", "p {p_holm}", {"p_holm": 0.0421})) == "p = 0.042"


@pytest.mark.slow
def test_three_hundred_records_and_every_claim_in_a_second_and_a_half(
    params: Params, run_record: Make, attacked: Make, on_disk: Callable[..., list[Record]]
) -> None:
    runs = [
        run_record(
            f"{protocol}/{model}/seed-{seed}",
            {"test_error_pct": 0.25 + seed / 100, "test_images": 10_000.0, "parameters": 8e6},
        )
        for protocol in ("mnist", "mnist-short")
        for model in params.models["mnist"]
        for seed in range(9)
    ][:150]
    curve = {k / 255: 90.0 - k for k in (0, 8, 16, 25, 50, 76)}
    records = runs + [attacked(run, curve) for run in runs]
    assert len(records) == 300
    records = on_disk(records)
    start = time.perf_counter()
    claims = load_claims()
    tables = all_tables(records, claims, params)
    for form in FORMATS:
        for several in tables.values():
            render(several, form)
    assert time.perf_counter() - start < 1.5
