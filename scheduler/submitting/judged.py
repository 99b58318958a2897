"""Shapes of specs in which nothing was found wrong, and which some host could take: not judged again for each job.

A shape is a spec without its texts: name, command, environment, labels. Those of each job are looked at all the same.
What was found holds until a host says something new of itself, or a queue changes; then all is forgotten. It never
remembers a fault, nor a spec whose judgement rests on anything else: on other jobs, or on how large it is.
"""

from __future__ import annotations

from gpupool.store.keys import Kind
from gpupool.v1 import job_pb2

from ..mirror.mirror import Mirror

KEPT = 4096  # shapes; all are forgotten when one more comes
KEY_BYTES = 1024  # longer ones, such as those with user data, are judged each time


class Judged:
    """See the module docstring."""

    def __init__(self, mirror: Mirror) -> None:
        self._good: set[bytes] = set()
        self._version = -1  # of what is known of hosts
        self._scratch = job_pb2.JobSpec()
        mirror.listen(self._changed, Kind.QUEUE)

    def _changed(self, kind: Kind, ids: tuple[str, ...]) -> None:
        del kind, ids
        self._good.clear()

    def shape(self, spec: job_pb2.JobSpec) -> bytes | None:
        """What is to be known of it; None: it is to be judged by itself."""
        if spec.dependencies or spec.HasField("restart") or spec.HasField("placement"):
            return None  # its judgement needs more than the shape; and so it does of the next two
        if spec.HasField("array") or spec.HasField("gang"):
            return None
        scratch = self._scratch
        scratch.CopyFrom(spec)
        scratch.ClearField("name")
        scratch.ClearField("command")
        scratch.ClearField("env")
        scratch.ClearField("labels")
        found = scratch.SerializeToString(deterministic=True)
        return found if len(found) <= KEY_BYTES else None

    def good(self, shape: bytes, version: int) -> bool:
        """Whether nothing was wrong with it, by what hosts said up to this version."""
        if version != self._version:
            self._good.clear()
            self._version = version
        return shape in self._good

    def add(self, shape: bytes, version: int) -> None:
        """Nothing was wrong with it."""
        if version == self._version:
            if len(self._good) >= KEPT:
                self._good.clear()
            self._good.add(shape)
