"""A store that was restored from a backup: agents notice, end their VMs and begin anew; nothing starts twice."""

from __future__ import annotations

import asyncio
import copy
from dataclasses import dataclass
from typing import Any

import pytest

from agent.history import History
from agent.work.records import Records
from gpupool.store import keys
from gpupool.store.memory import MemoryBackend
from gpupool.store.port import Delete, KeyValue, Put, Snapshot
from tests.fakes.agent_rig import HOST, OTHER, MemoryRecords, Rig
from tests.fakes.virtual_time import until, virtual_time
from tests.fakes.vms import Guest


@dataclass
class Backup:
    """All that etcd's snapshot has. Leases begin anew when it is restored."""

    state: dict[str, Any]

    @classmethod
    def of(cls, backend: MemoryBackend) -> Backup:
        names = ("_items", "_leases", "revision", "_compacted", "_history")
        return cls({name: copy.deepcopy(getattr(backend, name)) for name in names})

    def restore(self, backend: MemoryBackend, *, noticed: bool = True) -> None:
        """`noticed`: watches break, so that agents look what they missed."""
        for name, value in copy.deepcopy(self.state).items():
            setattr(backend, name, value)
        for lease in backend._leases.values():
            lease.expires_at = backend.now() + lease.ttl_s
        backend._schedule()
        if noticed:
            backend.break_watches()


def forever(rig: Rig) -> Rig:
    rig.vms.default = Guest(run_s=None)
    return rig


@pytest.mark.parametrize("caught_up", [0, 500])
def test_vm_that_the_store_knows_nothing_of_is_ended(caught_up: int) -> None:
    """Its allocation was made after the backup. The scheduler will place the job anew: one of the two must go."""

    @virtual_time
    async def scenario() -> None:
        rig = forever(Rig())
        session = await rig.ready()
        nonce = rig.session_record().nonce
        backup = Backup.of(rig.backend)
        rig.allocate()
        await rig.running()
        backup.restore(rig.backend)
        for n in range(caught_up):  # others write, until the revision tells nothing any more
            rig.backend.commit([], [Put("/other", str(n).encode())])
        before = rig.clock.boot()
        await until(lambda: rig.session not in (0, session) or rig.session_record().nonce not in ("", nonce))
        assert not rig.vms.vms["j1.1"].alive
        assert rig.clock.boot() - before < 2 * rig.timing.renew_s
        await until(lambda: rig.session)
        rig.allocate("j2.1")  # and it hears of what is decided in the new history
        await rig.running("j2.1")
        await rig.close()

    scenario()


@virtual_time
async def test_what_ended_after_the_backup_is_not_started_again() -> None:
    rig = Rig()
    await rig.ready()
    nonce = rig.session_record().nonce
    rig.allocate()
    await rig.running()
    backup = Backup.of(rig.backend)
    await rig.ended()
    rig.withdraw()
    await until(lambda: not rig.vm().state)
    backup.restore(rig.backend)
    await until(lambda: rig.session_record().nonce not in ("", nonce))
    await asyncio.sleep(60)
    assert [event for _, event, _ in rig.vms.history] == ["run", "end"]
    await rig.close()


@virtual_time
async def test_agent_that_was_away_meanwhile_resumes_no_session_of_the_past() -> None:
    rig = forever(Rig())
    await rig.ready()
    nonce = rig.session_record().nonce
    backup = Backup.of(rig.backend)
    rig.allocate()
    await rig.running()
    await rig.kill_agent()
    backup.restore(rig.backend)
    await rig.boot()
    assert rig.session_record().nonce not in ("", nonce)
    assert not rig.vms.vms["j1.1"].alive
    await rig.close()


@pytest.mark.parametrize("noticed", [True, False])
def test_allocation_that_the_store_has_forgotten_is_not_started(noticed: bool) -> None:
    """The agent has heard of it, the units are being reset meanwhile, and the store is restored in between."""

    @virtual_time
    async def scenario() -> None:
        rig = forever(Rig())
        rig.devices.reclaim_s = 60.0
        await rig.boot()
        await asyncio.sleep(5)
        backup = Backup.of(rig.backend)
        rig.allocate()
        await asyncio.sleep(1)
        backup.restore(rig.backend, noticed=noticed)
        for n in range(20):  # no lower revision, and no write of ours was lost: only the allocation is missing
            rig.backend.commit([], [Put("/other", str(n).encode())])
        await asyncio.sleep(200)
        assert not [name for _, _, name in rig.vms.history if name == "j1.1"]
        await rig.close()

    scenario()


@virtual_time
async def test_many_reports_and_an_outage_are_no_restore() -> None:
    rig = Rig()
    session = await rig.ready()
    for n in range(1, 5):
        rig.allocate(f"j{n}.1", units=((rig.devices.units[0], OTHER)[n % 2],))
        await rig.running(f"j{n}.1")
        rig.store.away = n == 2
        await asyncio.sleep(5)
        rig.store.away = False
        await rig.ended(f"j{n}.1")
        rig.withdraw(f"j{n}.1")
        await asyncio.sleep(10)
    assert rig.session == session
    await rig.close()


def history(records: Records | None = None) -> History:
    made = History(records or MemoryRecords())
    made.begin(keys.session(HOST), 10)
    return made


def found(revision: int, key: str = keys.session(HOST), mod_revision: int = 10) -> Snapshot:
    items = (KeyValue(key, b"", mod_revision, mod_revision),) if mod_revision else ()
    return Snapshot(revision, items)


def test_answers_may_come_in_another_order() -> None:
    made = history()
    before = made.mark()
    made.seen(20)  # while the call was on its way
    assert not made.check(before, found(15))
    assert "at revision 15, and was at 20" in made.check(made.mark(), found(15))
    assert not made.wrote(before, [Put("/a", b"x")], 16)
    assert made.wrote(made.mark(), [Put("/a", b"x")], 17)


def test_last_write_must_be_there_or_have_been_written_over() -> None:
    made = history()
    made.wrote(made.mark(), [Put("/big", b"xxx"), Put("/a", b"x")], 12)
    assert made.mark().key == "/a"
    assert not made.check(made.mark(), found(99, "/a", 50))
    assert "/a was written at revision 12, and the store has it at 11" in made.check(made.mark(), found(99, "/a", 11))
    assert "at none" in made.check(made.mark(), found(99, "/a", 0))
    before = made.mark()
    made.sending([Delete("/a")])  # perhaps done: it tells nothing any more
    assert not made.check(before, found(99, "/a", 0))
    assert not made.check(made.mark(), found(99, "/a", 0))


def test_it_outlives_the_agent_and_not_the_session() -> None:
    records = MemoryRecords()
    made = history(records)
    made.wrote(made.mark(), [Put("/a", b"x")], 12)
    assert History(records).mark() == made.mark()
    made.begin(keys.session(HOST), 3)
    assert not made.check(made.mark(), found(3, mod_revision=3))
