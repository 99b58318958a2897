"""Mutants of the store's client and its followers."""

from __future__ import annotations

from tests.mutants.model import Edit, Mutant, tests

FOLLOW, WATCH, ETCD = "gpupool/store/follow.py", "gpupool/store/etcd_watch.py", "gpupool/store/etcd.py"
PAGES = "gpupool/store/etcd_pages.py"

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
        "pages of several revisions",
        "a later page of a list has what was written since the first",
        [Edit(PAGES, "ask(begin, stop, revision, ", "ask(begin, stop, 0, ")],
        tests("unit/test_etcd_pages.py", "contract/test_store.py"),
    ),
    Mutant(
        "list ends with a folder",
        "a list takes the end of the folder that a page asked for as the end of everything",
        [Edit(PAGES, "while page.more or stop != end:", "while page.more:")],
        tests("unit/test_etcd_pages.py"),
    ),
    Mutant(
        "page left behind",
        "who leaves a list in the middle leaves behind the task that asks for the next page",
        [
            Edit(
                PAGES,
                "            coming.cancel()\n            await asyncio.gather(coming, return_exceptions=True)\n",
                "            pass\n",
            )
        ],
        tests("unit/test_etcd_pages.py"),
    ),
    Mutant(
        "list begun anew on top",
        "a mirror keeps what it was told of a list that was overtaken, and began anew",
        [Edit("scheduler/mirror/mirror.py", "            self._records = Records()\n", "            pass\n")],
        tests("unit/test_mirror.py::test_a_list_that_begins_anew_leaves_nothing_of_what_it_told_before"),
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
