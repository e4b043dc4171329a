"""What a set of scores can be trusted to say.

`means` puts an interval on a mean, `pairs` compares trials on the records both scored, `power` says
before a run what its records can show, `stopping` says during one when a trial is surely worse,
`agreement` how far judges agree, `auc` how well one tells good from bad, `corrected` what a judge's
mean is worth once people have looked.
Records of one conversation tend to be right or wrong together; `groups` says which they are, and
everything here then counts conversations, not records. All intervals cover 95 %. What is resampled
has a fixed seed: the same scores always give the same figures, in whatever order they come.
"""

from flywheel.statistics.agreement import krippendorff_alpha
from flywheel.statistics.auc import auc_interval, roc_auc
from flywheel.statistics.corrected import corrected_mean
from flywheel.statistics.groups import Groups, conversations
from flywheel.statistics.means import estimate, estimates, percentile, wilson
from flywheel.statistics.pairs import Comparison, Difference, compare_all, holm, paired_difference
from flywheel.statistics.power import Power, plan
from flywheel.statistics.stopping import surely_below

__all__ = [
    "Comparison",
    "Difference",
    "Groups",
    "Power",
    "auc_interval",
    "compare_all",
    "conversations",
    "corrected_mean",
    "estimate",
    "estimates",
    "holm",
    "krippendorff_alpha",
    "paired_difference",
    "percentile",
    "plan",
    "roc_auc",
    "surely_below",
    "wilson",
]
