"""What the suite may do to the server behind a store, if its author lets it.

A test file that offers it has, beside `kvi_uri`, a fixture that gives a `Server`, and imports the
rules that need one::

    from kvi.conformance import *
    from kvi.conformance.faults import *

    class AcmeServer(ServerProcess):
        scheme = "acme"

        def command(self):
            return ["acme-server", f"--port={self.port}", f"--data={self.data_dir}"]

        def probe(self, timeout):
            with kvi.open(self.uri, timeout=timeout) as store:
                store.ping()

    @pytest.fixture(scope="module")
    def kvi_server():
        with ProxiedProcess(AcmeServer()) as server:
            yield server

That is `kvi.conformance.server_process`, which runs a program, and `kvi.conformance.proxy`, which
cuts it off. A server of another kind, such as one in a container, is a `Server` of one's own, or a
`kvi.conformance.proxy.ProxiedServer`.

Only `uri` must be there. What else a subclass overrides is what it can do; `offers` tells. A rule
that needs what the server does not offer is reported as not run, with that reason. Some faults need
what ends them as well:

============================  ==================================================================
faults                        need
============================  ==================================================================
`stop`, `kill`                `start`
`pause`                       `resume`
`isolate`                     `rejoin`
`hold_back`                   `deliver`
`cut`, `forget`               nothing else
`slow`, `silence`             nothing else
============================  ==================================================================

The fixture may have any scope. One server for the module (``scope="module"``) is quickest: several
tests look at what one run of faults has left, each works in a namespace of its own, and the suite
leaves the server running. One for each test works if the next server has the data of the one
before.
"""

from __future__ import annotations

from abc import ABC, abstractmethod


class Server(ABC):
    """The server behind a store. Each method returns once its effect is there.

    A method that is not overridden is not offered. The suite calls them from one thread at a time,
    while other threads use the store, and leaves the server running, resumed and reachable.
    """

    @property
    @abstractmethod
    def uri(self) -> str:
        """The URI of the store, by way of everything that can be cut."""

    @property
    def direct_uri(self) -> str:
        """The URI of the same store by another way, which `cut` and `isolate` do not concern."""
        raise NotImplementedError

    def stop(self) -> None:
        """End the server in good order; its data stays. Needs `start`."""
        raise NotImplementedError

    def kill(self) -> None:
        """End the server at once (SIGKILL): nothing is written or said any more. Needs `start`."""
        raise NotImplementedError

    def start(self) -> None:
        """Start a stopped or killed server on the same data; return when it serves."""
        raise NotImplementedError

    def pause(self) -> None:
        """Freeze the server (SIGSTOP): connections stay open, none is served. Needs `resume`."""
        raise NotImplementedError

    def resume(self) -> None:
        """Let a paused server go on."""
        raise NotImplementedError

    def cut(self) -> None:
        """Reset all connections between the store's clients and the server; new ones work."""
        raise NotImplementedError

    def isolate(self) -> None:
        """Reset all connections and refuse new ones, until `rejoin`."""
        raise NotImplementedError

    def rejoin(self) -> None:
        """End `isolate`."""
        raise NotImplementedError

    def hold_back(self) -> None:
        """Keep the next write that is sent from the server, and end its connection.

        Its sender gets no answer, and may send it again, which works. It is kept until `deliver`.
        """
        raise NotImplementedError

    def deliver(self) -> None:
        """Let the server have what `hold_back` keeps from it, if there is anything."""
        raise NotImplementedError

    def slow(self, seconds: float) -> None:
        """Let every answer come so much later, until told otherwise: 0 ends it.

        What is sent to the server arrives at once.
        """
        raise NotImplementedError

    def silence(self) -> None:
        """Swallow all that comes on today's connections, in both directions, and never tell.

        New ones work. The old ones stay as they are, open and silent, until somebody closes them.
        """
        raise NotImplementedError

    def forget(self) -> None:
        """Make the store forget its history up to now, as a compaction does.

        It may write to the key ``forget``.
        """
        raise NotImplementedError

    @classmethod
    def offers(cls, *names: str) -> bool:
        """Whether all of these are overridden."""
        return all(getattr(cls, name) is not getattr(Server, name) for name in names)
