"""A proxy that shows whether a tracker uses the network."""

import socket

import pytest


class Proxy:
    """The address that requests of this process and its children are sent to."""

    def __init__(self, listening):
        self._listening = listening
        self.address = "http://{}:{}".format(*listening.getsockname())

    def was_called(self):
        try:
            connection, _ = self._listening.accept()
        except BlockingIOError:
            return False
        connection.close()
        return True


@pytest.fixture
def proxy(monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as listening:
        listening.setblocking(False)
        made = Proxy(listening)
        for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
            monkeypatch.setenv(name, made.address)
            monkeypatch.setenv(name.lower(), made.address)
        for name in ("NO_PROXY", "no_proxy"):
            monkeypatch.delenv(name, raising=False)
        yield made
