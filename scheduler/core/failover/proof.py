"""What the end of a session's lease proves, before and after it has ended: no more than its guard can do.

It must never take a guard for enough that `fence.py` would not: it is what `fence.py` goes by.
"""

from __future__ import annotations

from ..state.facts import GuardKind
from ..state.losses import Evidence
from ..state.policy import Policy


def lease_proves(guard: GuardKind, *, simulated: bool, powered: bool, policy: Policy) -> tuple[Evidence, str] | None:
    """The evidence that the lease's end is, and its wording; None: it is none. `powered`: it has a fence device."""
    seen = "the lease ran out, and the session last declared"
    if guard is GuardKind.HARDWARE:
        return Evidence.LEASE_EXPIRED_WATCHDOG, f"{seen} a guard behind an armed hardware watchdog"
    if guard is not GuardKind.SOFT:
        return None
    if policy.soft_guard_is_enough:
        return Evidence.LEASE_EXPIRED_GUARDED, f"{seen} a soft guard, which the site takes for enough"
    if simulated and not powered:
        return Evidence.LEASE_EXPIRED_GUARDED, f"{seen} a soft guard, which is enough for a simulated host"
    return None


def why_unprovable(
    host: str, guard: GuardKind, policy: Policy, *, simulated: bool, unguarded: str = "", not_its_own: str = ""
) -> str:
    """Why nobody but the host itself or a person could prove its VMs dead, if it were lost now; "": its lease's end or
    a fence device could. `unguarded`: why its session declares no guard; `not_its_own`: why its fence device proves
    nothing of it.
    """
    powered = host in policy.powered
    useful = powered and not not_its_own
    if useful or lease_proves(guard, simulated=simulated, powered=powered, policy=policy) is not None:
        return ""
    what = "a soft guard only" if guard is GuardKind.SOFT else f"no guard ({unguarded})" if unguarded else "no guard"
    return f"{what}, and {not_its_own or 'no fence device'}"
