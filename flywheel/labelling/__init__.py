"""People look at what judges have rated: the pairs in a telling order, in a page or a terminal.

    run -> `pool`: pairs, verdicts, labels so far -> `page` | `terminal` | `sheet` (CSV) -> labels
    labels -> calibration.json, leaderboard.json, report.html: agreement, rates, corrected scores

The question is always the same: is the candidate's answer as good as production's?
"""

from flywheel.labelling import page, sheet, terminal
from flywheel.labelling.pool import Item, Pool

__all__ = ["Item", "Pool", "page", "sheet", "terminal"]
