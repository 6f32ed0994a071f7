"""What the papers' own figures say, digitised, to be drawn over ours."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from typing import TYPE_CHECKING

from capsrepro.claims import ValueClaim, load_claims

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def claims_read_from(locator: str, paper: str = "sabour2017") -> list[ValueClaim]:
    """The values of a paper that were read off this figure.

    Raises:
        CapsreproError: The file of claims is damaged.
    """
    return [
        claim
        for claim in load_claims(paper)
        if isinstance(claim, ValueClaim) and claim.locator == locator
    ]


def claims_of_attack(protocol: str, attack: str) -> list[ValueClaim]:
    """Accuracies under an attack that reproductions report, with ε as a share of 255.

    Args:
        protocol: The claims' name of it.
        attack: `fgsm` or `bim`.

    Raises:
        CapsreproError: The file of claims is damaged.
    """
    return [
        claim
        for claim in load_claims("reproductions")
        if isinstance(claim, ValueClaim)
        and (claim.protocol, claim.metric) == (protocol, "accuracy_pct")
        and claim.condition.get("attack") == attack
        and str(claim.condition.get("epsilon")).endswith("/255")
    ]


def epsilon_of(claim: ValueClaim) -> float:
    """The ε that a claim is about, in its own unit."""
    return float(Fraction(claim.condition["epsilon"]))


def overlay_points(
    axes: Axes,
    claims: Sequence[ValueClaim],
    places: Sequence[float],
    label: str,
    color: str = "black",
    widths: Sequence[float] | None = None,
) -> None:
    """Draw published values as points whose bars are the error of reading them.

    Args:
        axes: To draw on.
        claims: One for each point.
        places: Where on the horizontal axis.
        label: For the legend.
        color: Of points and bars.
        widths: Half the width of what a value is the mean of; none where left out.
    """
    axes.errorbar(
        places,
        [claim.value for claim in claims],
        yerr=[claim.reading_error or 0.0 for claim in claims],
        xerr=widths,
        fmt="D",
        color=color,
        markerfacecolor="white",
        elinewidth=1,
        zorder=3,
        label=label,
    )
