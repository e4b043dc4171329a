"""Mask personal data and secrets in a Record before its text goes anywhere.

A found value becomes a typed placeholder, ``<EMAIL_1>``. Equal values of one record share one
placeholder, whatever their spelling and wherever they stand, so that a tool call still matches the
sentence it was made from. Patterns only propose; checksums decide where a format has one (Luhn for
cards, mod 97 for IBANs), and bare digit runs (order numbers, timestamps) are left alone. Every
pattern has bounded repeats, so no text makes it slow.
"""

from __future__ import annotations

import ipaddress
import json
import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from flywheel.types import Record, canonical_json


@dataclass(frozen=True)
class _Kind:
    """One type of personal data: what to look for, and how many characters of a hit are it."""

    name: str
    pattern: re.Pattern[str]
    valid: Callable[[str], int] = len
    """How long a prefix of the hit is such a value; 0 for none."""
    key: Callable[[str], str] = str.casefold
    """The form that different spellings of one value share."""


def _compact(text: str) -> str:
    """The value without the punctuation people put into numbers."""
    return re.sub(r"[^0-9A-Za-z+]", "", text).upper()


def _card(text: str) -> int:
    """Luhn's checksum, ISO/IEC 7812-1."""
    digits = [int(c) for c in reversed(text) if c.isdecimal()]
    doubled = (sum(divmod(2 * d, 10)) for d in digits[1::2])
    return len(text) if (sum(digits[::2]) + sum(doubled)) % 10 == 0 else 0


def _iban(text: str) -> int:
    """Mod 97 of ISO 13616; the hit may run on into the next words, so shorter ends are tried."""
    ends = [m.start() for m in re.finditer(r" |$", text)]
    for end in reversed(ends):
        plain = text[:end].replace(" ", "").upper()
        number = "".join(str(int(c, 36)) for c in plain[4:] + plain[:4])
        if 15 <= len(plain) <= 34 and int(number) % 97 == 1:
            return end
    return 0


def _ipv6(text: str) -> int:
    try:
        ipaddress.IPv6Address(text)
    except ValueError:
        return 0
    return len(text) if any(c.isdecimal() for c in text) else 0


def _phone(text: str) -> int:
    return len(text) if 7 <= sum(c.isdecimal() for c in text) <= 15 else 0


_SECRETS = re.compile(
    r"""(?<![A-Za-z0-9_])(?:
      (?:sk|nvapi|glpat)-[A-Za-z0-9_-]{16,200} | [sr]k_(?:live|test)_[A-Za-z0-9]{16,200}
    | (?:AKIA|ASIA)[0-9A-Z]{16} | AIza[A-Za-z0-9_-]{35} | hf_[A-Za-z0-9]{30,50}
    | gh[pousr]_[A-Za-z0-9]{36,255} | github_pat_[A-Za-z0-9_]{22,255} | xox[abeprs]-[\w-]{10,200}
    | eyJ[A-Za-z0-9_-]{10,2000}\.[A-Za-z0-9_-]{10,4000}\.[A-Za-z0-9_-]{10,1000}
    | -----BEGIN[ ][A-Z ]{0,30}PRIVATE[ ]KEY-----[A-Za-z0-9+/=\s]{0,8000}
      (?:-----END[A-Z ]{0,40}-----)?
    )""",
    re.VERBOSE,
)
_EMAIL = re.compile(
    r"(?<![\w.+%-])[\w.+%-]{1,64}@(?:[^\W_](?:[\w-]{0,61}[^\W_])?\.){1,8}[^\W\d_]{2,24}(?![\w-])"
)
_IBAN = re.compile(
    r"\b[A-Z]{2}\d{2}(?: ?[A-Z0-9]{4}){2,7}(?: ?[A-Z0-9]{1,3})?(?![A-Z0-9])", re.ASCII | re.I
)
_CARD = re.compile(
    r"""(?<![\w.+-])(?:
      (?:4\d{3}|5[1-5]\d{2}|2[2-7]\d{2}|6\d{3}|3\d{3})([ -]?)\d{4}\1\d{4}\1\d{1,7}
    | 3[47]\d{2}([ -]?)\d{6}\2\d{5}
    )(?![\w-])""",
    re.VERBOSE | re.ASCII,
)
_SSN = re.compile(r"(?<![\w-])(?!000|666|9)\d{3}-(?!00)\d{2}-(?!0000)\d{4}(?![\w-])", re.ASCII)
_OCTET = r"(?:25[0-5]|2[0-4]\d|1?\d?\d)"
_IPV4 = re.compile(
    rf"(?<![\w.])(?<![Vv]ersion )(?<![Rr]elease ){_OCTET}(?:\.{_OCTET}){{3}}(?!\w|\.\d)", re.ASCII
)
_IPV6 = re.compile(r"(?<![\w:.])(?:[0-9A-Fa-f]{0,4}:){2,7}[0-9A-Fa-f]{0,4}(?![\w:])", re.ASCII)
_PHONE = re.compile(
    r"""(?<![\w.+/-])(?:
      \+\d(?:[ ().\-/]{0,2}\d){7,14}                                  # +49 30 1234567
    | 00[1-9]\d{0,2}(?:[ ./-]\d{2,8}){2,5}                            # 0049 30 1234567
    | (?:1[ .-])?(?:\([2-9]\d{2}\)[ ]?|[2-9]\d{2}[ .-])\d{3}[ .-]\d{4}   # (415) 555-0142
    | 0[1-9](?:[ .-]\d{2}){4}                                         # 01 23 45 67 89
    | (?=(?:[ ()/-]{0,2}\d){9,13}(?!\d))
      \(?0[1-9]\d{1,3}\)?[ /-]{1,2}\d{3,8}(?:[ -]\d{2,8}){0,3}        # 030 1234567
    )(?![\w-]|[.:/]\d)""",
    re.VERBOSE | re.ASCII,
)
_SAID_PHONE = re.compile(
    r"""\b(?:phone|tel|telephone|mobile|cell|whatsapp|call[ ]me|text[ ]me|ring[ ]me)\b
      (?:[ ](?:number|no|nr))?[ .:,=#]{0,3}(?:(?:is|at|on|under)[ :]{1,2})?
      (?P<value>\d(?:[ .\-/]?\d){6,14})(?![\w-]|[.:/]\d)""",
    re.VERBOSE | re.ASCII | re.I,
)

_KINDS = (
    _Kind("API_KEY", _SECRETS, key=str),
    _Kind("EMAIL", _EMAIL),
    _Kind("IBAN", _IBAN, _iban, _compact),
    _Kind("CARD", _CARD, _card, _compact),
    _Kind("SSN", _SSN, key=_compact),
    _Kind("IP", _IPV4),
    _Kind("IP", _IPV6, _ipv6),
    _Kind("PHONE", _PHONE, _phone, _compact),
    _Kind("PHONE", _SAID_PHONE, _phone, _compact),
)
_SUSPICIOUS = re.compile(
    r"@|\d(?:[^\dA-Za-z]{0,3}\d){6}|\d\.\d{1,3}\.\d|:[0-9A-Fa-f]{0,4}:"
    r"|sk-|[sr]k_|nvapi-|glpat-|AKIA|ASIA|AIza|hf_|gh[pousr]_|github_pat_|xox|eyJ|PRIVATE KEY"
)
"""Cheap: a text without any of these holds nothing to mask."""


def mask_text(text: str) -> str:
    """Mask one text on its own."""
    return _Masker().text(text)


def redact(record: Record) -> tuple[Record, Counter[str]]:
    """Mask everything a record says; its id becomes that of the masked content.

    Returns:
        The masked record, and how many different values of each type were masked in it.
    """
    masker = _Masker()
    request, response = masker.value(record.request), masker.value(record.response)
    if not masker.placeholders:
        return record, Counter()
    # A number that is one only by its context ("phone: ...") stands bare in a tool's arguments.
    request, response = masker.repeats(request), masker.repeats(response)
    masked = Record(record.timestamp, record.workload_id, record.client_id, request, response)
    return masked, masker.counts()


class _Masker:
    """The placeholders of one record."""

    def __init__(self) -> None:
        self.placeholders: dict[tuple[str, str], str] = {}
        self._spellings: dict[str, str] = {}

    def counts(self) -> Counter[str]:
        return Counter(kind for kind, _ in self.placeholders)

    def text(self, text: str) -> str:
        if not _SUSPICIOUS.search(text):
            return text
        for kind in _KINDS:
            text = kind.pattern.sub(partial(self._replace, kind), text)
        return text

    def value(self, value: Any) -> Any:
        return _mapped(value, self.text)

    def repeats(self, value: Any) -> Any:
        known = sorted(self._spellings, key=len, reverse=True)
        pattern = re.compile(rf"(?<!\w)(?:{'|'.join(map(re.escape, known))})(?!\w)")
        return _mapped(value, lambda text: pattern.sub(lambda m: self._spellings[m[0]], text))

    def _replace(self, kind: _Kind, hit: re.Match[str]) -> str:
        value = hit.groupdict().get("value") or hit[0]
        length = kind.valid(value)
        if not length:
            return hit[0]
        before, rest = hit[0].removesuffix(value), value[length:]
        return before + self._placeholder(kind, value[:length]) + rest

    def _placeholder(self, kind: _Kind, value: str) -> str:
        key = (kind.name, kind.key(value))
        if key not in self.placeholders:
            number = self.counts()[kind.name] + 1
            self.placeholders[key] = f"<{kind.name}_{number}>"
        return self._spellings.setdefault(value, self.placeholders[key])


def _mapped(value: Any, change: Callable[[str], str]) -> Any:
    """The JSON value with ``change`` made to each text in it, keys included.

    Keys are visited in sorted order, so that equal values get equal placeholders.
    """
    if isinstance(value, str):
        return change(value)
    if isinstance(value, list):
        return [_mapped(item, change) for item in value]
    if isinstance(value, dict):
        return {change(key): _mapped_field(key, value[key], change) for key in sorted(value)}
    if isinstance(value, int) and abs(value) >= 10**6:
        text = str(value)
        changed = change(text)
        return value if changed == text else changed
    return value


def _mapped_field(key: str, value: Any, change: Callable[[str], str]) -> Any:
    """Tool-call arguments are JSON in a text: changed inside, so that they stay JSON."""
    if key == "arguments" and isinstance(value, str):
        try:
            return canonical_json(_mapped(json.loads(value), change))
        except (ValueError, RecursionError):
            return change(value)
    return _mapped(value, change)
