"""The store contract: what every implementation of gpupool.store.port.Store does, the fake and the real alike."""

import asyncio
import itertools
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing

import pytest

from gpupool.store.backoff import Backoff
from gpupool.store.follow import follow
from gpupool.store.memory import MemoryBackend, MemoryStore
from gpupool.store.port import (
    Change,
    Committed,
    Compacted,
    Created,
    Delete,
    Each,
    Guard,
    LeaseNotFound,
    Op,
    Put,
    Refused,
    Restored,
    Sight,
    Snapshot,
    Store,
    Unavailable,
    Unmodified,
)

from .conftest import World, eventually

SOON_S = 10.0  # what must happen "soon" on a machine that does other things too


async def put(store: Store, key: str, value: bytes = b"", lease: int = 0) -> int:
    done = await store.commit([], [Put(key, value, lease)])
    assert done.succeeded
    return done.revision


async def take(store: Store, prefix: str, after_revision: int, count: int) -> list[Sequence[Change]]:
    """Batches until `count` changes have come."""
    batches: list[Sequence[Change]] = []
    async with asyncio.timeout(SOON_S), aclosing(store.watch(prefix, after_revision=after_revision)) as stream:
        async for batch in stream:
            batches.append(batch)
            if sum(map(len, batches)) >= count:
                break
    return batches


async def is_absent(store: Store, key: str) -> bool:
    return await store.get(key) is None


async def true_of(condition: Callable[[], object]) -> bool:
    return bool(condition())


def flat(batches: Sequence[Sequence[Change]]) -> list[Change]:
    return [change for batch in batches for change in batch]


class TestReadAndWrite:
    async def test_revisions_of_a_key(self, world: World) -> None:
        store, key = world.client(), world.prefix + "k"
        assert await store.get(key) is None
        first = await put(store, key, b"1")
        second = await put(store, key, b"2")
        kv = await store.get(key)
        assert kv
        assert second > first
        assert (kv.value, kv.create_revision, kv.mod_revision, kv.lease) == (b"2", first, second, 0)
        await store.commit([], [Delete(key)])
        assert await store.get(key) is None
        third = await put(store, key)
        kv = await store.get(key)
        assert kv
        assert kv.create_revision == kv.mod_revision == third > second

    async def test_a_delete_of_nothing_makes_no_revision(self, world: World) -> None:
        store = world.client()
        revision = await put(store, world.prefix + "k")
        done = await store.commit([], [Delete(world.prefix + "absent")])
        assert done == Committed(succeeded=True, revision=revision)

    async def test_an_empty_commit_asks_whether_the_guards_hold(self, world: World) -> None:
        store, key = world.client(), world.prefix + "k"
        revision = await put(store, key)
        assert (await store.commit([Created(key, revision)], [])).succeeded
        assert not (await store.commit([Created(key, 0)], [])).succeeded

    async def test_list_is_sorted_and_the_prefix_literal(self, world: World) -> None:
        store, prefix = world.client(), world.prefix
        keys = ["a/1", "a/ä", "a/雪", "a/😀", "a/10", "a/\x7f", "a"]
        revision = (await store.commit([], [Put(prefix + key, key.encode()) for key in [*keys, "b", "a0"]])).revision
        snapshot = await store.list(prefix + "a/")
        assert [kv.key for kv in snapshot.items] == sorted(prefix + key for key in keys if key != "a")
        assert [kv.value.decode() for kv in snapshot.items] == [kv.key.removeprefix(prefix) for kv in snapshot.items]
        assert snapshot.revision == revision
        assert await store.list(prefix + "nothing/") == Snapshot(revision, ())
        assert set(snapshot.items) <= set((await store.list("")).items)

    async def test_pages_are_of_one_revision(self, world: World) -> None:
        """A writer moves keys about, keeping their number: a list that mixes revisions miscounts."""
        count, store, writer = 1000, world.client(page_keys=64), world.client()
        for start in range(0, count, 100):
            await writer.commit([], [Put(f"{world.prefix}{i:05}", b"") for i in range(start, start + 100)])

        async def move() -> None:
            for step in range(10**9):
                old, new = step % count + step // count * count, step + count
                await writer.commit([], [Delete(f"{world.prefix}{old:05}"), Put(f"{world.prefix}{new:05}", b"")])

        moving = asyncio.create_task(move())
        revisions = set()
        for _ in range(8):
            snapshot = await store.list(world.prefix)
            assert len(snapshot.items) == count
            revisions.add(snapshot.revision)
        moving.cancel()
        assert len(revisions) > 1

    async def test_more_keys_than_a_default_page(self, world: World) -> None:
        store = world.client()
        for start in range(0, 2500, 100):
            await store.commit([], [Put(f"{world.prefix}{i:05}", b"x" * 100) for i in range(start, start + 100)])
        items = (await store.list(world.prefix)).items
        assert [kv.key for kv in items] == [f"{world.prefix}{i:05}" for i in range(2500)]


class TestGuards:
    @pytest.mark.parametrize("guard_of", [Created, Unmodified])
    async def test_absent_is_revision_0(self, world: World, guard_of: type[Created | Unmodified]) -> None:
        store, key = world.client(), world.prefix + "k"
        assert (await store.commit([guard_of(key, 0)], [Put(key, b"1")])).succeeded
        assert not (await store.commit([guard_of(key, 0)], [Put(key, b"2")])).succeeded
        kv = await store.get(key)
        assert kv
        assert kv.value == b"1"

    async def test_created_outlasts_a_write_unmodified_does_not(self, world: World) -> None:
        store, key = world.client(), world.prefix + "k"
        first = await put(store, key)
        second = await put(store, key)
        assert (await store.commit([Created(key, first), Unmodified(key, second)], [])).succeeded
        assert not (await store.commit([Unmodified(key, first)], [])).succeeded
        assert not (await store.commit([Created(key, second)], [])).succeeded
        await store.commit([], [Delete(key)])
        await put(store, key)
        assert not (await store.commit([Created(key, first)], [])).succeeded

    async def test_all_or_nothing(self, world: World) -> None:
        store, a, b = world.client(), world.prefix + "a", world.prefix + "b"
        revision = await put(store, a)
        outcome = await store.commit([Created(a, revision), Created(b, revision)], [Put(b, b""), Delete(a)])
        assert outcome == Committed(succeeded=False, revision=revision)
        assert [kv.key for kv in (await store.list(world.prefix)).items] == [a]
        outcome = await store.commit([Created(a, revision), Created(b, 0)], [Put(b, b""), Delete(a)])
        assert outcome == Committed(succeeded=True, revision=outcome.revision)
        assert [kv.key for kv in (await store.list(world.prefix)).items] == [b]

    async def test_of_many_contenders_one_wins(self, world: World) -> None:
        key = world.prefix + "k"

        async def contend(i: int) -> bool:
            return (await world.client().commit([Created(key, 0)], [Put(key, b"%d" % i)])).succeeded

        assert sum(await asyncio.gather(*map(contend, range(8)))) == 1


class TestRefusals:
    async def test_repeated_key(self, world: World) -> None:
        store, key = world.client(), world.prefix + "k"
        doubles: list[list[Op]] = [
            [Put(key, b"1"), Put(key, b"2")],
            [Put(key, b"1"), Delete(key)],
            [Delete(key), Delete(key)],
        ]
        for ops in doubles:
            with pytest.raises(Refused):
                await store.commit([], ops)
        assert await store.get(key) is None

    async def test_as_many_operations_as_allowed_and_one_more(self, world: World) -> None:
        store = world.client()
        keys = [f"{world.prefix}{i}" for i in range(store.max_ops + 1)]
        guards, ops = [Created(key, 0) for key in keys], [Put(key, b"") for key in keys]
        assert store.max_ops == world.max_ops
        assert (await store.commit(guards[:-1], ops[:-1])).succeeded
        guard_sets: list[list[Guard]] = [[], [*guards]]
        for some_guards, some_ops in zip(guard_sets, [ops, []], strict=True):
            with pytest.raises(Refused):
                await store.commit(some_guards, some_ops)

    @pytest.mark.parametrize("size", [1_600_000, 3_000_000])
    async def test_too_large(self, world: World, size: int) -> None:
        with pytest.raises(Refused):
            await world.client().commit([], [Put(world.prefix + "k", b"x" * size)])

    async def test_large_is_fine(self, world: World) -> None:
        store, value = world.client(), b"x" * 1_400_000
        await put(store, world.prefix + "k", value)
        kv = await store.get(world.prefix + "k")
        assert kv
        assert kv.value == value

    async def test_empty_key(self, world: World) -> None:
        with pytest.raises(Refused):
            await put(world.client(), "")
        with pytest.raises(Refused):
            await world.client().get("")


class TestLeases:
    async def test_expiry_deletes_never_early_and_is_watched(self, world: World) -> None:
        store, key, loop = world.client(), world.prefix + "k", asyncio.get_running_loop()
        begun = loop.time()
        lease = await store.grant(1)
        assert lease > 0
        revision = await put(store, key, lease=lease)
        kept = await put(store, world.prefix + "other")
        kv = await store.get(key)
        assert kv
        assert kv.lease == lease
        assert flat(await take(store, key, revision, 1))[0].kv is None
        assert loop.time() - begun >= 1
        assert kept
        assert [kv.key for kv in (await store.list(world.prefix)).items] == [world.prefix + "other"]
        with pytest.raises(LeaseNotFound):
            await store.renew(lease)
        await store.revoke(lease)

    async def test_renewal_keeps(self, world: World) -> None:
        store, key, loop = world.client(), world.prefix + "k", asyncio.get_running_loop()
        lease = await store.grant(1)
        await put(store, key, lease=lease)
        renewed_at = loop.time()
        for _ in range(6):
            renewed_at = loop.time()
            assert await store.renew(lease) == 1
            await asyncio.sleep(0.4)
            assert await store.get(key)
        await eventually(lambda: is_absent(store, key))
        assert loop.time() - renewed_at >= 1

    async def test_revoke(self, world: World) -> None:
        store, a, b = world.client(), world.prefix + "a", world.prefix + "b"
        lease = await store.grant(60)
        await store.commit([], [Put(a, b"", lease), Put(b, b"", lease)])
        revision = (await store.list(world.prefix)).revision
        await store.revoke(lease)
        gone = flat(await take(store, world.prefix, revision, 2))
        assert gone == [Change(key, None, gone[0].revision) for key in (a, b)]
        await store.revoke(lease)
        with pytest.raises(LeaseNotFound):
            await store.renew(lease)

    async def test_put_with_a_dead_lease_does_nothing_at_all(self, world: World) -> None:
        store, key = world.client(), world.prefix + "k"
        lease = await store.grant(60)
        await store.revoke(lease)
        with pytest.raises(LeaseNotFound):
            await store.commit([], [Put(world.prefix + "other", b""), Put(key, b"", lease)])
        assert (await store.list(world.prefix)).items == ()
        assert not (await store.commit([Created(key, 1)], [Put(key, b"", lease)])).succeeded

    async def test_a_later_put_takes_the_key_off_the_lease(self, world: World) -> None:
        store, key = world.client(), world.prefix + "k"
        first, second = await store.grant(60), await store.grant(60)
        await put(store, key, lease=first)
        await put(store, key, lease=second)
        await store.revoke(first)
        assert await store.get(key)
        await put(store, key)
        await store.revoke(second)
        assert await store.get(key)


class TestWatch:
    async def test_each_once_in_order_under_concurrent_writers(self, world: World) -> None:
        writers, rounds = 4, 40
        start = (await world.client().list(world.prefix)).revision

        async def write(name: int) -> None:
            store = world.client()
            for i in range(rounds):
                await store.commit([], [Put(f"{world.prefix}{name}/{part}", b"%d" % i) for part in "abc"])

        watcher = asyncio.create_task(take(world.client(), world.prefix, start, 3 * writers * rounds))
        await asyncio.gather(*map(write, range(writers)))
        batches = await watcher
        changes = flat(batches)
        assert len(changes) == 3 * writers * rounds
        assert [c.revision for c in changes] == sorted(c.revision for c in changes)
        ends = [(batch[0].revision, batch[-1].revision) for batch in batches]
        assert all(last < first for (_, last), (first, _) in itertools.pairwise(ends))
        for name in range(writers):
            seen = [c.kv.value for c in changes if c.kv and c.key == f"{world.prefix}{name}/b"]
            assert seen == [b"%d" % i for i in range(rounds)]

    async def test_replays_the_past_after_a_revision(self, world: World) -> None:
        store, a, b = world.client(), world.prefix + "a", world.prefix + "b"
        first = await put(store, a, b"1")
        second = (await store.commit([], [Put(b, b"2"), Delete(a)])).revision
        third = await put(store, a, b"3")
        changes = flat(await take(store, world.prefix, first, 3))
        assert [(c.key, c.revision, c.kv.value if c.kv else None) for c in changes] == [
            (b, second, b"2"),
            (a, second, None),
            (a, third, b"3"),
        ]
        assert changes[-1].kv == await store.get(a)
        assert [c.revision for c in flat(await take(store, a, second, 1))] == [third]

    async def test_compacted(self, world: World) -> None:
        store = world.client()
        first = await put(store, world.prefix + "k")
        for _ in range(3):
            last = await put(store, world.prefix + "k")
        await world.compact(last)
        with pytest.raises(Compacted) as caught:
            await take(store, world.prefix, first, 1)
        assert caught.value.compact_revision == last
        assert [c.revision for c in flat(await take(store, world.prefix, last - 1, 1))] == [last]

    async def test_a_revision_yet_to_come_is_of_a_forgotten_history(self, world: World) -> None:
        store = world.client()
        last = await put(store, world.prefix + "k")
        with pytest.raises(Restored):
            await take(store, world.prefix, last + 1000, 1)

    async def test_compaction_does_not_disturb_a_watch_that_is_up_to_date(self, world: World) -> None:
        store = world.client()
        start = await put(store, world.prefix + "k")
        watcher = asyncio.create_task(take(world.client(), world.prefix + "k", start, 1))
        for _ in range(5):
            await asyncio.sleep(0.05)
            revision = await put(store, world.prefix + "other")
        await world.compact(revision)
        last = await put(store, world.prefix + "k")
        assert [c.revision for c in flat(await watcher)] == [last]

    async def test_cancellation_leaves_nothing_behind(self, world: World) -> None:
        store = world.client()
        await store.get("warm-up")
        before = asyncio.all_tasks()
        start = (await store.list(world.prefix)).revision
        watchers = [asyncio.create_task(take(store, world.prefix, start, 99)) for _ in range(5)]
        await asyncio.sleep(0.2)
        for watcher in watchers:
            watcher.cancel()
        await asyncio.gather(*watchers, return_exceptions=True)
        await eventually(lambda: true_of(lambda: asyncio.all_tasks() <= before))
        assert await store.get("still-works") is None

    async def test_close_ends_watches_and_calls(self, world: World) -> None:
        store = world.client()
        start = (await store.list(world.prefix)).revision
        watcher = asyncio.create_task(take(store, world.prefix, start, 1))
        await asyncio.sleep(0.2)
        await store.close()
        with pytest.raises(Unavailable):
            await watcher
        with pytest.raises(Unavailable):
            await store.get("x")
        with pytest.raises(Unavailable):
            await take(store, world.prefix, 0, 1)


class Forgetful:
    """A store that compacts between a list and the watch after it, `times` times, and then fails once."""

    def __init__(self, world: World, times: int) -> None:
        self.inner, self.world, self.left, self.failures = world.client(), world, times, 1

    async def list(self, prefix: str, each: Each | None = None) -> Snapshot:
        snapshot = await self.inner.list(prefix, each)
        if self.left:
            self.left -= 1
            for _ in range(3):
                revision = await put(self.inner, prefix + "racing")
            await self.world.compact(revision)
        return snapshot

    async def watch(self, prefix: str, *, after_revision: int) -> AsyncGenerator[Sequence[Change], None]:
        if not self.left and self.failures:
            self.failures -= 1
            raise Unavailable("as ordered")
        async with aclosing(self.inner.watch(prefix, after_revision=after_revision)) as stream:
            async for batch in stream:
                yield batch


class TestFollow:
    async def test_lists_again_after_a_compaction_and_resumes_after_a_failure(self, world: World) -> None:
        store = world.client()
        await put(store, world.prefix + "k")
        resets: list[Snapshot] = []
        changed = asyncio.Event()
        changes: list[Change] = []

        async def on_changes(batch: Sequence[Change]) -> None:
            changes.extend(batch)
            changed.set()

        following = asyncio.create_task(
            follow(
                Forgetful(world, 2),  # type: ignore[arg-type]  # only what follow uses
                world.prefix,
                on_reset=resets.append,
                on_changes=on_changes,
                backoff=Backoff(0.01),
            )
        )
        await eventually(lambda: true_of(lambda: len(resets) == 3))
        revision = await put(store, world.prefix + "k", b"new")
        async with asyncio.timeout(SOON_S):
            await changed.wait()
        following.cancel()
        assert [len(reset.items) for reset in resets] == [1, 2, 2]
        assert [(c.key, c.revision) for c in changes] == [(world.prefix + "k", revision)]

    async def test_the_mirror_equals_the_store(self, world: World) -> None:
        mirror: dict[str, bytes] = {}

        def on_reset(snapshot: Snapshot) -> None:
            mirror.clear()
            mirror.update((kv.key, kv.value) for kv in snapshot.items)

        def on_changes(changes: Sequence[Change]) -> None:
            for change in changes:
                if change.kv:
                    mirror[change.key] = change.kv.value
                else:
                    del mirror[change.key]  # a KeyError here is a change that came twice, or out of order

        store = world.client()
        following = asyncio.create_task(follow(store, world.prefix, on_reset=on_reset, on_changes=on_changes))
        for i in range(100):
            ops: list[Op] = [Put(f"{world.prefix}{i}", b"x"), Put(world.prefix + "last", b"%d" % i)]
            await store.commit([], [*ops, *([Delete(f"{world.prefix}{i // 2}")] if i % 2 else [])])
        await eventually(lambda: true_of(lambda: mirror.get(world.prefix + "last") == b"99"))
        assert mirror == {kv.key: kv.value for kv in (await store.list(world.prefix)).items}
        assert not following.done()
        following.cancel()

    async def test_an_error_of_the_callback_comes_out(self, world: World) -> None:
        def on_reset(_: Snapshot) -> None:
            raise LookupError("mine")

        with pytest.raises(LookupError, match="mine"):
            await follow(world.client(), world.prefix, on_reset=on_reset, on_changes=lambda _: None)


class TestOnlyTheFake:
    async def test_leases_follow_the_clock_that_it_is_given(self) -> None:
        now = 0.0
        backend = MemoryBackend(clock=lambda: now)
        store = MemoryStore(backend)
        lease = await store.grant(10)
        await put(store, "k", lease=lease)
        now = 9.0
        assert await store.renew(lease) == 10
        now = 18.9
        assert await store.get("k")
        now = 19.0
        assert await store.get("k") is None
        with pytest.raises(LeaseNotFound):
            await store.renew(lease)

    async def test_bounded_history_compacts_itself(self) -> None:
        store = MemoryStore(MemoryBackend(keep_revisions=10))
        revisions = [await put(store, "k") for _ in range(30)]
        assert len(flat(await take(store, "", revisions[-10], 9))) == 9
        with pytest.raises(Compacted):
            await take(store, "", revisions[0], 1)

    async def test_no_watch_is_left(self) -> None:
        backend = MemoryBackend()
        store = MemoryStore(backend)
        await put(store, "k")
        await take(store, "k", 1, 1)
        assert backend.watchers == 0


async def test_members_that_are_well_know_a_leader(world: World) -> None:
    store = world.client()
    await store.learn_members()
    poll = await store.poll_members()
    assert not poll.doubt
    assert [sight for _, sight in poll.members] == [Sight.LEADER]
