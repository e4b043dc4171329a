"""What a searched field of an experiment file may say: a value, a list, a distribution.

``rank: 16`` is fixed, ``rank: [8, 16]`` is a grid, ``learning_rate: {loguniform: [1.0e-4, 0.01]}``
is drawn from. `Space` is the type of such a field; bounds and samples of a distribution are checked
like values that somebody wrote, so a search never meets one that a trial could not have.
"""

from __future__ import annotations

import math
import random
from typing import Annotated, Any, TypeVar

from pydantic import (
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    ValidationError,
    model_serializer,
    model_validator,
)

T = TypeVar("T")
_DIGITS = 4
"""Significant digits of what is drawn: enough for any search, and readable in a table."""


class Distribution(BaseModel):
    """One of five ways to draw a value, named as in Ray Tune."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, allow_inf_nan=False, use_attribute_docstrings=True
    )

    uniform: tuple[float, float] | None = None
    """``[low, high]``: any number between."""
    loguniform: tuple[float, float] | None = None
    """``[low, high]``, both above 0: every order of magnitude is equally likely."""
    quniform: tuple[float, float, float] | None = None
    """``[low, high, step]``: a multiple of ``step``."""
    randint: tuple[int, int] | None = None
    """``[low, high]``: a whole number, ``high`` itself excluded."""
    choice: Annotated[list[Any], Field(min_length=1)] | None = None
    """One of these."""

    @model_validator(mode="after")
    def _one_kind(self) -> Distribution:
        if len(self.model_fields_set & _set(self)) != 1:
            raise ValueError(f"name exactly one of {', '.join(type(self).model_fields)}")
        if self.kind == "choice":
            return self
        low, high = self.arguments[:2]
        if low >= high:
            raise ValueError(f"{self.kind}: low ({low:g}) must lie below high ({high:g})")
        if self.kind == "loguniform" and low <= 0:
            raise ValueError(f"loguniform: low ({low:g}) must lie above 0")
        if self.kind == "quniform":
            first, last = self.steps
            if self.arguments[2] <= 0 or first > last:
                raise ValueError(
                    "quniform: no multiple of step (above 0) lies between low and high"
                )
        return self

    @model_serializer
    def _only_what_is_set(self) -> dict[str, Any]:
        return {self.kind: list(self.arguments)}

    @property
    def kind(self) -> str:
        """Which of the five."""
        (name,) = _set(self)
        return name

    @property
    def arguments(self) -> Any:
        """What was written after its name."""
        return getattr(self, self.kind)

    @property
    def steps(self) -> tuple[int, int]:
        """The first and the last multiple of ``quniform``'s step within its bounds."""
        low, high, step = self.arguments
        return math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)

    def draw(self, rng: random.Random) -> Any:
        """One value."""
        if self.kind == "choice":
            return rng.choice(self.arguments)
        if self.kind == "randint":
            return rng.randrange(*self.arguments)
        if self.kind == "quniform":
            return multiple(rng.randint(*self.steps), self.arguments[2])
        low, high = self.arguments
        if self.kind == "loguniform":
            return rounded(math.exp(rng.uniform(math.log(low), math.log(high))), low, high)
        return rounded(rng.uniform(low, high), low, high)

    def extremes(self) -> list[Any]:
        """The outermost values it can give; every one of a ``choice``."""
        if self.kind == "choice":
            return list(self.arguments)
        if self.kind == "randint":
            return [self.arguments[0], self.arguments[1] - 1]
        if self.kind == "quniform":
            return [multiple(n, self.arguments[2]) for n in self.steps]
        return list(self.arguments)


def _form(value: Any) -> str:
    if isinstance(value, dict | Distribution):
        return "[distribution]"
    return "[grid]" if isinstance(value, list) else "[fixed]"


Space = Annotated[
    Annotated[T, Tag("[fixed]")]
    | Annotated[list[T], Field(min_length=1), Tag("[grid]")]
    | Annotated[Distribution, Tag("[distribution]")],
    Discriminator(_form),
]
"""A value of ``T``, a list of them, or a distribution over them."""


class Searched(BaseModel):
    """A method's parameters, some of them spaces."""

    @model_validator(mode="after")
    def _every_draw_is_allowed(self) -> Searched:
        """Check what distributions may give as if it had been written."""
        first = {name: getattr(self, name) for name in type(self).model_fields}
        first |= {name: extremes(first[name])[0] for name in self.searchable()}
        for name, space in self.distributions().items():
            for value in [*space.extremes(), *(space.draw(random.Random(i)) for i in range(3))]:
                try:
                    type(self).model_validate({**first, name: value})
                except ValidationError as error:
                    why = error.errors()[0]["msg"].removeprefix("Value error, ")
                    told = f"{name}: {space.kind} gives {value!r}: {why}"
                    raise ValueError(told) from None
        return self

    def distributions(self) -> dict[str, Distribution]:
        """The fields that are drawn, by name."""
        spaces = {name: getattr(self, name) for name in self.searchable()}
        return {n: space for n, space in spaces.items() if isinstance(space, Distribution)}

    def grids(self) -> dict[str, list[Any]]:
        """The fields that are lists, by name."""
        spaces = {name: getattr(self, name) for name in self.searchable()}
        return {n: space for n, space in spaces.items() if isinstance(space, list)}

    @classmethod
    def searchable(cls) -> list[str]:
        """The fields that are spaces; a list in another field is one value."""
        forms = {n: f.metadata for n, f in cls.model_fields.items()}
        return [n for n, found in forms.items() if any(isinstance(m, Discriminator) for m in found)]


def extremes(space: Any) -> list[Any]:
    """The outermost values of a distribution, all of a list, or the value itself."""
    if isinstance(space, Distribution):
        return space.extremes()
    return list(space) if isinstance(space, list) else [space]


def rounded(value: float, low: float, high: float) -> float:
    """The value to four significant digits, within its bounds."""
    return min(max(float(f"{value:.{_DIGITS}g}"), low), high)


def multiple(count: int, step: float) -> float:
    """``count`` steps, without the noise of binary fractions; whole where it is whole."""
    value = float(f"{count * step:.12g}")
    return int(value) if value.is_integer() else value


def _set(distribution: Distribution) -> set[str]:
    fields = type(distribution).model_fields
    return {name for name in fields if getattr(distribution, name) is not None}
