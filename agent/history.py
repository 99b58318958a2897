"""Whether the store still has the history that this session lives in, or was restored from a backup since.

An etcd that comes back from a backup has forgotten what was decided and reported after it: an allocation that ended
stands there again, one that runs is unknown, and ids come a second time. Three facts betray that to an agent. A call
that is linearizable tells a lower revision than one that had been seen before the call was made. Or the store has
caught up meanwhile, and the last write of ours that was acknowledged is not there: a write stays, or is written over by
us alone, so its key must have a revision at least as new. Or a watch resumes, and what it told us last is not there
(`Restored`). Whoever finds one of them must treat the session as over: end all VMs and begin anew.

It outlives the agent's process in the records of this boot. It decides nothing from a call whose fate is unknown.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from gpupool.store.port import Delete, Op, Put, Snapshot

from .work.records import Records

_KIND, _NAME = "session", "history"


@dataclass(frozen=True, slots=True)
class Mark:
    """What was known when a call was made: a revision, and which key of ours was written when."""

    revision: int = 0
    key: str = ""
    written: int = 0


class History:
    """What was seen of the store's history during this session."""

    def __init__(self, records: Records) -> None:
        self._records = records
        saved = records.load(_KIND).get(_NAME, {})
        self._revision = int(saved.get("revision", 0))
        self._key, self._written = str(saved.get("key", "")), int(saved.get("written", 0))
        self.lost = bool(saved.get("lost", False))  # a watch found it; no write of ours can make that undone

    def mark(self) -> Mark:
        """What is known now. Take it before a call is made: answers may come in another order."""
        return Mark(self._revision, self._key, self._written)

    def begin(self, key: str, revision: int) -> None:
        """A new session: its key was written at `revision`. What was seen before is of no account."""
        self._revision = self._written = revision
        self._key, self.lost = key, False
        self._save()

    def went_back(self) -> None:
        """A watch found the store restored."""
        self.lost = True
        self._save()

    def seen(self, revision: int) -> None:
        """A committed revision was seen. It is on record with the next write or check."""
        self._revision = max(self._revision, revision)

    def sending(self, ops: Sequence[Op]) -> Mark:
        """A write is about to be sent. If it deletes the key that we go by, that tells nothing any more."""
        if any(isinstance(op, Delete) and op.key == self._key for op in ops):
            self._key, self._written = "", 0
            self._save()
        return self.mark()

    def wrote(self, before: Mark, ops: Sequence[Op], revision: int) -> str:
        """The write is acknowledged. Why that shows that history went back; "": it does not."""
        if revision < before.revision:
            return _lower(revision, before)
        self.seen(revision)
        puts = sorted((len(op.value), op.key) for op in ops if isinstance(op, Put))
        if puts and revision > self._written:  # the smallest is cheapest to look at
            self._key, self._written = puts[0][1], revision
        self._save()
        return ""

    def check(self, before: Mark, found: Snapshot) -> str:
        """`found` is what a linearizable read of the mark's key gave. Why it shows that history went back."""
        if self.lost:
            return "a watch found it so"
        if found.revision < before.revision:
            return _lower(found.revision, before)
        ours = next((kv.mod_revision for kv in found.items if kv.key == before.key), 0)
        if before.key and ours < before.written and before.key == self._key:  # we are not about to delete it
            return f"{before.key} was written at revision {before.written}, and the store has it at {ours or 'none'}"
        if found.revision > self._revision:
            self._revision = found.revision
            self._save()
        return ""

    def _save(self) -> None:
        record = {"revision": self._revision, "key": self._key, "written": self._written, "lost": self.lost}
        self._records.save(_KIND, _NAME, record)


def _lower(revision: int, before: Mark) -> str:
    return f"the store is at revision {revision}, and was at {before.revision}"
