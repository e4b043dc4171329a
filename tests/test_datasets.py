"""Keys, duplicates, groups, classes and splits of a workload's records."""

from __future__ import annotations

import random
from collections import Counter
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flywheel.config import DatasetConfig
from flywheel.datasets import SPLITS, Division, Keys, Manifest, Splits, divide, rule
from flywheel.datasets.duplicates import Edges, deduplicate
from flywheel.datasets.keys import NO_TOOL, normal_text, tool_of
from flywheel.datasets.splits import apportion, classes, groups, leak_check, places
from flywheel.errors import DataError
from flywheel.types import Record
from tests.shingles import grams, jaccard

TOOLS = [{"type": "function", "function": {"name": "a"}}]
NONE = np.empty((0, 2), np.int64)
ALL = np.arange


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


def keys_of(*records: Record) -> Keys:
    return Keys.of(records)


def near(records: list[Record], threshold: float = 0.85) -> Edges:
    """Near-duplicates the slow way: every pair of different texts."""
    texts = [normal_text(r.messages[-1]["content"]) for r in records]
    sets = [grams(text) for text in texts]
    found = [
        (i, j)
        for j in range(len(sets))
        for i in range(j)
        if texts[i] != texts[j] and jaccard(sets[i], sets[j]) >= threshold
    ]
    return np.array(found, np.int64).reshape(-1, 2)


def split_up(records: list[Record], config: DatasetConfig, edges: Edges = NONE) -> Division:
    return divide(Keys.of(records), edges, config)


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
    keys = keys_of(record("Hi."), record("Hi.", tools=TOOLS), record(" hi"), record("Bye."))
    same = {
        name: [list(column).index(value) for value in column]
        for name in ("exact", "normalised", "prompt", "frame", "text")
        if (column := getattr(keys, name)) is not None
    }
    assert same == {
        "exact": [0, 1, 2, 3],
        "normalised": [0, 1, 0, 3],
        "prompt": [0, 0, 0, 3],
        "frame": [0, 1, 0, 0],
        "text": [0, 0, 0, 3],
    }


def test_text_parts_are_normalised_and_pictures_are_not() -> None:
    parts = [{"type": "text", "text": "Hi."}, {"type": "image_url", "image_url": {"url": "A"}}]
    said = [{"type": "text", "text": "HI"}, {"type": "image_url", "image_url": {"url": "A"}}]
    seen = [{"type": "text", "text": "HI"}, {"type": "image_url", "image_url": {"url": "a"}}]
    one, same, other = keys_of(record(parts), record(said), record(seen)).normalised
    assert one == same != other


@pytest.mark.parametrize("metadata", [None, "x", {}, {"conversation_id": ["x"]}])
def test_requests_without_a_conversation_have_none(metadata: Any) -> None:
    keys = keys_of(record("Hi", metadata=metadata))
    assert [keys.conversation_id[0], keys.session_id[0], keys.user[0]] == [0, 0, 0]


def test_the_user_is_openai_s_field_or_the_metadata_s() -> None:
    keys = keys_of(record("a", user="u"), record("b", metadata={"user": "u"}), record("c"))
    assert keys.user[0] == keys.user[1] != keys.user[2] == 0


def test_several_tools_are_one_class_whatever_their_order() -> None:
    def calls(*names: str) -> Record:
        made = [{"type": "function", "function": {"name": n, "arguments": "{}"}} for n in names]
        message = {"role": "assistant", "content": None, "tool_calls": made}
        return Record(1.0, "w", "c", {"messages": []}, {"choices": [{"message": message}]})

    assert tool_of(calls("b", "a")) == tool_of(calls("a", "b")) == "(a, b)"
    assert tool_of(calls("a", "a")) == "a"
    assert tool_of(record("Hi")) == NO_TOOL


def test_the_newest_of_duplicates_is_kept() -> None:
    keys = keys_of(
        record("Hi.", 1), record("Hi.", 3), record("Hi.", 2), record("HI", 9), record("Bye", 1)
    )
    kept = deduplicate(keys, NONE)
    assert kept.positions.tolist() == [3, 4]
    assert kept.duplicates == {"exact": 2, "normalised": 1, "near": 0}


def test_of_duplicates_as_new_the_higher_id_is_kept() -> None:
    keys = keys_of(record("Hi", text="one"), record("Hi", text="two"))
    (kept,) = deduplicate(keys, NONE).positions
    assert keys.id[kept] == keys.id.max()


LONG = "could you please tell me when my order from last week will arrive at my new address"


def test_of_near_duplicates_in_the_same_frame_the_newest_is_kept() -> None:
    made = [record(LONG, 1), record(LONG + "s", 2), record(LONG + "x", 3, tools=TOOLS)]
    edges = near(made)
    assert len(edges) == 3
    kept = deduplicate(Keys.of(made), edges)
    assert kept.positions.tolist() == [1, 2]
    assert kept.duplicates == {"exact": 0, "normalised": 0, "near": 1}


def test_near_duplicates_stand_on_one_side_whatever_their_frame() -> None:
    made = [record(LONG, 1), record(LONG + "x", 2, tools=TOOLS), record("else", 3)]
    one, same, other = groups(Keys.of(made), near(made))
    assert one == same != other


@pytest.mark.parametrize(
    ("policy", "kept", "rejected"),
    [("newest", [3, 4], 0), ("majority", [1, 4], 0), ("reject", [4], 4)],
)
def test_contradicting_answers_follow_the_policy(
    policy: Any, kept: list[int], rejected: int
) -> None:
    keys = keys_of(
        record("Hi", 1, text="a"),
        record("hi", 2, text="a"),
        record("Hi", 0, text="c"),
        record("Hi", 3, text="b"),
        record("Bye", 1, text="a"),
    )
    found = deduplicate(keys, NONE, policy)
    assert found.positions.tolist() == kept
    assert found.contradictions == {"requests": 1, "records": 4, "rejected": rejected}


def test_classes_are_tools_then_few_answers_then_lengths() -> None:
    tools = keys_of(record("a", tool="f"), record("b"))
    assert classes(tools, ALL(2), 10).tolist() == ["f", NO_TOOL]
    texts = keys_of(record("a", text="x"), record("b", text=" x"), record("c", text="y" * 500))
    assert classes(texts, ALL(3), 2).tolist() == ["x", "x", "y" * 80]
    assert classes(texts, ALL(3), 1).tolist() == [
        "up to 100 characters",
        "up to 100 characters",
        "up to 1600 characters",
    ]


def test_conversations_users_and_repeated_texts_link_records_into_one_group() -> None:
    keys = keys_of(
        record("one", metadata={"conversation_id": "A"}),
        record("two", metadata={"conversation_id": "A"}),
        record("Two.", metadata={"session_id": 7}),
        record("three", metadata={"session_id": 7}, user="u"),
        record("five", user="u"),
        record("four"),
    )
    found = groups(keys, NONE)
    assert len(set(found[:5])) == 1
    assert found[5] != found[0]
    assert len(set(groups(keys.linked_by([]), NONE))) == 5


def test_seeds_place_differently() -> None:
    keys = keys_of(*(record(f"q{i}") for i in range(20)))
    own = groups(keys, NONE)
    assert (places(keys, own, 0) != places(keys, own, 1)).all()
    assert (places(keys, own, 0) == places(keys, own, 0)).all()


def traffic(seed: int, n: int) -> list[Record]:
    """Records with classes of very different sizes, repeats, and conversations."""
    rng = random.Random(seed)
    made = []
    for _ in range(n):
        number = rng.randrange(n)
        query = f"Query {number} about thing {number}" + rng.choice(("", ".", "!", " s"))
        conversation = {"metadata": {"conversation_id": rng.randrange(n)}}
        tool = rng.choice("aaaaaaaabbbc")
        linked = conversation if rng.random() < 0.3 else {}
        made.append(record(query, rng.randrange(1000), tool, **linked))
    return made


def names(records: list[Record], division: Division, *splits: str) -> set[int]:
    keys = Keys.of(records)
    return {int(keys.prompt[i]) for split in splits for i in division.splits[split]}


CONFIG = DatasetConfig(eval_size=20, min_total_records=1)
BY_TIME = DatasetConfig(eval_size=20, min_total_records=1, mode="time")
seeds = st.integers(0, 10**6)


@settings(max_examples=40, deadline=None)
@given(seeds, st.integers(100, 300), st.sampled_from([CONFIG, BY_TIME]))
def test_no_group_stands_on_two_sides(seed: int, n: int, config: DatasetConfig) -> None:
    made = traffic(seed, n)
    keys, edges = Keys.of(made), near(made)
    division = divide(keys, edges, config)
    own = groups(keys, edges)
    held, train, val = (
        {own[i] for name in names for i in division.splits[name]}
        for names in (["eval"], ["train"], ["val"])
    )
    assert not held & train
    assert not held & val
    assert not train & val
    unused = {own[i] for i in division.splits.unused}
    assert not unused & (train | val)
    checked = leak_check(keys, division.splits, edges)
    assert set(checked) == {"eval/train", "eval/val", "train/val"}
    assert all(count == 0 for pair in checked.values() for count in pair.values())


@settings(max_examples=40, deadline=None)
@given(seeds, st.integers(100, 300))
def test_every_record_is_accounted_for_once(seed: int, n: int) -> None:
    made = traffic(seed, n)
    division = split_up(
        made,
        DatasetConfig(eval_size=20, min_total_records=1, limit=60, contradictions="reject"),
        near(made),
    )
    placed = [i for split in (*SPLITS, "unused") for i in division.splits[split].tolist()]
    assert len(placed) == len(set(placed))
    dropped = sum(division.kept.duplicates.values()) + division.kept.contradictions["rejected"]
    assert len(placed) + dropped + division.over_limit == n
    assert len(placed) <= 60


def mix(division: Division, *splits: str) -> Counter[str]:
    return Counter(name for s in splits for name in division.classes(division.splits[s]))


@settings(max_examples=40, deadline=None)
@given(seeds, st.integers(100, 300))
def test_eval_has_the_classes_of_its_side_within_one_record(seed: int, n: int) -> None:
    division = split_up(traffic(seed, n), CONFIG)
    side, chosen = mix(division, "eval", "unused"), mix(division, "eval")
    size = min(CONFIG.eval_size, side.total())
    assert chosen.total() == size
    for name, there in side.items():
        assert abs(chosen[name] - size * there / side.total()) < 1


@settings(max_examples=30, deadline=None)
@given(seeds, st.integers(100, 200))
def test_val_has_the_classes_of_train_within_one_record(seed: int, n: int) -> None:
    single = [record(f"Query {i}", tool="abbc"[i % 4]) for i in range(seed, seed + n)]
    division = split_up(single, CONFIG)
    side, chosen = mix(division, "train", "val"), mix(division, "val")
    assert chosen.total() == int(CONFIG.val_ratio * side.total())
    for name, there in side.items():
        assert abs(chosen[name] - chosen.total() * there / side.total()) < 1


@settings(max_examples=40, deadline=None)
@given(seeds, st.integers(100, 200), st.integers(1, 200))
def test_more_logs_never_move_a_request_from_eval_to_train(seed: int, n: int, more: int) -> None:
    early = traffic(seed, n)
    # Drawn from the same queries and conversations, so that new links join old groups.
    late = early + traffic(seed + 1, n + more)
    before, after = (split_up(made, CONFIG, near(made)) for made in (early, late))
    held = names(early, before, "eval", "unused")
    assert not held & names(late, after, "train", "val")


@settings(max_examples=30, deadline=None)
@given(seeds, st.randoms(), st.sampled_from([CONFIG, BY_TIME]))
def test_the_order_of_the_logs_changes_nothing(
    seed: int, rng: random.Random, config: DatasetConfig
) -> None:
    made = traffic(seed, 150)

    def outcome(made: list[Record]) -> Any:
        division = split_up(made, config, near(made))
        ids = Keys.of(made).id
        sides = {s: ids[division.splits[s]].tolist() for s in (*SPLITS, "unused")}
        labels = {s: division.classes(division.splits[s]) for s in SPLITS}
        return sides, labels, division.kept.duplicates, division.kept.contradictions

    assert outcome(made) == outcome(rng.sample(made, len(made)))


def test_the_eval_side_is_about_eval_share_of_the_requests() -> None:
    splits = split_up([record(f"q{i}") for i in range(4000)], CONFIG).splits
    assert 0.17 < (len(splits.eval) + len(splits.unused)) / 4000 < 0.23


def test_a_larger_eval_size_keeps_the_smaller_eval() -> None:
    made = [record(f"q{i}") for i in range(500)]
    small, large = (split_up(made, DatasetConfig(eval_size=size)) for size in (20, 60))
    assert names(made, small, "eval") < names(made, large, "eval")


def test_a_small_workload_has_a_smaller_eval() -> None:
    splits = split_up([record(f"q{i}") for i in range(60)], DatasetConfig(eval_size=100)).splits
    assert 0 < len(splits.eval) < 60
    assert len(splits.unused) == 0


def test_by_time_eval_is_the_newest_and_nothing_older_is_linked_to_it() -> None:
    linked = {"metadata": {"conversation_id": "A"}}
    made = [record(f"q{i}", i, **(linked if i in (3, 95) else {})) for i in range(100)]
    splits = split_up(made, BY_TIME).splits
    assert sorted(splits.eval.tolist()) == list(range(80, 100))
    assert splits.unused.tolist() == [3]


def test_a_frozen_core_stays_in_eval_and_fresh_records_fill_it_up() -> None:
    early = [record(f"q{i}") for i in range(100)]
    config = DatasetConfig(eval_size=10, min_total_records=1, random_seed=1)
    core = Keys.of(early).id[split_up(early, config).splits.eval][:5]
    late = [record(f"q{i}") for i in range(50, 400)]
    frozen = DatasetConfig(
        eval_size=20, min_total_records=1, mode="frozen", frozen_dataset="0" * 16
    )
    keys = Keys.of(late)
    splits = divide(keys, NONE, frozen, core).splits
    existing = np.intersect1d(core, keys.id)
    assert set(existing) <= set(keys.id[splits.eval])
    assert len(splits.eval) == 20
    assert not set(existing) & set(keys.id[splits.train])


def test_a_constant_user_is_named_as_what_leaves_a_split_empty() -> None:
    made = [record(f"q{i}", user="default") for i in range(60)]
    with pytest.raises(DataError, match=r"one group of linked records holds 60 .*group_by"):
        split_up(made, CONFIG)


def test_too_few_records_are_an_error_that_says_how_many() -> None:
    made = [record("Hi"), record("Hi"), record("Bye")]
    with pytest.raises(DataError, match=r"2 of 3 records .*min_total_records \(3\)"):
        split_up(made, DatasetConfig(min_total_records=3))


@pytest.mark.parametrize(("share", "empty"), [(0.000001, "eval"), (0.999999, "train")])
def test_a_split_left_empty_is_an_error(share: float, empty: str) -> None:
    made = [record(f"q{i}") for i in range(10)]
    with pytest.raises(DataError, match=f"leave none for {empty}"):
        split_up(made, DatasetConfig(min_total_records=1, eval_share=share))


@given(st.integers(0, 300), st.dictionaries(st.text(max_size=3), st.integers(1, 50)))
def test_seats_are_shared_by_largest_remainder(seats: int, counts: dict[str, int]) -> None:
    given_out = apportion(seats, counts)
    total = sum(counts.values())
    assert sum(given_out.values()) == min(seats, total)
    for name, count in counts.items():
        assert 0 <= given_out[name] <= count
        assert abs(given_out[name] - min(seats, total) * count / total) < 1


def test_a_leak_is_found() -> None:
    made = [record("Hi."), record("HI"), record(LONG), record(LONG + "s")]
    at = [np.array([i], np.int64) for i in range(4)]
    leaking = Splits(eval=np.concatenate([at[0], at[2]]), train=at[1], val=at[3], unused=at[0][:0])
    found = leak_check(Keys.of(made), leaking, near(made))
    assert found["eval/train"] == {"exact": 0, "normalised": 1, "text": 1, "near": 0}
    assert found["eval/val"] == {"exact": 0, "normalised": 0, "text": 0, "near": 1}


def test_a_manifest_survives_json() -> None:
    manifest = Manifest(
        fingerprint="f",
        workload="w",
        client=None,
        lines=10,
        records=8,
        rejected={"not_json": 2},
        other_workloads=0,
        normalised={"empty_arguments": 1},
        masked={"EMAIL": 1},
        duplicates={"exact": 1, "normalised": 0, "near": 0},
        contradictions={"requests": 0, "records": 0, "rejected": 0},
        over_limit=0,
        splits={"eval": 2, "train": 3, "val": 1},
        unused=1,
        class_mix={"eval": {"a": 2}},
        rare_classes={"b": "eval"},
        leak_check={"eval/train": {"exact": 0}},
        time_ranges={"eval": (1.0, 2.0), "val": None},
        production={"requests": 7, "prompt_tokens": 1, "completion_tokens": 1},
        split_rule=rule(CONFIG),
        code_version="0",
    )
    assert Manifest.from_json(manifest.to_json()) == manifest
    assert manifest.curated == 7
