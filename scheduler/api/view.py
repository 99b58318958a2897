"""The core's view of what is committed at one revision, for whoever only looks at it: made once for all of them.

To make it takes time in proportion to all hosts and unfinished jobs, and so does the reservation on top of it: seconds
at 10,000 hosts. It must never be changed; who wants to change one asks the mirror for a cluster of its own.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from ..core.reservation.reserve import Reserve
from ..core.state.cluster import Cluster
from ..core.state.policy import Policy


@dataclass(frozen=True)
class View:
    """See the module docstring."""

    revision: int
    policy: Policy
    cluster: Cluster

    @cached_property
    def reserve(self) -> Reserve:
        """How it stands with room for restarts; computed when it is first asked for."""
        return Reserve(self.cluster, once=True)
