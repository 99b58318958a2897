"""The emulator's process: `python emulator_child.py FOLDER`; see emulator.py.

libvirt's test driver forgets its domains when the last connection to it closes, and the emulator closes its own after
each request, so one is kept open here.
"""

from __future__ import annotations

import ssl
import sys
from pathlib import Path

import libvirt
from sushy_tools.emulator import main as emulator
from werkzeug.serving import make_server

URI = "test:///default"


def serve(folder: Path) -> None:
    """Until killed."""
    held = libvirt.open(URI)
    (folder / "config").write_text(
        f"SUSHY_EMULATOR_LIBVIRT_URI = {URI!r}\nSUSHY_EMULATOR_AUTH_FILE = {str(folder / 'htpasswd')!r}\n"
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
    serve(Path(sys.argv[1]))
