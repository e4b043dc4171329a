"""Few-shot examples by real embeddings and real tokenizers; the embedding cache."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from flywheel import models
from flywheel.errors import EngineError
from flywheel.methods import icl
from flywheel.rendering import Renderer
from flywheel.storage import Storage
from flywheel.testing import sample_record, text_reply, tiny_model
from flywheel.types import Record

pytestmark = pytest.mark.services


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that embeds and renders, without sense."""
    return tiny_model(tmp_path_factory.mktemp("tiny"), tools=True)


@pytest.fixture
def storage(tmp_path: Path) -> Storage:
    return Storage(str(tmp_path))


def parts(storage: Storage) -> list[str]:
    cache = storage.at("embeddings")
    return [f"{model}/{part}" for model in cache.names() for part in cache.at(model).names()]


def test_a_text_is_embedded_once_whatever_it_stands_beside(tiny: Path, storage: Storage) -> None:
    first = icl.embed(["a b", "c", "a b"], "org/tiny", tiny, storage)
    assert np.linalg.norm(first, axis=1) == pytest.approx([1, 1, 1], rel=1e-5)
    (part,) = parts(storage)
    assert part.startswith("tiny-")
    icl.embed(["c", "d", ""], "org/tiny", tiny, storage)
    both = [storage.at("embeddings").read_table(name) for name in parts(storage)]
    assert sorted(table.num_rows for table in both) == [2, 2]
    assert pa.concat_tables(both)["text"].value_counts().to_pylist() == [
        {"values": key, "counts": 1} for key in pa.concat_tables(both)["text"].to_pylist()
    ]


def test_the_second_time_vectors_come_from_the_cache(tiny: Path, storage: Storage) -> None:
    icl.embed(["a", "b"], "tiny", tiny, storage)
    (name,) = parts(storage)
    table = storage.at("embeddings").read_table(name)
    turned = pa.table({"text": table["text"].to_pylist()[::-1], "vector": table["vector"]})
    before = icl.embed(["a", "b"], "tiny", tiny, storage)
    storage.at("embeddings").write_table(name, turned)
    assert icl.embed(["b", "a"], "tiny", tiny, storage).tolist() == before.tolist()


def test_another_model_of_the_same_name_has_its_own_vectors(
    tiny: Path, storage: Storage, tmp_path: Path
) -> None:
    other = tiny_model(tmp_path / "other", tools=True, seed=1)
    one, two = (icl.embed(["a"], "tiny", folder, storage) for folder in (tiny, other))
    assert not np.allclose(one, two)
    assert len(parts(storage)) == 2


def test_a_model_that_cannot_be_loaded_is_an_error_and_leaves_nothing(storage: Storage) -> None:
    broken = Path(storage.url) / "broken"
    broken.mkdir()
    (broken / "config.json").write_text("{}")
    with pytest.raises(EngineError, match="loading the embedding model org/broken"):
        icl.embed(["a"], "org/broken", broken, storage)
    assert parts(storage) == []


def test_prompts_stay_within_the_engines_length_by_its_own_tokenizer(tiny: Path) -> None:
    said = [f"{'Where is order A-1? ' * (1 + i % 9)}{i}" for i in range(40)]
    pool = icl.Pool([sample_record(text, text_reply("Here.")) for text in said], ["x"] * 40)
    records = [sample_record("Where? " * (1 + 9 * i)) for i in range(12)]
    rule = icl.Rule(5, "lexical", "turns")
    budget = icl.of_weights(tiny, {"max_model_len": 400}, None)
    orders = icl.orders(records, pool, rule, 0, lambda texts: np.empty((0, 0)))
    chosen = icl.choose(records, pool, rule, orders, budget, [32] * 12)
    bodies = [icl.request(r, e, "turns") for r, e in zip(records, chosen, strict=True)]
    renderer = Renderer.load(tiny)
    assert {len(examples) for examples in chosen} > {0, 1}
    for body, examples in zip(bodies, chosen, strict=True):
        if examples:
            assert len(renderer.prompt_ids(body["messages"], body["tools"])) <= 400 - 32


@pytest.mark.parametrize(
    ("engine", "most", "context"),
    [
        ({"max_model_len": 512}, None, 512),
        ({"max_model_len": 512}, 300, 300),
        ({"max_model_len": 512}, 3000, 512),
        ({"max_model_len": -1}, None, 4096),
        ({}, None, 4096),
    ],
    ids=str,
)
def test_the_context_is_what_engine_model_and_experiment_allow(
    tiny: Path, engine: dict[str, int], most: int | None, context: int
) -> None:
    assert icl.of_weights(tiny, engine, most).context == context


@pytest.mark.skipif(
    not list(models.cache_folder().glob("sentence-transformers--*")),
    reason="the embedding model is not in the cache; a run with icl puts it there",
)
def test_the_nearest_examples_are_those_that_mean_the_same(storage: Storage) -> None:
    name = "sentence-transformers/all-MiniLM-L6-v2"
    pool = icl.Pool(
        [
            sample_record("Do you sell blue mugs?"),
            sample_record("Where is my parcel A-1?"),
            sample_record("I want my money back."),
            sample_record("Has my parcel been shipped yet?"),
        ],
        ["stock", "track", "refund", "track"],
    )
    queries = [sample_record("Where is my parcel B-2?"), sample_record("Give me a refund")]

    def chosen(count: int, ratio: float) -> list[list[Record]]:
        rule = icl.Rule(count, "semantic_similarity", "turns", relevance_ratio=ratio)
        folder = models.fetch(name)
        orders = icl.orders(
            queries, pool, rule, 0, lambda texts: icl.embed(texts, name, folder, storage)
        )
        return icl.choose(queries, pool, rule, orders, icl.of_endpoint(None), [9, 9])

    first, second = chosen(2, 1.0)
    assert first == [pool.records[1], pool.records[3]]
    assert second[0] == pool.records[2]
    assert {r.id for r in chosen(3, 0.7)[0]} > {r.id for r in first}  # and one of another class
    assert [len(examples) for examples in chosen(5, 0.5)] == [4, 4]
