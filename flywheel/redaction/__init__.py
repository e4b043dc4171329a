"""Mask personal data and secrets in a Record before its text goes anywhere.

A found value becomes a typed placeholder, ``<EMAIL_1>``. Equal values of one record share one
placeholder, whatever their spelling and wherever they stand, so that a tool call still matches the
sentence it was made from. `patterns` says what has a form and `searching` finds it, `presidio` (an
extra) finds names, places and organisations, and `masker` puts the placeholders in.
"""

from flywheel.redaction.masker import Redactor, mask_text, redact, redact_said, redactor
from flywheel.redaction.patterns import Span
from flywheel.redaction.searching import SUSPICIOUS, find, needs_masking, suspects

__all__ = [
    "SUSPICIOUS",
    "Redactor",
    "Span",
    "find",
    "mask_text",
    "needs_masking",
    "redact",
    "redact_said",
    "redactor",
    "suspects",
]
