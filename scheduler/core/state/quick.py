"""What is looked up, or made, hundreds of thousands of times: enums whose identity is hash enough, facts made fast."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Any

__all__ = ["QuickEnum", "fact"]

if TYPE_CHECKING:
    from dataclasses import dataclass as fact
else:

    def fact(*, frozen: bool, **options: Any) -> Any:
        """A dataclass that is frozen for mypy only: one that is frozen in fact takes four times as long to make."""
        assert frozen
        return dataclass(**options, unsafe_hash=True)


class QuickEnum(Enum):
    """An Enum whose hash costs no call: Enum's own hashes the name, in Python."""

    __hash__ = object.__hash__
