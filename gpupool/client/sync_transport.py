"""The twin of `aio_transport` for programs without an event loop; it differs in nothing but `await`."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator
from types import TracebackType
from typing import Self, TypeVar

import grpc
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

    def __init__(self, channel: grpc.Channel) -> None:
        self.jobs = scheduler_pb2_grpc.JobServiceStub(channel)
        self.operations = scheduler_pb2_grpc.OperationsServiceStub(channel)


Unary = Callable[[Stubs], "grpc.UnaryUnaryMultiCallable[Q, R]"]  # text: only in the type stubs is it generic
Streaming = Callable[[Stubs], "grpc.UnaryStreamMultiCallable[Q, R]"]
Here = Replica[grpc.Channel, Stubs]


class SyncTransport:
    """See the module docstring. Threads may share it; `with` closes it."""

    def __init__(
        self,
        address: str,
        *,
        timeout_s: float = 10.0,
        retry_s: float | None = None,
        patience_s: float = 60.0,
        credentials: grpc.ChannelCredentials | None = None,
    ) -> None:
        def channel(target: str) -> grpc.Channel:
            if credentials is None:
                return grpc.insecure_channel(target, options=OPTIONS)
            return grpc.secure_channel(target, credentials, options=OPTIONS)

        self._policy = Policy(timeout_s, timeout_s if retry_s is None else retry_s, patience_s)
        self._replicas = Replicas(address, channel, Stubs)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close all connections; calls under way end with Unreachable."""
        for channel in self._replicas.take_channels():
            channel.close()

    def _failed(self, error: grpc.RpcError, replica: Here) -> GpupoolError:
        told = error_of(error, replica.address)
        if isinstance(told, Unreachable | DeadlineExceeded):
            self._replicas.failed(replica)
        return told

    def _attempt(self, method: Unary[Q, R], request: Q, deadline: Deadline, *, only: bool = False) -> R:
        replica = self._replicas.current
        left_s = deadline.left_s() or 0.0
        timeout_s = left_s if only else self._policy.attempt_s(left_s, len(self._replicas))
        try:
            answer: R = method(replica.stubs)(request, timeout=timeout_s)
        except grpc.RpcError as error:
            raise self._failed(error, replica) from error
        return answer

    def _call(self, method: Unary[Q, R], request: Q) -> R:
        """A call that is safe to repeat."""
        deadline = Deadline(self._policy.timeout_s)
        retrying = tenacity.Retrying(**self._policy.retrying(len(self._replicas)))
        answer: R = retrying(self._attempt, method, request, deadline)
        return answer

    def _call_once(self, method: Unary[Q, R], request: Q, timeout_s: float | None = None) -> R:
        """A call that is sent at most once; among several replicas a living one is found first, by asking.

        `timeout_s` is for the call itself, where it takes longer than others.
        """
        if len(self._replicas) > 1:
            self._call(lambda stubs: stubs.operations.GetCluster, scheduler_pb2.GetClusterRequest())
        return self._attempt(method, request, Deadline(timeout_s or self._policy.timeout_s), only=True)

    def _submit_batch(self, batch: list[scheduler_pb2.SubmitRequest]) -> list[scheduler_pb2.SubmitResult]:
        """All answers to `batch`, in order. After a break only what is unanswered is sent again."""
        results: list[scheduler_pb2.SubmitResult] = []
        deadline = Deadline(self._policy.timeout_s)

        def attempt() -> None:
            replica = self._replicas.current
            while len(results) < len(batch):
                request = as_batch(batch[len(results) :])
                wanted = len(results) + len(request.requests)
                try:
                    for part in replica.stubs.jobs.SubmitBatch(request, timeout=deadline.left_s()):
                        results.extend(part.results)  # what came before a break stays in the list
                except grpc.RpcError as error:
                    raise self._failed(error, replica) from error
                if len(results) < wanted:
                    raise Unreachable(f"the scheduler at {replica.address} ended the stream before its last answer")

        tenacity.Retrying(**self._policy.retrying(len(self._replicas)))(attempt)
        return results

    def _stream(self, method: Streaming[Q, R], stream: Resumable[Q, R], deadline: Deadline) -> Generator[R, None, None]:
        """The new items of `stream`, opened again when it breaks."""
        resumption = Resumption(self._policy, deadline)
        while True:
            replica = self._replicas.current
            resumption.opened()
            call = method(replica.stubs)(stream.request(), timeout=deadline.left_s())
            try:
                for item in call:
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
            time.sleep(resumption.broke(broken))
