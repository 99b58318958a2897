"""The pages of a list: what range each asks for, and the next one asked for while one is being used.

etcd visits every key of a range, to count it, however few it answers with. So a page asks only as far as the folder
reaches in which the page before it lay. That is a guess about what lies close, and nothing may hang on it: where one
range ends the next begins, all are of the revision of the first, and whoever stops in the middle leaves nothing behind.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from typing import Any

from gpupool.store import etcd_wire as wire

_LARGER, _PAGE_BYTES = 20, 4 * 1024 * 1024  # how much larger than the first a page may be; if its values are no more

Ask = Callable[[bytes, bytes, int, int], Awaitable[Any]]  # first key, end, revision (0: the newest), most keys


async def pages(ask: Ask, prefix: str, first_keys: int) -> AsyncGenerator[Any, None]:
    """The answers for all keys under the prefix, in order. The first one's header says of which revision all are.

    Whoever may leave early wraps it in `contextlib.aclosing`.
    """
    begin, end = wire.prefix_range(prefix)
    stop = end
    page = await ask(begin, stop, 0, first_keys)
    revision = page.header.revision
    while page.more or stop != end:
        begin = page.kvs[-1].key + b"\0" if page.more else stop
        stop = _reach(page.kvs, begin, end)
        coming = asyncio.ensure_future(ask(begin, stop, revision, _next_keys(page.kvs, first_keys)))
        try:
            yield page
            page = await coming
        finally:
            coming.cancel()
            await asyncio.gather(coming, return_exceptions=True)
    yield page


def _reach(kvs: Sequence[Any], begin: bytes, end: bytes) -> bytes:
    """Where the folder ends that all of these lie in; `end`, if that is not between here and there."""
    first, last = (kvs[0].key, kvs[-1].key) if kvs else (b"", b"")
    alike = next((n for n, pair in enumerate(zip(first, last, strict=False)) if pair[0] != pair[1]), len(first))
    stop = first[:alike].rpartition(b"/")[0] + b"0"  # the first that may follow "folder/..."
    return stop if begin < stop and (stop < end or end == wire.NO_END) else end


def _next_keys(kvs: Sequence[Any], first_keys: int) -> int:
    """How many the next page may have: few large pages, as each costs etcd what its range has, not what it answers."""
    size = sum(len(kv.value) for kv in kvs)
    return max(first_keys, min(_LARGER * first_keys, len(kvs) * _PAGE_BYTES // max(1, size)))
