"""Times on record that another machine's clock may have written, and how they are compared all the same.

Dates are for people. Where one is compared with another, both must be of one clock, or the comparison must come out
right whatever the clocks say. So an operator's word that answers something on record names its time (`MOMENT_S` later),
and not the time at which the word was given; and what follows such a word is dated after it. What a leader before us
wrote is in `ahead.py`. It must never let a wrong date end what only time, or an
operator who has seen it, may end.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .cluster import Cluster
    from .hosts import Host

MOMENT_S = 0.001  # a float of this century can tell it


def answers(*times_s: float) -> float:
    """The date of a word on what happened at these times, the last of them: just after that, by the same clock."""
    return max(times_s, default=0.0) + MOMENT_S


def no_earlier(now: float, word_s: float) -> float:
    """When something happens now that a word of `word_s` knew nothing of."""
    return max(now, word_s + MOMENT_S) if word_s else now


def lost_at_s(cluster: Cluster, host: Host, now: float) -> float:
    """The date of a loss now: not before the last, nor before what made a count begin anew."""
    return max(no_earlier(now, cluster.settled_s), *host.lost_s[-1:], host.intent.uncordoned_s)
