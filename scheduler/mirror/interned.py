"""One object for many equal ones: what hundreds of thousands of records repeat is kept once.

Only for values that nobody can change. It forgets everything now and then, which costs memory and changes nothing.
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import TypeVar

KEPT = 100_000
_Value = TypeVar("_Value", bound=Hashable)

_known: dict[Hashable, Hashable] = {}


def same(value: _Value) -> _Value:
    """An equal object, of the same type: the one that was seen first."""
    found = _known.get(value)
    if type(found) is type(value):
        return found
    if len(_known) >= KEPT:
        _known.clear()
    _known[value] = value
    return value
