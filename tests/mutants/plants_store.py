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
        tests("contract"),
    ),
)
