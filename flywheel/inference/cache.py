"""Answers that endpoints were paid for, kept by what was asked: a second run pays nothing.

An answer's name is the hash of URL, model and whole request. Kept is only what may stand for itself
if it is asked again: an answer without chance (temperature 0), or with a seed. Others are draws;
a repeated run that got the same draws would look more certain than it is.
"""

from __future__ import annotations

from dataclasses import asdict, replace

import orjson

from flywheel.errors import StorageError
from flywheel.serving import Endpoint
from flywheel.storage import Storage
from flywheel.types import Completion, Json, content_hash


class Cache:
    """One endpoint's answers in a folder that all endpoints, runs and nodes share."""

    def __init__(self, folder: Storage, endpoint: Endpoint) -> None:
        """Nothing is read or created yet."""
        self._folder, self._asked = folder, [endpoint.completions_url, endpoint.model]

    def get(self, body: Json) -> Completion | None:
        """What was answered to this very request; it is nobody's yet."""
        if not _repeatable(body):
            return None
        try:
            kept = self._folder.read_bytes(self._name(body))
        except StorageError as error:
            if isinstance(error.__cause__, FileNotFoundError):
                return None
            raise
        try:
            return Completion(record_id="", **orjson.loads(kept))
        except (ValueError, TypeError):  # not one of ours: it is asked again and written anew
            return None

    def put(self, body: Json, completion: Completion) -> None:
        """Keep an answer, if it may be kept."""
        if _repeatable(body) and not completion.error:
            row = asdict(replace(completion, record_id=""))
            del row["record_id"]
            self._folder.write_bytes(self._name(body), orjson.dumps(row))

    def _name(self, body: Json) -> str:
        key = content_hash([*self._asked, body], 32)
        return f"{key[:2]}/{key}.json"


def _repeatable(body: Json) -> bool:
    return body.get("temperature") == 0 or body.get("seed") is not None
