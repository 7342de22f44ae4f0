"""When a search has nothing left to gain, by what its own sampler expects and by what its trials have shown.

A sampler that says how much it expects of each of its proposals may be too sure of itself: on recorded learning curves,
searches whose sampler expected next to nothing of eight proposals in a row lost as much regret as they had left, where
they ended there (`tests/benchmarks/until_converged.py`). So the proposals must be many, and their trials no better.
What is perfect cannot be improved on, whatever the sampler expects.
"""

import math
from collections.abc import Sequence

PROPOSALS = 15  # In a row; and so many trials after the best one.
PERFECT = 1.0  # The greatest merit.
LEAST_GAIN = 0.1  # Of how far trainings of one configuration are apart by their seeds.


def expects_nothing(gains: Sequence[float]) -> bool:
    """Returns whether the sampler has expected next to nothing of its last proposals.

    Args:
        gains: What it expected of each of its proposals, in their order: the improvement after the last epoch on the
            best that it expects of any trial, as a share of how far trainings of one configuration are apart by their
            seeds. Random points have none.
    """
    return len(gains) >= PROPOSALS and max(gains[-PROPOSALS:]) < LEAST_GAIN


def has_converged(gains: Sequence[float], merits: Sequence[float]) -> bool:
    """Returns whether nothing is left to gain.

    Args:
        gains: As above.
        merits: Of the trials that have ended, in the order of their numbers; greater is better.
    """
    best = max(range(len(merits)), key=lambda i: (merits[i], -i), default=0)
    if max(merits, default=-math.inf) >= PERFECT:
        return True
    return expects_nothing(gains) and len(merits) - best > PROPOSALS
