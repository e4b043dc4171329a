from __future__ import annotations

import json
import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flywheel.redaction import mask_text, redact
from flywheel.types import Json, Record

MASKED = [
    ("Write to Jane.Doe+x@mail.example.co.uk.", "Write to <EMAIL_1>."),
    ("jürgen@exämple.de", "<EMAIL_1>"),
    ("a@b.com, A@B.COM and c@d.org", "<EMAIL_1>, <EMAIL_1> and <EMAIL_2>"),
    ("call +49 30 1234567 now", "call <PHONE_1> now"),
    ("(415) 555-0142", "<PHONE_1>"),
    ("415-555-0142", "<PHONE_1>"),
    ("+1 415 555 0142 or +14155550142", "<PHONE_1> or <PHONE_1>"),
    ("0049 30 1234567", "<PHONE_1>"),
    ("020 7946 0958.", "<PHONE_1>."),
    ("01 23 45 67 89", "<PHONE_1>"),
    ("my phone number is 5551234567", "my phone number is <PHONE_1>"),
    ("Card 4111 1111 1111 1111, or 4111-1111-1111-1111", "Card <CARD_1>, or <CARD_1>"),
    ("amex 378282246310005", "amex <CARD_1>"),
    ("IBAN DE89 3704 0044 0532 0130 00 please", "IBAN <IBAN_1> please"),
    ("ES91 2100 0418 4502 0005 1332 please help", "<IBAN_1> please help"),
    ("gb82west12345698765432", "<IBAN_1>"),
    ("from 192.168.0.12.", "from <IP_1>."),
    ("2001:db8::8a2e:370:7334", "<IP_1>"),
    ("SSN 123-45-6789", "SSN <SSN_1>"),
    ("key sk-abcdefghijklmnopqrstuvwx!", "key <API_KEY_1>!"),
    ("nvapi-ABCdef0123456789_-ABCdef", "<API_KEY_1>"),
    ("AKIAIOSFODNN7EXAMPLE", "<API_KEY_1>"),
    ("ghp_" + "a1" * 18, "<API_KEY_1>"),
]

LEFT_ALONE = [
    "Where is order M48213, or 100200300, or #2026-000123?",
    "tracking 1Z999AA10123456784",
    "on 2026-01-05, 05/11/2026 10:30, 7/13/2036 or 20260105",
    "2026-01-05T10:30:45.123456Z",
    "at 02:22:32 pm",
    "timestamp 1767225600 and 1767225600123",
    "version 1.2.3, v10.0.19041.1, version 1.2.3.4",
    "4111 1111 1111 1112",
    "DE89370400440532013001",
    "0.4111111111111111",
    "It cost 1,234,567.89 or £200,000",
    "std::vector and 10:30:45",
    "000-12-3456",
    "@home, mail me @ nine",
    "3f2b8c1e-4111-1111-8111-111111111111",
    "chatcmpl-000040 call_001419 llama-3.1-70b",
    "<EMAIL_1> and <PHONE_2>",
]


@pytest.mark.parametrize(("text", "masked"), MASKED)
def test_personal_data_is_masked(text: str, masked: str) -> None:
    assert mask_text(text) == masked
    assert mask_text(masked) == masked


@pytest.mark.parametrize("text", LEFT_ALONE)
def test_other_numbers_are_left_alone(text: str) -> None:
    assert mask_text(text) == text


def record(query: str, arguments: Json | None = None, **request: Any) -> Record:
    function = {"name": "call_back", "arguments": json.dumps(arguments or {})}
    message = {"role": "assistant", "content": None, "tool_calls": [{"function": function}]}
    return Record(
        timestamp=1767225600.0,
        workload_id="w",
        client_id="c",
        request={"messages": [{"role": "user", "content": query}], **request},
        response={"created": 1767225600, "choices": [{"message": message}]},
    )


def arguments_of(masked: Record) -> Any:
    return json.loads(masked.answer["tool_calls"][0]["function"]["arguments"])


def test_a_value_has_one_placeholder_in_the_whole_record() -> None:
    query = "I am a@b.com, not c@d.com; my phone: 5551234567, card 4111 1111 1111 1111"
    arguments = {
        "to": ["C@d.com", "A@b.com"],
        "phone": "5551234567",
        "number": 5551234567,
        "card": 4111111111111111,
    }
    masked, counts = redact(record(query, arguments, user="a@b.com"))
    assert masked.messages[0]["content"] == (
        "I am <EMAIL_1>, not <EMAIL_2>; my phone: <PHONE_1>, card <CARD_1>"
    )
    assert masked.request["user"] == "<EMAIL_1>"
    assert arguments_of(masked) == {
        "to": ["<EMAIL_2>", "<EMAIL_1>"],
        "phone": "<PHONE_1>",
        "number": "<PHONE_1>",
        "card": "<CARD_1>",
    }
    assert masked.response["created"] == 1767225600
    assert counts == {"EMAIL": 2, "PHONE": 1, "CARD": 1}


def test_the_id_is_that_of_the_masked_content() -> None:
    one, _ = redact(record("I am a@b.com"))
    other, _ = redact(record("I am x@y.org"))
    assert one.id == other.id == Record(**{f: getattr(one, f) for f in FIELDS}).id


FIELDS = ("timestamp", "workload_id", "client_id", "request", "response")


def test_a_record_without_personal_data_stays_the_same_object() -> None:
    clean = record("Where is M48213?")
    assert redact(clean) == (clean, {})
    assert redact(clean)[0] is clean


def test_placeholders_do_not_depend_on_the_order_of_keys() -> None:
    one, _ = redact(record("a@b.com", metadata={"m": "x@y.org", "a": "z@y.org"}))
    other, _ = redact(record("a@b.com", metadata={"a": "z@y.org", "m": "x@y.org"}))
    assert one.id == other.id


def test_what_does_not_look_like_arguments_is_masked_as_text() -> None:
    masked, _ = redact(record("Hi", metadata={"arguments": "{a@b.com"}))
    assert masked.request["metadata"]["arguments"] == "{<EMAIL_1>"


@pytest.mark.parametrize("piece", ["a", "1", "1 ", "a.", "a@", "0:", "+1", "1.", "eyJ", "(0", "A1"])
def test_no_text_makes_it_slow(piece: str) -> None:
    start = time.perf_counter()
    mask_text(piece * 50_000)
    assert time.perf_counter() - start < 5


@given(st.text(alphabet="0123456789 +-.:@abcDE()/", max_size=80))
def test_masking_twice_is_masking_once(text: str) -> None:
    masked = mask_text(text)
    assert mask_text(masked) == masked
