"""How logs become a dataset."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Literal

from pydantic import AwareDatetime, Field, model_validator

from flywheel.config.section import Section


class DatasetConfig(Section):
    """How records become eval, train and val. Names are those of NVIDIA's blueprint."""

    eval_size: Annotated[int, Field(ge=1)] = 100
    val_ratio: Annotated[float, Field(ge=0, lt=1)] = 0.1
    """Share of what may be trained on that becomes val."""
    eval_share: Annotated[float, Field(gt=0, lt=1)] = 0.2
    """Share of the requests that may ever be eval, decided by hash alone: what ``eval_size`` leaves
    over there is never trained on, so more logs never move a request from eval into train."""
    min_total_records: Annotated[int, Field(ge=1)] = 50
    """Fewer curated records than this is an error."""
    limit: Annotated[int, Field(ge=1)] | None = None
    """Keep at most this many records (chosen by keyed hash, not by position)."""
    random_seed: int = 0
    since: float | AwareDatetime | None = None
    """Only records from this moment on: seconds since the epoch, or a date with its zone."""
    until: float | AwareDatetime | None = None
    """Only records before this moment."""
    masking: bool | Literal["presidio"] = True
    """Mask personal data before anything is written or sent; ``presidio`` also masks names, places
    and organisations (extra ``presidio``)."""
    schema_violations: Literal["reject", "keep"] = "reject"
    """What to do with answers whose tool arguments contradict the tool's own JSON Schema."""
    contradictions: Literal["newest", "majority", "reject"] = "newest"
    """Which answer stays where the same request was answered in several ways."""
    near_duplicates: Annotated[float, Field(gt=0, le=1)] | None = 0.85
    """Jaccard similarity from which two user texts are near-duplicates; ``null``: look for none."""
    group_by: list[Literal["conversation_id", "session_id", "user"]] = [  # noqa: RUF012 -- pydantic copies defaults
        "conversation_id",
        "session_id",
        "user",
    ]
    """What of the request's metadata keeps records on one side of the split."""
    mode: Literal["stratified", "time", "frozen"] = "stratified"
    """How eval is chosen: by class and hash; the newest records; or those of ``frozen_dataset``
    that still exist, and fresh ones by class and hash."""
    frozen_dataset: Annotated[str, Field(pattern=r"^[0-9a-f]{16}$")] | None = None
    """Fingerprint of an earlier dataset in the same storage, for ``mode: frozen``."""
    label_limit: Annotated[int, Field(ge=0)] = 100
    """Text answers count as classes when a workload has at most this many distinct ones."""

    @model_validator(mode="after")
    def _one_mode(self) -> DatasetConfig:
        if (self.mode == "frozen") != (self.frozen_dataset is not None):
            raise ValueError("mode: frozen and frozen_dataset belong together")
        since, until = self.window
        if since is not None and until is not None and since >= until:
            raise ValueError("since must lie before until")
        return self

    @property
    def window(self) -> tuple[float | None, float | None]:
        """``since`` and ``until`` in seconds since the epoch."""
        return _seconds(self.since), _seconds(self.until)


def _seconds(moment: float | datetime | None) -> float | None:
    return moment.timestamp() if isinstance(moment, datetime) else moment
