"""A judge's prompt: a YAML file that says what is asked, what the answers mean, and in what metric.

Three come with the package; an experiment names one of them, or a file of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Literal

import yaml
from pydantic import Field, ValidationError, model_validator

from flywheel.config.section import Section
from flywheel.errors import ConfigError
from flywheel.judging.pairs import Pair, fenced
from flywheel.judging.verdicts import PREFERENCE, RATING
from flywheel.mistakes import explained
from flywheel.scoring import METRICS
from flywheel.types import Json, json_text

PLAIN = "_plain"
"""What the metric of the plain scores ends in, where expected scores stand in their place."""
_MOST_BYTES = 100_000
_HERE = files("flywheel.judging") / "prompts"
SHIPPED = sorted(
    path.name.removesuffix(".yaml") for path in _HERE.iterdir() if path.name.endswith(".yaml")
)
"""Names of the prompts that come with the package."""


class Shot(Section):
    """An example in the prompt."""

    question: str
    reference: str
    candidate: str
    answer: int | Literal["A", "B", "tie"]
    """The right verdict: 1 to 10, or which is better, the reference being A."""


class Prompt(Section):
    """What a judge is asked."""

    metric: Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]{0,63}$")]
    """What its verdicts are called on the board."""
    kind: Literal["rating", "preference"]
    """``rating``: 1 to 10, candidate against reference; ``preference``: which of the two is better,
    asked in both orders."""
    records: Literal["all", "tools"] = "all"
    """``tools``: only records that offer tools."""
    instruction: Annotated[str, Field(min_length=1)]
    examples: list[Shot] = Field(default_factory=list)

    @model_validator(mode="after")
    def _name_is_free(self) -> Prompt:
        if self.metric in (*METRICS, "programmatic") or self.metric.endswith(PLAIN):
            raise ValueError(f"metric {self.metric!r} is taken; choose another name")
        return self

    @model_validator(mode="after")
    def _answers_fit(self) -> Prompt:
        for shot in self.examples:
            number = isinstance(shot.answer, int)
            if number != (self.kind == "rating") or (number and not 1 <= int(shot.answer) <= 10):
                raise ValueError(f"example's answer {shot.answer!r} is no verdict of a {self.kind}")
        return self

    @property
    def schema_(self) -> Json:
        """JSON Schema of a verdict."""
        return RATING if self.kind == "rating" else PREFERENCE

    def lead(self, *, show_question: bool) -> list[Json]:
        """The messages before the pair to judge: what a verdict means, by rule and by example."""
        lead: list[Json] = [{"role": "system", "content": self.instruction}]
        (field,) = self.schema_["properties"]
        for shot in self.examples:
            pair = Pair(shot.question, shot.reference, shot.candidate)
            shown = self.shown(pair, show_question=show_question)
            lead.append({"role": "user", "content": shown})
            said = json_text({field: shot.answer}).replace(":", ": ")
            lead.append({"role": "assistant", "content": said})
        return lead

    def shown(self, pair: Pair, *, show_question: bool) -> str:
        """A pair as the judge reads it; a preference makes no sense without its question."""
        rating = self.kind == "rating"
        titles = ("REFERENCE ANSWER", "CANDIDATE ANSWER") if rating else ("ANSWER A", "ANSWER B")
        answers = map(fenced, titles, (pair.reference, pair.candidate))
        question = [fenced("QUESTION", pair.query)] if show_question or not rating else []
        return "\n".join([*question, *answers])


def check(names: Sequence[str]) -> None:
    """See that prompts can be read, and that those of one metric ask for the same.

    Raises:
        ConfigError: One cannot, or they do not.
    """
    kinds: dict[str, tuple[str, str]] = {}
    for name in names:
        prompt = load(name)
        kind = (prompt.kind, prompt.records)
        if kinds.setdefault(prompt.metric, kind) != kind:
            raise ConfigError(
                f"judge.prompt: {name}: metric {prompt.metric!r} is one of another prompt that "
                "differs in kind or records; judges of one metric must be asked for the same"
            )


def load(name: str) -> Prompt:
    """Read a prompt: one that comes with the package, by name, or a YAML file, by path.

    Raises:
        ConfigError: There is none, or it is wrong.
    """
    try:
        if name in SHIPPED:
            text = (_HERE / f"{name}.yaml").read_text(encoding="utf-8")
        else:
            with Path(name).open("rb") as file:
                text = file.read(_MOST_BYTES).decode()
        data = yaml.safe_load(text)
    except OSError as error:
        known = ", ".join(SHIPPED)
        raise ConfigError(
            f"judge.prompt: {name!r} cannot be read ({error.strerror}); name a file, or: {known}"
        ) from None
    except (UnicodeDecodeError, yaml.YAMLError) as error:
        said = " ".join(str(error).split())
        raise ConfigError(f"judge.prompt: {name}: is not valid YAML: {said}") from None
    try:
        return Prompt.model_validate(data)
    except ValidationError as error:
        found = explained(name, error.errors(), Prompt.model_json_schema())
        raise ConfigError("\n".join(found)) from None
