"""Which scheduler is talked to, how long, and how names given on the command line become ids."""

from __future__ import annotations

import contextlib
import getpass
import math
import os
import socket
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import click

from gpupool.client import AsyncClient, Client
from gpupool.errors import GpupoolError, InvalidSpec, NotFound
from gpupool.v1 import scheduler_pb2

DEFAULT_SERVER = "127.0.0.1:50151"
UNREACHABLE_S = 2.0  # a person who mistyped an address should not wait for the whole timeout
COMPLETION_S = 0.5
SHOWN_CANDIDATES = 5
COUNT, FROM_ONE = click.IntRange(0, 2**32 - 1), click.IntRange(1, 2**32 - 1)  # what the API's numbers hold

F = TypeVar("F", bound=Callable[..., Any])


class Seconds(click.FloatRange):
    """A time that is neither none nor endless; click's own ranges let nan pass."""

    def __init__(self) -> None:
        super().__init__(min=0, min_open=True, max=100 * 365 * 86400)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """The seconds."""
        found = float(super().convert(value, param, ctx))
        if math.isnan(found):
            self.fail(f"{value!r} is no number of seconds", param, ctx)
        return found


@dataclass(slots=True)
class Settings:
    """The options that every command has; kept at the root context, so that they may stand before the command or
    after it.
    """

    server: str | None = None
    timeout_s: float | None = None

    @property
    def address(self) -> str:
        """The scheduler's address, or several with commas."""
        return self.server or os.environ.get("GPUPOOL_SERVER") or _local_server() or DEFAULT_SERVER

    @property
    def limits(self) -> dict[str, Any]:
        """Arguments of a client: the time limits."""
        timeout_s = 10.0 if self.timeout_s is None else self.timeout_s
        return {"timeout_s": timeout_s, "retry_s": min(UNREACHABLE_S, timeout_s)}


def server_file() -> Path:
    """Where `gpupool up` leaves the address of the scheduler it started, for this user."""
    return Path(os.environ.get("XDG_RUNTIME_DIR") or "/tmp", f"gpupool-{os.getuid()}", "server")  # noqa: S108


def _local_server() -> str | None:
    file = server_file()
    try:
        if file.stat().st_uid != os.getuid():  # /tmp is everyone's: do not send jobs where somebody else says
            return None
        return file.read_text().strip() or None
    except (OSError, UnicodeDecodeError):
        return None


def settings() -> Settings:
    """The settings of the command that runs now."""
    return click.get_current_context().find_root().ensure_object(Settings)


def _store(name: str) -> Callable[[click.Context, click.Parameter, Any], None]:
    def callback(ctx: click.Context, _: click.Parameter, value: Any) -> None:
        if value is not None:
            setattr(ctx.find_root().ensure_object(Settings), name, value)

    return callback


def connection_options(command: F) -> F:
    """Adds --server and --timeout."""
    server = click.option(
        "-s", "--server", metavar="HOST:PORT", expose_value=False, callback=_store("server"), is_eager=True,
        help="Scheduler; several with commas are replicas.",
    )  # fmt: skip
    timeout = click.option(
        "--timeout", type=Seconds(), metavar="SECONDS", expose_value=False,
        callback=_store("timeout_s"), help="Time for one answer of the scheduler (10).",
    )  # fmt: skip
    return server(timeout(command))


@contextlib.contextmanager
def connect() -> Iterator[Client]:
    """A client for the command that runs now."""
    chosen = settings()
    with Client(chosen.address, **chosen.limits) as client:
        yield client


def connect_async() -> AsyncClient:
    """The same for asyncio; to be used with `async with`."""
    chosen = settings()
    return AsyncClient(chosen.address, **chosen.limits)


def me() -> str:
    """Who asks, for the records: user@machine."""
    try:
        return f"{getpass.getuser()}@{socket.gethostname()}"
    except (OSError, KeyError):  # a user id without a name, as in containers
        return f"uid-{os.getuid()}@{socket.gethostname()}"


def user() -> str:
    """Whose jobs these are; "" where the system has no name for it."""
    try:
        return getpass.getuser()
    except (OSError, KeyError):
        return ""


def job_id(client: Client, text: str) -> str:
    """The id that `text` is, or is the beginning of. Raises NotFound, or InvalidSpec naming the candidates."""
    if not text:
        raise InvalidSpec(["a job id must not be empty"])
    with contextlib.suppress(NotFound):
        return client.get(text).id
    found = sorted(job.id for job in client.list() if job.id.startswith(text))
    if not found:
        raise NotFound(f"no job has an id that begins with {text!r}; `gpupool jobs` lists them")
    if len(found) > 1:
        shown = ", ".join(found[:SHOWN_CANDIDATES]) + (", ..." if len(found) > SHOWN_CANDIDATES else "")
        raise InvalidSpec([f"{text!r} is the beginning of {len(found)} job ids: {shown}; write more of it"])
    return found[0]


def job_ids(client: Client, text: str) -> list[str]:
    """The job that `text` is, or is the beginning of; or, of an array or a gang that it names, every job, by index."""
    try:
        return [job_id(client, text)]
    except InvalidSpec:
        found = list(client.list(scheduler_pb2.JobFilter(array=text)))
        parts = [(part, job.id) for job in found for part in (job.spec.array, job.spec.gang)]
        elements = sorted((part.index, job) for part, job in parts if part.id == text)
        if not elements:
            raise
        return [element for _, element in elements]


def _complete(ctx: click.Context, names: Callable[[Client], Iterator[str]], incomplete: str) -> list[str]:
    """Completions, or none: a shell must not hang or show errors while somebody types."""
    try:
        address = ctx.find_root().ensure_object(Settings).address
        with Client(address, timeout_s=COMPLETION_S, retry_s=0.0) as client:
            return sorted(name for name in names(client) if name.startswith(incomplete))
    except (GpupoolError, OSError):
        return []


def complete_job(ctx: click.Context, _: click.Parameter, incomplete: str) -> list[str]:
    """Job ids that begin with what is typed."""
    return _complete(ctx, lambda client: (job.id for job in client.list(scheduler_pb2.JobFilter())), incomplete)


def complete_host(ctx: click.Context, _: click.Parameter, incomplete: str) -> list[str]:
    """Host names that begin with what is typed."""
    return _complete(ctx, lambda client: (host.name for host in client.hosts()), incomplete)
