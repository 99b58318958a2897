"""A network of namespaces that belongs to one run: nodes on one bridge, each direction between two of them cut at will.

What a node sends to a peer is lost when the node's neighbour table has a wrong hardware address for it: packets go out
and nobody takes them, as with a broken switch. Needs root. It must leave nothing behind, whatever happened.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections import Counter
from collections.abc import Iterable, Sequence

NOWHERE = "02:de:ad:00:00:01"


class Network:
    """See the module docstring. This process is on the bridge too, and is never cut off."""

    def __init__(self, nodes: Sequence[str]) -> None:
        self.tag = f"gc{os.getpid() % 100_000}"
        self._subnet = _free_subnet()
        self._hosts = {node: number for number, node in enumerate(nodes, start=11)}
        self._cuts: Counter[tuple[str, str]] = Counter()

    def address(self, node: str) -> str:
        """The node's IP address."""
        return f"{self._subnet}.{self._hosts[node]}"

    def inside(self, node: str) -> list[str]:
        """A command prefix that runs a program on the node. Not `ip netns exec`, which hides the cgroups."""
        return ["nsenter", f"--net=/run/netns/{self._space(node)}", "--"]

    def up(self) -> None:
        """Make it all."""
        bridge = self.tag
        _ip("link", "add", bridge, "type", "bridge")
        _ip("addr", "add", f"{self._subnet}.1/24", "dev", bridge)
        _ip("link", "set", bridge, "up")
        for node, number in self._hosts.items():
            space, port = self._space(node), f"{self.tag}v{number}"
            _ip("netns", "add", space)
            _ip("link", "add", port, "type", "veth", "peer", "name", "eth0", "netns", space)
            _ip("link", "set", port, "master", bridge, "up")
            _ip("-n", space, "addr", "add", f"{self.address(node)}/24", "dev", "eth0")
            _ip("-n", space, "link", "set", "lo", "up")
            _ip("-n", space, "link", "set", "eth0", "up")

    def down(self) -> None:
        """Remove what `up` made, or a part of it."""
        for node, number in self._hosts.items():
            for words in (("link", "del", f"{self.tag}v{number}"), ("netns", "del", self._space(node))):
                with contextlib.suppress(subprocess.CalledProcessError):
                    _ip(*words)
        with contextlib.suppress(subprocess.CalledProcessError):
            _ip("link", "del", self.tag)

    def cut(self, edges: Iterable[tuple[str, str]]) -> None:
        """What the first of each pair sends to the second is lost from now on."""
        self._change(edges, 1)

    def heal(self, edges: Iterable[tuple[str, str]]) -> None:
        """Undo one `cut` of the same."""
        self._change(edges, -1)

    def _change(self, edges: Iterable[tuple[str, str]], by: int) -> None:
        for sender, receiver in edges:
            before = self._cuts[sender, receiver] > 0
            self._cuts[sender, receiver] += by
            after = self._cuts[sender, receiver] > 0
            where = (self.address(receiver), "dev", "eth0")
            if after and not before:
                _ip("-n", self._space(sender), "neigh", "replace", *where, "lladdr", NOWHERE, "nud", "permanent")
            elif before and not after:
                _ip("-n", self._space(sender), "neigh", "del", *where)

    def _space(self, node: str) -> str:
        return f"{self.tag}-{node}"


def left() -> list[str]:
    """Namespaces and links of this process that still exist."""
    tag = f"gc{os.getpid() % 100_000}"
    words = (_output("netns", "list") + _output("-o", "link")).split()
    return sorted({word.rstrip(":") for word in words if word.startswith(tag)})


def _free_subnet() -> str:
    taken = _output("-o", "-4", "addr")
    for number in range(256):
        subnet = f"10.213.{(os.getpid() + number) % 256}"
        if f" {subnet}." not in taken:
            return subnet
    raise RuntimeError("no free subnet in 10.213.0.0/16")


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True, text=True)


def _output(*words: str) -> str:
    return subprocess.run(["ip", *words], check=False, capture_output=True, text=True).stdout
