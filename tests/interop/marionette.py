"""A small client of Marionette, the protocol for remote control of Mozilla's programs."""

from __future__ import annotations

import json
import socket
from typing import Any


class Refused(Exception):
    """The program answered with an error. The text is its kind and message."""


class Marionette:
    """One session with a running program, in its privileged context."""

    def __init__(self, port: int, seconds: float) -> None:
        """:param seconds: timeout of each answer. :raises OSError: no program answers on the port."""
        self._connection = socket.create_connection(("127.0.0.1", port), timeout=seconds)
        self._number = 0
        self._data = b""
        self._receive()  # the server's greeting
        self._ask("WebDriver:NewSession", {})
        self._ask("WebDriver:SetTimeouts", {"script": int(seconds * 1000)})
        self._ask("Marionette:SetContext", {"value": "chrome"})

    def run(self, library: str, function: str, *arguments: Any) -> Any:
        """Call an asynchronous function of a script library in the program, and return its result.

        :raises Refused: the function failed. :raises OSError: the program has ended, or does not answer in time.
        """
        script = f"{library}\nreturn {function}(...arguments);"
        return self._ask("WebDriver:ExecuteScript", {"script": script, "args": arguments, "sandbox": "system"})["value"]

    def close(self) -> None:
        """Close the connection; the program continues."""
        self._connection.close()

    def _ask(self, command: str, parameters: dict[str, Any]) -> Any:
        self._number += 1
        body = json.dumps([0, self._number, command, parameters]).encode()
        self._connection.sendall(b"%d:%s" % (len(body), body))
        _, _, error, result = self._receive()
        if error is not None:
            raise Refused(f"{error['error']}: {error['message']}")
        return result

    def _receive(self) -> Any:
        while b":" not in self._data:
            self._more()
        length, _, self._data = self._data.partition(b":")
        while len(self._data) < int(length):
            self._more()
        body, self._data = self._data[: int(length)], self._data[int(length) :]
        return json.loads(body)

    def _more(self) -> None:
        data = self._connection.recv(65536)
        if not data:
            raise ConnectionResetError("the program has ended")
        self._data += data
