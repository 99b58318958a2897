"""What only a real etcd can do to us: die, restart, freeze, move, ask for passwords and certificates."""

import asyncio
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, aclosing
from pathlib import Path

import grpc
import pytest
from aetcd.rpc import Permission, rpc_pb2, rpc_pb2_grpc

from gpupool.embedded.etcd import EmbeddedEtcd, EtcdError
from gpupool.store.etcd import EtcdStore, TlsFiles
from gpupool.store.port import Change, LeaseNotFound, Put, Refused, Store, Unavailable
from tests.fakes.relay import Relay

from .conftest import eventually, make_etcd

SOON_S = 15.0


@pytest.fixture
async def exits() -> AsyncIterator[AsyncExitStack]:
    async with AsyncExitStack() as stack:
        yield stack


class Watcher:
    """A running watch and all that it has seen."""

    def __init__(self, store: Store, prefix: str, after_revision: int) -> None:
        self.seen: list[Change] = []
        self._came = asyncio.Event()
        self._task = asyncio.create_task(self._run(store, prefix, after_revision))

    async def _run(self, store: Store, prefix: str, after_revision: int) -> None:
        async with aclosing(store.watch(prefix, after_revision=after_revision)) as stream:
            async for batch in stream:
                self.seen.extend(batch)
                self._came.set()

    async def until(self, revision: int) -> None:
        async with asyncio.timeout(SOON_S):
            while not self.seen or self.seen[-1].revision < revision:
                self._came.clear()
                waiting = asyncio.create_task(self._came.wait())
                await asyncio.wait({waiting, self._task}, return_when=asyncio.FIRST_COMPLETED)
                waiting.cancel()
                if self._task.done():
                    self._task.result()

    async def stop(self) -> None:
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)


async def put(store: Store, key: str) -> int:
    """Write, and ask again until it is known to be done: `key` carries nothing, so twice is fine."""
    async with asyncio.timeout(SOON_S):
        while True:
            try:
                return (await store.commit([], [Put(key, b"")])).revision
            except Unavailable:
                await asyncio.sleep(0.05)


class TestOutage:
    async def test_watch_resumes_across_restarts(self, etcd: EmbeddedEtcd, exits: AsyncExitStack) -> None:
        store = EtcdStore([etcd.endpoint], timeout_s=2)
        exits.push_async_callback(store.close)
        watcher = Watcher(store, "k", 0)
        exits.push_async_callback(watcher.stop)
        revisions = [await put(store, "k")]
        for end in (etcd.kill, etcd.stop):
            await watcher.until(revisions[-1])
            await end()
            with pytest.raises(Unavailable):
                await store.get("k")
            await etcd.start()
            revisions += [await put(store, "k") for _ in range(3)]
        await watcher.until(revisions[-1])
        assert [change.revision for change in watcher.seen] == revisions

    async def test_a_lease_outlives_a_restart(self, etcd: EmbeddedEtcd, exits: AsyncExitStack) -> None:
        store = EtcdStore([etcd.endpoint])
        exits.push_async_callback(store.close)
        lease = await store.grant(2)
        await store.commit([], [Put("k", b"", lease)])
        await etcd.kill()
        await etcd.start()
        async with asyncio.timeout(SOON_S):
            while True:
                try:
                    assert await store.renew(lease) == 2
                    break
                except Unavailable:
                    await asyncio.sleep(0.05)
        await eventually(lambda: is_absent(store, "k"))
        with pytest.raises(LeaseNotFound):
            await store.renew(lease)

    async def test_frozen_peer(self, etcd: EmbeddedEtcd, exits: AsyncExitStack) -> None:
        store = EtcdStore([etcd.endpoint], timeout_s=1, silence_s=1)
        exits.push_async_callback(store.close)
        lease = await store.grant(60)
        first = await put(store, "k")
        watcher = Watcher(store, "k", first - 1)
        exits.push_async_callback(watcher.stop)
        await watcher.until(first)
        etcd.freeze()
        loop = asyncio.get_running_loop()
        begun = loop.time()
        calls = (store.get("k"), store.list("k"), store.commit([], []), store.renew(lease), store.grant(60))
        outcomes = await asyncio.gather(*calls, return_exceptions=True)
        assert [type(outcome) for outcome in outcomes] == [Unavailable] * 5
        assert loop.time() - begun < 2
        await asyncio.sleep(1.5)  # long enough for the watch to give its connection up
        etcd.thaw()
        last = await put(store, "k")
        await watcher.until(last)
        assert [change.revision for change in watcher.seen] == [*range(first, last + 1)]

    async def test_the_cluster_has_the_last_word_on_max_ops(self, etcd: EmbeddedEtcd, exits: AsyncExitStack) -> None:
        store = EtcdStore([etcd.endpoint], max_ops=1000)
        exits.push_async_callback(store.close)
        with pytest.raises(Refused):
            await store.commit([], [Put(f"k{i}", b"") for i in range(129)])

    async def test_nobody_listens(self, exits: AsyncExitStack) -> None:
        store = EtcdStore(["127.0.0.1:1"])
        exits.push_async_callback(store.close)
        with pytest.raises(Unavailable):
            await store.commit([], [])

    async def test_close_ends_a_call_under_way(self, etcd: EmbeddedEtcd) -> None:
        store = EtcdStore([etcd.endpoint], timeout_s=30)
        await store.get("k")
        etcd.freeze()
        calls = [asyncio.create_task(store.get("k")), asyncio.create_task(store.renew(1))]
        await asyncio.sleep(0.2)
        await store.close()
        async with asyncio.timeout(SOON_S):
            for outcome in await asyncio.gather(*calls, return_exceptions=True):
                assert isinstance(outcome, Unavailable)

    async def test_a_cancelled_call_is_cancelled(self, etcd: EmbeddedEtcd, exits: AsyncExitStack) -> None:
        store = EtcdStore([etcd.endpoint], timeout_s=30)
        exits.push_async_callback(store.close)
        await store.get("k")
        etcd.freeze()
        call = asyncio.create_task(store.renew(1))
        await asyncio.sleep(0.1)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call


class TestFailover:
    async def test_first_endpoint_dead(self, etcd: EmbeddedEtcd, exits: AsyncExitStack) -> None:
        store = EtcdStore(["127.0.0.1:1", etcd.endpoint])
        exits.push_async_callback(store.close)
        assert (await store.commit([], [Put("k", b"")])).succeeded  # a write, as nothing was sent to the dead one
        watcher = Watcher(EtcdStore(["127.0.0.1:1", etcd.endpoint]), "k", 0)
        exits.push_async_callback(watcher.stop)
        await watcher.until(2)

    async def test_member_falls_silent(self, etcd: EmbeddedEtcd, exits: AsyncExitStack) -> None:
        relay = await exits.enter_async_context(Relay(etcd.endpoint))
        store = EtcdStore([relay.endpoint, etcd.endpoint], timeout_s=2, silence_s=1)
        exits.push_async_callback(store.close)
        lease = await store.grant(60)
        first = await put(store, "k")
        watcher = Watcher(store, "k", first - 1)
        exits.push_async_callback(watcher.stop)
        await watcher.until(first)
        relay.silence()
        assert await store.get("k")  # within the deadline, by way of the other
        assert await store.renew(lease) == 60
        await watcher.until(await put(store, "k"))

    async def test_silent_from_the_start(self, etcd: EmbeddedEtcd, exits: AsyncExitStack) -> None:
        relay = await exits.enter_async_context(Relay(etcd.endpoint))
        relay.silence()
        store = EtcdStore([relay.endpoint, etcd.endpoint], timeout_s=2)
        exits.push_async_callback(store.close)
        assert (await store.commit([], [Put("k", b"")])).succeeded


async def enable_auth(endpoint: str) -> None:
    """Users root, agent (may use k*) and guest (may do nothing); the password is the name."""
    async with grpc.aio.insecure_channel(endpoint) as channel:
        auth = rpc_pb2_grpc.AuthStub(channel)
        for name in ("root", "agent", "guest"):
            await auth.UserAdd(rpc_pb2.AuthUserAddRequest(name=name, password=name))
            await auth.RoleAdd(rpc_pb2.AuthRoleAddRequest(name=name))
            await auth.UserGrantRole(rpc_pb2.AuthUserGrantRoleRequest(user=name, role=name))
        may = Permission(permType=Permission.READWRITE, key=b"k", range_end=b"l")
        grant = rpc_pb2.AuthRoleGrantPermissionRequest(name="agent", perm=may)
        await auth.RoleGrantPermission(grant)
        await auth.AuthEnable(rpc_pb2.AuthEnableRequest())


class TestAuth:
    @pytest.fixture
    async def etcd(self, etcd_binary: str, tmp_path: Path) -> AsyncIterator[EmbeddedEtcd]:
        made = make_etcd(etcd_binary, tmp_path / "etcd", "--auth-token-ttl=1", "--bcrypt-cost=4")
        await made.start()
        await enable_auth(made.endpoint)
        yield made
        await made.kill()

    async def test_token_expires_and_is_lost_in_a_restart(self, etcd: EmbeddedEtcd, exits: AsyncExitStack) -> None:
        store = EtcdStore([etcd.endpoint], user="agent", password="agent", probe_key="k", silence_s=2)
        exits.push_async_callback(store.close)
        lease = await store.grant(60)
        first = await put(store, "k")
        watcher = Watcher(store, "k", first - 1)
        exits.push_async_callback(watcher.stop)
        await asyncio.sleep(3)  # 3.4 looks for expired tokens once a second
        late = Watcher(store, "k", first - 1)
        exits.push_async_callback(late.stop)
        await late.until(first)
        assert await store.renew(lease) == 60
        second = await put(store, "k")
        await late.until(second)
        await etcd.kill()
        await etcd.start()
        third = await put(store, "k")
        for each in (watcher, late):
            await each.until(third)
            assert [change.revision for change in each.seen] == [first, second, third]

    async def test_refusals(self, etcd: EmbeddedEtcd, exits: AsyncExitStack) -> None:
        async def refused(user: str | None, password: str | None, key: str) -> None:
            store = EtcdStore([etcd.endpoint], user=user, password=password)
            exits.push_async_callback(store.close)
            for call in (store.get(key), store.list(key), store.commit([], [Put(key, b"")])):
                with pytest.raises(Refused):
                    await call
            with pytest.raises(Refused):
                async with asyncio.timeout(SOON_S):
                    await anext(store.watch(key, after_revision=0))

        await refused("guest", "guest", "k")
        await refused("agent", "agent", "other")
        await refused("agent", "wrong", "k")
        await refused(None, None, "k")

    async def test_credentials_are_ignored_where_auth_is_off(
        self, etcd_binary: str, tmp_path: Path, exits: AsyncExitStack
    ) -> None:
        plain = make_etcd(etcd_binary, tmp_path / "plain")
        await plain.start()
        exits.push_async_callback(plain.kill)
        store = EtcdStore([plain.endpoint], user="agent", password="agent")
        exits.push_async_callback(store.close)
        assert await store.get("k") is None


def openssl(folder: Path, *arguments: str) -> None:
    subprocess.run(["openssl", *arguments], cwd=folder, check=True, capture_output=True)


def make_certificates(folder: Path) -> None:
    """ca, other-ca; server and client signed by ca. P-256, as it is quick to make."""
    new = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes")
    for name in ("ca", "other-ca"):
        openssl(folder, "req", "-x509", *new, "-keyout", f"{name}.key", "-out", f"{name}.pem", "-subj", f"/CN={name}")
    for name in ("server", "client"):
        (folder / "ext").write_text("subjectAltName=IP:127.0.0.1,DNS:etcd.test\nextendedKeyUsage=serverAuth,clientAuth")
        openssl(folder, "req", *new, "-keyout", f"{name}.key", "-out", f"{name}.csr", "-subj", f"/CN={name}")
        signed_by = ("-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial", "-extfile", "ext")
        openssl(folder, "x509", "-req", "-in", f"{name}.csr", "-out", f"{name}.pem", *signed_by)


class TestTls:
    @pytest.fixture
    async def etcd(self, etcd_binary: str, tmp_path: Path) -> AsyncIterator[EmbeddedEtcd]:
        make_certificates(tmp_path)
        files = [f"--cert-file={tmp_path}/server.pem", f"--key-file={tmp_path}/server.key"]
        mutual = [f"--trusted-ca-file={tmp_path}/ca.pem", "--client-cert-auth"]
        made = make_etcd(etcd_binary, tmp_path / "etcd", *files, *mutual, scheme="https")
        await made.start()
        yield made
        await made.kill()

    async def test_who_gets_in(self, etcd: EmbeddedEtcd, tmp_path: Path, exits: AsyncExitStack) -> None:
        ca, other = tmp_path / "ca.pem", tmp_path / "other-ca.pem"
        cert, key = tmp_path / "client.pem", tmp_path / "client.key"

        def connect(tls: TlsFiles | None) -> EtcdStore:
            store = EtcdStore([etcd.endpoint], tls=tls, timeout_s=2)
            exits.push_async_callback(store.close)
            return store

        welcome: Sequence[TlsFiles] = [TlsFiles(ca, cert, key), TlsFiles(ca, cert, key, server_name="etcd.test")]
        for tls in welcome:
            store = connect(tls)
            revision = (await store.commit([], [Put("k", b"")])).revision
            async with asyncio.timeout(SOON_S), aclosing(store.watch("k", after_revision=revision - 1)) as stream:
                assert (await anext(stream))[0].revision == revision
        wrong_name = TlsFiles(ca, cert, key, server_name="elsewhere.test")
        for bad in (None, TlsFiles(ca), TlsFiles(other, cert, key), wrong_name):
            with pytest.raises(Unavailable):
                await connect(bad).get("k")


class TestEmbedded:
    def test_missing_binary_names_the_package(self, tmp_path: Path) -> None:
        with pytest.raises(EtcdError, match="etcd-server"):
            EmbeddedEtcd(tmp_path, binary="no-such-etcd").path()

    async def test_a_failed_start_shows_the_log(self, etcd_binary: str, tmp_path: Path) -> None:
        broken = make_etcd(etcd_binary, tmp_path, "--no-such-flag")
        with pytest.raises(EtcdError, match="no-such-flag"):
            await broken.start()

    async def test_the_child_dies_with_its_parent(self, etcd_binary: str, tmp_path: Path) -> None:
        code = (
            "import asyncio, pathlib, sys, time\n"
            "from gpupool.embedded.etcd import EmbeddedEtcd\n"
            "etcd = EmbeddedEtcd(pathlib.Path(sys.argv[1]), binary=sys.argv[2])\n"
            "asyncio.run(etcd.start())\n"
            "print(etcd.pid, flush=True)\n"
            "time.sleep(60)\n"
        )
        parent = await asyncio.create_subprocess_exec(
            sys.executable, "-c", code, str(tmp_path), etcd_binary, stdout=subprocess.PIPE
        )
        assert parent.stdout
        pid = int(await parent.stdout.readline())
        os.kill(pid, 0)
        parent.kill()
        await parent.wait()
        await eventually(lambda: asyncio.to_thread(has_ended, pid))


async def is_absent(store: Store, key: str) -> bool:
    return await store.get(key) is None


def has_ended(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return True
    return state == "Z"  # in a container nobody may reap it
