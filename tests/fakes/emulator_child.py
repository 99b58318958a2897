"""The emulator's process: `python emulator_child.py FOLDER [qemu]`; see emulator.py.

With "qemu" the machine is a QEMU (TCG, no disk), under libvirt's QEMU driver in this very process; else libvirt's test
driver pretends that there is one.

libvirt's test driver forgets its domains when the last connection to it closes, and the emulator closes its own after
each request, so one is kept open here.
"""

from __future__ import annotations

import contextlib
import ssl
import sys
import threading
from pathlib import Path

import libvirt
from sushy_tools.emulator import main as emulator
from sushy_tools.emulator.resources.systems import libvirtdriver
from werkzeug.serving import make_server

from agent.vms import reaper
from agent.vms.embed import prepare_root

DOMAIN = """\
<domain type='qemu'>
  <name>bmc</name><memory unit='MiB'>32</memory><vcpu>1</vcpu>
  <os><type arch='x86_64' machine='pc'>hvm</type></os>
  <on_poweroff>destroy</on_poweroff>
  <devices><controller type='usb' model='none'/><memballoon model='none'/></devices>
</domain>
"""


def hold(root: Path | None) -> tuple[str, libvirt.virConnect]:
    """The driver's URI, and a connection that keeps it alive. `root`: of a QEMU driver of our own."""
    if root is None:
        return "test:///default", libvirt.open("test:///default")
    prepare_root(root)
    reaper.start()
    libvirt.virEventRegisterDefaultImpl()
    threading.Thread(target=_run_events, daemon=True).start()
    uri = f"qemu:///embed?root={root}"
    held = libvirt.open(uri)
    held.defineXML(DOMAIN)
    # libvirt counts each opening of an embedded driver as another driver, and has room for ten or so.
    libvirtdriver.libvirt_open = lambda *_, **__: contextlib.nullcontext(held)
    return uri, held


def _run_events() -> None:
    while True:
        libvirt.virEventRunDefaultImpl()


def serve(folder: Path, *, qemu: bool) -> None:
    """Until killed."""
    uri, held = hold(folder / "libvirt" if qemu else None)
    (folder / "config").write_text(
        f"SUSHY_EMULATOR_LIBVIRT_URI = {uri!r}\nSUSHY_EMULATOR_AUTH_FILE = {str(folder / 'htpasswd')!r}\n"
    )
    emulator.app.configure(config_file=str(folder / "config"))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "cert.pem", folder / "key.pem")
    server = make_server("127.0.0.1", 0, emulator.app, threaded=True, ssl_context=context)
    (folder / "port.new").write_text(str(server.server_port))
    (folder / "port.new").rename(folder / "port")
    server.serve_forever()
    held.close()


if __name__ == "__main__":
    serve(Path(sys.argv[1]), qemu="qemu" in sys.argv[2:])
