"""ISO 8601 dates and times in one spelling, so that equal instants are equal texts."""

from __future__ import annotations

import re
from datetime import UTC, date, datetime, time, timedelta

_TIME = r"\d\d:\d\d(?::\d\d(?:[.,]\d{1,6})?)?(?:[Zz]|[+-]\d\d:?\d\d)?"
_SHAPES = {
    "date-time": re.compile(rf"\d{{4}}-\d\d-\d\d[Tt ]{_TIME}", re.ASCII),
    "time": re.compile(_TIME, re.ASCII),
    "date": re.compile(r"\d{4}-?\d\d-?\d\d", re.ASCII),
}
FORMATS = frozenset(_SHAPES)
"""What a schema may call the format of such a text."""
_SHORTEST, _LONGEST = 5, 40


def instant(text: str, form: str) -> str:
    """One spelling of a date or time; any other text as it is.

    With a zone it is given in UTC; without one it stays local, and is no instant with a zone.

    Args:
        text: What a tool is called with.
        form: One of `FORMATS`.
    """
    if not _SHORTEST <= len(text) <= _LONGEST or not _SHAPES[form].fullmatch(text):
        return text
    try:
        return _SPELLINGS[form](text.upper().replace(",", "."))
    except (ValueError, OverflowError):  # the 30th of February, or before the year 1 in UTC
        return text


def _date_time(text: str) -> str:
    moment = datetime.fromisoformat(text)
    return (moment.astimezone(UTC) if moment.tzinfo else moment).isoformat()


def _time(text: str) -> str:
    moment = time.fromisoformat(text)
    if moment.tzinfo is None:
        return moment.isoformat()
    on_a_day = datetime.combine(date(2000, 1, 2), moment)
    return (
        on_a_day.replace(tzinfo=None) - (moment.utcoffset() or timedelta())
    ).time().isoformat() + "Z"


def _date(text: str) -> str:
    return date.fromisoformat(text).isoformat()


_SPELLINGS = {"date-time": _date_time, "time": _time, "date": _date}
