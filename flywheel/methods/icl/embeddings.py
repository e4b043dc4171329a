"""Embeddings by sentence-transformers, kept in the experiment's storage: a text is embedded once.

A text's vector lies in ``embeddings/<model>-<version>/`` under the text's hash; the version is the
hash of the model's files. So a second trial over the same pool embeds nothing, and a killed one
goes on. They are computed in plain batches, in the trial's own worker: a Ray Data job started
inside a Tune trial is captured by the trial's placement group and can hang (ray#25239, #47439).
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from flywheel.errors import EngineError, boundary
from flywheel.storage import Storage

Vectors = npt.NDArray[np.float32]

_PART_TEXTS = 8192
"""Texts embedded between two writes."""
_BATCH_TEXTS = 64


def embed(texts: Sequence[str], model: str, folder: Path, storage: Storage) -> Vectors:
    """A unit vector for each text, (N, width).

    Args:
        texts: What to embed; repeats cost nothing.
        model: The model's name, for people who look into the cache.
        folder: Its files.
        storage: The experiment's storage.

    Raises:
        EngineError: The model cannot be loaded, or gives no finite vectors.
        StorageError: The storage did not answer.
    """
    cache = storage.at("embeddings", f"{_slug(model)}-{_version(folder)}")
    keys = [_key(text) for text in texts]
    wanted = dict(zip(keys, texts, strict=True))
    known = _read(cache, set(wanted))
    missing = sorted(wanted.keys() - known.keys())
    if missing:
        encoder = _Encoder(model, folder)
        for start in range(0, len(missing), _PART_TEXTS):
            part = missing[start : start + _PART_TEXTS]
            vectors = encoder([wanted[key] for key in part])
            _write(cache, part, vectors)
            known.update(zip(part, vectors, strict=True))
    return np.stack([known[key] for key in keys])


class _Encoder:
    """A loaded embedding model. It computes on the CPU: the GPU is the engine's."""

    def __init__(self, model: str, folder: Path) -> None:
        from sentence_transformers import SentenceTransformer

        self.name = model
        with boundary(EngineError, f"loading the embedding model {model}"):
            self.model = SentenceTransformer(str(folder), device="cpu", trust_remote_code=False)

    def __call__(self, texts: list[str]) -> Vectors:
        with boundary(EngineError, f"embedding {len(texts)} texts with {self.name}"):
            vectors: Vectors = self.model.encode(
                texts,
                batch_size=_BATCH_TEXTS,
                normalize_embeddings=True,
                show_progress_bar=False,
            ).astype(np.float32)
        if not np.isfinite(vectors).all():
            raise EngineError(f"the embedding model {self.name} gives vectors that are not finite")
        return vectors


def _read(cache: Storage, wanted: set[str]) -> dict[str, Vectors]:
    """The vectors that are there, part by part: a cache may hold far more than is wanted."""
    found: dict[str, Vectors] = {}
    for name in cache.names(".parquet"):
        keys = cache.read_table(name, ["text"])["text"].to_pylist()
        rows = [row for row, key in enumerate(keys) if key in wanted]
        if not rows:
            continue
        vectors = cache.read_table(name, ["vector"])["vector"].take(pa.array(rows))
        flat = vectors.combine_chunks().flatten().to_numpy()
        found.update(zip((keys[row] for row in rows), flat.reshape(len(rows), -1), strict=True))
    return found


def _write(cache: Storage, keys: list[str], vectors: Vectors) -> None:
    """One part, named by what is in it: two workers that embed the same write the same file."""
    name = hashlib.sha256("".join(keys).encode()).hexdigest()[:16]
    column = pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel()), vectors.shape[1])
    cache.write_table(f"{name}.parquet", pa.table({"text": keys, "vector": column}))


def _key(text: str) -> str:
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()


def _version(folder: Path) -> str:
    """The hash of a model's files, names and contents."""
    digest = hashlib.blake2b(digest_size=6)
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        digest.update(path.relative_to(folder).as_posix().encode())
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


def _slug(model: str) -> str:
    last = model.rstrip("/").rsplit("/", 1)[-1]
    return "".join(c if c.isascii() and c.isalnum() else "-" for c in last)[:40]
