"""A good sysfs tree of which some answers are wrong: missing, empty, garbled, cut short."""

from __future__ import annotations

from pathlib import Path

from agent.inventory.sysfs import RealSysfs

Question = tuple[str, str]
"""What is asked ("read", "list" or "link") and of which path."""
Answer = bytes | tuple[str, ...] | str | None


class RememberingSysfs(RealSysfs):
    """Asks the disk once: `answers` is all that a reader wanted to know, and what it was told."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.answers: dict[Question, Answer] = {}

    def read_bytes(self, path: str, limit: int = 4096, offset: int = 0) -> bytes | None:
        if ("read", path) not in self.answers:
            self.answers["read", path] = super().read_bytes(path, 65536)
        raw = self.answers["read", path]
        assert raw is None or isinstance(raw, bytes)
        return raw if raw is None else raw[offset : offset + limit]

    def list(self, path: str) -> list[str]:
        if ("list", path) not in self.answers:
            self.answers["list", path] = tuple(super().list(path))
        names = self.answers["list", path]
        assert isinstance(names, tuple)
        return [*names]

    def link_target(self, path: str) -> str | None:
        if ("link", path) not in self.answers:
            self.answers["link", path] = super().link_target(path)
        target = self.answers["link", path]
        assert target is None or isinstance(target, str)
        return target


class MutatedSysfs(RememberingSysfs):
    """The tree that `good` has read, with other answers to some of the questions."""

    def __init__(self, good: RememberingSysfs, changes: dict[Question, Answer]) -> None:
        super().__init__(good.root)
        self.answers = {**good.answers, **changes}
