"""`TcpProxy` stands between a store and its server, and treats connections as bad networks do.

`ProxiedServer` offers to the suite what the proxy can do, and `ProxiedProcess` what can be done to
a server process as well: all that the suite has a fault for, but `forget`. An author says how the
server is run, by a `kvi.conformance.server_process.ServerProcess`::

    @pytest.fixture(scope="module")
    def kvi_server():
        with ProxiedProcess(AcmeServer()) as server:
            yield server

===========  ===============================  ==================================================
what         is owned by                      and ends with
===========  ===============================  ==================================================
the process  the `ProxiedProcess`, which      its block, or with the tests, however they end:
             starts it if nobody has          see `kvi.conformance.server_process`
the proxy    the `ProxiedProcess`             its block; its threads are daemons
===========  ===============================  ==================================================
"""

from __future__ import annotations

import socket
import threading
import time
from contextlib import suppress
from typing import Self

from kvi.conformance.server import Server
from kvi.conformance.server_process import ServerProcess

_PIECE = 64 * 1024


class TcpProxy:
    """Forwards connections to ``127.0.0.1:target``. A context manager; safe for threads.

    Attributes:
        port: where it listens.
        target: where it connects to; may be changed for later connections.
        delay: seconds that each piece of data waits, in either direction.
        lag: seconds that what a server sends waits; what comes meanwhile goes with it.
        accepted: how many connections there have been.

    """

    def __init__(self, target: int, host: str = "127.0.0.1", port: int = 0) -> None:
        """Listen at ``host``; ``port`` 0 chooses a free one."""
        self.target = target
        self.delay = 0.0
        self.lag = 0.0
        self.accepted = 0
        self._listener = socket.create_server((host, port))
        self.port: int = self._listener.getsockname()[1]
        self._lock = threading.Lock()
        self._sockets: set[socket.socket] = set()
        self._flowing = threading.Event()
        self._flowing.set()
        self._refusing = False
        self._amid = False
        self._abandoned: set[socket.socket] = set()
        self._holding: set[socket.socket] = set()
        self._kept: list[tuple[socket.socket, bytes]] = []
        self._orphans: set[socket.socket] = set()  # servers' sides whose clients are gone
        self._closed = False
        threading.Thread(target=self._accept, name="proxy", daemon=True).start()

    def cut(self) -> None:
        """Reset all connections that there are now."""
        with self._lock:
            sockets, self._sockets = self._sockets, set()
        for one in sockets:
            with suppress(OSError):
                one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
            with suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
            one.close()

    def cut_amid_an_answer(self) -> None:
        """Let half of what the server says next through, then reset that connection."""
        self._amid = True

    @property
    def is_to_cut(self) -> bool:
        """Whether `cut_amid_an_answer` is still to come."""
        return self._amid

    def abandon(self) -> None:
        """Swallow all that comes on today's connections, in both directions, and never tell.

        They stay open, as far as either side can see; new ones work.
        """
        with self._lock:
            self._abandoned |= self._sockets

    def hold_back(self) -> None:
        """Keep what a client sends next on one of today's connections, and reset that client.

        The server's side of the connection stays open, until `deliver`.
        """
        with self._lock:
            self._holding = set(self._sockets)

    def deliver(self) -> None:
        """Let the server have what was kept, and end those connections."""
        with self._lock:
            self._holding = set()
            kept, self._kept = self._kept, []
        for server, piece in kept:
            with suppress(OSError):
                server.sendall(piece)
        if kept:
            time.sleep(0.5)  # until it has been done; what is answered nobody hears
        for server, _ in kept:
            with suppress(OSError):
                server.shutdown(socket.SHUT_RDWR)

    def stall(self) -> None:
        """Let nothing through in either direction; connections stay open, new ones too."""
        self._flowing.clear()

    def flow(self) -> None:
        """End `stall`: what was held back goes through now."""
        self._flowing.set()

    def refuse(self, refusing: bool = True) -> None:
        """Reset new connections at once, until told otherwise.

        When it returns, no connection is on its way that was accepted before: `cut` ends them all.
        """
        self._refusing = refusing
        if refusing:
            # One after the other is accepted: when this one was refused, those before are done.
            with socket.create_connection(("127.0.0.1", self.port), timeout=10) as last:
                assert last.recv(1) == b""

    @property
    def open(self) -> int:
        """How many connections are open on the client's side."""
        with self._lock:
            return len(self._sockets) // 2

    def close(self) -> None:
        """End everything."""
        self._closed = True
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._flowing.set()
        self.cut()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *raised: object) -> None:
        self.close()

    def _accept(self) -> None:
        while not self._closed:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            self.accepted += 1
            if self._refusing:
                client.close()
                continue
            try:
                server = socket.create_connection(("127.0.0.1", self.target), timeout=5)
            except OSError:
                client.close()
                continue
            server.settimeout(None)
            with self._lock:
                self._sockets |= {client, server}
            for source, drain, answers in ((client, server, False), (server, client, True)):
                threading.Thread(
                    target=self._pump, args=(source, drain, answers), name="proxy", daemon=True
                ).start()

    def _pump(self, source: socket.socket, drain: socket.socket, answers: bool) -> None:
        with suppress(OSError):
            while piece := source.recv(_PIECE):
                if self.delay:
                    time.sleep(self.delay)
                if answers and self.lag:
                    time.sleep(self.lag)
                    with suppress(BlockingIOError):
                        piece += source.recv(_PIECE, socket.MSG_DONTWAIT)
                self._flowing.wait()
                if source in self._abandoned or source in self._orphans:
                    continue
                if source in self._holding and not answers and self._keep(source, drain, piece):
                    return
                if answers and self._amid:
                    self._amid = False
                    drain.sendall(piece[: len(piece) // 2])
                    drain.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
                    break
                drain.sendall(piece)
        with self._lock:
            self._sockets -= {source, drain}
        for one in (source, drain):
            with suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
            one.close()

    def _keep(self, client: socket.socket, server: socket.socket, piece: bytes) -> bool:
        """Keep this piece from the server, and reset its client; false if one is kept already."""
        with self._lock:
            if not self._holding:
                return False
            self._holding = set()
            self._kept.append((server, piece))
            self._orphans.add(server)
            self._sockets -= {client, server}
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        with suppress(OSError):
            client.shutdown(socket.SHUT_RDWR)
        client.close()
        return True


class ProxiedServer(Server):
    """A server behind a proxy: it can be cut off, isolated, and a write to it held back.

    A store whose URIs have more than a host and a port overrides `uri_at`, once for both ways::

        def uri_at(self, host, port):
            return f"acme://user:secret@{host}:{port}/database?schema=app"

    Attributes:
        scheme: that of the store's URIs.
        proxy: by which the suite reaches the server.

    """

    scheme: str

    def __init__(self, proxy: TcpProxy) -> None:
        self.proxy = proxy

    @property
    def uri(self) -> str:
        """By way of the proxy."""
        return self.uri_at("127.0.0.1", self.proxy.port)

    @property
    def direct_uri(self) -> str:
        """Past the proxy."""
        return self.uri_at("127.0.0.1", self.proxy.target)

    def uri_at(self, host: str, port: int) -> str:
        """The store's URI if its server is there; with a user, a path and options, where needed."""
        return f"{self.scheme}://{host}:{port}"

    def cut(self) -> None:
        """Reset what goes through the proxy."""
        self.proxy.cut()

    def isolate(self) -> None:
        """Refuse what comes to the proxy, and reset what came before."""
        self.proxy.refuse()
        self.proxy.cut()

    def rejoin(self) -> None:
        """Take connections again."""
        self.proxy.refuse(False)

    def hold_back(self) -> None:
        """Keep what comes next through the proxy."""
        self.proxy.hold_back()

    def deliver(self) -> None:
        """Let it through."""
        self.proxy.deliver()

    def slow(self, seconds: float) -> None:
        """Keep back for so long what the server sends."""
        self.proxy.lag = seconds

    def silence(self) -> None:
        """Abandon what goes through the proxy."""
        self.proxy.abandon()


class ProxiedProcess(ProxiedServer):
    """A server process behind a proxy: it can be killed, stopped and paused as well.

    A context manager that starts the process, unless it runs, and ends both. As `Server`, it is
    used by one thread at a time. Override `forget` if the store can be made to forget its history.

    Attributes:
        process: the server itself.

    """

    def __init__(self, process: ServerProcess) -> None:
        """Start ``process`` unless it runs; raises `ServerFailed` if it does not get ready."""
        self.process = process.__enter__()
        self.scheme = process.scheme
        super().__init__(TcpProxy(process.port))

    def uri_at(self, host: str, port: int) -> str:
        """As the process says."""
        return self.process.uri_at(host, port)

    def stop(self) -> None:
        """End it by SIGTERM."""
        self.process.stop()

    def kill(self) -> None:
        """End it by SIGKILL."""
        self.process.kill()

    def start(self) -> None:
        """Start it again, and wait until it serves."""
        self.process.start()

    def pause(self) -> None:
        """SIGSTOP."""
        self.process.pause()

    def resume(self) -> None:
        """SIGCONT."""
        self.process.resume()

    def close(self) -> None:
        """End the proxy and the process, and remove its data; again, it does nothing."""
        self.proxy.close()
        self.process.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *raised: object) -> None:
        self.close()
