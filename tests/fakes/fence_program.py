"""Fence programs for tests: small scripts that behave, or misbehave, as real ones do."""

from __future__ import annotations

from pathlib import Path

METADATA = """<resource-agent name="fence_test"><parameters>
<parameter name="action"/><parameter name="ip"/><parameter name="username"/><parameter name="password"/>
<parameter name="plug"/><parameter name="verbose"/><parameter name="ssl_insecure"/></parameters>
<actions><action name="on" automatic="{automatic}"/><action name="off"/>{status}</actions></resource-agent>"""

SCRIPT = """#!/bin/sh
here=$(dirname "$0")
if [ "$1" = -o ]; then cat "$here/metadata"; exit; fi
cat > "$here/stdin"
tr '\\0' ' ' < /proc/$$/cmdline >> "$here/cmdlines"
env > "$here/env"
action=$(sed -n 's/^action=//p' "$here/stdin")
echo "$action" >> "$here/actions"
power() {{ cat "$here/power"; }}
case $action in
{cases}
status) if [ "$(power)" = off ]; then echo "Status: OFF"; exit 2; else echo "Status: ON"; exit 0; fi ;;
off) if [ "$(power)" = off ]; then echo "Success: Already OFF"; else echo off > "$here/power"; fi ;;
on) echo on > "$here/power" ;;
esac
"""


def fence_program(folder: Path, cases: str = "", *, automatic: int = 0, status: bool = True) -> Path:
    """A program in `folder`; `cases` are shell `case` arms that come before its own."""
    path = folder / "fence_test"
    path.write_text(SCRIPT.format(cases=cases))
    path.chmod(0o755)
    found = '<action name="status"/>' if status else ""
    (folder / "metadata").write_text(METADATA.format(automatic=automatic, status=found))
    (folder / "power").write_text("on\n")
    return path
