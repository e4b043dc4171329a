"""What programs settle before a judge is asked: with ``scoring.free_text``, most tool calls.

    calls -> `flywheel.scoring.free_text`: right or wrong -> a score that took no judge
                                           differ in free text alone -> the judges of `METRIC`

Only that metric is divided so. Judges of others are asked about all that their prompts are about.
"""

from __future__ import annotations

from dataclasses import dataclass

from flywheel.config import Experiment, FreeTextConfig, JudgeConfig
from flywheel.errors import ConfigError
from flywheel.judging import prompts
from flywheel.judging.pairs import LIMIT, Pair
from flywheel.scoring.case import Case
from flywheel.scoring.free_text import Settled, settle
from flywheel.types import Json, Record

METRIC = "tool_calling_correctness"
PROMPT = "tool_calls"
"""The prompt of that metric which comes with the package."""
_UNSEEN = f"the calls differ beyond the {LIMIT:,} characters that a judge is shown"


@dataclass(frozen=True, slots=True)
class Programs:
    """What programs say of tool calls, under an experiment's rule."""

    rule: FreeTextConfig
    call_order: str

    @property
    def identity(self) -> list[object]:
        """What decides which calls are a judge's."""
        return [self.rule.model_dump(mode="json"), self.call_order]

    def settle(self, record: Record, message: Json, pair: Pair) -> Settled | None:
        """What programs make of an answer; ``None`` where a judge has to say.

        Args:
            record: With what is expected as its answer.
            message: The answer.
            pair: Both as a judge would be shown them.
        """
        found = settle(Case(record, message, self.call_order), self.rule)
        if not found.open:
            return found
        return Settled(None, _UNSEEN) if pair.reference == pair.candidate else None


def programs(experiment: Experiment) -> Programs | None:
    """What settles an experiment's tool calls; ``None`` where judges are asked about all."""
    rule = experiment.scoring.free_text
    return None if rule is None else Programs(rule, experiment.scoring.call_order)


def judges(experiment: Experiment) -> list[JudgeConfig]:
    """Who judges: those configured and, where calls have free text, the same models about those.

    The latter only where no prompt of `METRIC` is configured.

    Raises:
        ConfigError: A prompt cannot be read, or one of `METRIC` asks for anything but a rating of
            tool calls.
    """
    configured = experiment.judges
    if experiment.scoring.free_text is None:
        return configured
    own = [(c.prompt, p) for c in configured if (p := prompts.load(c.prompt)).metric == METRIC]
    for name, prompt in own:
        if (prompt.kind, prompt.records) != ("rating", "tools"):
            raise ConfigError(
                f"judge.prompt: {name}: with scoring.free_text, a prompt of metric {METRIC} must "
                "have kind rating and records tools"
            )
    if own:
        return configured
    models = {(c.model, c.endpoint): c for c in reversed(configured)}
    return [*configured, *(c.model_copy(update={"prompt": PROMPT}) for c in models.values())]
