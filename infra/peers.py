"""Knowing at once that another process of the run has ended, and why: a line between each process and process 0.

JAX notices a death after its heartbeats time out, and then aborts with stacks of C++. Here every process holds a TCP
connection to process 0. The operating system closes it the moment a process ends, however it ends, and its keep-alive
finds a host that is gone. Who leaves in an orderly way says so before; whoever else goes, ends all with one line.
"""

import json
import logging
import os
import secrets
import socket
import sys
import threading
import time
from typing import IO, Any, NoReturn

KEEPALIVE_S = {"TCP_KEEPIDLE": 10, "TCP_KEEPINTVL": 5, "TCP_KEEPCNT": 4}  # a silent host is gone after 30 s
MEET_S = 30.0  # how long processes that have just met at the coordinator look for each other here
REASON_LETTERS = 600
UNEXPLAINED = "it was killed without a word (out of memory, pre-empted, or its host is gone); see its own output"


class Peers:
    """The connections of this process to the others; see the module. Made by `open_peers`.

    Args:
      index, count: of the processes of the run.
      told: what `lost` is called with, (status, line): prints the line and ends the program.
    """

    def __init__(self, index: int, count: int, told=None):
        self.index, self.count = index, count
        self._told = told or _end
        self._links: dict[int, socket.socket] = {}
        self._over = threading.Event()  # this run ends in an orderly way, or is ending already
        self._lock = threading.Lock()
        self._server: socket.socket | None = None

    def listen(self) -> tuple[int, str]:
        """Of process 0: waits for the others behind; returns (port, token), which these need to connect."""
        token = secrets.token_hex(16)
        self._server = _server()
        self._start(self._accept, token)
        return self._server.getsockname()[1], token

    def connect(self, host: str, port: int, token: str) -> None:
        """Of the other processes. Raises OSError where process 0 cannot be reached."""
        link = socket.create_connection((host, port), timeout=MEET_S)
        _keep_alive(link)
        link.sendall(_message({"token": token, "index": self.index}))
        self._links[0] = link
        self._start(self._listen_to, 0, link, link.makefile("rb"))

    def met(self, patience: float = MEET_S) -> bool:
        """Of process 0: whether all others are connected, waited for this many seconds."""
        limit = time.monotonic() + patience
        while len(self._links) < self.count - 1 and time.monotonic() < limit:
            time.sleep(0.01)
        return len(self._links) == self.count - 1

    def leave(self) -> None:
        """Says to the others that this process ends in an orderly way: from now on nobody minds anybody's end."""
        if not self._over.is_set():
            self._over.set()
            self._send({"leaves": True})

    def fail(self, status: int, reason: str) -> None:
        """Tells the others why this process ends, which ends them too."""
        if not self._over.is_set():
            self._over.set()
            self._send({"from": self.index, "status": status, "reason": reason[:REASON_LETTERS]})

    def wait_for_news(self, seconds: float) -> None:
        """Gives a loss that is only just being noticed the time to end the program with its own line."""
        if self._links and not self._over.is_set():
            time.sleep(seconds)

    def _start(self, work, *arguments: Any) -> None:
        threading.Thread(target=work, args=arguments, daemon=True, name="peers").start()

    def _accept(self, token: str) -> None:
        assert self._server is not None
        while len(self._links) < self.count - 1 and not self._over.is_set():
            link, _ = self._server.accept()
            link.settimeout(MEET_S)
            lines = link.makefile("rb")
            try:
                hello = json.loads(lines.readline(200))
                known = secrets.compare_digest(str(hello["token"]), token) and 0 < hello["index"] < self.count
            except (OSError, ValueError, KeyError, TypeError):
                known, hello = False, {}
            if not known:  # something else that looks for open ports
                lines.close()
                link.close()
                continue
            _keep_alive(link)
            self._links[hello["index"]] = link
            self._start(self._listen_to, hello["index"], link, lines)
        self._server.close()

    def _listen_to(self, other: int, link: socket.socket, lines: IO[bytes]) -> None:
        """Until the other's connection ends; what it said last decides what that means."""
        news: dict[str, Any] = {}
        try:
            with link, lines:
                for line in lines:
                    news = json.loads(line)
                    if news.get("leaves"):
                        return
                    if "reason" in news:
                        break
        except (OSError, ValueError) as error:
            news = {"reason": f"its connection broke ({error}); see its own output"}
        self._lost({"from": other, "status": 1, "reason": UNEXPLAINED, **news})

    def _lost(self, news: dict[str, Any]) -> None:
        with self._lock:
            if self._over.is_set():
                return
            self._over.set()
        self._send(news)  # process 0 passes it on: the others know only process 0
        line = f"process {news['from']} of {self.count} has ended: {news['reason']}"
        self._told(int(news["status"]), line)

    def _send(self, news: dict[str, Any]) -> None:
        for link in list(self._links.values()):
            try:
                link.sendall(_message(news))
            except OSError:  # it has ended too; who listens to it learns of that
                continue


def open_peers(index: int, count: int, host: str, share) -> Peers:
    """Connects the processes of a run.

    Args:
      host: where process 0 can be reached.
      share: share(text) -> the text of process 0, on every process.

    A network that does not let them connect costs speed of notice only: that is logged, and JAX's heartbeats remain.
    """
    peers = Peers(index, count)
    if index == 0:
        port, token = peers.listen()
        share(f"{port} {token}")
        connected = peers.met()
    else:
        port, token = share("").split()
        try:
            peers.connect(host, int(port), token)
            connected = True
        except OSError as error:
            logging.debug("%s", error)
            connected = False
    if not connected:
        logging.warning(
            "process %d: no connection between all processes at %s, port %s: that another one has ended will be "
            "noticed by JAX alone, after a minute", index, host, port,
        )  # fmt: skip
    return peers


def _message(news: dict[str, Any]) -> bytes:
    return json.dumps(news).encode() + b"\n"


def _server() -> socket.socket:
    """Listens at a free port of all addresses."""
    if socket.has_dualstack_ipv6():
        return socket.create_server(("::", 0), family=socket.AF_INET6, dualstack_ipv6=True)
    return socket.create_server(("", 0))


def _keep_alive(link: socket.socket) -> None:
    link.settimeout(None)
    link.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in KEEPALIVE_S.items():
        if hasattr(socket, name):  # macOS calls one of them otherwise, and keeps its default
            link.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


def _end(status: int, line: str) -> NoReturn:
    """From a thread, while the main one may wait in a collective for the process that is gone."""
    print(f"error: {line}", file=sys.stderr, flush=True)
    os._exit(status)
