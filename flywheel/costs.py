"""Latency and cost of a trial, and what production paid by its logged token usage.

Costs are dollars per 1,000 answered requests: a request that failed answers nobody, but the tokens
it was billed for stay in the sum. ``docs/cost.md`` has the formulae, with an example.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

from flywheel.config import ModelConfig, TokenPrice
from flywheel.statistics import percentile
from flywheel.types import Completion, Cost, Json, Latency, LoadTest, Record

NO_PRICE = Cost(None, "no price")
NO_USAGE = Cost(None, "no usage")
"""There is a price per token, but no answer says how many tokens it took."""


def latency_of(
    completions: Sequence[Completion], wall_s: float, concurrency: int
) -> Latency | None:
    """How fast a trial answered; ``None`` if it answered nothing.

    Args:
        completions: Failed ones are left out.
        wall_s: Seconds from the first request sent to the last answer, of all together.
        concurrency: Requests that were in flight.
    """
    answered = [c for c in completions if not c.error]
    if not answered or wall_s <= 0:
        return None
    seconds = [c.latency_s for c in answered]
    return Latency(
        p50_s=percentile(seconds, 50),
        p95_s=percentile(seconds, 95),
        output_tokens_per_second=sum(c.completion_tokens for c in answered) / wall_s,
        requests_per_second=len(answered) / wall_s,
        concurrency=concurrency,
    )


def cost_of(
    model: ModelConfig,
    completions: Sequence[Completion],
    wall_s: float,
    load: LoadTest | None = None,
) -> Cost:
    """Dollars per 1,000 requests: by tokens for an endpoint, by machine time when served here.

    Args:
        model: What bills.
        completions: All of a trial's.
        wall_s: Seconds they took together.
        load: Where it was measured, the machine's figure holds at the highest throughput that the
            SLO bears, and there is none if it bears no load; else at the concurrency of ``wall_s``.
    """
    if model.price is not None:
        return _token_cost(model.price, completions)
    if model.price_per_hour is None:
        return NO_PRICE
    if load is not None:
        if load.borne is None:
            return Cost(None, "SLO not met")
        hourly = 3600 * load.borne.requests_per_second
        return Cost(1000 * model.price_per_hour / hourly, "machine at SLO")
    answered = sum(not c.error for c in completions)
    if not answered:
        return Cost(None, "machine")
    return Cost(1000 * model.price_per_hour * wall_s / 3600 / answered, "machine")


def training_dollars(model: ModelConfig, training: Json) -> float | None:
    """What a fine-tuning took on the machine that serves; ``None`` for none, or without a price."""
    if not training or model.price_per_hour is None:
        return None
    return float(training["seconds"]) / 3600 * model.price_per_hour


def compared(cost: Cost, production: Cost, training: float | None = None) -> Cost:
    """A cost beside production's: what is saved, and when that has paid for a training.

    Args:
        cost: A candidate's.
        production: Per 1,000 requests.
        training: From `training_dollars`.
    """
    cost = replace(cost, training_dollars=training)
    own, theirs = cost.per_1k_requests, production.per_1k_requests
    if own is None or not theirs:
        return cost
    saved = theirs - own
    pays_back = training is not None and saved > 0
    return replace(
        cost,
        saved_percent=100 * saved / theirs,
        break_even_requests=math.ceil(1000 * (training or 0.0) / saved) if pays_back else None,
    )


def production_cost(usage: Mapping[str, int], price: TokenPrice | None) -> Cost:
    """What 1,000 requests cost production.

    Args:
        usage: The manifest's totals: ``requests`` and their ``prompt_tokens``, of those the
            ``cached_tokens``, and ``completion_tokens``.
        price: What production's model bills.
    """
    if price is None:
        return NO_PRICE
    requests = usage.get("requests", 0)
    return Cost(1000 * _billed(price, usage) / requests, "tokens") if requests else NO_USAGE


def cascade_cost(
    model: Cost, handed_over: Sequence[Record], n: int, price: TokenPrice | None, production: Cost
) -> Cost:
    """What 1,000 requests cost of which all go to a model and some then to production.

    Args:
        model: The model's cost; it is asked all.
        handed_over: Those of ``n`` records that go on. One that logged no usage costs production's
            average.
        n: All records.
        price: What production's model bills.
        production: Its cost per 1,000 requests.
    """
    if price is None or production.per_1k_requests is None or model.per_1k_requests is None:
        basis = model.basis if model.per_1k_requests is None else production.basis
        return Cost(None, basis)
    average = production.per_1k_requests / 1000
    dollars = math.fsum(_logged(price, record.usage, average) for record in handed_over)
    return Cost(model.per_1k_requests + 1000 * dollars / n, "cascade")


def _logged(price: TokenPrice, usage: Json, average: float) -> float:
    counts = (usage.get("prompt_tokens"), usage.get("completion_tokens"))
    if not all(isinstance(count, int) and count >= 0 for count in counts):
        return average
    details = usage.get("prompt_tokens_details")
    cached = details.get("cached_tokens") if isinstance(details, dict) else None
    known = cached if isinstance(cached, int) else 0
    return _billed(price, {**usage, "cached_tokens": min(max(0, known), usage["prompt_tokens"])})


def _token_cost(price: TokenPrice, completions: Sequence[Completion]) -> Cost:
    billed = [c for c in completions if c.prompt_tokens or c.completion_tokens]
    answered = sum(not c.error for c in billed)
    if not answered:
        return NO_USAGE
    names = ("prompt_tokens", "cached_tokens", "completion_tokens")
    usage = {name: sum(getattr(c, name) for c in billed) for name in names}
    return Cost(1000 * _billed(price, usage) / answered, "tokens")


def _billed(price: TokenPrice, usage: Mapping[str, int]) -> float:
    """Dollars for so many tokens."""
    cached = usage.get("cached_tokens", 0)
    cached_price = price.cached_input_per_million
    rates = {
        "new": price.input_per_million,
        "cached": price.input_per_million if cached_price is None else cached_price,
        "output": price.output_per_million,
    }
    tokens = {
        "new": usage.get("prompt_tokens", 0) - cached,
        "cached": cached,
        "output": usage.get("completion_tokens", 0),
    }
    return sum(rates[kind] * tokens[kind] for kind in rates) / 1e6
