"""The agent's gRPC service: what it knows, and the guests' output. It changes nothing."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import grpc

from gpupool.v1 import agent_pb2, agent_pb2_grpc, scheduler_pb2
from gpupool.v1.inventory_pb2 import Inventory
from gpupool.v1.scheduler_pb2 import DoctorReport

from .agent import Agent
from .work.logs import LogStore
from .work.tables import VmIs


class AgentService(agent_pb2_grpc.AgentServiceServicer):
    """Implements AgentService (proto/gpupool/v1/agent.proto)."""

    def __init__(self, logs: LogStore, doctor: Callable[[Inventory], Awaitable[DoctorReport]]) -> None:
        self._logs = logs
        self._doctor = doctor
        self.agent: Agent | None = None  # the port is opened first, since the session's record names it

    async def Describe(
        self,
        request: agent_pb2.DescribeRequest,  # noqa: ARG002
        context: grpc.aio.ServicerContext[Any, Any],
    ) -> agent_pb2.Description:
        """See the contract. UNAVAILABLE while the agent starts."""
        if self.agent is None:
            await context.abort(grpc.StatusCode.UNAVAILABLE, "the agent is starting")
        assert self.agent is not None
        return self.agent.describe()

    async def Doctor(
        self,
        request: agent_pb2.AgentDoctorRequest,  # noqa: ARG002
        context: grpc.aio.ServicerContext[Any, Any],
    ) -> DoctorReport:
        """See the contract. UNAVAILABLE while the agent starts."""
        if self.agent is None:
            await context.abort(grpc.StatusCode.UNAVAILABLE, "the agent is starting")
        assert self.agent is not None
        return await self._doctor(self.agent.inventory)

    async def Logs(
        self, request: agent_pb2.AgentLogsRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> AsyncIterator[scheduler_pb2.LogChunk]:
        """See the contract. NOT_FOUND for an allocation that this agent never ran, or keeps no output of."""
        name = request.allocation
        record = self.agent.ledger.vms.get(name) if self.agent else None
        if record is not None and record.state != VmIs.ENDED:
            self._logs.expect(name)
        attempt = name.rpartition(".")[2]
        try:
            async for lines in self._logs.read(name, follow=request.follow, tail=request.tail_lines):
                yield scheduler_pb2.LogChunk(
                    attempt=int(attempt) if attempt.isdecimal() else 0,
                    lines=[scheduler_pb2.LogLine(at_s=at_s, stream=stream, text=text) for at_s, stream, text in lines],
                )
        except FileNotFoundError:
            await context.abort(grpc.StatusCode.NOT_FOUND, f"this host has no output of allocation {name!r}")


async def serve(listen: str, service: AgentService) -> tuple[grpc.aio.Server, int]:
    """Open the port (0: any free one); returns the server and its port. Raises OSError if it cannot be had."""
    server = grpc.aio.server()
    agent_pb2_grpc.add_AgentServiceServicer_to_server(service, server)
    try:
        port = server.add_insecure_port(listen)
    except RuntimeError as exc:
        raise OSError(f"cannot listen on {listen}: {exc}") from exc
    await server.start()
    return server, port
