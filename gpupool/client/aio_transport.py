"""Sends calls over grpc.aio: repeats, fails over and resumes as `policy` says. Knows no method of the API by name,
but for the cheap read that finds a living replica.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from types import TracebackType
from typing import Self, TypeVar

import grpc
import grpc.aio
import tenacity

from gpupool.errors import DeadlineExceeded, GpupoolError, Unreachable
from gpupool.v1 import scheduler_pb2, scheduler_pb2_grpc

from .policy import Deadline, Policy, Resumption, error_of
from .replicas import OPTIONS, Replica, Replicas
from .requests import as_batch
from .streams import Resumable

Q = TypeVar("Q")
R = TypeVar("R")


class Stubs:
    """Both services on one channel."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self.jobs = scheduler_pb2_grpc.JobServiceStub(channel)
        self.operations = scheduler_pb2_grpc.OperationsServiceStub(channel)


Unary = Callable[[Stubs], grpc.aio.UnaryUnaryMultiCallable[Q, R]]
Streaming = Callable[[Stubs], grpc.aio.UnaryStreamMultiCallable[Q, R]]
Here = Replica[grpc.aio.Channel, Stubs]


class AsyncTransport:
    """See the module docstring. Use it within one event loop; `async with` closes it."""

    def __init__(
        self,
        address: str,
        *,
        timeout_s: float = 10.0,
        retry_s: float | None = None,
        patience_s: float = 60.0,
        credentials: grpc.ChannelCredentials | None = None,
    ) -> None:
        def channel(target: str) -> grpc.aio.Channel:
            if credentials is None:
                return grpc.aio.insecure_channel(target, options=OPTIONS)
            return grpc.aio.secure_channel(target, credentials, options=OPTIONS)

        self._policy = Policy(timeout_s, timeout_s if retry_s is None else retry_s, patience_s)
        self._replicas = Replicas(address, channel, Stubs)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close all connections; calls under way end with Unreachable."""
        for channel in self._replicas.take_channels():
            await channel.close()

    def _failed(self, error: grpc.RpcError, replica: Here) -> GpupoolError:
        told = error_of(error, replica.address)
        if isinstance(told, Unreachable | DeadlineExceeded):
            self._replicas.failed(replica)
        return told

    async def _attempt(self, method: Unary[Q, R], request: Q, deadline: Deadline, *, only: bool = False) -> R:
        replica = self._replicas.current
        left_s = deadline.left_s() or 0.0
        timeout_s = left_s if only else self._policy.attempt_s(left_s, len(self._replicas))
        try:
            return await method(replica.stubs)(request, timeout=timeout_s)
        except grpc.RpcError as error:
            raise self._failed(error, replica) from error

    async def _call(self, method: Unary[Q, R], request: Q) -> R:
        """A call that is safe to repeat."""
        deadline = Deadline(self._policy.timeout_s)
        retrying = tenacity.AsyncRetrying(**self._policy.retrying(len(self._replicas)))
        return await retrying(self._attempt, method, request, deadline)

    async def _call_once(self, method: Unary[Q, R], request: Q, timeout_s: float | None = None) -> R:
        """A call that is sent at most once; among several replicas a living one is found first, by asking.

        `timeout_s` is for the call itself, where it takes longer than others.
        """
        if len(self._replicas) > 1:
            await self._call(lambda stubs: stubs.operations.GetCluster, scheduler_pb2.GetClusterRequest())
        return await self._attempt(method, request, Deadline(timeout_s or self._policy.timeout_s), only=True)

    async def _submit_batch(self, batch: list[scheduler_pb2.SubmitRequest]) -> list[scheduler_pb2.SubmitResult]:
        """All answers to `batch`, in order. After a break only what is unanswered is sent again."""
        results: list[scheduler_pb2.SubmitResult] = []
        deadline = Deadline(self._policy.timeout_s)

        async def attempt() -> None:
            replica = self._replicas.current
            while len(results) < len(batch):
                request = as_batch(batch[len(results) :])
                wanted = len(results) + len(request.requests)
                try:
                    async for part in replica.stubs.jobs.SubmitBatch(request, timeout=deadline.left_s()):
                        results.extend(part.results)  # what came before a break counts
                except grpc.RpcError as error:
                    raise self._failed(error, replica) from error
                if len(results) < wanted:
                    raise Unreachable(f"the scheduler at {replica.address} ended the stream before its last answer")

        await tenacity.AsyncRetrying(**self._policy.retrying(len(self._replicas)))(attempt)
        return results

    async def _stream(
        self, method: Streaming[Q, R], stream: Resumable[Q, R], deadline: Deadline
    ) -> AsyncGenerator[R, None]:
        """The new items of `stream`, opened again when it breaks."""
        resumption = Resumption(self._policy, deadline)
        while True:
            replica = self._replicas.current
            resumption.opened()
            call = method(replica.stubs)(stream.request(), timeout=deadline.left_s())
            try:
                async for item in call:
                    resumption.heard()
                    if (new := stream.fresh(item)) is not None:
                        yield new
                if not stream.endless:
                    return
                broken: GpupoolError = Unreachable(f"the scheduler at {replica.address} ended the stream")
            except grpc.RpcError as error:
                broken = self._failed(error, replica)
            finally:
                call.cancel()  # also when the caller stops listening
            await asyncio.sleep(resumption.broke(broken))
