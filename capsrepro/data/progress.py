"""How far long work is: a bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def show_progress(
    what: str, total: int, unit: str, *, line: str | None = None, wanted: bool
) -> Iterator[Callable[[int], object]]:
    """Show the progress of one piece of work on standard error.

    Args:
        what: Name of the work.
        total: Its size.
        unit: Of the size; `B` is scaled to kB and MB.
        line: Printed once instead of the bar where there is no terminal; nothing when None.
        wanted: Whether to show anything at all.

    Yields:
        What to call with the size of each finished part.
    """
    if wanted and sys.stderr.isatty():
        from tqdm import tqdm

        with tqdm(total=total, desc=what, unit=unit, unit_scale=unit == "B") as bar:
            yield bar.update
        return
    if wanted and line is not None:
        print(line, file=sys.stderr)
    yield lambda _: None
