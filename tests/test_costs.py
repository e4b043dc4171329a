from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flywheel.config import ModelConfig, TokenPrice
from flywheel.costs import (
    cascade_cost,
    compared,
    cost_of,
    latency_of,
    production_cost,
    training_dollars,
)
from flywheel.testing import sample_record
from flywheel.types import Completion, Cost, LoadLevel, LoadTest, Record

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


def test_cached_tokens_cost_as_others_unless_they_have_a_price():
    cached = Completion("1", {}, "stop", 1000, 100, cached_tokens=400)
    assert cost_of(ENDPOINT, [cached], 1.0) == cost_of(ENDPOINT, [answer(1)], 1.0)
    price = PRICE.model_copy(update={"cached_input_per_million": 0.5})
    cheaper = cost_of(ENDPOINT.model_copy(update={"price": price}), [cached], 1.0)
    assert cheaper.per_1k_requests == pytest.approx(1000 * (0.0012 + 0.0002 + 0.001))


def borne(requests_per_second: float) -> LoadTest:
    level = LoadLevel("x", 64, 0, 1.0, requests_per_second, 1.0, 1.0, None, None, None, None)
    return LoadTest({}, [level], "x")


def test_a_machine_costs_by_the_throughput_that_the_slo_bears():
    model = ModelConfig(model="m", price_per_hour=3.6)
    cost = cost_of(model, [answer(1)], wall_s=99.0, load=borne(2.0))
    assert (cost.per_1k_requests, cost.basis) == (pytest.approx(0.5), "machine at SLO")
    none = cost_of(model, [answer(1)], wall_s=99.0, load=LoadTest({}, [], None))
    assert (none.per_1k_requests, none.basis) == (None, "SLO not met")
    assert cost_of(ENDPOINT, [answer(1)], 1.0, LoadTest({}, [], None)).basis == "tokens"


def test_a_training_that_saves_nothing_is_never_repaid():
    dear = compared(Cost(3.0, "machine"), Cost(2.0, "tokens"), training=5.0)
    assert (dear.saved_percent, dear.break_even_requests) == (-50.0, None)
    assert dear.training_dollars == 5.0
    unknown = compared(Cost(3.0, "machine"), Cost(None, "no price"), training=5.0)
    assert (unknown.saved_percent, unknown.break_even_requests) == (None, None)
    untrained = compared(Cost(1.0, "machine"), Cost(2.0, "tokens"))
    assert (untrained.saved_percent, untrained.break_even_requests) == (50.0, None)


@settings(deadline=None)
@given(st.floats(0.01, 100), st.floats(0.01, 100), st.floats(0, 1e4))
def test_after_the_break_even_the_savings_have_paid_for_the_training(own, theirs, training):
    cost = compared(Cost(own, "machine"), Cost(theirs, "tokens"), training)
    if cost.break_even_requests is None:
        assert own >= theirs
    else:
        repaid = cost.break_even_requests * (theirs - own) / 1000
        assert repaid >= training - 1e-6 * (1 + training)


@settings(deadline=None)
@given(st.integers(0, 20), st.integers(0, 20))
def test_handing_over_more_never_costs_less(few, more):
    records = [sample_record(f"Where is order {i}?") for i in range(40)]
    production = production_cost({"prompt_tokens": 100, "completion_tokens": 10, "requests": 1},
                                 PRICE)  # fmt: skip
    less, dearer = (
        cascade_cost(Cost(0.1, "machine"), records[:n], 40, PRICE, production).per_1k_requests
        for n in (few, few + more)
    )
    assert 0.1 <= less <= dearer


def test_a_record_without_usage_costs_productions_average():
    record = sample_record()
    bare = Record(record.timestamp, "w", "c", record.request, {**record.response, "usage": None})
    odd = Record(record.timestamp, "w", "c", record.request,
                 {**record.response, "usage": {"prompt_tokens": "many"}})  # fmt: skip
    for one in (bare, odd):
        cost = cascade_cost(Cost(0.1, "machine"), [one], 2, PRICE, Cost(4.0, "tokens"))
        assert cost.per_1k_requests == pytest.approx(0.1 + 4.0 / 2)


@pytest.mark.parametrize(
    ("own", "price", "production", "basis"),
    [
        (Cost(None, "no price"), PRICE, Cost(4.0, "tokens"), "no price"),
        (Cost(0.1, "machine"), None, Cost(None, "no price"), "no price"),
        (Cost(0.1, "machine"), PRICE, Cost(None, "no usage"), "no usage"),
    ],
)
def test_what_a_cascade_costs_is_unknown_where_a_part_of_it_is(own, price, production, basis):
    assert cascade_cost(own, [], 1, price, production) == Cost(None, basis)


def test_the_example_in_the_documentation_is_what_the_code_says():
    page = (Path(__file__).parents[1] / "docs" / "cost.md").read_text()
    rows = (line.strip("| ").split(" | ") for line in page.splitlines() if line.startswith("| "))
    told = {row[0]: row[1] for row in rows if len(row) == 2}
    price = TokenPrice(
        input_per_million=0.20, cached_input_per_million=0.10, output_per_million=0.40
    )
    theirs = TokenPrice(
        input_per_million=2.50, cached_input_per_million=1.25, output_per_million=10.00
    )
    usage = {
        "requests": 20_000,
        "prompt_tokens": 18_000_000,
        "cached_tokens": 6_000_000,
        "completion_tokens": 1_000_000,
    }
    production = production_cost(usage, theirs)
    answers = [Completion(str(i), {}, "stop", 900, 50, cached_tokens=600) for i in range(1000)]
    remote = ModelConfig(model="m", endpoint="http://host/v1", price=price)
    endpoint = compared(cost_of(remote, answers, 60.0), production)
    machine = ModelConfig(model="m", price_per_hour=0.80)
    dollars = training_dollars(machine, {"seconds": 5400})
    served = compared(cost_of(machine, answers, 60.0, borne(12.5)), production, dollars)
    logged = {
        "prompt_tokens": 900,
        "prompt_tokens_details": {"cached_tokens": 300},
        "completion_tokens": 50,
    }
    sample = sample_record()
    handed_over = [
        Record(float(i), "w", "c", sample.request, {**sample.response, "usage": logged})
        for i in range(30)
    ]
    both = compared(cascade_cost(served, handed_over, 200, theirs, production), production)
    figures = {
        "production, per 1,000 requests": f"${production.per_1k_requests:.4f}",
        "endpoint, per 1,000 requests": f"${endpoint.per_1k_requests:.4f}",
        "endpoint, saved": f"{endpoint.saved_percent:.1f} %",
        "served here, per 1,000 requests": f"${served.per_1k_requests:.4f}",
        "served here, saved": f"{served.saved_percent:.1f} %",
        "training": f"${dollars:.2f}",
        "requests that repay it": f"{served.break_even_requests}",
        "cascade, per 1,000 requests": f"${both.per_1k_requests:.4f}",
        "cascade, saved": f"{both.saved_percent:.1f} %",
    }
    assert {name: told[name] for name in figures} == figures
