"""Where tables go: files in results/tables, and marked blocks of README.md."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path

from capsrepro.claims import Claim
from capsrepro.errors import CapsreproError, UsageError
from capsrepro.files import write_text
from capsrepro.records import Record
from capsrepro.report.claim_tables import claims_table, verdict_counts_table
from capsrepro.report.data_facts import data_groups
from capsrepro.report.distortion_tables import distortion_tables
from capsrepro.report.evaluation_tables import evaluation_tables
from capsrepro.report.gathering import gather
from capsrepro.report.judging import Judgement, judge
from capsrepro.report.precisions import precision_table
from capsrepro.report.readings_table import readings_table
from capsrepro.report.rendering import SUFFIXES, Table, render
from capsrepro.report.robustness_tables import robustness_tables
from capsrepro.report.summaries import Group
from capsrepro.report.tables import result_tables
from capsrepro.schema.params import Params

ACROSS = ("verdicts", "claims", "readings", "precision")
"""Tables of no single protocol."""


def _robustness(protocol: str, groups: Sequence[Group], params: Params) -> list[Table]:
    """What a network withstands: attacks first, then what was not chosen to mislead it."""
    attacked = robustness_tables(protocol, groups, params)
    return [*attacked, *distortion_tables(protocol, groups, params)]


_MORE = {
    "-evaluations": ("What else was measured", evaluation_tables),
    "-robustness": ("Under attack and on distorted images", _robustness),
}
"""What a protocol has besides its results, by how the names of these tables end."""


def all_tables(
    records: Iterable[Record],
    claims: Iterable[Claim],
    params: Params,
    protocols: Sequence[str] = (),
    results: Path | None = None,
) -> dict[str, list[Table]]:
    """Every table by the name of its file.

    Args:
        records: All records there are: a claim may be judged by a run of any protocol.
        claims: All claims.
        params: What is asked for, and the margins.
        protocols: Whose results to show; empty means all that params.yaml or a record names.
        results: The results folder, whose class scores make ensembles; None makes none.

    Returns:
        Per protocol one table for each of its versions, and where they were measured, under
        `<protocol>-evaluations` and `-robustness`, what else was; then `verdicts`,
        `claims`, `readings` and, once there are records of them, `precision`.

    Raises:
        UsageError: Neither params.yaml nor any record names one of the protocols.
        CapsreproError: Scores that a record speaks of are missing or damaged.
    """
    published = list(claims)
    groups = gather(records, published, params, results)
    # Facts of the data stand trial for claims, but are no model and have no row in a table.
    facts = data_groups(params, results)
    judgements = judge(published, [*groups, *facts], params)
    tables: dict[str, list[Table]] = {}
    for name in protocols or dict.fromkeys(group.protocol for group in groups):
        tables |= _tables_of(name, groups, judgements, params)
    tables["verdicts"] = [verdict_counts_table(judgements)]
    tables["claims"] = [claims_table(judgements, params)]
    tables["readings"] = [readings_table(published, groups, params)]
    if (precision := precision_table(groups, params)) is not None:
        tables["precision"] = [precision]
    return tables


def _tables_of(
    protocol: str, groups: Sequence[Group], judgements: Sequence[Judgement], params: Params
) -> dict[str, list[Table]]:
    """The results of one protocol and, in files of their own, what else was measured."""
    results = result_tables(protocol, groups, judgements, params)
    if not results:
        raise UsageError(
            f"no record and no key of params.yaml names protocol {protocol!r}; "
            f"known: {', '.join(params.protocols)}."
        )
    others = {end: make(protocol, groups, params) for end, (_, make) in _MORE.items()}
    return {protocol: results} | {protocol + end: found for end, found in others.items() if found}


def of_protocols(
    tables: Mapping[str, list[Table]], protocols: Sequence[str]
) -> dict[str, list[Table]]:
    """Those of `all_tables` that are of these protocols, and those of no single one."""
    names = {*ACROSS, *(name + end for name in protocols for end in ("", *_MORE))}
    return {name: found for name, found in tables.items() if name in names}


def write_tables(tables: Mapping[str, Sequence[Table]], results: Path) -> list[Path]:
    """Write tables in every format below results/tables; files that agree stay untouched.

    Args:
        tables: From `all_tables`.
        results: The results folder.

    Returns:
        Every table's path, written now or not.
    """
    paths = []
    for name, found in tables.items():
        for form, suffix in SUFFIXES.items():
            path = results / "tables" / f"{name}{suffix}"
            _write_if_new(path, render(found, form))
            paths.append(path)
    return paths


def readme_blocks(
    tables: Mapping[str, Sequence[Table]], protocols: Sequence[str], run: Collection[str]
) -> dict[str, str]:
    """What README.md shows: `results` of the protocols that have any, and `verdicts`.

    Of what else was measured it shows only where to read it.

    Args:
        tables: From `all_tables`.
        protocols: Those that are judged.
        run: Those that have a record.
    """
    results = [table for name in protocols if name in run for table in tables[name]]
    block = render(results, "md").rstrip()
    for end, (heading, _) in _MORE.items():
        others = [name + end for name in protocols if name + end in tables]
        others += ["precision"] if end == "-evaluations" and "precision" in tables else []
        if others:
            links = ", ".join(f"[{name}](results/tables/{name}.md)" for name in others)
            block += f"\n\n{heading}: {links}."
    if owed := [f"`{name}`" for name in protocols if name not in run]:
        block += f"\n\nAsked for and not run yet: {', '.join(owed)}."
    return {"results": block, "verdicts": render(tables["verdicts"], "md")}


def inject(text: str, blocks: Mapping[str, str]) -> str:
    """Put each block between its markers and leave the rest of the text as it is.

    Args:
        text: A Markdown document with `<!-- capsrepro:begin NAME -->` and
            `<!-- capsrepro:end NAME -->` once for each name.
        blocks: New contents by name.

    Raises:
        CapsreproError: A marker is missing, doubled, or in the wrong order.
    """
    for name, block in blocks.items():
        begin, end = f"<!-- capsrepro:begin {name} -->", f"<!-- capsrepro:end {name} -->"
        found = re.findall(f"{re.escape(begin)}|{re.escape(end)}", text)
        if found != [begin, end]:
            raise CapsreproError(
                f"README.md needs the markers {begin} and {end} once each and in this order; "
                "restore it with `git checkout README.md`."
            )
        before, _, rest = text.partition(begin)
        after = rest.partition(end)[2]
        text = f"{before}{begin}\n\n{block.strip()}\n\n{end}{after}"
    return text


def readme_is_current(text: str, blocks: Mapping[str, str]) -> bool:
    """Whether the blocks stand in the document already, to the byte."""
    return inject(text, blocks) == text


def _write_if_new(path: Path, text: str) -> None:
    """Leave a file that agrees alone, so that nothing downstream looks changed."""
    try:
        if path.read_bytes() == text.encode():
            return
    except OSError:
        pass  # not there, or unreadable: write_text says what is wrong with it
    write_text(path, text)
