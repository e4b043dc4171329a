"""Public fakes: try a setup, or test code that uses flywheel, without models, keys or a network.

`FakeEndpoint` is a real HTTP server on this machine that answers as a function says; candidates and
judges talk to it as they would to any OpenAI-compatible endpoint. `tiny_model` writes a model
folder with random weights that transformers and vLLM load offline. `sample_record` makes Records.

    with FakeEndpoint(lambda body: tool_reply("track_order", {"order_id": "A-1"})) as fake:
        ...  # candidates: [{model: fake, endpoint: <fake.url>}]
    assert fake.busiest <= 16
"""

from flywheel.testing.endpoint import Answer, FakeEndpoint, Request
from flywheel.testing.models import tiny_model
from flywheel.testing.records import TRACK_ORDER, sample_record
from flywheel.testing.replies import (
    Reply,
    likely_verdict,
    paced_reply,
    preferred,
    text_reply,
    tool_reply,
    verdict,
)

__all__ = [
    "TRACK_ORDER",
    "Answer",
    "FakeEndpoint",
    "Reply",
    "Request",
    "likely_verdict",
    "paced_reply",
    "preferred",
    "sample_record",
    "text_reply",
    "tiny_model",
    "tool_reply",
    "verdict",
]
