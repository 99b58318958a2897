"""The key layout round-trips, and nothing that could escape its path segment is ever a name."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpupool.store import keys
from gpupool.store.keys import Kind

GPU = "0000:21:00.0"
BUILT = {
    "agents/h1/session": (keys.session("h1"), Kind.SESSION, ("h1",)),
    "agents/h1/guard": (keys.guard("h1"), Kind.GUARD, ("h1",)),
    "agents/h1/inventory": (keys.inventory("h1"), Kind.INVENTORY, ("h1",)),
    "agents/h1/vms/a-1": (keys.vm("h1", "a-1"), Kind.VM, ("h1", "a-1")),
    f"agents/h1/units/{GPU}": (keys.unit("h1", GPU), Kind.UNIT, ("h1", GPU)),
    "jobs/j1/spec": (keys.job_spec("j1"), Kind.JOB_SPEC, ("j1",)),
    "jobs/j1/cancel": (keys.job_cancel("j1"), Kind.JOB_CANCEL, ("j1",)),
    "jobs/j1/status": (keys.job_status("j1"), Kind.JOB_STATUS, ("j1",)),
    "allocations/h1/a-1": (keys.allocation("h1", "a-1"), Kind.ALLOCATION, ("h1", "a-1")),
    "hosts/h1": (keys.host("h1"), Kind.HOST, ("h1",)),
    "intents/hosts/h1": (keys.host_intent("h1"), Kind.HOST_INTENT, ("h1",)),
    f"intents/units/h1/{GPU}": (keys.unit_intent("h1", GPU), Kind.UNIT_INTENT, ("h1", GPU)),
    "intents/jobs/j1": (keys.job_intent("j1"), Kind.JOB_INTENT, ("j1",)),
    "intents/cluster": (keys.CLUSTER_INTENT, Kind.CLUSTER_INTENT, ()),
    "intents/queues/q": (keys.queue("q"), Kind.QUEUE, ("q",)),
    "shares": (keys.SHARES, Kind.SHARES, ()),
    "cluster": (keys.CLUSTER, Kind.CLUSTER, ()),
    "failovers/h1/17": (keys.failover("h1", 17), Kind.FAILOVER, ("h1", "17")),
    "leader": (keys.LEADER, Kind.LEADER, ()),
}
NAMES = st.from_regex(r"[a-z0-9][a-z0-9._-]{0,62}", fullmatch=True)


@pytest.mark.parametrize("path", BUILT)
def test_layout_and_back(path: str) -> None:
    key, kind, ids = BUILT[path]
    assert key == "/gpupool/v1/" + path
    assert keys.parse(key) == (kind, ids)


def test_every_kind_is_covered() -> None:
    assert {kind for _, kind, _ in BUILT.values()} == set(Kind)


@given(NAMES, NAMES)
def test_any_names_round_trip(host: str, alloc: str) -> None:
    assert keys.parse(keys.allocation(host, alloc)) == (Kind.ALLOCATION, (host, alloc))
    assert keys.parse(keys.vm(host, alloc)) == (Kind.VM, (host, alloc))
    assert keys.allocation(host, alloc).startswith(keys.allocation_prefix(host))
    assert keys.vm(host, alloc).startswith(keys.agent_prefix(host))


@given(st.text())
def test_any_text_is_a_name_of_one_segment_or_refused(text: str) -> None:
    if re.fullmatch(r"[a-z0-9][-a-z0-9._:]{0,62}", text, re.ASCII):
        assert keys.parse(keys.unit("h", text)) == (Kind.UNIT, ("h", text))
    else:
        with pytest.raises(ValueError, match=re.escape(repr(text))):
            keys.unit("h", text)


@pytest.mark.parametrize("name", ["", "H1", "a/b", "..", "-f", "a b", "x" * 64, "a\n", "ä", "²", "a:b"])
def test_bad_host_names(name: str) -> None:
    with pytest.raises(ValueError, match="bad host name"):
        keys.host(name)


@pytest.mark.parametrize(
    "key",
    ["", "/gpupool/v1/", "/gpupool/v2/leader", "/gpupool/v1/leader/x", "/gpupool/v1/jobs/j1/other", "leader",
     "/gpupool/v1/hosts/h1/", "/gpupool/v1/hosts/../x", "/gpupool/v1/leader\n", "/gpupool/v1//leader",
     "/gpupool/v1/agents//session", "/gpupool/v1", "/gpupool/v1/jobs/j1", "/gpupool/v1x/leader", "/gpupool/v1/hosts/"],
)  # fmt: skip
def test_foreign_keys_do_not_parse(key: str) -> None:
    assert keys.parse(key) is None


@given(st.lists(st.sampled_from(sorted(BUILT)), min_size=2))
def test_what_was_read_before_changes_nothing(paths: list[str]) -> None:
    for path in paths:
        key, kind, ids = BUILT[path]
        assert keys.parse(key) == (kind, ids)
        assert keys.parse(key + "/x") is None
