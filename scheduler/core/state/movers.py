"""Which hosts have changed since somebody last looked: a log of names that each reader reads on in.

So a turn costs what changed, not what there is. The log is kept for so long only: a reader who comes later than that is
told to look at everything anew. It must never miss a change; telling of one that was none only costs time.
"""

from __future__ import annotations

from dataclasses import dataclass, field

KEPT = 65_536  # names; the older half goes when there are more


@dataclass(slots=True)
class Movers:
    """See the module docstring. A position is a count of all names that were ever added."""

    end: int = 0  # where a reader stands who has read everything
    _names: list[str] = field(default_factory=list)
    _gone: int = 0  # names that are not kept any more

    def add(self, name: str) -> None:
        """The host has changed in a way that placement may see."""
        if len(self._names) >= KEPT:
            del self._names[: KEPT // 2]
            self._gone += KEPT // 2
        self._names.append(name)
        self.end += 1

    def since(self, position: int) -> list[str] | None:
        """Who has changed since, each once, in the order of the first change; None: nobody knows any more."""
        if position < self._gone:
            return None
        names = self._names[position - self._gone :]
        return names if len(names) <= 1 else list(dict.fromkeys(names))
