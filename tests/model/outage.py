"""Three etcd members, one lease, one agent: can the lease end while the agent lets its VM live?

An explicit-state model of what docs/failover.md argues. Every interleaving of these steps is explored, breadth first,
with messages lost at will (a step need not happen) and no bound on any election timeout (they elapse at will):

- a member times out: with pre-vote it first knows no leader in the *same* term; it stands, gets votes, begins to lead;
- a leader reaches a member: that one follows it, again perhaps, and the leader, now with a majority, does what it may:
  give leases their full TTL if it has just begun to lead, handle a renewal, or end a lease that its clock says expired;
- a leader steps down (check-quorum); members freeze and thaw, crash and restart, or are stopped, when they refuse
  clients while they still lead;
- a tick: a second for all clocks, those of frozen members too;
- the agent sends a renewal, gets its answer late or never, begins a poll, asks each member once, moves its deadline.

A VM lives while the deadline is ahead; the lease that ends meanwhile is the double run, since a scheduler may then
start another. Entries of the log are left out: with three members, the leader and one more decide at once.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

UP, FROZEN, STOPPING, DOWN = range(4)
FOLLOWER, PRE, CANDIDATE, LEADER = range(4)
NOBODY = 3
ALL = 0b111
_NO_POLL = -1


class Member(NamedTuple):
    """`vote` and `lead` are members or NOBODY; `votes` has a bit for each; `left` of the lease, -1: not primary."""

    status: int = UP
    role: int = FOLLOWER
    term: int = 1
    vote: int = 0
    lead: int = 0
    votes: int = 0
    left: int = -1


class State(NamedTuple):
    """`deadline` of the VM in seconds from now. `sent`: age of the renewal under way, -1 none; `acked`: it was handled.

    `asked`: the poll's age, -1 none; `proven`: a bit for each member that it accounts for. `ended`: the lease is gone.
    """

    members: tuple[Member, Member, Member]
    deadline: int
    sent: int = -1
    acked: bool = False
    asked: int = _NO_POLL
    proven: int = 0
    faults: int = 0
    ended: bool = False


@dataclass(frozen=True, slots=True)
class Rules:
    """The protocol, as it is by default; each field that differs weakens it."""

    ttl_s: int = 3
    pre_vote: bool = True
    terms: int = 2
    faults: int = 2
    majority: bool = False  # a majority that knows no leader is enough, less one election timeout (a second)
    silence: bool = False  # who does not answer does not lead
    client_port: bool = False  # who refuses clients does not run
    too_late: bool = False  # a deadline that has passed may be moved
    from_answer: bool = False  # a renewal counts from its answer
    renewals: bool = True  # the agent renews; without, it is as if all its renewals were lost
    polls: bool = True  # the agent polls


def start(rules: Rules) -> State:
    """Member 0 leads, and has just handled a renewal."""
    leader = Member(role=LEADER, left=rules.ttl_s)
    return State((leader, Member(), Member()), deadline=rules.ttl_s)


def explore(rules: Rules, limit: int = 5_000_000) -> tuple[int, list[State]]:
    """How many states there are, and the shortest way to a double run; empty: there is none."""
    first = start(rules)
    came: dict[State, State | None] = {first: None}
    frontier = [first]
    while frontier:
        found: list[State] = []
        for state in frontier:
            for following in steps(state, rules):
                after = _canonical(following)
                if after in came:
                    continue
                came[after] = state
                if after.ended and after.deadline > 0:
                    return len(came), _way(came, after)
                found.append(after)
        assert len(came) < limit, "the model is too large"
        frontier = found
    return len(came), []


def steps(state: State, rules: Rules) -> Iterator[State]:
    """All that may happen next."""
    if state.deadline <= 0 and not (rules.too_late and state.asked != _NO_POLL):
        return  # the VM is dead, and nothing will let it live
    yield _tick(state, rules)
    for me in range(3):
        yield from _alone(state, me, rules)
        for other in range(3):
            if other != me:
                yield from _between(state, me, other, rules)
    yield from _agent(state, rules)


def _tick(state: State, rules: Rules) -> State:
    a, b, c = (m._replace(left=m.left - 1) if m.left > 0 else m for m in state.members)
    deadline = max(state.deadline - 1, 0)
    sent = state.sent + 1 if 0 <= state.sent < rules.ttl_s else -1
    asked = state.asked + 1 if 0 <= state.asked < rules.ttl_s else _NO_POLL  # too old to be of use
    return state._replace(
        members=(a, b, c),
        deadline=deadline,
        sent=sent,
        acked=state.acked and sent >= 0,
        asked=asked,
        proven=state.proven if asked >= 0 else 0,
    )


def _put(state: State, me: int, member: Member) -> State:
    members = list(state.members)
    members[me] = member
    return state._replace(members=(members[0], members[1], members[2]))


def _runs(member: Member) -> bool:
    return member.status in (UP, STOPPING)


def _alone(state: State, me: int, rules: Rules) -> Iterator[State]:
    """What befalls one member, or what it does by itself."""
    m = state.members[me]
    follower = m._replace(role=FOLLOWER, lead=NOBODY, votes=0, left=-1)
    if _runs(m):
        if m.role == LEADER:
            yield _put(state, me, follower)  # check-quorum
        elif m.role == FOLLOWER and rules.pre_vote:
            yield _put(state, me, m._replace(role=PRE, lead=NOBODY, votes=0))
        if m.role != LEADER and (m.role != FOLLOWER or not rules.pre_vote) and m.term < rules.terms:
            yield _put(state, me, Member(m.status, CANDIDATE, m.term + 1, me, NOBODY, 1 << me))
        if m.role == CANDIDATE and m.votes.bit_count() >= 2:
            yield _put(state, me, m._replace(role=LEADER, lead=me, votes=0))
    if m.status == FROZEN:
        yield _put(state, me, m._replace(status=UP))
    if m.status in (DOWN, STOPPING):
        yield _put(state, me, follower._replace(status=UP if m.status == DOWN else DOWN))
    if m.status == UP and state.faults < rules.faults:
        worse = state._replace(faults=state.faults + 1)
        yield _put(worse, me, m._replace(status=FROZEN))
        yield _put(worse, me, m._replace(status=STOPPING))
        yield _put(worse, me, follower._replace(status=DOWN))


def _between(state: State, me: int, other: int, rules: Rules) -> Iterator[State]:
    """What `me` gets from `other`: a vote, or, as a leader, its following."""
    m, o = state.members[me], state.members[other]
    if not (_runs(m) and _runs(o)):
        return
    if m.role == CANDIDATE and not m.votes >> other & 1:
        if o.term < m.term or (o.term == m.term and o.vote == me and o.role != LEADER):
            voted = Member(o.status, FOLLOWER, m.term, me, NOBODY)
            yield _put(_put(state, other, voted), me, m._replace(votes=m.votes | 1 << other))
    elif m.role == LEADER and o.term > m.term:
        yield _put(state, me, Member(m.status, FOLLOWER, o.term, NOBODY, NOBODY))
    elif m.role == LEADER:
        vote = o.vote if o.term == m.term else NOBODY
        state = _put(state, other, Member(o.status, FOLLOWER, m.term, vote, me))
        if m.left < 0:
            yield _put(state, me, m._replace(left=rules.ttl_s))
            return
        yield state
        if m.left == 0:
            yield state._replace(ended=True)
        elif state.sent >= 0 and not state.acked:
            yield _put(state, me, m._replace(left=rules.ttl_s))._replace(acked=True)


def _agent(state: State, rules: Rules) -> Iterator[State]:
    if state.sent < 0 and rules.renewals:
        yield state._replace(sent=0)
    elif state.acked:
        age = 0 if rules.from_answer else state.sent
        yield state._replace(deadline=max(state.deadline, rules.ttl_s - age), sent=-1, acked=False)
    if not rules.polls:
        return
    if state.asked == _NO_POLL:
        yield state._replace(asked=0, proven=0)
        return
    for me, member in enumerate(state.members):
        if not state.proven >> me & 1 and _accounted(member, rules):
            yield _concluded(state._replace(proven=state.proven | 1 << me), rules)


def _accounted(member: Member, rules: Rules) -> bool:
    """Whether the answer, or what stands for one, says that this member leads nobody and follows nobody."""
    if member.status == UP and member.lead == NOBODY:
        return True
    if rules.majority:
        return False  # it goes by those who answer
    return (
        member.status == DOWN
        or (rules.client_port and member.status == STOPPING)
        or (rules.silence and member.status == FROZEN)
    )


def _concluded(state: State, rules: Rules) -> State:
    """What the agent makes of the answers so far."""
    enough = state.proven.bit_count() >= 2 if rules.majority else state.proven == ALL
    if not enough:
        return state
    until = rules.ttl_s - state.asked - (1 if rules.majority else 0)
    if state.deadline > 0 or rules.too_late:
        state = state._replace(deadline=max(state.deadline, until))
    return state._replace(asked=_NO_POLL, proven=0)


def _canonical(state: State) -> State:
    """The same with members 1 and 2 in a fixed order: they began alike."""
    a, b, c = state.members
    swapped = (_renamed(a), _renamed(c), _renamed(b))
    if swapped >= (a, b, c):
        return state
    return state._replace(members=swapped, proven=_swap_bits(state.proven))


_SWAP = (0, 2, 1, NOBODY)


def _renamed(m: Member) -> Member:
    return m._replace(vote=_SWAP[m.vote], lead=_SWAP[m.lead], votes=_swap_bits(m.votes))


def _swap_bits(bits: int) -> int:
    return bits & 1 | (bits & 2) << 1 | (bits & 4) >> 1


def _way(came: dict[State, State | None], last: State | None) -> list[State]:
    way = []
    while last is not None:
        way.append(last)
        last = came[last]
    return way[::-1]
