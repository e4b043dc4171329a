"""Engines start when needed, are shared, and stop with their last lease or for want of room."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from threading import Barrier, Event, Thread

import pytest

from flywheel.cluster import Cluster, Needs
from flywheel.config import ModelConfig
from flywheel.errors import ClusterError, EngineError
from flywheel.serving.engine import EngineSpec
from flywheel.serving.pool import Pool
from flywheel.serving.tool_parsers import parser_of


def spec(name: str, cpus: float = 1.0) -> EngineSpec:
    return EngineSpec(name, ModelConfig(model=f"org/{name}"), cpus, 0)


class Site:
    """Where engines stand: so many CPUs, and a diary."""

    def __init__(self, cpus: float = 1.0) -> None:
        self.cpus = cpus
        self.diary: list[str] = []
        self.pool = Pool(self.start, self.fits)

    @contextmanager
    def start(self, wanted: EngineSpec) -> Iterator[EngineSpec]:
        self.diary.append(f"+{wanted.name}")
        yield replace(wanted, port=1234)
        self.diary.append(f"-{wanted.name}")

    def fits(self, specs: Sequence[EngineSpec]) -> bool:
        return sum(one.cpus for one in specs) <= self.cpus


def test_an_engine_stops_with_its_last_lease_and_no_earlier() -> None:
    site = Site()
    site.pool.expect(spec("a"), 3)
    with site.pool.lease(spec("a")) as first, site.pool.lease(spec("a")) as second:
        assert first == second
        assert first.port == 1234
    assert site.diary == ["+a"]
    with site.pool.lease(spec("a")):
        assert site.diary == ["+a"]
    assert site.diary == ["+a", "-a"]
    assert site.pool.starts == {"org/a": 1}


def test_the_engine_idle_for_the_longest_makes_room() -> None:
    site = Site(cpus=2)
    for name in "abc":
        site.pool.expect(spec(name), 2)
    for name in "abac":
        with site.pool.lease(spec(name)):
            pass
    assert site.diary == ["+a", "+b", "-a", "+c"]  # a's leases are over before c needs room
    site.pool.expect(spec("b"))
    with site.pool.lease(spec("d")):
        assert site.diary[-2:] == ["-b", "+d"]


def test_an_engine_in_use_is_waited_for() -> None:
    site = Site()
    entered = Event()

    def other() -> None:
        with site.pool.lease(spec("b")):
            entered.set()

    with site.pool.lease(spec("a")):
        thread = Thread(target=other)
        thread.start()
        assert not entered.wait(0.05)
    thread.join(5)
    assert site.diary == ["+a", "-a", "+b", "-b"]


def test_engines_start_side_by_side() -> None:
    meeting = Barrier(2)

    @contextmanager
    def start(wanted: EngineSpec) -> Iterator[EngineSpec]:
        meeting.wait(5)  # both must be starting
        yield wanted

    pool = Pool(start, lambda specs: len(specs) <= 2)

    def take(name: str) -> None:
        with pool.lease(spec(name)):
            pass

    threads = [Thread(target=take, args=[name]) for name in "ab"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(5)
    assert pool.starts == {"org/a": 1, "org/b": 1}


def test_who_closes_the_pool_gives_up_what_is_still_starting() -> None:
    given_up = Event()

    @contextmanager
    def start(wanted: EngineSpec) -> Iterator[EngineSpec]:
        assert given_up.wait(5)
        raise EngineError("given up")
        yield wanted

    pool = Pool(start, lambda specs: True, lambda spec: given_up.set())
    failed: list[EngineError] = []

    def take() -> None:
        try:
            with pool.lease(spec("a")):
                pass
        except EngineError as error:
            failed.append(error)

    thread = Thread(target=take)
    thread.start()
    while not given_up.is_set():
        pool.close()
    thread.join(5)
    assert [str(error) for error in failed] == ["given up"]
    assert pool.starts == {}


def test_what_fits_not_even_alone_is_refused() -> None:
    with (
        pytest.raises(ClusterError, match="org/big does not fit"),
        Site().pool.lease(spec("big", 2)),
    ):
        pass


def test_an_engine_that_does_not_start_leaves_the_pool_usable() -> None:
    @contextmanager
    def start(wanted: EngineSpec) -> Iterator[EngineSpec]:
        if wanted.name == "broken":
            raise EngineError("no")
        yield wanted

    pool = Pool(start, lambda specs: len(specs) < 2)
    with pytest.raises(EngineError), pool.lease(spec("broken")):
        pass
    with pool.lease(spec("a")):
        pass
    assert pool.starts == {"org/a": 1}


def test_closing_stops_what_still_runs() -> None:
    site = Site()
    site.pool.expect(spec("a"), 5)
    with site.pool.lease(spec("a")):
        pass
    site.pool.close()
    assert site.diary == ["+a", "-a"]


def test_a_sweep_over_two_bases_starts_two_engines() -> None:
    site = Site()
    variants = ["base", "icl", "icl", "lora", "lora", "lora", "lora"]
    for base in "ab":
        site.pool.expect(spec(base), len(variants))
    for base in "ab":
        for _ in variants:
            with site.pool.lease(spec(base)):
                pass
    assert site.pool.starts == {"org/a": 1, "org/b": 1}


def test_candidates_that_are_served_alike_share_an_engine_and_others_do_not() -> None:
    def name(owner: str = "run", **fields: object) -> str:
        config = ModelConfig.model_validate({"model": "org/Small_1", **fields})
        return EngineSpec.of(config, Needs(1, 0), owner).name

    assert name() == name(concurrency=3, price_per_hour=2)
    others = {name(), name("other"), name(engine={"dtype": "float32"}), name(tool_parser="mistral")}
    assert len(others) == 4
    assert all(one.startswith("small-1-") and ":" not in one for one in others)


def test_engines_stand_side_by_side_only_where_nodes_have_room() -> None:
    cluster = Cluster([{"CPU": 2}, {"CPU": 8, "GPU": 1}], ours=True)
    assert cluster.holds([Needs(1.5, 0), Needs(1, 1), Needs(6, 0)])
    assert not cluster.holds([Needs(1, 1), Needs(1, 1)])
    assert not cluster.holds([Needs(1.5, 0), Needs(7, 0), Needs(1.5, 0)])
    assert cluster.holds([Needs(0.5, 0), Needs(0.5, 0), Needs(1, 1), Needs(7, 0)])


@pytest.mark.parametrize(
    ("template", "parser"),
    [
        ("<tool_call>\n{{ tool_call.name }}", "hermes"),
        ("<tool_call>\n<function={{ name }}>\n<parameter=", "qwen3_coder"),
        ("<|start_header_id|>ipython {{ '<|python_tag|>' }}", "llama3_json"),
        ("[AVAILABLE_TOOLS] {{ tools }}[/AVAILABLE_TOOLS][TOOL_CALLS]", "mistral"),
        ("<|tool_call|>{{ calls }}", "granite"),
        ("<tool_call>{{ name }}<arg_key>{{ k }}</arg_key>", "glm45"),
        ("<|im_start|>{{ content }}", "hermes"),
    ],
)
def test_the_template_tells_the_tool_parser(template: str, parser: str) -> None:
    assert parser_of(template) == parser
