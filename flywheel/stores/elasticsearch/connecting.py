"""A connection to the server, patient while it is busy or away; a fault becomes one sentence."""

from __future__ import annotations

import os
import random
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from elastic_transport import (
    ApiError,
    ConnectionError,  # noqa: A004 -- the library's own
    ConnectionTimeout,
    TlsError,
    Transport,
    TransportApiResponse,
    TransportError,
)
from elasticsearch import Elasticsearch

from flywheel.errors import DataError
from flywheel.redaction import mask_text
from flywheel.types import Json

WAITS_S = (0.25, 0.5, 1, 2, 4, 8, 16, 16, 16, 16)
"""Pauses before asking again; a server that has never answered gets only the first few."""

BUSY = (429, 502, 503, 504)
"""Answers after which a request is repeated."""

_WAITS_UNMET = 3
_COMPATIBLE = re.compile(r"compatible-with=\d+")


@dataclass(frozen=True, slots=True)
class Server:
    """Where a store is, and whose credentials open it."""

    store: str
    """The store's URL, for what is said of it."""
    address: str
    env: str
    """What the names of its environment variables begin with."""

    @contextmanager
    def client(self, doing: str, **options: Any) -> Iterator[Elasticsearch]:
        """A connection for the block; what goes wrong there leaves it as one sentence."""
        credentials = self._credentials()
        try:
            with Elasticsearch(
                self.address,
                request_timeout=60,
                **{"transport_class": Waiting, **credentials, **options},
            ) as client:
                yield client
        except ApiError as error:
            raise DataError(f"log store {self.store}: {self._answer(error, doing)}") from error
        except TransportError as error:
            fault = f"{type(error).__name__} while {doing}: {str(error.message)[:300]}"
            raise DataError(f"log store {self.store}: {fault}") from error

    def _credentials(self) -> Json:
        key, user, password, authority = (
            os.environ.get(f"{self.env}_{name}", "").strip()
            for name in ("API_KEY", "USERNAME", "PASSWORD", "CA_CERTS")
        )
        found: Json = {}
        if key:
            found["api_key"] = key
        elif user and password:
            found["basic_auth"] = (user, password)
        elif user or password:
            missing = f"{self.env}_{'PASSWORD' if user else 'USERNAME'}"
            raise DataError(f"log store {self.store}: {missing} is not set")
        if authority and self.address.startswith("https"):
            if not Path(authority).is_file():
                raise DataError(f"log store {self.store}: {self.env}_CA_CERTS names no file")
            found["ca_certs"] = authority
        return found

    def _answer(self, error: ApiError, doing: str) -> str:
        """What the server said, as it goes on after the store's name."""
        env, why = self.env, reason(error.body)
        if error.meta.status == 401:
            given = self._credentials().keys() & {"api_key", "basic_auth"}
            fault = f"does not accept the credentials ({why})" if given else "asks for credentials"
            return f"it {fault}; set {env}_API_KEY, or {env}_USERNAME and {env}_PASSWORD"
        if error.meta.status == 403:
            return f"the credentials do not allow {doing} ({why})"
        return f"it answered {error.meta.status} while {doing}: {why}"


class Waiting(Transport):
    """The client's transport, for servers of version 8 too, and patient with all of them.

    The client asks for answers in the form of its own major version, which an older server
    refuses; both 8 and 9 give version 8's. It repeats requests, but does not wait before it does.
    """

    _met = False
    """Whether the server ever answered; an address where nobody listens is soon given up."""
    _gave_up = False
    """Then nothing is waited for any more."""

    def perform_request(self, method: str, target: str, **options: Any) -> TransportApiResponse:
        """Send a request, again while the server is busy or away."""
        said = options["headers"]
        options["headers"] = {k: _COMPATIBLE.sub("compatible-with=8", v) for k, v in said.items()}
        options["max_retries"] = 0
        for tried, wait in enumerate(() if self._gave_up else WAITS_S):
            try:
                reply = super().perform_request(method, target, **options)
            except TlsError:
                raise
            except (ConnectionError, ConnectionTimeout):
                if not self._met and tried == _WAITS_UNMET:
                    raise
            else:
                self._met = True
                if reply.meta.status not in BUSY:
                    return reply
            time.sleep(wait * random.uniform(0.5, 1))
        self._gave_up = True
        reply = super().perform_request(method, target, **options)
        self._gave_up = reply.meta.status in BUSY
        return reply


class Patient(Waiting):
    """For an address where a server was found before, be it on another node."""

    _met = True


def reason(answer: Any) -> str:
    """Why the server refused, in a few words; they may quote a document, so they are masked."""
    error = answer.get("error", answer) if isinstance(answer, dict) else answer
    if isinstance(error, dict):
        error = (error.get("root_cause") or [error])[0]
        error = error.get("reason") or error.get("type") or error
    return mask_text(str(error)[:300])
