"""Having a host's agent judge its host anew, for `gpupool doctor` from afar."""

from __future__ import annotations

from typing import Protocol

import grpc

from gpupool.store.keys import Kind
from gpupool.v1 import agent_pb2, agent_pb2_grpc, records_pb2, scheduler_pb2

from ..mirror.mirror import Mirror
from .intents import ApiError
from .operations_api import OperationsApi

DOCTOR_S = 30.0  # a check waits for libvirt, or for a device that does not answer
_SILENT = frozenset((grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.CANCELLED))


class DoctorDialer(Protocol):
    """Asks the agent at an address for its judgement."""

    async def __call__(self, address: str, timeout_s: float) -> scheduler_pb2.DoctorReport:
        """The report. grpc.aio.AioRpcError if there is none."""
        ...


async def dial(address: str, timeout_s: float) -> scheduler_pb2.DoctorReport:
    """The real one, over gRPC."""
    async with grpc.aio.insecure_channel(address) as channel:
        stub = agent_pb2_grpc.AgentServiceStub(channel)
        return await stub.Doctor(agent_pb2.AgentDoctorRequest(), timeout=timeout_s)


async def doctor(
    operations: OperationsApi, mirror: Mirror, host: str, dialer: DoctorDialer = dial
) -> scheduler_pb2.DoctorReport:
    """What the host's agent finds now. ApiError NOT_FOUND, or UNAVAILABLE with what to do where nobody answers."""
    operations.host(host)
    session = mirror.get(Kind.SESSION, records_pb2.Session, host)
    if session is None:
        raise ApiError(
            grpc.StatusCode.UNAVAILABLE,
            f"host {host} has no session now, so nobody there can be asked; run `gpupool doctor` on the host itself. "
            f"What its agent found last: `gpupool hosts {host}`",
        )
    try:
        return await dialer(session.address, DOCTOR_S)
    except grpc.aio.AioRpcError as exc:
        where = f"the agent of {host} at {session.address}"
        if exc.code() not in _SILENT:
            raise ApiError(exc.code(), f"{where} says: {exc.details()}") from None
        raise ApiError(
            grpc.StatusCode.UNAVAILABLE,
            f"{where} does not answer ({exc.details()}); see that this replica reaches that address, or run `gpupool "
            "doctor` on the host itself",
        ) from None
