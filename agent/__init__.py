"""The agent: what runs on every KVM host."""

import os

# libvirt forks inside this process to start QEMU, and gRPC's handlers for that abort the child. gRPC reads this when it
# is first imported, which every module of the agent does after this one.
os.environ["GRPC_ENABLE_FORK_SUPPORT"] = "0"
# libvirt's warnings (every VM is "tainted") would hide ours; it reads this when its module is loaded.
os.environ.setdefault("LIBVIRT_DEBUG", "error")
