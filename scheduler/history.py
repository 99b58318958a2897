"""Whether the store still has what this leader wrote last, or was restored from a backup since.

A restored store may have the leader's key in the very life that it leads by, so the guard of its term would let it go
on deciding by what is forgotten. Two things tell: an answer that is of a lower revision than one that was seen before,
and the last write that was acknowledged, which only this leader may replace. That write is a guard of the next one, so
whoever has lost it decides nothing; what is noticed by the revision alone, of a write that was done, is noticed once.

agent/history.py is the same for agents. It must never take another's doing for a restore.
"""

from __future__ import annotations

from collections.abc import Sequence

from gpupool.store.port import Committed, Delete, Guard, Op, Put, Restored, Store, Unmodified


class History:
    """What was seen of the store by one term. `revision`: the newest that was seen before it."""

    def __init__(self, revision: int) -> None:
        self._revision = revision
        self._written: Unmodified | None = None

    def seen(self, revision: int) -> None:
        """An answer, or news, of this revision. Raises Restored if one as new as it was seen before."""
        if revision < self._revision:
            raise Restored(f"it is at revision {revision}, and was at {self._revision}")
        self._revision = revision

    def guards(self) -> list[Guard]:
        """What the next write must find."""
        return [self._written] if self._written is not None else []

    def wrote(self, ops: Sequence[Op], done: Committed) -> None:
        """The answer to a write. Raises Restored."""
        self.seen(done.revision)
        if not done.succeeded:
            return
        puts = [op.key for op in ops if isinstance(op, Put)]
        if puts:
            self._written = Unmodified(puts[0], done.revision)
        elif self._written is not None and any(isinstance(op, Delete) and op.key == self._written.key for op in ops):
            self._written = None

    async def check(self, store: Store) -> None:
        """A guard failed. Raises Restored if what was written is not there any more, and StoreError."""
        if self._written is not None and not (await store.commit(self.guards(), [])).succeeded:
            raise Restored(f"{self._written.key} was written at revision {self._written.mod_revision}, and is lost")
