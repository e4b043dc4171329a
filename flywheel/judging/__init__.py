"""LLM judges: what they are asked, what they said, and how far that can be believed.

    records, completions -> `pairs` -> `judge` (under `prompts`) -> `verdicts` -> `panel` -> scores
    tool calls with free text -> `settling` -> scores where programs settle them, else the same way
    records -> `probes` (with `attacks`) -> the same judges -> `calibration`: do the scores count?
    `session` does this for a run.
    people -> `labels`: how far do judges and people agree, and what would people say?

A verdict parses or the score is *unscored*; it is never guessed. Its scores count only after
calibration. Files: see docs/judge.md.
"""

from flywheel.judging.calibration import Calibration, calibrate, with_agreement
from flywheel.judging.judge import Judge
from flywheel.judging.labels import Label, Labels, human
from flywheel.judging.pairs import Pair, answer_text, pair_of
from flywheel.judging.panel import Panel, Rating, panels
from flywheel.judging.probes import Probes, probes
from flywheel.judging.prompts import check as check_prompts
from flywheel.judging.session import Session, by_metric, relabelled, verdicts
from flywheel.judging.settling import judges
from flywheel.judging.verdicts import Verdict

__all__ = [
    "Calibration",
    "Judge",
    "Label",
    "Labels",
    "Pair",
    "Panel",
    "Probes",
    "Rating",
    "Session",
    "Verdict",
    "answer_text",
    "by_metric",
    "calibrate",
    "check_prompts",
    "human",
    "judges",
    "pair_of",
    "panels",
    "probes",
    "relabelled",
    "verdicts",
    "with_agreement",
]
