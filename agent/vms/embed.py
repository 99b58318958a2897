"""Makes a directory fit to be the root of libvirt's embedded QEMU driver, and finds where a driver keeps pid files."""

from __future__ import annotations

import grp
import pwd
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

from .errors import RuntimeUnavailableError

SYSTEM_RUN_DIR = Path("/run/libvirt/qemu")
_USER = "libvirt-qemu"

# The agent is root and alone with its VMs: no other user, no security labels, no cgroup or namespace of libvirt's own
# (the guard's cgroup is the one that counts), and consoles written by QEMU itself, as there is no virtlogd.
_CONF = """\
stdio_handler = "file"
user = "root"
group = "root"
security_driver = "none"
remember_owner = 0
namespaces = []
cgroup_controllers = []
"""


def embed_root(uri: str) -> Path | None:
    """The root in a URI such as qemu:///embed?root=DIR; None if the driver is not an embedded one.

    Raises RuntimeUnavailableError for an embedded one without an absolute root.
    """
    parts = urlsplit(uri)
    if parts.path != "/embed":
        return None
    root = Path(parse_qs(parts.query).get("root", [""])[0])
    if not root.is_absolute():
        raise RuntimeUnavailableError(f"{uri}: write qemu:///embed?root=DIR with an absolute path")
    return root


def run_dir(uri: str) -> Path:
    """Where the driver keeps its VMs' pid files."""
    root = embed_root(uri)
    return SYSTEM_RUN_DIR if root is None else root / "run" / "qemu"


def prepare_root(root: Path) -> None:
    """Write the driver's configuration. Raises RuntimeUnavailableError."""
    try:
        # libvirt looks them up before it reads the configuration that names others.
        pwd.getpwnam(_USER)
        grp.getgrnam(_USER)
    except KeyError:
        command = f"groupadd --system {_USER}; useradd --system --gid {_USER} --no-create-home {_USER}"
        raise RuntimeUnavailableError(f"libvirt needs the system user and group {_USER}: {command}") from None
    try:
        (root / "etc").mkdir(parents=True, exist_ok=True)
        (root / "etc" / "qemu.conf").write_text(_CONF)
    except OSError as exc:
        raise RuntimeUnavailableError(f"cannot use {root} for libvirt: {exc}") from exc
