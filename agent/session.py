"""The host's session: a leased key that says that this agent, on this boot, may run VMs until a deadline.

The guard kills the VMs before the session can have ended in the store (deadline.py), so whoever finds the key gone
knows that they are dead. This module must never move that deadline on but for an acknowledged renewal of a session that
is still ours, a poll that proves that no member of the store leads (riding.py), or a record that declares no guard
(declare.py). And never announce a new session while a VM of an earlier one lives. Nor change what the record says of
the guard without the same in the key that outlives the lease: a leader that was away has only that.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
from collections.abc import Awaitable, Callable
from typing import TypeVar

from google.protobuf.message import DecodeError

from gpupool.store import keys
from gpupool.store.port import Created, Delete, KeyValue, LeaseNotFound, Put, Store, StoreError, Unmodified
from gpupool.v1 import records_pb2

from .deadline import Deadline
from .declare import Declaration, Said
from .history import History
from .ports import Clock, Guard, GuardError
from .timing import UNKNOWN, Identity, Timing, why_keep_lease, why_not_replace
from .work.records import Records

_log = logging.getLogger(__name__)
GAP_S = 1.0  # without a guard, before the record says so; another takes a fraction of that, save on a slow host
_RECORD = "session"  # kind and name of the local record
T = TypeVar("T")


class SessionKeeper:
    """Gets, holds and resumes the session. `no_vms` returns once no VM of any session runs here, ending those that do.

    `open` and `hold` alternate, in one task; `tend_guard` runs beside them.
    """

    def __init__(  # noqa: PLR0917
        self,
        identity: Identity,
        timing: Timing,
        store: Store,
        guard: Guard,
        clock: Clock,
        records: Records,
        no_vms: Callable[[], Awaitable[None]],
        *,
        history: History,
        unguarded: str = "",
    ) -> None:
        self._me = identity
        self._timing = timing
        self._store = store
        self._guard = guard
        self._clock = clock
        self._records = records
        self._no_vms = no_vms
        self._key, self._guard_key = keys.session(identity.host), keys.guard(identity.host)
        self._retry_s = min(1.0, timing.renew_s / 4)
        self._session = 0
        self._lease = 0
        self._others: tuple[int, ...] = ()  # leases that the key may hang on instead: a move's fate is unknown
        self._ttl_s = timing.ttl_s  # what the record says of the lease; no deadline rests on more
        self._nonce = ""
        self._started_s = 0.0
        self._deadline = Deadline(store, guard, clock, timing)
        self._declaration = Declaration(guard, timing, unguarded)
        self._said: Said | None = None  # what the store is known to say of the guard
        self._had_session = False
        self._doubt = asyncio.Event()
        self._told = ""
        self._left: tuple[int, ...] = ()  # leases of the session that was over last
        self._history = history

    @property
    def session(self) -> int:
        """The session's id, which is its key's create_revision; 0: none."""
        return self._session

    @property
    def nonce(self) -> str:
        """What tells this session from any other that ever had its id; empty if an agent without nonces began it."""
        return self._nonce

    def left_s(self) -> float:
        """Seconds until the guard kills, if no renewal follows."""
        return self._deadline.left_s()

    def fresh(self) -> bool:
        """Whether the session is ours by a renewal, and it is long enough before its kill to start a VM."""
        return self._session != 0 and self._deadline.may_start()

    def may_start(self) -> bool:
        """Whether a VM may start now: behind a guard that is what the session's record says, or more."""
        return self.fresh() and self._declaration.may_start()

    def disarm(self, why: str) -> None:
        """An operator wants no fencing, for `why`; "": fencing as usual."""
        if why != self._declaration.disarmed:
            _log.warning("%s", f"to be disarmed: {why}" if why else "to be armed again")
        self._declaration.disarmed = why

    def doubt(self) -> None:
        """A write guarded by the session failed: look now whether the session is still ours."""
        self._doubt.set()

    async def open(self) -> int:
        """Resume this boot's session, or announce a new one; returns its id, however long that takes."""
        await self._arm()
        session = await self._resume()
        if not session:
            self._forget()
            await self._no_vms()
            await self._revoke(self._left)  # nothing lives: no need to wait until they expire
            session = await self._insist(self._announce)
            _log.info("session %d of host %s announced: %s", session, self._me.host, self._me)
        self._session = session
        return session

    async def hold(self) -> str:
        """Renew until the session is over; returns why. An unavailable store ends no session: it is asked again."""
        while True:
            await self._until_due()
            sent = self._clock.boot()
            try:
                async with asyncio.timeout(self._timing.renew_s):
                    over = await self._renew(sent, look=self._doubt.is_set())
            except (StoreError, TimeoutError) as exc:
                _log.warning("session %d not renewed, %.1f s left: %r", self._session, self.left_s(), exc)
                await self._deadline.ride()
                await asyncio.sleep(self._retry_s)
                continue
            if over:
                reason = f"session {self._session} is over: {over}"
                self._forget()
                return reason
            self._doubt.clear()
            await self._deadline.answered()

    async def tend_guard(self) -> None:
        """Keep a guard alive; while there is none, the session's record says so, and its expiry proves nothing."""
        while True:
            await asyncio.sleep(min(self._timing.renew_s / 2, 0.5))
            if not self._guard.alive():
                await self._have_guard()
            self._relax()
            await self._declare_due()

    async def _have_guard(self) -> None:
        """Another guard, or the one there is if it was only slow. If that takes long, the record says meanwhile that
        there is none: until one looks, nobody holds the deadline, and the session's expiry would prove nothing.
        """
        ensuring = asyncio.create_task(self._guard.ensure())
        try:
            while not (await asyncio.wait({ensuring}, timeout=GAP_S))[0]:
                await self._declare_due()
        finally:
            ensuring.cancel()
        if (fault := ensuring.exception()) is not None:
            if not isinstance(fault, GuardError):
                raise fault
            _log.error("no guard: %s", fault)

    async def _declare_due(self) -> None:
        """Make the record say what is so, if it does not and the store answers."""
        if self._session and self._declaration.due(self._deadline.kill_at) != self._said:
            with contextlib.suppress(StoreError, TimeoutError):
                async with asyncio.timeout(self._timing.renew_s):
                    await self._declare(self._session)

    async def _declare(self, session: int) -> None:
        """Make the record say what is so."""
        kv = await self._store.get(self._key)
        if kv is None or kv.create_revision != session:
            self.doubt()
            return
        said = self._declaration.due(self._deadline.kill_at)
        if session == self._session and await self._write(kv, said):
            _log.info("session %d is declared %s", session, said)

    async def _write(self, kv: KeyValue, said: Said) -> bool:
        """Put the record that says so in the place of `kv`, unless it stands there. Whether it is acknowledged."""
        self._send(said)
        put = self._put(said)
        if (kv.value, kv.lease) != (put.value, put.lease) or self._others:
            # Its last revision is a guard: what was sent earlier, and whose fate is unknown, must not come after it.
            before = self._history.mark()
            done = await self._store.commit(
                [Unmodified(self._key, kv.mod_revision)], [put, self._last_word(said, kv.create_revision)]
            )
            if not done.succeeded or self._history.wrote(before, [put], done.revision):
                self.doubt()
                return False
        if self._session not in (0, kv.create_revision):
            return False  # that session is over
        self._declaration.acknowledged(said)
        self._said = said
        return True

    def _send(self, said: Said) -> None:
        self._said = None
        self._declaration.sending(said)

    def _relax(self) -> None:
        """Move the guard's deadline on although no renewal says so, if the store says that there is no guard."""
        if self._session and self._declaration.relaxed:
            self._deadline.relax()

    async def _arm(self) -> None:
        """A guard, before anything that declares one."""
        while not self._guard.alive():
            try:
                await self._guard.ensure()
            except GuardError as exc:
                _log.error("no guard, so no session: %s", exc)
                await asyncio.sleep(self._retry_s)

    async def _resume(self) -> int:
        """The session that an earlier agent of this boot left, if the store still has it; else 0."""
        saved = self._records.load(_RECORD).get(_RECORD)
        if saved is None:
            return 0
        self._had_session = bool(saved["had_session"])
        self._lease, self._started_s = int(saved["lease"]), float(saved["started_s"])
        self._others = tuple(map(int, saved.get("others", ())))
        self._nonce = str(saved.get("nonce", ""))
        if not self._lease:
            return 0
        session = await self._insist(lambda: self._resumed(int(saved["session"])))
        if session:
            _log.info("session %d of host %s resumed: %s", session, self._me.host, self._me)
        return session

    async def _resumed(self, saved: int) -> int | None:
        """The saved session if it is still ours; 0: it is not; None: look again.

        A record cut short by a crash names only the lease.
        """
        if self._others:
            await self._look_for_lease()
        sent = self._clock.boot()
        try:
            ttl_s = await self._store.renew(self._lease)
        except LeaseNotFound:
            return 0
        kv = await self._store.get(self._key)
        if kv is not None and kv.lease in self._others:
            return None  # an earlier agent's move has arrived meanwhile
        if kv is None or not self._ours(kv) or saved not in (0, kv.create_revision):
            return 0
        if why := await self._went_back():
            _log.error("session %d is not resumed: %s", kv.create_revision, why)
            return 0
        if self._wants_another(ttl_s):
            sent, ttl_s = await self._another_lease(kv.create_revision)
        self._ttl_s = ttl_s
        # A restarted agent may listen elsewhere, or be of another mind. Until now the guard is as the record says.
        if not await self._write(kv, self._declaration.due(sent + ttl_s - self._timing.kill_margin_s)):
            return 0
        left, self._others = self._others, ()  # the key hangs on ours, and nothing that was sent before can change it
        self._save(kv.create_revision)
        self._deadline.renewed(sent, ttl_s)
        await self._revoke(left)
        return kv.create_revision

    async def _look_for_lease(self) -> None:
        """The key says which of the leases on record it hangs on."""
        kv = await self._store.get(self._key)
        if kv is not None and kv.lease in self._others:
            self._others = (*(lease for lease in self._others if lease != kv.lease), self._lease)
            self._lease = kv.lease

    def _wants_another(self, ttl_s: int) -> bool:
        """Whether the lease, of this TTL, is not of our times: the agent before us had others."""
        if ttl_s == self._timing.ttl_s:
            return False
        why = why_keep_lease(self._timing, ttl_s, self._guard.watchdog_s())
        then = f"it stays until this session ends: {why}" if why else f"it is replaced by one of {self._timing.ttl_s} s"
        _log.warning("the lease of host %s is of %d s; %s", self._me.host, ttl_s, then)
        return not why

    async def _another_lease(self, session: int) -> tuple[float, int]:
        """A lease of our own times, for the next write to move the key to: when it was asked for, and its TTL.

        Until that write's fate is known the key may hang on either, so both are on record first, and the guard's
        deadline rests on neither. Only then may the old one be revoked.
        """
        sent = self._clock.boot()
        lease = await self._store.grant(self._timing.ttl_s)
        self._others, self._lease = (*self._others, self._lease), lease
        self._save(session)
        return sent, self._timing.ttl_s

    async def _revoke(self, leases: tuple[int, ...]) -> None:
        for lease in leases:
            with contextlib.suppress(StoreError):
                await self._store.revoke(lease)

    async def _renew(self, sent: float, *, look: bool) -> str:
        """One renewal of the session that is held; why it is over, if it is. With `look`, its key must still be there.

        The store may have been restored between any two renewals, so each looks whether history went back.
        """
        try:
            ttl_s = await self._store.renew(self._lease)
        except LeaseNotFound:
            return "its lease is gone"
        if look:
            kv = await self._store.get(self._key)
            if kv is None or kv.create_revision != self._session:
                return "its key is gone"
        if why := await self._went_back():
            return why
        self._deadline.renewed(sent, min(ttl_s, self._ttl_s))
        return ""

    async def _went_back(self) -> str:
        before = self._history.mark()
        why = self._history.check(before, await self._store.list(before.key or self._key))
        return f"the store's history went back, as if restored from a backup: {why}" if why else ""

    async def _announce(self) -> int | None:
        """One try to put the session's key on a lease of ours; None: not yet."""
        sent, ttl_s = await self._leased()
        kv = await self._store.get(self._key)
        if kv is not None and not self._ours(kv):
            if not await self._make_way(kv):
                return None
            kv = None
        said = self._declaration.due(sent + ttl_s - self._timing.kill_margin_s)
        if kv is None:
            await self._warn_of_another()
            self._send(said)
            done = await self._store.commit([Created(self._key, 0)], [self._put(said), self._last_word(said)])
            if not done.succeeded:
                return None
            self._declaration.acknowledged(said)
            self._said = said
        elif not await self._write(kv, said):  # an earlier try was done, unknown to us
            return None
        session = kv.create_revision if kv else done.revision
        self._history.begin(self._key, kv.mod_revision if kv else session)
        self._save(session)
        self._deadline.renewed(sent, ttl_s)
        return session

    async def _leased(self) -> tuple[float, int]:
        """A live lease: when it was asked for, and its TTL. It is on record before the key can exist."""
        sent = self._clock.boot()
        if self._lease:
            with contextlib.suppress(LeaseNotFound):
                return sent, min(self._ttl_s, await self._store.renew(self._lease))
        self._lease = await self._store.grant(self._timing.ttl_s)
        self._started_s, self._nonce = self._clock.wall(), secrets.token_hex(8)
        self._save(0)
        return sent, self._timing.ttl_s

    async def _warn_of_another(self) -> None:
        """Say what the cluster will make of it if the last session of this name was of another machine."""
        kv = await self._store.get(self._guard_key)
        try:
            last = records_pb2.GuardRecord.FromString(kv.value) if kv is not None else None
        except DecodeError:
            return  # that is for schedulers to judge
        if last is not None and last.machine != self._me.machine:
            self._tell(
                f"the last session of host {self._me.host!r} was of machine {last.machine or UNKNOWN} at "
                f"{last.address}, and this is machine {self._me.machine or UNKNOWN}. If anything ran there, it may run "
                f"still: the host stays FENCING until that is known to be dead, and nothing starts here. Make sure "
                f"that the other machine is off, then: gpupool confirm-dead {self._me.host} --reason ...; or give one "
                f"of the two another --name"
            )

    async def _make_way(self, kv: KeyValue) -> bool:
        """Remove the session of this machine's last boot; False while one that must be waited for stands there."""
        old = records_pb2.Session.FromString(kv.value)
        if reason := why_not_replace(old, self._me, had_session=self._had_session):
            self._tell(
                f"session {kv.create_revision} of {old.address} (boot {old.boot_id}) stands under the name "
                f"{self._me.host!r}; {self._me} waits until it expires: {reason}"
            )
            return False
        done = await self._store.commit([Created(self._key, kv.create_revision)], [Delete(self._key)])
        if done.succeeded and kv.lease:
            await self._store.revoke(kv.lease)
        return done.succeeded

    async def _insist(self, attempt: Callable[[], Awaitable[T | None]]) -> T:
        """Ask until there is an answer that is not None."""
        while True:
            try:
                if (result := await attempt()) is not None:
                    return result
            except StoreError as exc:
                self._tell(f"no session yet for host {self._me.host}: {exc}")
            await asyncio.sleep(self._retry_s)

    async def _until_due(self) -> None:
        left_s = self._deadline.renew_at - self._clock.boot()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(max(left_s, 0.0)):  # not wait_for: it loses a cancellation that meets the event
                await self._doubt.wait()

    def _ours(self, kv: KeyValue) -> bool:
        found = records_pb2.Session.FromString(kv.value)
        return (kv.lease, found.boot_id, found.nonce) == (self._lease, self._me.boot_id, self._nonce)

    def _put(self, said: Said) -> Put:
        record = records_pb2.Session(
            boot_id=self._me.boot_id,
            address=self._me.address,
            ttl_s=self._ttl_s,
            guard=said.guard,
            watchdog_s=said.watchdog_s,
            unguarded=said.unguarded,
            guard_refused=said.refused,
            simulated=self._me.simulated,
            started_s=self._started_s,
            version=self._me.version,
            vms_found_dead=True,
            nonce=self._nonce,
            machine=self._me.machine,
        )
        return Put(self._key, record.SerializeToString(deterministic=True), self._lease)

    def _last_word(self, said: Said, session: int = 0) -> Put:
        """The same of the guard, for when the record is gone with its lease. 0: the session begins with this write."""
        record = records_pb2.GuardRecord(
            session=session,
            guard=said.guard,
            unguarded=said.unguarded,
            machine=self._me.machine,
            address=self._me.address,
        )
        return Put(self._guard_key, record.SerializeToString(deterministic=True))

    def _save(self, session: int) -> None:
        self._had_session = self._had_session or session != 0
        record = {"lease": self._lease, "session": session, "started_s": self._started_s, "nonce": self._nonce}
        more = {"others": list(self._others), "had_session": self._had_session}
        self._records.save(_RECORD, _RECORD, {**record, **more})

    def _forget(self) -> None:
        if self._lease:
            self._left = (self._lease, *self._others)
        self._session, self._lease, self._others = 0, 0, ()
        self._ttl_s = self._timing.ttl_s
        self._declaration.forget()
        self._said = None
        self._save(0)

    def _tell(self, text: str) -> None:
        """Log once what may repeat for minutes."""
        if text != self._told:
            _log.error(text)
            self._told = text
