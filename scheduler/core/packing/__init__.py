"""The packing core: which host takes a task so that what stays free serves the tasks that are still to come.

It knows the mix of tasks that is expected, and never their order. It works on sizes alone (cores, memory, GPUs in
thousandths, by NUMA node); what else speaks for or against a host is its caller's to know. docs/placement.md has the
policy with its sources and what it reaches.

    packer = Packer(hosts, Mix(counts))
    taken = packer.place(shape)      # None: it fits nowhere
    packer.free(taken)

The decision is a function of the mix and of what is free where, not of how it came to be free.
"""

from .mix import Mix
from .packer import Packer
from .sizes import HostSize, NodeSize, Shape, Share, Taken

__all__ = ["HostSize", "Mix", "NodeSize", "Packer", "Shape", "Share", "Taken"]
