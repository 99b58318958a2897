"""Mutants of the store's client and its followers."""

from __future__ import annotations

from tests.mutants.model import Edit, Mutant, tests

FOLLOW, WATCH, ETCD = "gpupool/store/follow.py", "gpupool/store/etcd_watch.py", "gpupool/store/etcd.py"

STORE = (
    Mutant(
        "resume at one too far",
        "a watch on etcd resumes behind a change that it has not handed out",
        [Edit(WATCH, "start_revision=after_revision + 1", "start_revision=after_revision + 2")],
        tests("contract/test_store.py"),
    ),
    Mutant(
        "changes told twice",
        "a watch on etcd hands out again what it had handed out before its connection broke",
        [
            Edit(WATCH, "start_revision=after_revision + 1", "start_revision=max(1, after_revision)"),
            Edit(WATCH, " if event.kv.mod_revision > after_revision)", ")"),
        ],
        tests("contract"),
    ),
    Mutant(
        "follow from one too far",
        "who follows a prefix misses the change after the list",
        [
            Edit(
                FOLLOW,
                "store.watch(prefix, after_revision=revision)",
                "store.watch(prefix, after_revision=revision + 1)",
            )
        ],
        tests("unit/test_mirror.py", "contract"),
    ),
    Mutant(
        "deposed leader believed",
        "a renewal that a deposed etcd leader acknowledged counts, though its successor never heard of it",
        [
            Edit(
                ETCD,
                "                    if _origin(probe.header) != _origin(response.header):\n",
                "                    if False:\n",
            )
        ],
        tests("unit/test_etcd_renewal.py"),
    ),
    Mutant(
        "restored store waited for",
        "a watch waits for a revision that a restored etcd has yet to reach",
        [Edit(WATCH, "if response.created:", "if False:")],
        tests("contract/test_store.py", "contract/test_restored.py"),
    ),
    Mutant(
        "forgotten write no guard",
        "a leader goes on writing to a restored store that has its key, and not what it wrote",
        [Edit("scheduler/history.py", "return [self._written] if self._written is not None else []", "return []")],
        tests("unit/test_scheduler_restored.py"),
    ),
    Mutant(
        "restored store decided on",
        "a scheduler that sees that the store was restored decides before the agents can have noticed",
        [Edit("scheduler/replica.py", "await asyncio.sleep(max(0.0, self._hold_until", "max((0.0, self._hold_until")],
        tests("unit/test_scheduler_restored.py"),
    ),
)
