"""Files and README blocks: complete, identical when nothing changed, untouched when identical."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from capsrepro.claims import Claim
from capsrepro.errors import CapsreproError, UsageError
from capsrepro.records import Record
from capsrepro.report.page import (
    all_tables,
    inject,
    of_protocols,
    readme_blocks,
    readme_is_current,
    write_tables,
)
from capsrepro.schema.params import Params

MakeAll = Callable[..., list[Record]]
MakeClaim = Callable[..., Claim]
README = """# Title

<!-- capsrepro:begin results -->
old
<!-- capsrepro:end results -->

Text between.
<!-- capsrepro:begin verdicts -->
<!-- capsrepro:end verdicts -->
The end.
"""


def test_tables_are_written_in_five_formats(
    params: Params, trained: MakeAll, claim: MakeClaim, tmp_path: Path
) -> None:
    tables = all_tables(trained("capsnet-r3-recon", [0.25]), [claim()], params)
    paths = write_tables(tables, tmp_path)
    assert [path.relative_to(tmp_path / "tables").as_posix() for path in paths] == [
        f"{name}.{suffix}"
        for name in ("mnist", "mnist-short", "verdicts", "claims", "readings")
        for suffix in ("md", "tex", "html", "csv", "json")
    ]
    assert all(path.read_bytes().endswith(b"\n") for path in paths)


def test_writing_again_changes_nothing(
    params: Params, trained: MakeAll, claim: MakeClaim, tmp_path: Path
) -> None:
    records = trained("capsnet-r3-recon", [0.25, 0.26])
    paths = write_tables(all_tables(records, [claim()], params), tmp_path)
    before = {path: (path.read_bytes(), path.stat().st_ino) for path in paths}
    paths[0].write_text("by hand")
    again = write_tables(all_tables(records[::-1], [claim()], params), tmp_path)
    assert again == paths
    assert {path: path.read_bytes() for path in paths} == {p: b for p, (b, _) in before.items()}
    # A file that agreed was not even replaced.
    assert all(path.stat().st_ino == before[path][1] for path in paths[1:])


def test_only_the_protocols_asked_for(params: Params, tmp_path: Path) -> None:
    expected = {"mnist-short", "verdicts", "claims", "readings"}
    paths = write_tables(all_tables([], [], params, ["mnist-short"]), tmp_path)
    assert {path.stem for path in paths} == expected
    assert of_protocols(all_tables([], [], params), ["mnist-short"]).keys() == expected


def test_an_unknown_protocol_is_refused(params: Params) -> None:
    with pytest.raises(UsageError, match="protocol 'svhn'; known: mnist, mnist-short"):
        all_tables([], [], params, ["svhn"])


def test_readme_blocks_are_put_between_their_markers() -> None:
    blocks = {"results": "| a |\n", "verdicts": "counts"}
    text = inject(README, blocks)
    assert text == (
        "# Title\n\n<!-- capsrepro:begin results -->\n\n| a |\n\n<!-- capsrepro:end results -->\n\n"
        "Text between.\n<!-- capsrepro:begin verdicts -->\n\ncounts\n\n"
        "<!-- capsrepro:end verdicts -->\nThe end.\n"
    )
    assert not readme_is_current(README, blocks)
    assert readme_is_current(text, blocks)
    assert not readme_is_current(text, {"results": "| b |"})


def test_backslashes_of_a_block_stay() -> None:
    assert r"\1 \| \g<0>" in inject(README, {"results": r"\1 \| \g<0>"})


@pytest.mark.parametrize(
    "text",
    [
        "",
        "<!-- capsrepro:begin results -->",
        "<!-- capsrepro:end results --> <!-- capsrepro:begin results -->",
        README + README,
    ],
)
def test_missing_or_doubled_markers_are_named(text: str) -> None:
    with pytest.raises(CapsreproError, match=r"capsrepro:begin results -->.*once each") as caught:
        inject(text, {"results": "new"})
    assert "\n" not in str(caught.value)


def test_readme_shows_the_committed_protocols(
    params: Params, trained: MakeAll, claim: MakeClaim
) -> None:
    tables = all_tables(trained("capsnet-r3-recon", [0.25]), [claim()], params)
    blocks = readme_blocks(tables, ["mnist", "svhn"], {"mnist"})
    assert list(blocks) == ["results", "verdicts"]
    assert "### mnist 1.0: MNIST, full recipe" in blocks["results"]
    assert "mnist-short" not in blocks["results"]
    assert blocks["results"].endswith("Asked for and not run yet: `svhn`.")
    assert "sabour2017" in blocks["verdicts"]
    assert readme_is_current(inject(README, blocks), blocks)
