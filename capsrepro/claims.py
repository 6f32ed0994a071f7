"""The published claims, typed: what each paper states, where, and what it leaves unsaid.

The numbers live in `published/*.yaml`, one file per source that is judged and one for the other
reproductions. A claim is a value (0.25 % ± 0.005), an ordering (three routing iterations beat
one) or a bound (accuracy never below chance); design.md §11 says how each is judged.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    StrictFloat,
    StrictInt,
    StrictStr,
    TypeAdapter,
    ValidationError,
    model_validator,
)

from capsrepro.errors import CapsreproError, UsageError
from capsrepro.yaml_lines import LOADER

PUBLISHED = Path(__file__).parent / "published"

PAPERS = {
    name: f"{name}.yaml"
    for name in ("sabour2017", "hinton2018", "michels2019", "garg-blog", "reproductions")
}

Name = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9.-]*$")]
Sentence = Annotated[str, Field(min_length=1)]


class _Entry(BaseModel):
    """What every block of a published file shares: read-only, and no key we do not know."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Paper(_Entry):
    """Where the claims of one file come from, and how far that source was actually read."""

    id: Name = Field(description="First author and year; every claim id of the file starts so.")
    title: Sentence = Field(description="Title as printed.")
    authors: tuple[Sentence, ...] = Field(description="Authors in printed order.")
    year: int = Field(description="Year of the version read.")
    venue: Sentence = Field(description="Where it appeared.")
    version: Sentence = Field(description="Which version the numbers were taken from.")
    url: Sentence = Field(description="Address or arXiv id of that version.")
    read: Sentence = Field(description="What was read, and how: full text, code, screenshots.")
    note: str | None = Field(default=None, description="Anything a reader should be warned of.")
    sources: dict[Name, Sentence] = Field(
        default={},
        description="For collections: each source's short name, what it is, how it was read.",
    )


class _Claim(_Entry):
    """What a value, an ordering and a bound have in common."""

    id: str = Field(
        pattern=r"^[a-z0-9-]+(/[a-z0-9.-]+){2,}$",
        description="Paper, then protocol (or source of a reproduction), then what is claimed.",
    )
    protocol: Name = Field(description="Protocol the claim is about; `smallnorb-2017` is DR17's.")
    metric: str = Field(pattern=r"^[a-z0-9_]+$", description="What is measured, unit in the name.")
    condition: dict[str, StrictStr | StrictInt | StrictFloat] = Field(
        default={}, description="What else must hold: {epsilon: 0.2, attack: fgsm}."
    )
    against_pct: float | None = Field(
        default=None,
        gt=0,
        le=100,
        description="Error printed for the model `against` names, where the claim is a reduction.",
    )
    verbatim: Sentence = Field(description="The figure as printed; the reading, if digitised.")
    locator: Sentence = Field(description="Table and row, figure and panel, or section.")
    source: Literal["text", "figure", "derived"] = Field(
        description="Printed, digitised from a figure, or calculated from what is printed."
    )
    reading_error: float | None = Field(
        default=None, gt=0, description="± of the digitisation, in the metric's unit."
    )
    reading: Literal["text", "code"] | None = Field(
        default=None, description="Which reading of an ambiguous paper the claim belongs to."
    )
    unsaid: tuple[Sentence, ...] = Field(default=(), description="What the source does not say.")
    cited_from: Sentence | None = Field(
        default=None, description="Whose number it is, when the paper only cites it."
    )
    reported_by: Name | None = Field(
        default=None, description="Who measured it, when it is a reproduction."
    )
    unverified: bool = Field(default=False, description="No source text seen: a lead, no target.")
    unreliable: bool = Field(default=False, description="Known to be wrong; `note` says why.")
    unavailable: Sentence | None = Field(
        default=None, description="What it would take that cannot be had: why nothing was run."
    )
    note: Sentence | None = Field(default=None, description="Derivation, caveat, contradiction.")

    @model_validator(mode="after")
    def _is_traceable(self) -> Self:
        if self.source == "figure" and self.reading_error is None:
            raise ValueError("reading_error is required when source is figure")
        if self.unreliable and self.note is None:
            raise ValueError("note must say why the claim is unreliable")
        return self

    @property
    def paper(self) -> str:
        """Id of the paper (or collection) the claim comes from."""
        return self.id.partition("/")[0]

    @property
    def judged(self) -> bool:
        """Whether our runs are held against it: only what the paper itself measured."""
        return not (self.cited_from or self.reported_by or self.unverified or self.unreliable)


class ValueClaim(_Claim):
    """A measured number: the test error of one model under one protocol."""

    kind: Literal["value"] = Field(description="Tells the three kinds of claim apart.")
    model: Name = Field(description="Model the number belongs to.")
    value: float = Field(description="The number, in the metric's unit.")
    spread: float | None = Field(default=None, ge=0, description="The ± or bracket printed.")
    spread_kind: Literal["sd", "unstated", "none"] = Field(
        default="none",
        description="sd; unstated: trials matter but the source is silent; none: has no spread.",
    )
    n: int | None = Field(default=None, ge=1, description="Trials or seeds, when stated.")
    test_size: int | None = Field(default=None, ge=1, description="Test samples, when known.")
    last_place: float | None = Field(
        default=None,
        gt=0,
        description="One unit of the last digit that counts, where zeros at the end do not.",
    )

    @model_validator(mode="after")
    def _spread_has_a_kind(self) -> Self:
        if self.spread is not None and self.spread_kind == "none":
            raise ValueError("spread_kind must be sd or unstated when a spread is given")
        return self


class OrderingClaim(_Claim):
    """One model does better than another; the metric says which direction is better."""

    kind: Literal["ordering"] = Field(description="Tells the three kinds of claim apart.")
    better: Name = Field(description="Model said to do better.")
    worse: Name = Field(description="Model said to do worse.")
    minimum_effect_pp: float | None = Field(
        default=None, gt=0, description="Difference the paper states, in percentage points."
    )
    minimum_effect_pct: float | None = Field(
        default=None, gt=0, description="Relative difference the paper states: % fewer errors."
    )

    @model_validator(mode="after")
    def _compares_two_models(self) -> Self:
        if self.better == self.worse:
            raise ValueError("worse must be another model than better")
        return self


class BoundClaim(_Claim):
    """A limit the paper states without a measured number: never below 20 %."""

    kind: Literal["bound"] = Field(description="Tells the three kinds of claim apart.")
    model: Name = Field(description="Model the bound is about.")
    relation: Literal[">=", "<=", ">", "<", "~"] = Field(description="`~` is approximately.")
    value: float = Field(description="The limit, in the metric's unit.")


Claim = Annotated[ValueClaim | OrderingClaim | BoundClaim, Field(discriminator="kind")]
_CLAIM: TypeAdapter[Claim] = TypeAdapter(Claim)
_KINDS = {"value", "ordering", "bound"}


def load_claims(paper: str | None = None, directory: Path = PUBLISHED) -> list[Claim]:
    """Read the claims of one paper, or of all, in the order of the files.

    Args:
        paper: A key of `PAPERS`; None for all of them.
        directory: Folder of the YAML files.

    Raises:
        UsageError: No such paper.
        CapsreproError: A file is missing or malformed; the sentence names file, claim and key.
    """
    claims: list[Claim] = []
    for name in _chosen(paper):
        path = directory / PAPERS[name]
        document = _read(path)
        source = _paper(path, name, document)
        claims += _claims(path, source, document["claims"])
    return claims


def load_papers(directory: Path = PUBLISHED) -> list[Paper]:
    """Read what each file says about its source; raises as `load_claims` does."""
    paths = {name: directory / file for name, file in PAPERS.items()}
    return [_paper(path, name, _read(path)) for name, path in paths.items()]


def parse_verbatim(text: str, metric: str) -> float:
    """Turn the first number of a verbatim figure into the unit of its metric.

    Signs of approximation are passed over, `6.8M` and `310K` are expanded, and a bare fraction
    (`.944`) of a percentage metric becomes 94.4; `0.25 %` stays 0.25.

    Raises:
        ValueError: The text holds no number.
    """
    match = re.search(r"([+-]?[\d,]*\.?\d+(?:e[+-]?\d+)?)(?:\s?([MKk])\b)?", text)
    if match is None:
        raise ValueError(f"no number in {text!r}")
    digits, suffix = match.groups()
    scale = {"M": 1e6, "K": 1e3, "k": 1e3}.get(suffix, 1.0)
    if digits.startswith(".") and metric.endswith("_pct"):
        scale = 100.0
    return float(digits.replace(",", "")) * scale


def _chosen(paper: str | None) -> list[str]:
    if paper is None:
        return list(PAPERS)
    if paper not in PAPERS:
        raise UsageError(f"unknown paper {paper!r}; choose one of {', '.join(PAPERS)}.")
    return [paper]


def _read(path: Path) -> dict[str, Any]:
    """The parsed file, certain to have the keys `paper` and `claims` and no strangers."""
    try:
        document = yaml.load(path.read_bytes(), Loader=LOADER)
    except OSError as error:
        raise CapsreproError(f"cannot read {path}: {error.strerror}.") from error
    except yaml.YAMLError as error:
        reason = " ".join(str(error).split())
        raise CapsreproError(f"{path} is not valid YAML: {reason}.") from error
    if not isinstance(document, dict) or not isinstance(document.get("claims"), list):
        raise CapsreproError(f"{path} needs a key 'claims' that holds a list.")
    unknown = sorted(map(str, set(document) - {"paper", "claims"}))
    if unknown:
        raise CapsreproError(f"{path} has an unknown key '{unknown[0]}'.")
    return document


def _paper(path: Path, name: str, document: dict[str, Any]) -> Paper:
    try:
        paper = Paper.model_validate(document.get("paper"))
    except ValidationError as error:
        raise CapsreproError(f"{path}, paper block: {_first_problem(error)}.") from error
    if paper.id != name:
        raise CapsreproError(f"{path}, paper block: key 'id' must be '{name}', not '{paper.id}'.")
    return paper


def _claims(path: Path, paper: Paper, entries: list[Any]) -> list[Claim]:
    claims: dict[str, Claim] = {}
    for position, entry in enumerate(entries, start=1):
        name = entry.get("id") if isinstance(entry, dict) else None
        where = f"{path}, claim {name or f'number {position}'}"
        try:
            claim = _CLAIM.validate_python(entry)
        except ValidationError as error:
            raise CapsreproError(f"{where}: {_first_problem(error)}.") from error
        if claim.paper != paper.id:
            raise CapsreproError(f"{where}: key 'id' must start with '{paper.id}/'.")
        if claim.id in claims:
            raise CapsreproError(f"{where}: key 'id' is used by an earlier claim too.")
        if claim.reported_by is not None and claim.reported_by not in paper.sources:
            raise CapsreproError(f"{where}: key 'reported_by' names no source of the paper block.")
        claims[claim.id] = claim
    return list(claims.values())


def _first_problem(error: ValidationError) -> str:
    """The first complaint of pydantic, led by the key it is about."""
    problem = error.errors(include_url=False)[0]
    location = [str(part) for part in problem["loc"]]
    # A tagged union puts the tag before the key, and `value` is the name of both.
    keys = location[1:] if location and location[0] in _KINDS else location
    message = problem["msg"].removeprefix("Value error, ")
    if problem["type"].startswith("union_tag"):
        return f"key 'kind' must be one of {', '.join(sorted(_KINDS))}"
    return f"key '{'.'.join(keys)}': {message}" if keys else message
