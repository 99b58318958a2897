"""Queues: what each uses and may use, and whether a job of one may start now, whatever hosts there are.

It counts what jobs asked for, from the decision until their units are clean. Whatever keeps one job of a queue and a
user keeps all others of that shape from the same: so it is asked once for each. It must never let a queue, or a user in
it, use more than it may; it stops nothing, as a limit may be lowered below what runs.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from enum import Enum
from math import inf
from typing import TYPE_CHECKING

from ..state.amounts import NO_LIMIT, NOTHING, Amounts
from ..state.facts import QueueIntent
from ..state.terms import DEFAULT_QUEUE

if TYPE_CHECKING:
    from ..state.hosts import Allocation
    from ..state.jobs import Job

_Who = tuple[str, str]  # queue and user


class Closed(Enum):
    """What of its queue keeps a job from starting. The names are those of JobWait."""

    QUEUE = 1
    QUOTA = 2
    USER_LIMIT = 3


@dataclass(slots=True)
class Queues:
    """See the module docstring."""

    known: dict[str, QueueIntent] = field(default_factory=lambda: {DEFAULT_QUEUE: QueueIntent(DEFAULT_QUEUE)})
    used: dict[str, Amounts] = field(default_factory=dict)  # by queue
    by_user: dict[_Who, Amounts] = field(default_factory=dict)
    jobs: Counter[_Who] = field(default_factory=Counter)  # that run or start, by queue and user
    taken: dict[str, tuple[_Who, Amounts]] = field(default_factory=dict)  # by allocation
    _tenants: dict[str, list[str]] = field(default_factory=dict)  # queues by tenant, as far as known

    def changed(self, name: str, intent: QueueIntent | None) -> None:
        """What operators want of a queue is now so."""
        self._tenants.clear()
        if intent is not None:
            self.known[name] = intent
        elif name == DEFAULT_QUEUE:
            self.known[name] = QueueIntent(DEFAULT_QUEUE)
        else:
            self.known.pop(name, None)

    def tenant(self, queue: str) -> str:
        """Whose queue it is."""
        return self.known[queue].tenant if queue in self.known else queue

    def of_tenant(self, tenant: str) -> list[str]:
        """The tenant's queues; one that is gone is a tenant by itself."""
        if not self._tenants:
            for queue in sorted(self.known):
                self._tenants.setdefault(self.known[queue].tenant, []).append(queue)
        return self._tenants.get(tenant, [tenant])

    def take(self, allocation: Allocation, job: Job | None) -> None:
        """An allocation is made, or told of once more."""
        if job is None or allocation.id in self.taken:
            return
        lane, asked = (job.terms.queue, job.terms.user), asked_for(job)
        self.taken[allocation.id] = lane, asked
        self.used[lane[0]] = self.used.get(lane[0], NOTHING).plus(asked)
        self.by_user[lane] = self.by_user.get(lane, NOTHING).plus(asked)
        self.jobs[lane] += 1

    def give_back(self, allocation: str) -> None:
        """An allocation is gone."""
        if allocation not in self.taken:
            return
        lane, asked = self.taken.pop(allocation)
        self.used[lane[0]] = self.used[lane[0]].minus(asked)
        self.by_user[lane] = self.by_user[lane].minus(asked)
        self.jobs[lane] -= 1
        if not self.jobs[lane]:
            del self.jobs[lane], self.by_user[lane]

    def refusal(self, job: Job, count: int = 1) -> tuple[Closed, str] | None:
        """Why nothing like the job of its queue and user may start now, so many together; None: it may."""
        queue, user = lane = job.terms.queue, job.terms.user
        wanted = self.known.get(queue)
        if wanted is None:
            return Closed.QUEUE, f"its queue {queue!r} does not exist any more; `gpupool queue create` makes it"
        if wanted.suspended:
            return Closed.QUEUE, f"its queue {queue!r} is suspended {wanted.suspended}"
        if wanted.limit != NO_LIMIT or wanted.user_limit != NO_LIMIT:
            asked = asked_for(job).times(count)
            if why := self.used.get(queue, NOTHING).plus(asked).beyond(wanted.limit):
                return Closed.QUOTA, f"with it queue {queue!r} would use {why}"
            if why := self.by_user.get(lane, NOTHING).plus(asked).beyond(wanted.user_limit):
                return Closed.USER_LIMIT, f"with it user {user!r} would use, in queue {queue!r}, {why}"
        if wanted.user_jobs != inf and self.jobs[lane] + count > wanted.user_jobs:
            limit = f"{self.jobs[lane]} jobs of user {user!r}, which is the limit"
            if count > 1:
                limit = f"{self.jobs[lane]} jobs of user {user!r}, and at most {wanted.user_jobs:.0f} may"
            return Closed.USER_LIMIT, f"in queue {queue!r} run {limit}"
        return None

    def over(self) -> dict[str, str]:
        """Queues, and users of them, that use more than they may, with the wording."""
        found = {}
        for queue, wanted in sorted(self.known.items()):
            if why := self.used.get(queue, NOTHING).beyond(wanted.limit):
                found[queue] = why
        for (queue, user), used in sorted(self.by_user.items()):
            if queue in self.known and (why := used.beyond(self.known[queue].user_limit)):
                found[f"{queue}/{user}"] = why
        return found


def asked_for(job: Job) -> Amounts:
    """What the job asks for."""
    return job.request.amounts
