from __future__ import annotations

import random
from collections import Counter
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flywheel.config import DatasetConfig
from flywheel.datasets import (
    NO_TOOL,
    SPLITS,
    TEXT,
    Division,
    Keys,
    Manifest,
    apportion,
    classes,
    deduplicate,
    divide,
    leak_check,
    normal_text,
    places,
    rule,
)
from flywheel.errors import DataError
from flywheel.types import Record

TOOLS = [{"type": "function", "function": {"name": "a"}}]


def record(query: Any, timestamp: float = 1.0, tool: str = "", text: str = "ok", **request: Any):  # type: ignore[no-untyped-def]
    call = {"type": "function", "function": {"name": tool, "arguments": "{}"}}
    message = {"role": "assistant", "content": None, "tool_calls": [call]} if tool else {}
    message = message or {"role": "assistant", "content": text}
    return Record(
        timestamp=timestamp,
        workload_id="w",
        client_id="c",
        request={"messages": [{"role": "user", "content": query}], **request},
        response={"choices": [{"message": message}]},
    )


def keys_of(*records: Record) -> list[Keys]:
    return [Keys.of(r) for r in records]


@pytest.mark.parametrize(
    ("written", "normal"),
    [
        ("  PLAY some\tmusic on\n Deezer ", "play some music on deezer"),
        ("Really?!", "really"),
        ("Wait . . .", "wait"),
        ("STRASSE", normal_text("straße")),
        ("v1.2 is out", "v1.2 is out"),
        ("?", ""),
    ],
)
def test_a_query_is_compared_without_case_spacing_and_closing_marks(
    written: str, normal: str
) -> None:
    assert normal_text(written) == normal


def test_keys_tell_apart_what_counts() -> None:
    base, tools, spelled, other = keys_of(
        record("Hi."), record("Hi.", tools=TOOLS), record(" hi"), record("Bye.")
    )
    assert base.exact != tools.exact
    assert base.normalised != tools.normalised
    assert base.prompt == tools.prompt == spelled.prompt
    assert base.normalised == spelled.normalised
    assert base.exact != spelled.exact
    assert len({base.prompt, other.prompt}) == 2


def test_text_parts_are_normalised_and_pictures_are_not() -> None:
    parts = [{"type": "text", "text": "Hi."}, {"type": "image_url", "image_url": {"url": "A"}}]
    said = [{"type": "text", "text": "HI"}, {"type": "image_url", "image_url": {"url": "A"}}]
    seen = [{"type": "text", "text": "HI"}, {"type": "image_url", "image_url": {"url": "a"}}]
    one, same, other = keys_of(record(parts), record(said), record(seen))
    assert one.normalised == same.normalised != other.normalised


@pytest.mark.parametrize("metadata", [None, "x", {}, {"conversation_id": ["x"]}])
def test_requests_without_a_conversation_have_none(metadata: Any) -> None:
    assert Keys.of(record("Hi", metadata=metadata)).conversation == ""


def test_the_newest_of_duplicates_is_kept() -> None:
    keys = keys_of(
        record("Hi.", 1), record("Hi.", 3), record("Hi.", 2), record("HI", 9), record("Bye", 1)
    )
    kept, dropped = deduplicate(keys)
    assert kept == [3, 4]
    assert dropped == {"exact": 2, "normalised": 1}


def test_of_duplicates_as_new_the_higher_id_is_kept() -> None:
    keys = keys_of(record("Hi", text="one"), record("Hi", text="two"))
    kept, _ = deduplicate(keys)
    assert keys[kept[0]].id == max(key.id for key in keys)


def test_classes_are_tools_then_few_answers_then_text() -> None:
    tools = keys_of(record("a", tool="f"), record("b"))
    assert classes(tools, 10) == ["f", NO_TOOL]
    texts = keys_of(record("a", text="x"), record("b", text=" x"), record("c", text="y"))
    assert classes(texts, 2) == ["x", "x", "y"]
    assert classes(texts, 1) == [TEXT] * 3


def test_a_conversation_and_a_repeated_request_link_records_into_one_group() -> None:
    keys = keys_of(
        record("one", metadata={"conversation_id": "A"}),
        record("two", metadata={"conversation_id": "A"}),
        record("Two.", metadata={"session_id": 7}),
        record("three", metadata={"session_id": 7}),
        record("four"),
    )
    found = places(keys, seed=0)
    assert len(set(found[:4])) == 1
    assert found[4] != found[0]


def test_seeds_place_differently() -> None:
    keys = keys_of(*(record(f"q{i}") for i in range(20)))
    assert places(keys, 0) != places(keys, 1)
    assert places(keys, 0) == places(keys, 0)


def traffic(seed: int, n: int) -> list[Record]:
    """Records with classes of very different sizes, repeats, and conversations."""
    rng = random.Random(seed)
    made = []
    for _ in range(n):
        query = f"Query {rng.randrange(n)}" + rng.choice(("", ".", "!"))
        conversation = {"metadata": {"conversation_id": rng.randrange(n)}}
        tool = rng.choice("aaaaaaaabbbc")
        linked = conversation if rng.random() < 0.3 else {}
        made.append(record(query, rng.randrange(1000), tool, **linked))
    return made


def names(keys: list[Keys], division: Division, split: str) -> set[str]:
    return {keys[i].prompt for i in division.splits[split]}


CONFIG = DatasetConfig(eval_size=20, min_total_records=1)
seeds = st.integers(0, 10**6)


@settings(max_examples=40, deadline=None)
@given(seeds, st.integers(100, 300))
def test_no_group_stands_on_two_sides(seed: int, n: int) -> None:
    keys = keys_of(*traffic(seed, n))
    division = divide(keys, CONFIG)
    groups = places(keys, CONFIG.random_seed)
    train, val = ({groups[i] for i in division.splits[s]} for s in ("train", "val"))
    held = {groups[i] for i in division.splits.eval + division.splits.unused}
    assert not held & train
    assert not held & val
    assert not train & val
    checked = leak_check(keys, division.splits)
    assert set(checked) == {"eval/train", "eval/val", "train/val"}
    assert all(count == 0 for pair in checked.values() for count in pair.values())


@settings(max_examples=40, deadline=None)
@given(seeds, st.integers(100, 300))
def test_every_record_is_accounted_for_once(seed: int, n: int) -> None:
    keys = keys_of(*traffic(seed, n))
    division = divide(keys, DatasetConfig(eval_size=20, min_total_records=1, limit=60))
    placed = [i for split in (*SPLITS, "unused") for i in division.splits[split]]
    assert len(placed) == len(set(placed))
    assert len(placed) + sum(division.duplicates.values()) + division.over_limit == n
    assert len(placed) <= 60


@settings(max_examples=40, deadline=None)
@given(seeds, st.integers(100, 300))
def test_eval_has_the_classes_of_its_side_within_one_record(seed: int, n: int) -> None:
    keys = keys_of(*traffic(seed, n))
    division = divide(keys, CONFIG)
    splits, labels = division.splits, division.labels
    side = Counter(labels[i] for i in splits.eval + splits.unused)
    chosen = Counter(labels[i] for i in splits.eval)
    size = min(CONFIG.eval_size, side.total())
    assert chosen.total() == size
    for name, there in side.items():
        assert abs(chosen[name] - size * there / side.total()) < 1


@settings(max_examples=30, deadline=None)
@given(seeds, st.integers(100, 200))
def test_val_has_the_classes_of_train_within_one_record(seed: int, n: int) -> None:
    single = [Keys.of(record(f"Query {i}", tool="abbc"[i % 4])) for i in range(seed, seed + n)]
    division = divide(single, CONFIG)
    splits, labels = division.splits, division.labels
    side = Counter(labels[i] for i in splits.train + splits.val)
    chosen = Counter(labels[i] for i in splits.val)
    assert chosen.total() == int(CONFIG.val_ratio * side.total())
    for name, there in side.items():
        assert abs(chosen[name] - chosen.total() * there / side.total()) < 1


@settings(max_examples=40, deadline=None)
@given(seeds, st.integers(100, 200), st.integers(1, 200))
def test_more_logs_never_move_a_request_from_eval_to_train(seed: int, n: int, more: int) -> None:
    early = keys_of(*traffic(seed, n))
    # Drawn from the same queries and conversations, so that new links join old groups.
    late = early + keys_of(*(r for r in traffic(seed + 1, n + more)))
    before, after = divide(early, CONFIG), divide(late, CONFIG)
    held = names(early, before, "eval") | names(early, before, "unused")
    assert not held & (names(late, after, "train") | names(late, after, "val"))


@settings(max_examples=30, deadline=None)
@given(seeds, st.randoms())
def test_the_order_of_the_logs_changes_nothing(seed: int, rng: random.Random) -> None:
    keys = keys_of(*traffic(seed, 150))
    shuffled = rng.sample(keys, len(keys))

    def outcome(keys: list[Keys]) -> Any:
        division = divide(keys, CONFIG)
        sides = {s: [keys[i].id for i in division.splits[s]] for s in (*SPLITS, "unused")}
        return sides, division.duplicates, {keys[i].id: c for i, c in division.labels.items()}

    assert outcome(keys) == outcome(shuffled)


def test_the_eval_side_is_about_eval_share_of_the_requests() -> None:
    keys = keys_of(*(record(f"q{i}") for i in range(4000)))
    splits = divide(keys, CONFIG).splits
    assert 0.17 < (len(splits.eval) + len(splits.unused)) / 4000 < 0.23


def test_a_larger_eval_size_keeps_the_smaller_eval() -> None:
    keys = keys_of(*(record(f"q{i}") for i in range(500)))
    small = names(keys, divide(keys, DatasetConfig(eval_size=20)), "eval")
    assert small < names(keys, divide(keys, DatasetConfig(eval_size=60)), "eval")


def test_a_small_workload_has_a_smaller_eval() -> None:
    keys = keys_of(*(record(f"q{i}") for i in range(60)))
    splits = divide(keys, DatasetConfig(eval_size=100)).splits
    assert 0 < len(splits.eval) < 60
    assert splits.unused == []


def test_too_few_records_are_an_error_that_says_how_many() -> None:
    keys = keys_of(record("Hi"), record("Hi"), record("Bye"))
    with pytest.raises(DataError, match=r"2 of 3 records .*min_total_records \(3\)"):
        divide(keys, DatasetConfig(min_total_records=3))


@pytest.mark.parametrize(("share", "empty"), [(0.000001, "eval"), (0.999999, "train")])
def test_a_split_left_empty_is_an_error(share: float, empty: str) -> None:
    keys = keys_of(*(record(f"q{i}") for i in range(10)))
    with pytest.raises(DataError, match=f"leave none for {empty}"):
        divide(keys, DatasetConfig(min_total_records=1, eval_share=share))


@given(st.integers(0, 300), st.dictionaries(st.text(max_size=3), st.integers(1, 50)))
def test_seats_are_shared_by_largest_remainder(seats: int, counts: dict[str, int]) -> None:
    given_out = apportion(seats, counts)
    total = sum(counts.values())
    assert sum(given_out.values()) == min(seats, total)
    for name, count in counts.items():
        assert 0 <= given_out[name] <= count
        assert abs(given_out[name] - min(seats, total) * count / total) < 1


def test_a_leak_is_found() -> None:
    keys = keys_of(record("Hi."), record("HI"), record("Bye"))
    division = divide(keys_of(*(record(f"q{i}") for i in range(60))), CONFIG)
    leaking = type(division.splits)(eval=[0], train=[1], val=[2], unused=[])
    assert leak_check(keys, leaking)["eval/train"] == {"exact": 0, "normalised": 1}


def test_a_manifest_survives_json() -> None:
    manifest = Manifest(
        fingerprint="f",
        workload="w",
        client=None,
        lines=10,
        records=8,
        rejected={"not_json": 2},
        other_workloads=0,
        masked={"EMAIL": 1},
        duplicates={"exact": 1, "normalised": 0},
        over_limit=0,
        splits={"eval": 2, "train": 3, "val": 1},
        unused=1,
        class_mix={"eval": {"a": 2}},
        leak_check={"eval/train": {"exact": 0}},
        time_range=(1.0, 2.0),
        production={"requests": 7, "prompt_tokens": 1, "completion_tokens": 1},
        split_rule=rule(CONFIG),
        code_version="0",
    )
    assert Manifest.from_json(manifest.to_json()) == manifest
    assert manifest.curated == 7
