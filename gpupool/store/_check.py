"""What both stores refuse before they look at the state, so that the fake is never more lenient than the real one."""

from __future__ import annotations

from collections.abc import Sequence

from gpupool.store.port import Guard, Op, Refused


def check_commit(guards: Sequence[Guard], ops: Sequence[Op], max_ops: int) -> None:
    """Raise Refused for a commit that breaks the port's rules whatever the store contains."""
    if len(ops) > max_ops or len(guards) > max_ops:
        raise Refused(f"{len(guards)} guards and {len(ops)} operations; the limit for each is {max_ops}")
    seen: set[str] = set()
    for op in ops:
        check_key(op.key)
        # etcd lets a key be deleted twice, but not put twice or put and deleted: we refuse all three.
        if op.key in seen:
            raise Refused(f"key {op.key!r} occurs twice in one commit")
        seen.add(op.key)
    for guard in guards:
        check_key(guard.key)


def check_key(key: str) -> None:
    """Raise Refused for the empty key, which etcd has no room for."""
    if not key:
        raise Refused("a key must not be empty")
