"""What fits on a cluster, and how a refusal reads."""

from __future__ import annotations

import re
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flywheel.cluster import Cluster, Needs, Want, connect
from flywheel.config import LoraConfig, ModelConfig
from flywheel.errors import ClusterError
from flywheel.sizing import Size

SMALL = {"CPU": 2.0}
L4 = {"CPU": 8.0, "GPU": 1.0, "accelerator_type:L4": 1.0}
QUAD = {"CPU": 32.0, "GPU": 4.0, "accelerator_type:H100": 1.0}
MODEL = ModelConfig(model="org/m")


def cluster(*nodes: dict[str, float]) -> Cluster:
    return Cluster(list(nodes), ours=False)


@pytest.mark.parametrize(
    ("nodes", "needs"),
    [
        ([SMALL], Needs(1.5, 0)),
        ([{"CPU": 1.0}], Needs(0.5, 0)),
        ([{"CPU": 64.0}], Needs(8.0, 0)),
        ([SMALL, {"CPU": 4.0}], Needs(3.5, 0)),
        ([SMALL, L4], Needs(1.0, 1)),
        ([QUAD], Needs(1.0, 1)),
        ([], Needs(0.5, 0)),
    ],
    ids=["two cores", "one core", "many cores", "largest node", "some GPU", "GPUs", "no nodes"],
)
def test_unless_told_an_engine_takes_a_gpu_or_a_nodes_cores_less_a_half(
    nodes: list[dict[str, float]], needs: Needs
) -> None:
    assert cluster(*nodes).engine_needs(MODEL) == needs
    assert cluster(*nodes).trainer_needs(LoraConfig()) == needs


def test_what_the_experiment_says_counts() -> None:
    model = ModelConfig(model="org/m", cpus=3, gpus=2, accelerator="H100")
    assert cluster(SMALL).engine_needs(model) == Needs(3.0, 2, "H100")
    assert cluster(L4).engine_needs(ModelConfig(model="org/m", gpus=0)) == Needs(7.5, 0)
    assert cluster(L4).trainer_needs(LoraConfig(cpus=0.5, gpus=0)) == Needs(0.5, 0)
    assert cluster(QUAD).trainer_needs(LoraConfig(accelerator="H100")) == Needs(1.0, 1, "H100")


@pytest.mark.parametrize(
    ("needs", "nodes"),
    [
        (Needs(2, 0), [SMALL]),
        (Needs(1, 1), [SMALL, L4]),
        (Needs(1, 1, "L4"), [QUAD, L4]),
        (Needs(4, 4, "H100"), [QUAD]),
    ],
)
def test_what_one_node_can_hold_is_let_through(needs: Needs, nodes: list[dict[str, float]]) -> None:
    cluster(*nodes).require(needs, "the engine")


@pytest.mark.parametrize(
    ("needs", "nodes", "said"),
    [
        (
            Needs(3, 0),
            [SMALL, SMALL],
            "the engine needs 3 CPUs on one node; the cluster has "
            "a node with 2 CPUs and 0 GPUs; a node with 2 CPUs and 0 GPUs",
        ),
        (
            Needs(1, 1),
            [SMALL],
            "the engine needs 1 CPU and 1 GPU on one node; "
            "the cluster has a node with 2 CPUs and 0 GPUs",
        ),
        (
            Needs(1, 2, "H100"),
            [L4],
            "the engine needs 1 CPU and 2 GPUs of type H100 on one node; "
            "the cluster has a node with 8 CPUs and 1 GPU (L4)",
        ),
        (Needs(1, 1, "L4"), [QUAD], "of type L4"),
        (Needs(16, 1, "L4"), [QUAD, L4], "16 CPUs"),
        (Needs(1, 0), [], "the cluster has no nodes"),
    ],
    ids=["cpus of two nodes", "no gpu", "wrong type", "other type", "not together", "no nodes"],
)
def test_what_no_node_can_hold_is_refused_with_needs_and_what_is_there(
    needs: Needs, nodes: list[dict[str, float]], said: str
) -> None:
    with pytest.raises(ClusterError, match=re.escape(said)):
        cluster(*nodes).require(needs, "the engine")


@pytest.mark.parametrize(
    ("needs", "nodes", "room"),
    [
        (Needs(1.5, 0), [SMALL], 1),
        (Needs(0.5, 0), [SMALL, L4], 20),
        (Needs(1, 1), [SMALL, L4, QUAD], 5),
        (Needs(8, 2), [QUAD], 2),
        (Needs(1, 1, "H100"), [L4, QUAD], 4),
        (Needs(1, 8), [L4, QUAD], 0),
    ],
)
def test_the_cluster_knows_how_many_of_these_it_holds_at_a_time(
    needs: Needs, nodes: list[dict[str, float]], room: int
) -> None:
    assert cluster(*nodes).room(needs) == room


def want(work: float, gpus: int = 1, least: int = 1, most: int = 99) -> Want:
    return Want(Needs(1.0, gpus), least, most, work)


@pytest.mark.parametrize(
    ("nodes", "wants", "replicas"),
    [
        ([QUAD], [want(1)], [4]),
        ([QUAD], [want(1, most=2)], [2]),
        ([QUAD, QUAD], [want(30), want(10)], [6, 2]),
        ([QUAD, QUAD], [want(10, gpus=4), want(10)], [1, 4]),
        ([QUAD], [want(1, gpus=4), want(9)], [1, 1]),
        ([SMALL], [want(1, gpus=0), want(9, gpus=0)], [1, 1]),
        ([QUAD], [want(1, least=3), want(99)], [3, 1]),
        ([QUAD], [], []),
    ],
    ids=["all", "at most", "by work", "large ones", "in turn", "full", "at least", "none"],
)
def test_replicas_are_shared_out_by_what_engines_have_to_do(
    nodes: list[dict[str, float]], wants: list[Want], replicas: list[int]
) -> None:
    assert cluster(*nodes).share(wants) == replicas


@given(
    st.lists(st.integers(1, 8), min_size=1, max_size=4),
    st.lists(
        st.builds(want, st.floats(0.1, 100), st.integers(0, 4), st.just(1), st.integers(1, 9)),
        max_size=4,
    ),
)
def test_what_is_shared_out_fits_and_leaves_nothing_that_would(
    gpus: list[int], wants: list[Want]
) -> None:
    place = cluster(*({"CPU": 16.0, "GPU": float(count)} for count in gpus))
    replicas = place.share(wants)
    assert all(w.least <= n <= w.most for w, n in zip(wants, replicas, strict=True))
    held = [w.needs for w, n in zip(wants, replicas, strict=True) for _ in range(n)]
    if place.holds([w.needs for w in wants]):
        assert place.holds(held)
        for w, n in zip(wants, replicas, strict=True):
            assert n == w.most or not place.holds([*held, w.needs])


LLAMA_8B = Size.of(
    {
        "hidden_size": 4096,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "intermediate_size": 14336,
        "max_position_embeddings": 131072,
    },
    16_060_522_496,
)


def test_an_engines_memory_is_weights_adapters_and_the_cache_of_one_request() -> None:
    parts = LLAMA_8B.engine(8192, adapters=8, rank=16)
    assert parts["weights"] == pytest.approx(14.96, abs=0.01)
    assert parts["kv_cache"] == pytest.approx(1.0)
    assert LLAMA_8B.adapter_parameters(16) == 41_943_040  # as PEFT counts them
    assert parts["adapters"] == pytest.approx(8 * 41_943_040 * 2 / 2**30)
    whole = LLAMA_8B.engine(None, adapters=0, rank=0)
    assert whole["kv_cache"] == pytest.approx(16.0)
    assert LLAMA_8B.trainer(16)["adapter"] == pytest.approx(41_943_040 * 16 / 2**30)


@pytest.mark.parametrize(
    ("needs", "nodes"),
    [
        (Needs(1, 1), [L4]),
        (Needs(4, 2), [{"CPU": 8.0, "GPU": 2.0, "accelerator_type:T4": 1.0}]),
        (Needs(1, 1), [{"CPU": 8.0, "GPU": 1.0, "accelerator_type:T4": 1.0}, L4]),
        (Needs(1, 1), [{"CPU": 8.0, "GPU": 1.0, "accelerator_type:NEW9": 1.0}]),
        (Needs(1, 1), [{"CPU": 8.0, "GPU": 1.0}]),
        (Needs(1, 0), [SMALL]),
        (Needs(1, 0), [{"CPU": 8.0, "memory": 24.0 * 2**30}]),
    ],
    ids=["L4", "two T4", "one of two", "unknown GPU", "unnamed GPU", "unknown memory", "memory"],
)
def test_what_has_the_memory_or_cannot_be_known_is_let_through(
    needs: Needs, nodes: list[dict[str, float]]
) -> None:
    parts = LLAMA_8B.engine(8192, adapters=1, rank=16)
    cluster(*nodes).require_memory(needs, parts, "the engine")


@pytest.mark.parametrize(
    ("needs", "node", "said"),
    [
        (
            Needs(1, 1),
            {"CPU": 8.0, "GPU": 4.0, "accelerator_type:T4": 1.0},
            "the engine needs 17.6 GiB on 1 GPU at least (weights 15.0, adapters 0.1, "
            "kv cache 1.0; a tenth for the rest), but there are 16.0",
        ),
        (
            Needs(1, 0),
            {"CPU": 8.0, "memory": 8.0 * 2**30},
            "the engine needs 17.6 GiB on one node at least",
        ),
    ],
    ids=["GPU", "memory"],
)
def test_what_lacks_the_memory_is_refused_with_what_needs_it(
    needs: Needs, node: dict[str, float], said: str
) -> None:
    parts = LLAMA_8B.engine(8192, adapters=1, rank=16)
    with pytest.raises(ClusterError, match=re.escape(said)):
        cluster(node).require_memory(needs, parts, "the engine")


@pytest.mark.parametrize("by_variable", [False, True])
def test_nobody_at_the_address_is_said_at_once(
    by_variable: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    address = "127.0.0.1:9"
    if by_variable:
        monkeypatch.setenv("RAY_ADDRESS", address)
    started = time.monotonic()
    with (
        pytest.raises(ClusterError, match=r"joining the Ray cluster at 127\.0\.0\.1:9: .*refused"),
        connect(None if by_variable else address),
    ):
        pass
    assert time.monotonic() - started < 5
