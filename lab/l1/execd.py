"""Runs shell commands for the test outside: one a connection. Speaks the protocol of lab/shell.py.

Request: a line of JSON {"command", "stdin": bytes}, then as many bytes for its standard input. Reply: the output as it
comes, both streams, then NUL and a line of JSON {"code", "took_s"}. A client that goes away ends its command.
"""

import contextlib
import json
import os
import signal
import socket
import subprocess
import threading
import time


def serve(client: socket.socket) -> None:
    """One connection."""
    with client, client.makefile("rb") as reader:
        request = json.loads(reader.readline())
        text = reader.read(request["stdin"])
        began = time.monotonic()
        process: subprocess.Popen[bytes] = subprocess.Popen(
            ["/bin/bash", "-c", request["command"]],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        assert process.stdout is not None
        output = process.stdout.fileno()
        threading.Thread(target=feed, args=(process, text), daemon=True).start()
        threading.Thread(target=end_with, args=(client, process), daemon=True).start()
        with contextlib.suppress(OSError):
            while data := os.read(output, 65536):
                client.sendall(data)
            result = {"code": process.wait(), "took_s": round(time.monotonic() - began, 3)}
            client.sendall(b"\0" + json.dumps(result).encode() + b"\n")
            client.shutdown(socket.SHUT_RDWR)  # a close alone would wait for the thread that listens for its end


def feed(process: subprocess.Popen[bytes], text: bytes) -> None:
    """Give the command its standard input."""
    assert process.stdin is not None
    with contextlib.suppress(OSError), process.stdin as stdin:
        stdin.write(text)


def end_with(client: socket.socket, process: subprocess.Popen[bytes]) -> None:
    """End the command once the client is gone. What it started with setsid stays."""
    with contextlib.suppress(OSError):
        while client.recv(4096):
            pass
    if process.poll() is None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


def main() -> None:
    """Serve for ever."""
    listener = socket.create_server(("0.0.0.0", 7000), backlog=64)
    while True:
        client, _ = listener.accept()
        threading.Thread(target=serve, args=(client,), daemon=True).start()


if __name__ == "__main__":
    main()
