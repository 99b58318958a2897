"""The rule by which VMs outlive an outage of etcd, in every order of events; and each weaker rule's double run."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.model.outage import Rules, explore

POLLS = Rules(ttl_s=2, renewals=False, faults=1)
RENEWALS = Rules(ttl_s=2, polls=False, faults=1)


@pytest.mark.parametrize("pre_vote", [True, False])
def test_no_poll_lets_a_vm_outlive_its_lease(pre_vote: bool) -> None:
    states, way = explore(replace(POLLS, pre_vote=pre_vote))
    assert not way
    assert states > 10_000


def test_no_renewal_does_either() -> None:
    states, way = explore(RENEWALS)
    assert not way
    assert states > 10_000


@pytest.mark.parametrize(
    "rules",
    [
        replace(POLLS, ttl_s=3, majority=True),
        replace(POLLS, silence=True),
        replace(POLLS, client_port=True),
        replace(POLLS, too_late=True),
        replace(RENEWALS, from_answer=True),
    ],
    ids=["a majority, once", "silence", "the clients' port", "after the deadline", "from the answer"],
)
def test_weaker_rules_run_a_job_twice(rules: Rules) -> None:
    _, way = explore(rules)
    assert way
    assert way[-1].ended
    assert way[-1].deadline > 0
