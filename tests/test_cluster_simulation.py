"""A simulated sweep on 128 GPUs: they are kept busy, and nobody waits beside an idle one."""

from __future__ import annotations

import pytest

from tests.benchmarks import cluster


@pytest.fixture(scope="module")
def diary() -> cluster.Diary:
    found, _ = cluster.simulate()
    return found


def test_gpus_idle_at_most_a_tenth_of_the_time(diary: cluster.Diary) -> None:
    assert cluster.figures(diary)["idle_share"] <= 0.10


def test_while_trainings_wait_large_or_small_no_gpu_idles(diary: cluster.Diary) -> None:
    assert cluster.idle(diary, *diary.waiting["training"]) <= 0.001


def test_no_more_gpus_are_held_than_there_are(diary: cluster.Diary) -> None:
    for at in {begin for _, begin, _, _ in diary.spans}:
        assert sum(diary.busy(what, at) for what in cluster.DOING) <= cluster.NODES * cluster.GPUS
