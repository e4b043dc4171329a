"""Latency and cost of a trial, and what production paid by its logged token usage.

Costs are dollars per 1,000 answered requests: a request that failed answers nobody, but the tokens
it was billed for stay in the sum.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from flywheel.config import ModelConfig, TokenPrice
from flywheel.statistics import percentile
from flywheel.types import Completion, Cost, Latency

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


def cost_of(model: ModelConfig, completions: Sequence[Completion], wall_s: float) -> Cost:
    """Dollars per 1,000 requests: by tokens for an endpoint, by machine time when served here.

    The machine's figure holds at the concurrency that ``wall_s`` was measured at.
    """
    if model.price is not None:
        return _token_cost(model.price, completions)
    if model.price_per_hour is None:
        return NO_PRICE
    answered = sum(not c.error for c in completions)
    if not answered:
        return Cost(None, "machine")
    return Cost(1000 * model.price_per_hour * wall_s / 3600 / answered, "machine")


def production_cost(usage: Mapping[str, int], price: TokenPrice | None) -> Cost:
    """What 1,000 requests cost production.

    Args:
        usage: The manifest's totals: ``prompt_tokens``, ``completion_tokens`` and ``requests``,
            the number of requests they come from.
        price: What production's model bills.
    """
    if price is None:
        return NO_PRICE
    requests = usage.get("requests", 0)
    dollars = _dollars(price, usage.get("prompt_tokens", 0), usage.get("completion_tokens", 0))
    return Cost(1000 * dollars / requests, "tokens") if requests else NO_USAGE


def _token_cost(price: TokenPrice, completions: Sequence[Completion]) -> Cost:
    billed = [c for c in completions if c.prompt_tokens or c.completion_tokens]
    answered = sum(not c.error for c in billed)
    if not answered:
        return NO_USAGE
    dollars = sum(_dollars(price, c.prompt_tokens, c.completion_tokens) for c in billed)
    return Cost(1000 * dollars / answered, "tokens")


def _dollars(price: TokenPrice, prompt_tokens: int, completion_tokens: int) -> float:
    prompt = price.input_per_million * prompt_tokens
    return (prompt + price.output_per_million * completion_tokens) / 1e6
