"""What a leader tells of its policy, and how another replica's differs: only the leader's counts.

Which replica leads next is chance, so replicas with different files would change what the site decides without anybody
having decided it. It never changes a policy, and refuses no replica for one.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from typing import Any

from gpupool.v1 import records_pb2

from .core.state.policy import Policy
from .policy_file import as_document


def told(policy: Policy) -> str:
    """The policy as one line, for the leader's record."""
    names = sorted(policy.powered)
    mark = hashlib.sha256("\n".join(names).encode()).hexdigest()[:8]
    powered = f"{len(names)} ({mark})" if names else "none"
    whose = "\n".join(f"{name} {policy.powered[name].mark} {policy.powered[name].machine}" for name in names)
    devices = hashlib.sha256(whose.encode()).hexdigest()[:8] if names else "none"
    more = {"hosts in the power file": powered, "devices and machines in the power file": devices}
    return json.dumps({**as_document(policy), **more}, sort_keys=True)


def differences(mine: Policy, replica: str, leader: records_pb2.Leader) -> list[str]:
    """Each setting in which the replica's policy is not the leader's, with both values and names. Nothing is said of a
    leader that does not tell its policy: it is of an older version.
    """
    if not leader.policy or leader.id == replica:
        return []
    theirs = dict(_flat(_read(leader.policy)))
    ours = dict(_flat(json.loads(told(mine))))
    return [
        f"{name} is {_value(ours, name)} at {replica}, and {_value(theirs, name)} at {leader.id}, which leads"
        for name in sorted(ours.keys() | theirs.keys())
        if ours.get(name) != theirs.get(name)
    ]


def _read(text: str) -> Mapping[str, Any]:
    try:
        found = json.loads(text)
    except ValueError:
        found = None
    return found if isinstance(found, dict) else {"the policy": "unreadable"}


def _flat(document: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in document.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{above}{name}.")
        else:
            yield f"{above}{name}", value


def _value(document: Mapping[str, Any], name: str) -> str:
    return json.dumps(document[name]).strip('"') if name in document else "unknown"
