"""What can go wrong, as types: each says whose fault it is, whether to ask again, and with which code a CLI ends.

The library raises nothing else for a failed request. `str(error)` is one line for people, except InvalidSpec, which has
one line for each fault.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import ClassVar

ANSWERED = ("gpupool-answered", "1")
"""Trailing metadata of a failure that the scheduler itself reports: gRPC has no code of its own for no connection."""

# The gRPC status codes, by number, so that naming an error does not import grpc:
# https://grpc.github.io/grpc/core/md_doc_statuscodes.html
CANCELLED, INVALID_ARGUMENT, DEADLINE_EXCEEDED, NOT_FOUND, ALREADY_EXISTS = 1, 3, 4, 5, 6
FAILED_PRECONDITION, ABORTED, OUT_OF_RANGE, UNIMPLEMENTED, INTERNAL, UNAVAILABLE = 9, 10, 11, 12, 13, 14


class GpupoolError(Exception):
    """A request failed. `exit_code` is what the command line ends with."""

    exit_code: ClassVar[int] = 1


class InvalidSpec(GpupoolError):
    """The request, most often its job spec, is wrong and stays wrong: `violations` has one line for each fault."""

    exit_code = 2

    def __init__(self, violations: Iterable[str]) -> None:
        self.violations = tuple(violations)
        super().__init__("\n".join(self.violations))


class NotFound(GpupoolError):
    """No job, host or unit has this name."""

    exit_code = 3


class Unreachable(GpupoolError):
    """No replica of the scheduler answered. A request may or may not have been carried out; ask again later."""

    exit_code = 4


class NotNow(Unreachable):
    """The scheduler answered that it cannot do this now, such as while its store is down; ask again later."""


class Conflict(GpupoolError):
    """The request contradicts what is: the idempotency key belongs to another spec, or the state does not allow it."""

    exit_code = 5


class DeadlineExceeded(GpupoolError):
    """The answer did not come in time. The request may or may not have been carried out."""

    exit_code = 124


class Refused(GpupoolError):
    """The scheduler will not do this: not permitted, beyond a limit, or unknown to its version."""


class ServerFault(GpupoolError):
    """The scheduler failed while it answered; its log says why."""


_BY_CODE: dict[int, type[GpupoolError]] = {
    CANCELLED: Unreachable,  # a replica that shuts down cancels its calls
    DEADLINE_EXCEEDED: DeadlineExceeded,
    NOT_FOUND: NotFound,
    ALREADY_EXISTS: Conflict,
    FAILED_PRECONDITION: Conflict,
    ABORTED: Conflict,
    UNAVAILABLE: Unreachable,
    2: ServerFault,  # UNKNOWN
    INTERNAL: ServerFault,
    15: ServerFault,  # DATA_LOSS
}


def from_status(code: int, message: str) -> GpupoolError:
    """The error for a gRPC status code and its message, as calls and `Refusal`s carry them; unknown codes: Refused."""
    if code in {INVALID_ARGUMENT, OUT_OF_RANGE}:
        return InvalidSpec(line for line in message.splitlines() if line.strip())
    if code == UNIMPLEMENTED:
        message = f"the scheduler does not know this call; is it older than this client? ({message})"
    text = " ".join(message.split()) or f"gRPC status {code} without a message"
    return _BY_CODE.get(code, Refused)(text)
