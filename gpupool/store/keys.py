"""The key layout: who writes what, one writer per key (ARCHITECTURE.md). Pure; every key is built and read here.

Names become path segments, file names, cgroup names and command-line arguments on hosts, so they are strict, and a key
that does not parse is a foreign one that the caller ignores.
"""

from __future__ import annotations

import re
from enum import Enum
from functools import lru_cache
from typing import NamedTuple

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

MADE = 4096  # keys that are kept: an agent asks for its own few at each report

_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}")
_UNIT = re.compile(r"[a-z0-9][a-z0-9._:-]{0,62}")
_RULE = "1 to 63 of lowercase letters, digits, '-', '.', '_'{colon}, the first a letter or digit"


class Kind(Enum):
    """What a key holds. The value is its path below ROOT, with a field for each id that `parse` returns, in order."""

    SESSION = "agents/{host}/session"
    GUARD = "agents/{host}/guard"
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

    __hash__ = object.__hash__  # each is one object, and looked up for every key: Enum's own hash is a call in Python


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
    return f"{AGENTS}{check_name(host, 'host')}/session"  # as `_key` makes it, which takes five times as long


def guard(host: str) -> str:
    """What the session's record said last of its guard, unleased. Written by the agent of `host`, with that record."""
    return _key(Kind.GUARD, host=host)


def inventory(host: str) -> str:
    """What `host` has. Written by its agent."""
    return _key(Kind.INVENTORY, host=host)


@lru_cache(MADE)
def vm(host: str, alloc: str) -> str:
    """What the agent of `host` says about the VM of an allocation."""
    return _key(Kind.VM, host=host, alloc=alloc)


@lru_cache(MADE)
def unit(host: str, unit_id: str) -> str:
    """What the agent of `host` says about a device unit."""
    return _key(Kind.UNIT, host=host, unit=unit_id)


def job_spec(job: str) -> str:
    """What the user asked for. Written once, by the API."""
    return f"{JOBS}{check_name(job, 'job')}/spec"


def job_cancel(job: str) -> str:
    """The user's wish that the job ends. Written by the API."""
    return _key(Kind.JOB_CANCEL, job=job)


def job_status(job: str) -> str:
    """What became of the job. Written by the leading scheduler."""
    return f"{JOBS}{check_name(job, 'job')}/status"


def allocation(host: str, alloc: str) -> str:
    """The reservation, and what should run. Written by the leading scheduler."""
    return f"{ALLOCATIONS}{check_name(host, 'host')}/{check_name(alloc, 'alloc')}"


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


_Known = dict[str, str]
_NAMES_KEPT = 100_000
_HOSTS: _Known = {}  # the same names stand in most keys, and are kept once
_UNITS: _Known = {}


class _Name(NamedTuple):
    """What a name in a key must be like; and those that were found good, if they are kept."""

    rule: re.Pattern[str]
    known: _Known | None

    def good(self, text: str) -> str | None:
        """The name, the same object for one that is known; None: it is none."""
        if self.known is None:
            return text if self.rule.fullmatch(text) else None
        found = self.known.get(text)
        if found is None and self.rule.fullmatch(text):
            found = text
            if len(self.known) < _NAMES_KEPT:
                self.known[text] = text
        return found


class _Below(NamedTuple):
    """What may follow a stem, which is a key without its last part: a word that tells kinds apart, or a name."""

    words: dict[str, Kind]
    kind: Kind | None
    name: _Name


_ANY, _UNIT_NAME = _Name(_NAME, None), _Name(_UNIT, _UNITS)
_RULES = {"{host}": _Name(_NAME, _HOSTS), "{unit}": _UNIT_NAME}
_FIELDS: dict[tuple[str, int], dict[int, _Name]] = {}  # the names in a stem, by its first part and how many it has
_STEMS: dict[tuple[str, ...], _Below] = {}  # by its parts, each name as ""
for _kind in Kind:
    *_parts, _last = _kind.value.split("/")
    _names = {n: _RULES.get(part, _ANY) for n, part in enumerate(_parts) if part[0] == "{"}
    assert _FIELDS.setdefault((_parts[0] if _parts else "", len(_parts)), _names).keys() == _names.keys()
    _shape = tuple("" if n in _names else part for n, part in enumerate(_parts))
    _below = _STEMS.setdefault(_shape, _Below({}, None, _ANY))
    if _last[0] == "{":
        assert not _below.words
        _STEMS[_shape] = _Below({}, _kind, _RULES.get(_last, _ANY))
    else:
        assert _below.kind is None
        _below.words[_last] = _kind

_Stem = tuple[_Below, tuple[str, ...]]  # and the names in it
_before: list[tuple[str, _Stem | None]] = [("", None)]  # the stem that was read last: most come several times in a row


def parse(key: str) -> tuple[Kind, tuple[str, ...]] | None:
    """What `key` is and the ids in it, or None for a key that is not ours (or of a later version)."""
    stem, _, last = key.rpartition("/")
    before = _before[0]
    if before[0] != stem:
        before = _before[0] = stem, _stem(stem)
    if (found := before[1]) is None:
        return None
    below, ids = found
    if below.kind is None:
        kind = below.words.get(last)
        return (kind, ids) if kind is not None else None
    name = below.name.good(last)
    return (below.kind, (*ids, name)) if name is not None else None


def _stem(stem: str) -> _Stem | None:
    if not f"{stem}/".startswith(ROOT):
        return None
    parts = stem[len(ROOT) :].split("/") if len(stem) >= len(ROOT) else []
    ids = []
    for n, name in _FIELDS.get((parts[0] if parts else "", len(parts)), {}).items():
        found = name.good(parts[n])
        if found is None:
            return None
        ids.append(found)
        parts[n] = ""
    below = _STEMS.get(tuple(parts))
    return (below, tuple(ids)) if below is not None else None
