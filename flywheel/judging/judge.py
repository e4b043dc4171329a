"""One judge: a pinned model under a pinned prompt, and the verdicts it has given.

Its identity is the hash of model, prompt and parser: whatever changes one of them makes another
judge, whose calibration is not this one's. So does another reading of its replies, which are the
same. Verdicts are kept by what was shown, so nothing is judged twice, and are read without an
endpoint.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from flywheel.config import JudgeConfig
from flywheel.errors import EngineError
from flywheel.inference import Ask, ask_all, read
from flywheel.judging import prompts, verdicts
from flywheel.judging.pairs import Pair
from flywheel.judging.verdicts import Verdict
from flywheel.scoring.case import offers_tools
from flywheel.serving import Endpoint
from flywheel.storage import Storage
from flywheel.types import Completion, Json, Record, content_hash

PARSER = 2
"""Raised whenever the same reply would be read otherwise."""
TOKENS = 32
"""A verdict is no longer than that."""
LIKELIEST = 20
"""Tokens at each place whose log-probabilities are asked for; servers give no more."""

Progress = Callable[[int, int], None]


def _silent(done: int, total: int) -> None:
    """Show nothing."""


class Judge:
    """A judge as configured, its verdicts kept in ``folder``.

    Raises:
        ConfigError: Its prompt cannot be read.
    """

    def __init__(self, config: JudgeConfig, folder: Storage, cache: Storage | None = None) -> None:
        """Open a judge; ``cache`` is where an endpoint's answers are kept for other runs."""
        self.config = config
        self.prompt = prompts.load(config.prompt)
        self._lead = self.prompt.lead(show_question=config.show_question)
        asked = content_hash(
            [config.model, config.endpoint, config.engine, self._lead, self.prompt.schema_, PARSER]
        )
        written = config.reading == "written"
        self.identity = content_hash([asked, config.reading]) if written else asked
        self._cache = cache
        self._folder = folder.at("verdicts", asked)
        self._replies = {reply.record_id: reply for reply in read(self._folder)}
        self._logprobs = True

    @property
    def metric(self) -> str:
        """What its verdicts are called."""
        return self.prompt.metric

    def rates(self, record: Record) -> bool:
        """Whether its prompt is about records like this."""
        return self.prompt.records == "all" or offers_tools(record)

    def verdicts(self, pairs: Sequence[Pair]) -> list[Verdict]:
        """What it said of these pairs, asking nobody; what was not asked has no verdict."""
        return [self._verdict(pair) for pair in pairs]

    def rate(
        self, endpoint: Endpoint, pairs: Sequence[Pair], progress: Progress = _silent
    ) -> list[Verdict]:
        """Ask for the verdicts that are missing, and say what it made of every pair.

        An endpoint that is down leaves pairs without a verdict, to be asked another time.
        """
        shown = [text for pair in pairs for text in self._shown(pair)]
        new = {content_hash(text): text for text in shown}
        new = {key: text for key, text in new.items() if key not in self._replies}
        progress(0, len(new))
        self._ask(endpoint, new, progress)
        refused = {key: new[key] for key in new if _wants_no_logprobs(self._replies[key])}
        if refused and self._logprobs:
            self._logprobs = False  # this server takes no request that asks for them
            self._ask(endpoint, refused, progress)
        return self.verdicts(pairs)

    def _ask(self, endpoint: Endpoint, texts: dict[str, str], progress: Progress) -> None:
        asks = [Ask(key, self._body(text)) for key, text in texts.items()]
        done = 0

        def keep(reply: Completion) -> None:
            nonlocal done
            done += 1
            self._replies[reply.record_id] = reply
            progress(done, len(asks))

        config = self.config
        try:
            ask_all(
                endpoint,
                asks,
                self._folder,
                config.concurrency,
                config.timeout_s,
                keep,
                cache=self._cache,
                errors=False,  # an outage is not a verdict
            )
        except EngineError as error:
            left = [key for key in texts if key not in self._replies]
            self._replies |= {key: Completion(key, error=str(error)) for key in left}

    def _body(self, shown: str) -> Json:
        schema = {"name": "verdict", "strict": True, "schema": self.prompt.schema_}
        wanted = {"logprobs": True, "top_logprobs": LIKELIEST}
        return {
            "messages": [*self._lead, {"role": "user", "content": shown}],
            "temperature": 0.0,
            "max_tokens": TOKENS,
            "response_format": {"type": "json_schema", "json_schema": schema},
            **(wanted if self._logprobs and self.prompt.kind == "rating" else {}),
        }

    def _shown(self, pair: Pair) -> list[str]:
        """What it reads of a pair: a preference is asked in both orders."""
        orders = [pair] if self.prompt.kind == "rating" else [pair, pair.swapped]
        return [self.prompt.shown(p, show_question=self.config.show_question) for p in orders]

    def _verdict(self, pair: Pair) -> Verdict:
        replies = [
            self._replies.get(key, Completion(key, error="was not asked"))
            for key in map(content_hash, self._shown(pair))
        ]
        if self.prompt.kind == "preference":
            return verdicts.preference(*replies)
        rated = verdicts.rating(*replies)
        return replace(rated, value=rated.plain) if self.config.reading == "written" else rated


def _wants_no_logprobs(reply: Completion) -> bool:
    said = reply.error.casefold()
    return said.startswith("http 4") and ("logprob" in said or "log_prob" in said)
