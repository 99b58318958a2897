"""Mutants of what makes a reclaim and a start cheap: none of it may answer from what was so before."""

from __future__ import annotations

from tests.mutants.model import Edit, Mutant, tests

HOST, REACH, SHARED = "agent/devices/host.py", "agent/inventory/reach.py", "gpupool/store/shared.py"
LOOK = "        return await self._run(partial(read_reach, sysfs, _addresses(unit), allow=self._allow))\n"
KEPT = (
    "        kept = self.__dict__.setdefault('kept', {})\n        if unit.id not in kept:\n"
    "            kept[unit.id] = await self._run(partial(read_reach, sysfs, _addresses(unit), allow=self._allow))\n"
    "        return kept[unit.id]\n"
)

RECLAIM = (
    Mutant(
        "half a record counts",
        "a record is written over the one before, so that half of it is what the next agent finds",
        [Edit("agent/work/records.py", 'folder / f"{name}.new"', 'folder / f"{name}.json"')],
        tests("unit/test_records.py"),
    ),
    Mutant(
        "an ended VM's unit stays held",
        "an agent that is restarted just after a VM's end takes its unit for one that the VM still has",
        [
            Edit(
                "agent/work/ledger.py",
                "(unit.state == UnitIs.HELD and not self._lives(unit.allocation))",
                "False",
            )
        ],
        tests("unit/test_ledger_restart.py"),
    ),
    Mutant(
        "given up, and goes on",
        "when a call on a device that hung comes back, the steps after it are done too, though nobody waits",
        [Edit("agent/devices/blocking.py", "            if given_up.is_set():\n", "            if False:\n")],
        tests("unit/test_bind.py::test_an_unbind_that_hangs_leaves_nothing_behind"),
    ),
    Mutant(
        "neighbours kept",
        "what a unit's reset would hit is remembered from its last reclaim",
        [Edit(HOST, LOOK, KEPT)],
        tests("unit/test_reach.py::test_a_card_plugged_in_since_the_last_reclaim_is_not_reset_along"),
    ),
    Mutant(
        "neighbours by the tree alone",
        "what has a bus number behind the unit's bridge counts as out of a reset's reach",
        [
            Edit(
                REACH,
                '    yield from (address for address in listed if address.rpartition(":")[0] in buses)\n',
                "    del buses, listed\n",
            )
        ],
        tests("unit/test_reach.py::test_it_says_what_all_of_the_host_would"),
    ),
    Mutant(
        "neighbours by bus numbers alone",
        "what lies in the directory of the unit's bridge counts as out of a reset's reach",
        [Edit(REACH, '        yield from _below(sysfs, f"{DEVICES}/{bridge.address}")\n', "        pass\n")],
        tests("unit/test_reach.py::test_it_says_what_all_of_the_host_would"),
    ),
    Mutant(
        "an answer from before the question",
        "a start takes a look at the store for its own that began before it asked",
        [
            Edit(
                SHARED,
                "        self._coming = None\n        return await self._call()\n",
                "        return await self._call()\n",
            )
        ],
        tests("unit/test_shared.py::test_who_asks_at_once_shares_and_who_asks_later_does_not"),
    ),
)
