"""When a trial is surely worse than allowed, told while it is being asked.

A bet against the trial: wealth grows with every answer below what is allowed and shrinks with every
one above. While the trial's true mean is at least what is allowed, wealth is a supermartingale, so
by Ville's inequality it ever reaches 1/alpha with a chance of at most alpha: looking after every
answer costs nothing (Waudby-Smith and Ramdas 2024, JRSS-B 86:1, "Estimating means of bounded
random variables by betting"; the bets follow its aGRAPA). What wealth 1/alpha excludes is what lies
outside a confidence sequence.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from flywheel.statistics.groups import Floats

ALPHA = 0.025
"""The chance of ever stopping a trial that is not worse than allowed; one side of 95 %."""
_SHARE = 0.75
"""Of its wealth the bet stakes at most this."""


def surely_below(groups: Sequence[Sequence[float]], floor: float, largest: int) -> bool:
    """Whether the mean score is surely below ``floor``, however often this was asked before.

    Args:
        groups: Scores in 0..1, group by group, in an order that was fixed before the first answer.
        floor: The mean that is allowed.
        largest: Scores of the largest group there can be, known before the first answer.
    """
    losses = np.array([sum(floor - value for value in group) / largest for group in groups])
    return bool((_wealth(losses, 1 - floor) >= 1 / ALPHA).any())


def _wealth(losses: Floats, most: float) -> Floats:
    """What a bet on each loss, none below ``-most``, has grown to after it.

    Each stake knows only what came before, which begins with one loss of 0 that never happened.
    """
    seen = np.arange(1, len(losses) + 1)
    before = np.concatenate([[0.0], losses[:-1]])
    mean = np.cumsum(before) / seen
    variance = (np.cumsum((before - mean) ** 2) + most / 4) / seen
    stakes = np.clip(mean / (variance + mean**2), 0, _SHARE / most)
    return np.cumprod(1 + stakes * losses)
