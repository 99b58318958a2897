"""The key layout: who writes what, one writer per key (ARCHITECTURE.md). Pure; every key is built and read here.

Names become path segments, file names, cgroup names and command-line arguments on hosts, so they are strict, and a key
that does not parse is a foreign one that the caller ignores.
"""

from __future__ import annotations

import re
from enum import Enum

ROOT = "/gpupool/v1/"
AGENTS = ROOT + "agents/"
JOBS = ROOT + "jobs/"
ALLOCATIONS = ROOT + "allocations/"
HOSTS = ROOT + "hosts/"
INTENTS = ROOT + "intents/"
LEADER = ROOT + "leader"
CLUSTER = ROOT + "cluster"
CLUSTER_INTENT = INTENTS + "cluster"
SHARES = ROOT + "shares"
QUEUES = INTENTS + "queues/"
FAILOVERS = ROOT + "failovers/"

_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}")
_UNIT = re.compile(r"[a-z0-9][a-z0-9._:-]{0,62}")
_RULE = "1 to 63 of lowercase letters, digits, '-', '.', '_'{colon}, the first a letter or digit"


class Kind(Enum):
    """What a key holds. The value is its path below ROOT, with a field for each id that `parse` returns, in order."""

    SESSION = "agents/{host}/session"
    INVENTORY = "agents/{host}/inventory"
    VM = "agents/{host}/vms/{alloc}"
    UNIT = "agents/{host}/units/{unit}"
    JOB_SPEC = "jobs/{job}/spec"
    JOB_CANCEL = "jobs/{job}/cancel"
    JOB_STATUS = "jobs/{job}/status"
    ALLOCATION = "allocations/{host}/{alloc}"
    HOST = "hosts/{host}"
    HOST_INTENT = "intents/hosts/{host}"
    UNIT_INTENT = "intents/units/{host}/{unit}"
    JOB_INTENT = "intents/jobs/{job}"
    CLUSTER_INTENT = "intents/cluster"
    QUEUE = "intents/queues/{queue}"
    CLUSTER = "cluster"
    SHARES = "shares"
    FAILOVER = "failovers/{host}/{session}"
    LEADER = "leader"


def check_name(value: str, what: str) -> str:
    """Return `value` if it may name a `what` ("host", "job", "unit", "queue" ..); else ValueError with value and rule.

    Only a unit may contain ':', because units are named by PCI address (0000:21:00.0).
    """
    if not (_UNIT if what == "unit" else _NAME).fullmatch(value):
        raise ValueError(f"bad {what} name {value!r}: {_RULE.format(colon=', colon' if what == 'unit' else '')}")
    return value


def _key(kind: Kind, **ids: str) -> str:
    return ROOT + kind.value.format(**{what: check_name(value, what) for what, value in ids.items()})


def session(host: str) -> str:
    """The leased key whose create_revision is the session's id. Written by the agent of `host`."""
    return _key(Kind.SESSION, host=host)


def inventory(host: str) -> str:
    """What `host` has. Written by its agent."""
    return _key(Kind.INVENTORY, host=host)


def vm(host: str, alloc: str) -> str:
    """What the agent of `host` says about the VM of an allocation."""
    return _key(Kind.VM, host=host, alloc=alloc)


def unit(host: str, unit_id: str) -> str:
    """What the agent of `host` says about a device unit."""
    return _key(Kind.UNIT, host=host, unit=unit_id)


def job_spec(job: str) -> str:
    """What the user asked for. Written once, by the API."""
    return _key(Kind.JOB_SPEC, job=job)


def job_cancel(job: str) -> str:
    """The user's wish that the job ends. Written by the API."""
    return _key(Kind.JOB_CANCEL, job=job)


def job_status(job: str) -> str:
    """What became of the job. Written by the leading scheduler."""
    return _key(Kind.JOB_STATUS, job=job)


def allocation(host: str, alloc: str) -> str:
    """The reservation, and what should run. Written by the leading scheduler."""
    return _key(Kind.ALLOCATION, host=host, alloc=alloc)


def host(name: str) -> str:
    """State and fence record of a host. Written by the leading scheduler."""
    return _key(Kind.HOST, host=name)


def host_intent(name: str) -> str:
    """Cordon, drain, maintenance, confirm-dead. Written by the API."""
    return _key(Kind.HOST_INTENT, host=name)


def unit_intent(host_name: str, unit_id: str) -> str:
    """What an operator wants of a unit (release from quarantine ...). Written by the API."""
    return _key(Kind.UNIT_INTENT, host=host_name, unit=unit_id)


def job_intent(job: str) -> str:
    """What an operator wants of a job. Written by the API."""
    return _key(Kind.JOB_INTENT, job=job)


def of_job(job: str) -> tuple[str, ...]:
    """All that is kept of a job, its spec last: what is retired together."""
    return job_intent(job), job_cancel(job), job_status(job), job_spec(job)


def queue(name: str) -> str:
    """What operators want of a queue. Written by the API."""
    return _key(Kind.QUEUE, queue=name)


def failover(host_name: str, session_id: int) -> str:
    """The history of one lost session. Written by the leading scheduler."""
    return _key(Kind.FAILOVER, host=host_name, session=str(session_id))


def agent_prefix(name: str) -> str:
    """All that the agent of a host writes."""
    return f"{AGENTS}{check_name(name, 'host')}/"


def allocation_prefix(name: str) -> str:
    """All allocations on a host: what its agent watches."""
    return f"{ALLOCATIONS}{check_name(name, 'host')}/"


_SHAPES: dict[tuple[str, int], list[tuple[Kind, tuple[str, ...]]]] = {}
for _kind in Kind:  # by first segment and number of segments, so that a key is compared with three kinds at most
    _segments = tuple(_kind.value.split("/"))
    _SHAPES.setdefault((_segments[0], len(_segments)), []).append((_kind, _segments))


def _ids(found: list[str], segments: tuple[str, ...]) -> tuple[str, ...] | None:
    """The ids that stand in place of the fields of `segments`; None if anything does not match."""
    ids = []
    for text, segment in zip(found, segments, strict=True):
        if segment[0] != "{":
            if text != segment:
                return None
        elif (_UNIT if segment == "{unit}" else _NAME).fullmatch(text):
            ids.append(text)
        else:
            return None
    return tuple(ids)


def parse(key: str) -> tuple[Kind, tuple[str, ...]] | None:
    """What `key` is and the ids in it, or None for a key that is not ours (or of a later version)."""
    if not key.startswith(ROOT):
        return None
    found = key[len(ROOT) :].split("/")
    for kind, segments in _SHAPES.get((found[0], len(found)), ()):
        ids = _ids(found, segments)
        if ids is not None:
            return kind, ids
    return None
