"""What every block of `params.yaml` is made of."""

from __future__ import annotations

from fractions import Fraction
from typing import Annotated, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PlainSerializer

Reading = Literal["text", "code"]
Precision = Literal["float32", "tf32", "bf16"]
Positive = Annotated[int, Field(gt=0)]


def _as_fraction(value: object) -> Fraction:
    """Accept `8/255`, `0` or `0.1`: ε is written as the papers write it and kept exact."""
    if isinstance(value, bool) or not isinstance(value, str | int | float | Fraction):
        raise ValueError("should be a number or a fraction such as 8/255")
    try:
        return Fraction(str(value)) if isinstance(value, float) else Fraction(value)
    except (ValueError, ZeroDivisionError) as error:
        raise ValueError("should be a number or a fraction such as 8/255") from error


def _as_text(value: Fraction) -> str:
    """Write shares of a byte as `25/255`, not as `5/51`: that is how they are known."""
    if value.denominator > 1 and 255 % value.denominator == 0:
        return f"{value * 255}/255"
    return str(value)


Ratio = Annotated[
    Fraction, BeforeValidator(_as_fraction), PlainSerializer(_as_text, return_type=str), Field(ge=0)
]


class Entry(BaseModel):
    """A block of `params.yaml`: immutable, and an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)
