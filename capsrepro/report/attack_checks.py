"""Whether an attack was any good: what a sceptic looks at before believing an accuracy under it.

A network may look robust because its gradients lead nowhere (Athalye et al. 2018, §3.1, name the
signs). Where one measured quantity should not lie above another, it may do so by as much as two
test sets of that size would differ. Both are of the same images, on which they differ by less, so
a failed check is no accident of the test set.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from capsrepro.report.attack_results import GRADIENT_RATIO, Attacked
from capsrepro.report.formatting import epsilon, plain, quantity
from capsrepro.report.statistics import two_test_sets_margin

MASKED = "Gradients look masked"
BROKEN = "The attack looks broken"
RESTARTS = "More restarts may find more"
SMALL = "Small gradients"

ZERO_GRADIENTS_PCT = 1.0
"""Images that no gradient moves stay right at every ε. Up to this share, in every seed, they raise
an accuracy by no more than seeds differ anyway."""

SMALL_GRADIENT = 0.1
"""Below this multiple of the CNN's, gradients are an order of magnitude smaller. That alone masks
nothing: FGSM, BIM and PGD follow signs, whatever the size."""


@dataclass(frozen=True)
class Finding:
    """A check that failed.

    Attributes:
        attacked: The attack and the model.
        check: What was looked at.
        sign: What it is a sign of: MASKED, BROKEN, RESTARTS or SMALL.
        sentence: All of it, with its numbers.
    """

    attacked: Attacked
    check: str
    sign: str
    sentence: str

    @property
    def doubtful(self) -> bool:
        """Whether the accuracy should not be believed."""
        return self.sign in (MASKED, BROKEN)


@dataclass(frozen=True)
class _Check:
    """One check.

    Attributes:
        name: What is looked at.
        sign: What it is a sign of when it fails.
        needs: Metrics without which it cannot be made.
        fails: The numbers in words; None when it passes. Takes the confidence too.
    """

    name: str
    sign: str
    needs: tuple[str, ...]
    fails: Callable[[Attacked, float], str | None]

    def possible(self, attacked: Attacked) -> bool:
        """Whether its metrics were measured."""
        return all(name in attacked.numbers or name in attacked.curves for name in self.needs)


def findings(results: Sequence[Attacked], confidence: float) -> list[Finding]:
    """Every check that failed, in the order of the results.

    Args:
        results: What was measured.
        confidence: Two-sided, 0 to 1: of the margin that two test sets may differ by.
    """
    return [
        Finding(one, check.name, check.sign, f"{check.sign}: {_who(one)}: {told}.")
        for one in results
        for check in _CHECKS
        if check.possible(one) and (told := check.fails(one, confidence))
    ]


def check_notes(results: Sequence[Attacked], confidence: float) -> list[str]:
    """A sentence for each check that failed, then one for the checks that no attack failed."""
    found = findings(results, confidence)
    failed = {one.check for one in found}
    passed = [
        check.name
        for check in _CHECKS
        if check.name not in failed and any(map(check.possible, results))
    ]
    opening = "Checked without such a finding" if found else "No attack failed a check; checked"
    told = [f"{opening}: {'; '.join(passed)}."] if passed else []
    return [*(one.sentence for one in found), *told]


def _who(attacked: Attacked) -> str:
    model = attacked.group.model + (" (superseded)" if attacked.group.superseded else "")
    return f"{model}, {attacked.name} ({attacked.setting.get('loss', 'unnamed')} loss)"


def _zero_gradients(attacked: Attacked, _: float) -> str | None:
    most = max(attacked.numbers["zero_gradient_pct"].values())
    if most <= ZERO_GRADIENTS_PCT:
        return None
    return f"up to {quantity('accuracy_pct', most)} % of images have no gradient at all"


def _full_range(attacked: Attacked, confidence: float) -> str | None:
    """An image with several labels is right by chance less often still, which this lets pass."""
    right, classes, images = (
        attacked.number(metric) or 0
        for metric in ("full_range_accuracy_pct", "classes", "test_images")
    )
    chance = 100 / classes
    if right <= chance + two_test_sets_margin(chance, int(images), confidence):
        return None
    told = quantity("accuracy_pct", right)
    return f"{told} % stay right where pixels may be anything, chance is {plain(chance)} %"


def _above(
    higher: str, lower: str, words: str, attacked: Attacked, confidence: float
) -> str | None:
    """In words, where the one lies furthest above the other; None where it never does.

    Args:
        higher: The curve that should not lie above the other.
        lower: The other.
        words: With `{at}`, `{higher}`, `{lower}` and `{source}`.
        attacked: What was measured.
        confidence: See `findings`.
    """
    images = int(attacked.number("test_images") or 0)
    ours, others = attacked.curve(higher), attacked.curve(lower)
    excesses = {size: ours[size] - others[size] for size in ours if size in others}
    too_far = [
        size
        for size, excess in excesses.items()
        if excess > two_test_sets_margin(ours[size] - excess / 2, images, confidence)
    ]
    if not too_far:
        return None
    size = max(too_far, key=excesses.__getitem__)
    return words.format(
        at=f"at ε {epsilon(size, attacked.unit)}",
        higher=f"{quantity('accuracy_pct', ours[size])} %",
        lower=f"{quantity('accuracy_pct', others[size])} %",
        source=attacked.setting.get("source_model", "another network"),
    )


def _small_gradient(attacked: Attacked, _: float) -> str | None:
    ratio = attacked.number(GRADIENT_RATIO)
    if ratio is None or ratio >= SMALL_GRADIENT:
        return None
    return f"{plain(ratio)} times those of {attacked.cnn}, which alone masks nothing"


def _comparison(name: str, sign: str, higher: str, lower: str, words: str) -> _Check:
    fails = partial(_above, higher, lower, words)
    return _Check(name, sign, (higher, lower, "test_images"), fails)


_CHECKS = (
    _Check(
        f"images without a gradient ({plain(ZERO_GRADIENTS_PCT)} % at most)",
        MASKED,
        ("zero_gradient_pct",),
        _zero_gradients,
    ),
    _Check(
        "chance at most where pixels may be anything",
        BROKEN,
        ("full_range_accuracy_pct", "classes", "test_images"),
        _full_range,
    ),
    _comparison(
        "several steps no weaker than one",
        MASKED,
        "accuracy_pct",
        "fgsm_accuracy_pct",
        "{at} all steps leave {higher} right, one step leaves {lower}",
    ),
    _comparison(
        "several steps towards a target no weaker than one",
        MASKED,
        "fgsm_targeted_success_pct",
        "targeted_success_pct",
        "{at} one step succeeds with {higher}, all steps with {lower}",
    ),
    _comparison(
        "transferred images no stronger than a model's own",
        MASKED,
        "white_box_accuracy_pct",
        "transfer_accuracy_pct",
        "{at} images made on the model itself leave {higher} right, those of {source} {lower}",
    ),
    _comparison(
        "stronger than random signs",
        MASKED,
        "accuracy_pct",
        "noise_accuracy_pct",
        "{at} the attack leaves {higher} right, random signs leave {lower}",
    ),
    _comparison(
        "a single random start as good as all",
        RESTARTS,
        "first_start_accuracy_pct",
        "accuracy_pct",
        "{at} the first start leaves {higher} right, all together {lower}",
    ),
    _Check(
        f"gradients no smaller than {plain(SMALL_GRADIENT)} of the CNN's",
        SMALL,
        (GRADIENT_RATIO,),
        _small_gradient,
    ),
)
