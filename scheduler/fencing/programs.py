"""What a fence program says of itself: its parameters and actions, from its `metadata` action.

It decides which programs may be trusted with "off": those that cut power, and can be asked whether it is cut. One that
cuts a host off its storage or network leaves its VMs and their devices running, and is refused.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from dataclasses import dataclass
from xml.etree import ElementTree as ET

from .agents import PATH, environment

METADATA_S = 20.0
NO_POWER = {
    "fence_sbd": "it leaves a message for the host, and sees no power",
    "fence_dummy": "it switches nothing off",
}
_NAME = re.compile(r"fence_[a-z0-9_]+")


class UnfitError(Exception):
    """The program cannot be used; why, and what to do."""


@dataclass(frozen=True, slots=True)
class Program:
    """A fence program. `parameters` are the names that it knows, old spellings too."""

    name: str
    path: str
    parameters: frozenset[str]

    @property
    def password_name(self) -> str:
        """What it calls the password."""
        return next((name for name in ("password", "passwd") if name in self.parameters), "")


def describe(agent: str) -> Program:
    """The program called `agent`: a name, or an absolute path. Raises UnfitError."""
    name = agent.rpartition("/")[2]
    if not _NAME.fullmatch(name) or not (agent == name or agent.startswith("/")):
        raise UnfitError(f"{agent!r} is no fence agent: `redfish`, fence_NAME or /path/to/fence_NAME is wanted")
    if name in NO_POWER:
        raise UnfitError(f"{name} proves nothing: {NO_POWER[name]}; use one that switches the host's power")
    path = shutil.which(agent, path=PATH)
    if path is None:
        raise UnfitError(f"there is no fence agent {agent!r} on this machine; run: apt-get install fence-agents")
    root = _metadata(path)
    parameters = frozenset(found.get("name", "") for found in root.iter("parameter")) - {"action"}
    actions = {found.get("name", ""): found for found in root.iter("action")}
    if missing := [action for action in ("off", "status") if action not in actions]:
        raise UnfitError(f"{name} has no action {missing[0]!r}, so nothing can be proven by it; use another")
    if actions.get("on", ET.Element("action")).get("automatic") == "1":
        raise UnfitError(f"{name} cuts storage or network, not power: the host's VMs would run on; use another")
    return Program(name, path, parameters)


def _metadata(path: str) -> ET.Element:
    try:
        done = subprocess.run(
            [path, "-o", "metadata"], env=environment(), stdin=subprocess.DEVNULL, capture_output=True, check=False,
            timeout=METADATA_S, cwd="/",
        )  # fmt: skip
        return ET.fromstring(done.stdout)  # noqa: S314 - it comes from a program that we run as ourselves anyway
    except (OSError, subprocess.TimeoutExpired, ET.ParseError) as exc:
        raise UnfitError(
            f"{path} -o metadata gives no description ({type(exc).__name__}); is it a fence agent?"
        ) from None
