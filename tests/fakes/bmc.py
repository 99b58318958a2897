"""A BMC that misbehaves: a small Redfish service on loopback, in a thread, as emulators would never be."""

from __future__ import annotations

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Self

SYSTEM = "/redfish/v1/Systems/1"
RESET = f"{SYSTEM}/Actions/ComputerSystem.Reset"


class BadBmc:
    """`states` are what it says of its power, one a look; the last one stays. A command to it is noted, no more."""

    def __init__(self, *states: Any, status: int = 200, members: int = 1, text: bytes | None = None) -> None:
        self.states = list(states) or ["On"]
        self.status = status  # of answers about the system
        self.members = members
        self.text = text  # in place of the system
        self.commands: list[str] = []
        self.hang = threading.Event()  # set: it answers; cleared: it waits
        self.hang.set()
        bmc = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                bmc.hang.wait(60)
                self._answer(*bmc.page(self.path.rstrip("/")))

            def do_POST(self) -> None:
                told = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                bmc.commands.append(told["ResetType"])
                self._answer(204, b"")

            def _answer(self, status: int, body: bytes) -> None:
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02})

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None) -> None:
        self.hang.set()
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def page(self, path: str) -> tuple[int, bytes]:
        if path == "/redfish/v1":
            return 200, _json({"Id": "root", "Name": "root", "Systems": {"@odata.id": "/redfish/v1/Systems"}})
        if path == "/redfish/v1/Systems":
            members = [{"@odata.id": f"/redfish/v1/Systems/{n + 1}"} for n in range(self.members)]
            return 200, _json({"Name": "all", "Members": members})
        if path != SYSTEM:
            return 404, b"{}"
        if self.text is not None:
            return self.status, self.text
        state = self.states.pop(0) if len(self.states) > 1 else self.states[0]
        reset = {"target": RESET, "ResetType@Redfish.AllowableValues": ["On", "ForceOff"]}
        system = {"Id": "1", "Name": "it", "Actions": {"#ComputerSystem.Reset": reset}}
        return self.status, _json({**system, **({"PowerState": state} if state != "" else {})})


def _json(value: Any) -> bytes:
    return json.dumps(value).encode()
