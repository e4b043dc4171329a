import pytest

from flywheel.config import ModelConfig, TokenPrice
from flywheel.costs import cost_of, latency_of, production_cost
from flywheel.types import Completion

PRICE = TokenPrice(input_per_million=2.0, output_per_million=10.0)
ENDPOINT = ModelConfig(model="m", endpoint="http://host/v1", price=PRICE)
FAILED = Completion("f", error="timeout", prompt_tokens=1000)


def answer(i: int, prompt: int = 1000, output: int = 100, seconds: float = 1.0) -> Completion:
    return Completion(str(i), {"content": "x"}, "stop", prompt, output, seconds)


def test_latency_leaves_failed_requests_out():
    completions = [answer(i, seconds=float(i)) for i in range(1, 5)]
    completions.append(Completion("f", error="timeout", latency_s=300.0))
    latency = latency_of(completions, wall_s=8.0, concurrency=2)
    assert latency is not None
    assert latency.p50_s == 2.5
    assert latency.p95_s == pytest.approx(3.85)
    assert latency.output_tokens_per_second == 50.0
    assert latency.requests_per_second == 0.5
    assert latency.concurrency == 2


def test_no_answer_has_no_latency():
    assert latency_of([FAILED], 1.0, 1) is None
    assert latency_of([], 0.0, 1) is None


def test_endpoints_cost_by_token():
    cost = cost_of(ENDPOINT, [answer(1), answer(2, prompt=2000)], wall_s=9.0)
    assert cost.basis == "tokens"
    assert cost.per_1k_requests == pytest.approx(1000 * (0.003 + 0.005) / 2)


def test_tokens_of_failed_requests_are_paid_by_the_answered_ones():
    cost = cost_of(ENDPOINT, [answer(1), FAILED], wall_s=9.0)
    assert cost.per_1k_requests == pytest.approx(1000 * (0.003 + 0.002))


def test_machines_cost_by_the_hour():
    model = ModelConfig(model="m", price_per_hour=3.6)
    cost = cost_of(model, [answer(1), answer(2), FAILED], wall_s=10.0)
    assert cost.basis == "machine"
    assert cost.per_1k_requests == pytest.approx(1000 * 0.001 * 10 / 2)
    assert cost_of(model, [FAILED], wall_s=10.0).per_1k_requests is None


def test_what_is_not_known_is_not_zero():
    assert cost_of(ModelConfig(model="m"), [answer(1)], 1.0).basis == "no price"
    unmetered = cost_of(ENDPOINT, [answer(1, 0, 0)], 1.0)
    assert (unmetered.per_1k_requests, unmetered.basis) == (None, "no usage")
    assert production_cost({}, PRICE).basis == "no usage"
    assert production_cost({"requests": 5}, None).basis == "no price"


def test_production_costs_by_logged_usage():
    usage = {"prompt_tokens": 20_000, "completion_tokens": 1_000, "requests": 20}
    assert production_cost(usage, PRICE).per_1k_requests == pytest.approx(2.5)
