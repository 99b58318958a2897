"""Credentials: read from a file or the environment just before they are used, kept nowhere, and cut out of all texts.

A secret must never reach etcd, a command line, a log or an error.
"""

from __future__ import annotations

import base64
import json
import os
import stat
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from .port import FenceError

TEXT_CHARS = 300  # of a device's words, for people


@dataclass(frozen=True, slots=True)
class Secret:
    """Where a password is. Neither given: there is none."""

    file: Path | None = None
    env: str = ""

    def read(self) -> str:
        """The password as it is now, without the line end. Raises FenceError, which names the place and the way out."""
        if self.file is not None:
            value = self._from_file(self.file)
        else:
            value = os.environ.get(self.env, "") if self.env else ""
            if self.env and not value:
                raise FenceError(f"password_env: the environment has no {self.env}; set it where the scheduler starts")
        if any(ord(char) < 32 for char in value):
            raise FenceError(f"the password in {self} has a line break or control character; write it on one line")
        return value

    def _from_file(self, path: Path) -> str:
        try:
            if path.stat().st_mode & stat.S_IROTH:
                raise FenceError(f"password_file: everybody can read {path}; run: chmod o-rwx {path}")
            value = path.read_text().rstrip("\r\n")
        except OSError as exc:
            raise FenceError(f"password_file: cannot read {path} ({exc.strerror}); write the password there") from None
        except UnicodeDecodeError:
            raise FenceError(f"password_file: {path} is not text; write the password there, on one line") from None
        if not value:
            raise FenceError(f"password_file: {path} is empty; write the password there")
        return value

    def __str__(self) -> str:
        return str(self.file or f"${self.env}")


def cleaned(text: str, secret: str, user: str = "") -> str:
    """`text` on one line, cut, and without the secret in any spelling that programs print."""
    if secret:
        basic = base64.b64encode(f"{user}:{secret}".encode()).decode()
        spellings = {secret, quote(secret), quote(secret, safe=""), repr(secret)[1:-1], json.dumps(secret)[1:-1], basic}
        for spelling in sorted(spellings, key=len, reverse=True):
            text = text.replace(spelling, "***")
    line = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    return line if len(line) <= TEXT_CHARS else f"{line[:TEXT_CHARS]}..."
