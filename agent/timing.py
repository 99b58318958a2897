"""Who an agent is, the times of its session, and when a session that stands in its way may be replaced. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from gpupool.v1 import records_pb2


class TimingError(ValueError):
    """The timing cannot keep the promise that VMs are dead before the session is gone."""


@dataclass(frozen=True, slots=True)
class Timing:
    """The session's times in seconds. Raises TimingError with the sum that does not come out.

    Two renewals must fit between an acknowledged one and the kill, so that one lost renewal kills nothing. The kill
    margin covers the guard's look (0.05 s), the kill itself and the drift of clocks over one TTL; a VM is started only
    while `start_margin_s` is left before the kill.

    A hardware watchdog of `watchdog_s` (0: none) is petted only while it would fire `reset_margin_s` before the lease
    can end, so an acknowledgement that takes a whole renewal's time must still leave room for that. The margin covers
    the reset itself, the device's rounding and the drift of its clock.
    """

    ttl_s: int = 8
    renew_s: float = 2.0
    kill_margin_s: float = 2.0
    start_margin_s: float = 1.0
    watchdog_s: int = 0

    def __post_init__(self) -> None:
        if self.ttl_s < MIN_TTL_S:
            raise TimingError(f"ttl_s >= {MIN_TTL_S} is needed, as etcd grants no shorter leases: {self.ttl_s}")
        if not (self.renew_s > 0 and self.kill_margin_s >= 1 and self.start_margin_s >= 0):  # nan is none of it
            raise TimingError(f"renew_s > 0, kill_margin_s >= 1 and start_margin_s >= 0 are needed: {self}")
        self._fit("2 * renew_s + kill_margin_s", 2 * self.renew_s, self.kill_margin_s)
        self._fit("renew_s + kill_margin_s + start_margin_s", self.renew_s, self.kill_margin_s, self.start_margin_s)
        if self.watchdog_s:
            if self.watchdog_s < MIN_WATCHDOG_S:
                raise TimingError(f"watchdog_s >= {MIN_WATCHDOG_S} is needed, to replace a guard in: {self.watchdog_s}")
            parts = (self.renew_s, self.watchdog_s, self.reset_margin_s)
            self._fit("renew_s + watchdog_s + kill_margin_s / 4", *parts)

    @property
    def reset_margin_s(self) -> float:
        """A hardware watchdog fires this long before the lease can end."""
        return self.kill_margin_s / 4

    @property
    def guard_patience_s(self) -> float:
        """For how long a guard that lives may show no life before it is killed for another.

        A guard that is only slow keeps its promise while it is late by less than the kill margin. Half of that is left
        for the one that takes its place, and of a watchdog's timeout, in which that one has to pet, two thirds.
        """
        return max(1.0, min(self.kill_margin_s / 2, self.watchdog_s / 3 if self.watchdog_s else self.kill_margin_s))

    def allows_watchdog(self, timeout_s: float) -> bool:
        """Whether a watchdog of that timeout (0: none) can be petted in time."""
        return 0 < timeout_s <= self.ttl_s - self.renew_s - self.reset_margin_s

    def _fit(self, formula: str, *parts: float) -> None:
        if sum(parts) > self.ttl_s:
            terms = " + ".join(f"{part:g}" for part in parts)
            raise TimingError(f"{formula} <= ttl_s is needed, but {terms} = {sum(parts):g} > {self.ttl_s}")


MIN_TTL_S = 2  # etcd's is 1.5 election timeouts of 1 s; it grants more where it must, and says so
MIN_WATCHDOG_S = 3  # seeing that a guard died, and starting another that pets, takes up to 2 s

PROFILES: Mapping[str, Timing] = {
    "fast": Timing(ttl_s=5, renew_s=1.0, kill_margin_s=1.5, start_margin_s=0.5, watchdog_s=3),
    "default": Timing(watchdog_s=4),
    "patient": Timing(ttl_s=60, renew_s=10.0, kill_margin_s=5.0, start_margin_s=5.0, watchdog_s=30),
}
"""See docs/failover.md for what each costs."""


def timing_of(profile: str, *, watchdog: bool, **explicit: float | None) -> Timing:
    """The profile's times, with those that are given explicitly in their place. Raises TimingError.

    `watchdog` says whether there is one: its timeout is that of the profile or of what was given, and 0 without.
    """
    given = {name: value for name, value in explicit.items() if value is not None}
    if not watchdog:
        given["watchdog_s"] = 0
    return replace(PROFILES[profile], **given)  # type: ignore[arg-type]


@dataclass(frozen=True, slots=True)
class Limits:
    """How long and how much at once."""

    start_timeout_s: float = 180.0
    starts_at_once: int = 4
    audit_s: float = 10.0
    health_s: float = 10.0  # between two looks at the devices that VMs have


@dataclass(frozen=True, slots=True)
class Identity:
    """Who this agent is. `address` is host:port of its gRPC service, as others reach it."""

    host: str
    boot_id: str
    address: str
    version: str
    simulated: bool = False
    machine: str = ""  # machine.py; "": unknown

    def __str__(self) -> str:
        return f"{self.address} (boot {self.boot_id})"


UNKNOWN = "(unknown, or its agent is of an older version)"


def why_not_replace(old: records_pb2.Session, me: Identity, *, had_session: bool) -> str:
    """Why `me` must wait until the session that stands under its name expires; empty: it is my own machine's last boot.

    A reboot faster than the TTL leaves a session of another boot at the same address, and all VMs of it died with that
    boot. But another machine may have been given the same name, and replacing its live session would kill its jobs. So
    the machines' ids must be equal, of which two unknown ones are, for agents of before there were ids. Beside that,
    so an address that says nothing about the machine is not believed (simulated hosts share one machine), and an
    agent that lost its own session to somebody never takes it back, or the two would fight for ever.
    """
    if old.boot_id == me.boot_id:
        return "it is of this very boot: another agent runs here, or this one lost its state directory"
    if old.machine != me.machine:
        return (
            f"it is of machine {old.machine or UNKNOWN}, and this is machine {me.machine or UNKNOWN}: two agents must "
            "not have one name"
        )
    machine, mine = (address.rpartition(":")[0] for address in (old.address, me.address))
    if machine != mine:
        return "it is another machine: two agents must not have one name"
    if machine in ("localhost", "127.0.0.1", "[::1]", "0.0.0.0", "[::]", "") and not me.simulated:  # noqa: S104
        return "a loopback address does not tell machines apart; set --advertise"
    if had_session:
        return "this agent held the session in this boot and lost it to the other: two agents must not have one name"
    return ""


def why_keep_lease(timing: Timing, ttl_s: int, watchdog_s: float) -> str:
    """Why a session that is resumed on a lease of `ttl_s` keeps it although `timing` has another; empty: it does not.

    A guard that runs keeps its watchdog's timeout; 0: it has none armed, or one that is software and not told of. With
    a lease too short to pet that in time, the machine would be reset, and all its VMs with it.
    """
    if timing.ttl_s >= ttl_s:
        return ""
    if watchdog_s:
        fits = timing.allows_watchdog(watchdog_s)
        return "" if fits else f"the watchdog of {watchdog_s:g} s that is armed cannot be petted within a shorter one"
    return "a watchdog may be armed that cannot be petted within a shorter one" if timing.watchdog_s else ""
