"""Trial results of one dataset, ranked: pair by pair on the same records, ties called ties.

`ranking` puts trials in order and says which may replace production, `board` holds what it found,
`wording` says it alike on the terminal, in the README and in the report, and `tabular` gives all
figures to spreadsheets.
"""

from flywheel.leaderboard.board import Leaderboard, Row, Verdict
from flywheel.leaderboard.ranking import TOOL_METRIC, choose_metric, rank
from flywheel.leaderboard.tabular import to_csv
from flywheel.leaderboard.wording import (
    NONE,
    decimal,
    floor,
    headline,
    interval,
    metric_titles,
    money,
    saving,
    table,
    to_markdown,
    verdict,
)

__all__ = [
    "NONE",
    "TOOL_METRIC",
    "Leaderboard",
    "Row",
    "Verdict",
    "choose_metric",
    "decimal",
    "floor",
    "headline",
    "interval",
    "metric_titles",
    "money",
    "rank",
    "saving",
    "table",
    "to_csv",
    "to_markdown",
    "verdict",
]
