"""Who is on a host, or on all of them, as far as it matters to other jobs: a count of labels, kept up to date.

It must count an allocation once, however often it is told of it: an inventory that changes has all of them told again.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Protocol

from .rules import Label, Labels


class Member(Protocol):
    """An allocation, as far as others mind it."""

    @property
    def id(self) -> str:
        """Its name."""

    @property
    def labels(self) -> Labels:
        """Of its job."""

    @property
    def apart(self) -> Labels:
        """Patterns of labels that it shuns."""

    @property
    def whole_host(self) -> bool:
        """Whether it wants to be alone."""


@dataclass(slots=True)
class Company:
    """See the module docstring."""

    members: set[str] = field(default_factory=set)  # those that are counted; most have nothing to count
    whole: set[str] = field(default_factory=set)  # those that want the host for themselves
    labels: Counter[Label] = field(default_factory=Counter)
    shunned: Counter[Label] = field(default_factory=Counter)  # patterns

    def join(self, member: Member) -> bool:
        """Count it; whether that is news."""
        if not (member.labels or member.apart or member.whole_host) or member.id in self.members:
            return False
        self.members.add(member.id)
        if member.whole_host:
            self.whole.add(member.id)
        for label in member.labels:  # not `update`, which takes ten times as long for one
            self.labels[label] += 1
        for label in member.apart:
            self.shunned[label] += 1
        return True

    def leave(self, member: Member) -> None:
        """Count it no longer."""
        if member.id not in self.members:
            return
        self.members.discard(member.id)
        self.whole.discard(member.id)
        for counts, labels in ((self.labels, member.labels), (self.shunned, member.apart)):
            for label in labels:
                counts[label] -= 1
                if not counts[label]:
                    del counts[label]

    def copy(self) -> Company:
        """One that may be changed."""
        return Company(set(self.members), set(self.whole), Counter(self.labels), Counter(self.shunned))
