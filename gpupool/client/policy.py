"""When a request is repeated, and when a broken stream is resumed: shared by both clients. It sends nothing itself.

Repeated are reads and what is idempotent by contract: a submission carries a key, cancel and cordon state a wish. Not
repeated is what could mean something else the second time: "this host is dead" may speak of another session by then.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import grpc
import tenacity

from gpupool.errors import (
    ANSWERED,
    CANCELLED,
    UNAVAILABLE,
    DeadlineExceeded,
    GpupoolError,
    NotNow,
    Unreachable,
    from_status,
)

FIRST_PAUSE_S = 0.1
LONGEST_PAUSE_S = 2.0
# A stream that stood this long was a working one, even if it had nothing to say; to connect takes at most
# 2 s (replicas.py).
HEALTHY_S = 5.0

Clock = Callable[[], float]


@dataclass(frozen=True, slots=True)
class Policy:
    """`timeout_s` bounds a call with all its repetitions, `retry_s` how long repetitions are begun, and `patience_s`
    how long a stream that worked may stay broken.
    """

    timeout_s: float
    retry_s: float
    patience_s: float

    def attempt_s(self, left_s: float, replicas: int) -> float:
        """The time that one attempt may take: with several replicas a silent one must not use up the whole call."""
        return left_s if replicas == 1 else max(0.05, min(left_s, self.timeout_s / replicas))

    def retrying(self, replicas: int) -> dict[str, Any]:
        """Arguments of tenacity's Retrying and AsyncRetrying for a call that is safe to repeat: every replica is asked
        at least once, time allowing.
        """
        tired = tenacity.stop_all(tenacity.stop_after_attempt(replicas), tenacity.stop_before_delay(self.retry_s))
        return {
            "retry": tenacity.retry_if_exception_type((Unreachable, DeadlineExceeded)),
            "stop": tenacity.stop_any(tenacity.stop_before_delay(self.timeout_s), tired),
            "wait": tenacity.wait_exponential(multiplier=FIRST_PAUSE_S, max=LONGEST_PAUSE_S)
            + tenacity.wait_random(0, FIRST_PAUSE_S),
            "reraise": True,
        }


class Deadline:
    """A point in time that may be far away: `Deadline(None)` never comes."""

    def __init__(self, timeout_s: float | None, clock: Clock = time.monotonic) -> None:
        self._clock = clock
        self._at = None if timeout_s is None else clock() + timeout_s

    def left_s(self) -> float | None:
        """Seconds until then, 0 once it has passed; None: never."""
        return None if self._at is None else max(0.0, self._at - self._clock())

    def passed(self) -> bool:
        """Whether it has come."""
        return self.left_s() == 0.0


class Resumption:
    """Decides for one stream, each time that it breaks, whether it is opened again and after which pause."""

    def __init__(self, policy: Policy, deadline: Deadline, clock: Clock = time.monotonic) -> None:
        self._policy = policy
        self._deadline = deadline
        self._clock = clock
        self._opened = clock()
        self._spoke = False  # the stream that stands now said something
        self._worked = False  # some stream did
        self._down: float | None = None  # since when none has worked
        self._pause_s = FIRST_PAUSE_S

    def opened(self) -> None:
        """The request goes out."""
        self._opened, self._spoke = self._clock(), False

    def heard(self) -> None:
        """The server said something."""
        self._spoke = True

    def broke(self, error: GpupoolError) -> float:
        """Seconds to wait before the stream is opened again. Raises `error` when it must not, or no longer, be."""
        if self._deadline.passed():
            raise DeadlineExceeded("the time allowed for this is over") from error
        if not isinstance(error, Unreachable | DeadlineExceeded):
            raise error
        now = self._clock()
        if self._spoke or now - self._opened >= HEALTHY_S:
            self._worked, self._down, self._pause_s = True, None, FIRST_PAUSE_S
        self._down = now if self._down is None else self._down
        if now - self._down > (self._policy.patience_s if self._worked else self._policy.retry_s):
            raise error
        pause_s, self._pause_s = self._pause_s, min(LONGEST_PAUSE_S, self._pause_s * 2)
        left_s = self._deadline.left_s()
        jittered = pause_s * random.uniform(0.5, 1.0)  # noqa: S311  (spreads clients out, hides nothing)
        return jittered if left_s is None else min(jittered, left_s)


def error_of(error: grpc.RpcError, address: str) -> GpupoolError:
    """What a failed call to `address` means; the message names the address when nobody answered there."""
    call = cast("grpc.Call", error)
    code, details = call.code().value[0], call.details() or ""
    if code == UNAVAILABLE and ANSWERED in tuple(call.trailing_metadata() or ()):  # grpc.aio's own type looks at keys
        return NotNow(" ".join(details.split()))
    if code in {UNAVAILABLE, CANCELLED}:
        # gRPC says "failed to connect to all addresses; last error: UNKNOWN: ipv4:...: Failed to connect to remote
        # host: Connection refused"; the last words are those that help.
        reason = details.rpartition("remote host: ")[2].rpartition("last error: ")[2]
        return Unreachable(f"cannot reach the scheduler at {address}: {' '.join(reason.split()) or 'no reason given'}")
    if code == grpc.StatusCode.DEADLINE_EXCEEDED.value[0]:
        return DeadlineExceeded(f"the scheduler at {address} did not answer in time")
    return from_status(code, details)
