"""Are capsules more robust? The paragraph of README.md, every figure of which is a record's.

For each protocol that attacked both, it sets the capsule network with most attacks beside the plain
CNN with most, and counts who is ahead by more than two test sets of that size would differ.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import mean

from capsrepro.metrics import UNDISTORTED
from capsrepro.report.attack_checks import MASKED, findings
from capsrepro.report.attack_results import Attacked, BySeed, attack_results, is_cnn
from capsrepro.report.formatting import epsilon, plain, quantity
from capsrepro.report.statistics import two_test_sets_margin
from capsrepro.report.summaries import Group
from capsrepro.schema.params import Params

_CURVES = ("accuracy_pct", "transfer_accuracy_pct")
_DISTORTED = "distorted_accuracy_pct"
_DISTORTIONS = (
    ({"rotation_deg": 30.0}, "turned by 30°"),
    ({"translation_px": 4.0}, "moved by 4 pixels"),
    ({"scale": 0.7}, "shrunk to 0.7"),
    ({"affine_share": 1.0}, "through affNIST's maps"),
    ({"noise_sd": 0.3}, "with noise of 0.3"),
)


@dataclass(frozen=True)
class _Pair:
    """One accuracy of both networks, in %, and of how many images."""

    what: str
    capsules: float
    cnn: float
    images: int

    def told(self) -> str:
        numbers = (quantity("accuracy_pct", share) for share in (self.capsules, self.cnn))
        return f"{self.what} {' / '.join(numbers)}"

    def lead(self, confidence: float) -> int:
        """1 when capsules are ahead, -1 when the CNN is, 0 within the margin."""
        difference = self.capsules - self.cnn
        margin = two_test_sets_margin((self.capsules + self.cnn) / 2, self.images, confidence)
        return 0 if abs(difference) <= margin else (1 if difference > 0 else -1)


def robustness_answer(groups: Sequence[Group], params: Params) -> str:
    """The paragraph; a sentence that says so where nothing was attacked yet."""
    told = [
        sentences
        for name in params.judged_protocols
        if (sentences := _of_protocol(name, groups, params))
    ]
    if not told:
        return "No protocol has attacked both a capsule network and a CNN yet."
    return "\n\n".join(told)


def _of_protocol(name: str, groups: Sequence[Group], params: Params) -> str:
    ours = [g for g in groups if g.protocol == name and g.seeds and g.superseded is None]
    results = attack_results(ours, list(params.protocols[name].attacks))
    models: dict[bool, dict[str, list[Attacked]]] = {True: {}, False: {}}
    for one in results:
        if set(_CURVES) & set(one.curves):
            models[is_cnn(one.group.stands_for)].setdefault(one.group.model, []).append(one)
    if not all(models.values()):
        return ""
    capsules, cnn = (max(models[kind].values(), key=_weight) for kind in (False, True))
    return " ".join(_sentences(name, capsules, cnn, params))


def _weight(attacks: Sequence[Attacked]) -> tuple[int, int]:
    return len(attacks), len(attacks[0].group.seeds)


def _sentences(
    name: str, capsules: Sequence[Attacked], cnn: Sequence[Attacked], params: Params
) -> Iterator[str]:
    ours, theirs = capsules[0].group, cnn[0].group
    confidence = params.margins.confidence
    # What some seeds still have from before another setting stands behind it.
    opposite = {(one.name, one.unit): one for one in sorted(cnn, key=_seeds_attacked)}
    own = {(one.name, one.unit): one for one in sorted(capsules, key=_seeds_attacked)}
    common = [(own[key], opposite[key]) for key in own if key in opposite]
    if not common:
        return
    yield (
        f"**`{name}`** (budget {plain(ours.budget)} of 1): `{ours.model}` "
        f"({_seeds([one for one, _ in common])}) / `{theirs.model}` "
        f"({_seeds([one for _, one in common])}), % of test images classified right."
    )
    pairs: list[_Pair] = []
    for size in _sizes(common):
        found = list(_attacked_pairs(common, size))
        pairs += found
        unit = common[0][0].unit
        least = (min(pair.capsules for pair in found), min(pair.cnn for pair in found))
        weakest = " / ".join(quantity("accuracy_pct", share) for share in least)
        yield (
            f"At ε {epsilon(size, unit)}: {', '.join(pair.told() for pair in found)}; under the "
            f"strongest against each {weakest}."
        )
    if distorted := list(_distorted_pairs(ours, theirs)):
        pairs += distorted
        yield f"Images {', '.join(pair.told() for pair in distorted)}."
    leads = [pair.lead(confidence) for pair in pairs]
    yield (
        f"Of these {len(pairs)} comparisons the capsules are ahead in {leads.count(1)}, the CNN in "
        f"{leads.count(-1)}, by more than two test sets of that size would differ."
    )
    yield from _masked(capsules, cnn, confidence)


def _seeds(attacks: Sequence[Attacked]) -> str:
    """Those that were attacked, fewest first where attacks differ."""
    counts = sorted({_seeds_attacked(one) for one in attacks})
    return f"{' to '.join(map(str, counts))} seed{'' if counts[-1] == 1 else 's'}"


def _seeds_attacked(one: Attacked) -> int:
    return len(next(iter(_curve(one).values())))


def _sizes(common: Sequence[tuple[Attacked, Attacked]]) -> list[float]:
    """The middle and the largest ε that every attack has for both."""
    grids = [set(_curve(one)) for pair in common for one in pair]
    shared = sorted(size for size in set.intersection(*grids) if size > 0) if grids else []
    return sorted({shared[len(shared) // 2], shared[-1]}) if shared else []


def _curve(one: Attacked) -> Mapping[float, BySeed]:
    return next(one.curves[metric] for metric in _CURVES if metric in one.curves)


def _attacked_pairs(common: Sequence[tuple[Attacked, Attacked]], size: float) -> Iterator[_Pair]:
    for ours, theirs in common:
        images = int(ours.number("test_images") or 0)
        made_on = ours.setting.get("source_model")
        what = f"made on `{made_on}`" if made_on else f"{ours.name}"
        right, their_right = (mean(_curve(one)[size].values()) for one in (ours, theirs))
        yield _Pair(what, right, their_right, images)


def _distorted_pairs(ours: Group, theirs: Group) -> Iterator[_Pair]:
    both = [_distorted(group) for group in (ours, theirs)]
    for change, words in _DISTORTIONS:
        point = tuple({**UNDISTORTED, **change}.values())
        if all(point in found for found in both):
            setting = {"evaluation": "distortions"}
            images = ours.test_images(setting, _DISTORTED) or 0
            yield _Pair(words, both[0][point], both[1][point], images)


def _distorted(group: Group) -> dict[tuple[float, ...], float]:
    return {
        tuple(float(one.point[name]) for name in UNDISTORTED): mean(one.values.values())
        for one in group.measurements
        if one.metric == _DISTORTED
    }


def _masked(
    capsules: Sequence[Attacked], cnn: Sequence[Attacked], confidence: float
) -> Iterator[str]:
    """Which of the attacks should not be believed."""
    for attacks in (capsules, cnn):
        doubts = findings(attacks, confidence)
        names = dict.fromkeys(one.attacked.name for one in doubts if one.sign == MASKED)
        none = [one.number("zero_gradient_pct") for one in attacks]
        most = max((share for share in none if share is not None), default=0.0)
        if not names:
            continue
        told = f" (up to {quantity('accuracy_pct', most)} % of images have none)" if most else ""
        yield (
            f"Gradients of `{attacks[0].group.model}` look masked{told}: {', '.join(names)}. Its "
            "accuracy under its own gradients is an upper bound."
        )
