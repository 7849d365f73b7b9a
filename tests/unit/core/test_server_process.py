"""A server's process: it is waited for, does what it is told, and never outlives the tests."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from kvi.conformance import server_process
from kvi.conformance.guarded import GuardedProcess
from kvi.conformance.proxy import ProxiedProcess, ProxiedServer
from kvi.conformance.server_process import ServerFailed, ServerProcess, free_ports

from tests.support.waiting import until

# Writes each line that it gets to its file, then sends it back.
_PROGRAM = """
import pathlib, socketserver, sys
class Lines(socketserver.StreamRequestHandler):
    def handle(self):
        for line in self.rfile:
            with pathlib.Path(sys.argv[2], "lines").open("ab") as file:
                file.write(line)
            self.wfile.write(line)
class Server(socketserver.ThreadingTCPServer):
    allow_reuse_address = daemon_threads = True
server = Server(("127.0.0.1", int(sys.argv[1])), Lines)
print("serves", flush=True)
server.serve_forever()
"""


class Lines(ServerProcess):
    """A server of lines of text."""

    scheme = "lines"

    def command(self) -> list[str]:
        """Python, with the program above."""
        return [sys.executable, "-c", _PROGRAM, str(self.port), str(self.data_dir)]

    def probe(self, timeout: float) -> None:
        """One line."""
        assert said(self.port, b"probe", timeout) == b"probe\n"

    @property
    def lines(self) -> list[str]:
        """What it has got, beside the probes."""
        written = (self.data_dir / "lines").read_text().splitlines()
        return [line for line in written if line != "probe"]


def said(port: int, line: bytes, timeout: float = 10) -> bytes:
    """What the server answers to a line; empty if the connection ends before."""
    with socket.create_connection(("127.0.0.1", port), timeout) as one:
        one.settimeout(timeout)
        one.sendall(line + b"\n")
        with suppress(ConnectionResetError):
            return one.recv(100)
    return b""


@pytest.fixture
def server() -> Iterator[Lines]:
    """One that runs."""
    with Lines() as server:
        yield server


def runs(pid: int) -> bool:
    """Whether a process exists that has not ended (a zombie has)."""
    if Path("/proc/self/stat").exists():
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].strip()
        except OSError:
            return False
    else:
        ask = ["ps", "-o", "state=", "-p", str(pid)]
        state = subprocess.run(ask, capture_output=True, text=True, check=False).stdout.strip()
    return bool(state) and not state.startswith("Z")


# --- the process


def test_it_comes_back_as_itself(server: Lines) -> None:
    """Stopped or killed, it is started on the same port and data; paused, it answers later."""
    port, home = server.port, server.home
    said(port, b"one")
    server.stop()
    assert server.pid is None
    assert server.status().returncode == -signal.SIGTERM
    server.start()
    said(port, b"two")
    server.kill()
    assert server.status().returncode == -signal.SIGKILL
    server.start()
    assert (server.port, server.home) == (port, home)
    server.pause()
    with pytest.raises(TimeoutError):
        server.probe(0.05)
    server.resume()
    server.probe(10)
    server.pause()
    server.restart()  # also one that stands still
    assert server.lines == ["one", "two"]
    assert server.log_path.read_text() == "serves\n" * 4


def test_close_leaves_nothing(server: Lines) -> None:
    """Neither the process nor its folder; then it cannot be told anything, but to close."""
    pid, home = server.pid, server.home
    assert pid is not None
    server.close()
    server.close()
    assert not runs(pid)
    assert not home.exists()
    with pytest.raises(ServerFailed, match="closed"):
        server.kill()


def test_one_that_does_not_answer() -> None:
    """It is given its time and no more; the error says what the probe and the log said."""

    class Silent(Lines):
        def command(self) -> list[str]:
            return ["sh", "-c", "echo serves; exec sleep 60"]

        def probe(self, timeout: float) -> None:
            raise ValueError("it mumbles")

    server = Silent()
    with pytest.raises(ServerFailed, match=r"Silent is not ready after 2 s .*mumbles.*\nserves"):
        server.start(timeout=2)
    assert server.status().pid is None
    with pytest.raises(ServerFailed, match="not started"):
        server.home.exists()


def test_one_that_ends() -> None:
    """That is told at once, with its code and the end of its log."""

    class Ends(Lines):
        def command(self) -> list[str]:
            return ["sh", "-c", "seq 100; echo the disk is full >&2; exit 7"]

    with pytest.raises(ServerFailed, match=r"(?s)code 7; .*\n5\n\.\.\.\n.*disk is full"):
        Ends().start(timeout=60)


def test_one_that_is_not_there() -> None:
    """The error is the system's."""

    class Missing(Lines):
        def command(self) -> list[str]:
            return ["./no-such-server"]

    with pytest.raises(ServerFailed, match="no-such-server"):
        Missing().start()


def test_a_port_that_others_take(monkeypatch: pytest.MonkeyPatch) -> None:
    """If another program is quicker to listen on the port, another one is chosen."""
    with socket.create_server(("127.0.0.1", 0)) as other:
        taken = other.getsockname()[1]
        (free,) = free_ports(1)
        offered = iter([taken, taken, free])
        monkeypatch.setattr(server_process, "free_ports", lambda count: [next(offered)])
        with Lines() as server:
            assert server.port == free
        with pytest.raises(ServerFailed, match=r"(?i)address already in use"):
            Lines({"client": taken}).start()  # it was told which


def test_uri_with_more_than_an_address() -> None:
    """What a class says of its URIs holds past the proxy and by way of it."""

    class Named(Lines):
        def uri_at(self, host: str, port: int) -> str:
            return f"lines://ada:secret@{host}:{port}/base?schema=app"

    class Other(ProxiedServer):
        def uri_at(self, host: str, port: int) -> str:
            return f"other://{host}:{port}/base"

    with ProxiedProcess(Named()) as proxied:
        ways = ((proxied.uri, proxied.proxy.port), (proxied.direct_uri, proxied.process.port))
        for uri, port in (*ways, (proxied.process.uri, proxied.process.port)):
            assert uri == f"lines://ada:secret@127.0.0.1:{port}/base?schema=app"
        other = Other(proxied.proxy)
        assert other.uri == f"other://127.0.0.1:{proxied.proxy.port}/base"
        assert other.direct_uri == f"other://127.0.0.1:{proxied.process.port}/base"


def test_behind_a_proxy(server: Lines) -> None:
    """It can be cut off and let in again, and a line held back until it is delivered."""
    with ProxiedProcess(server) as proxied:
        assert proxied.process is server
        assert proxied.offers("stop", "kill", "start", "pause", "resume", "cut", "isolate")
        assert proxied.offers("rejoin", "hold_back", "deliver")
        assert not proxied.offers("forget")
        port = proxied.proxy.port
        assert proxied.uri == f"lines://127.0.0.1:{port}"
        assert proxied.direct_uri == server.uri
        assert said(port, b"one") == b"one\n"
        with socket.create_connection(("127.0.0.1", port), 10) as cut:
            cut.sendall(b"two\n")
            assert cut.recv(100) == b"two\n"
            proxied.cut()
            with suppress(ConnectionResetError):
                assert cut.recv(100) == b""
        with socket.create_connection(("127.0.0.1", port), 10) as held:
            until(lambda: proxied.proxy.open == 1)
            proxied.hold_back()
            held.sendall(b"three\n")
            with suppress(ConnectionResetError):
                assert held.recv(100) == b""
        assert said(port, b"four") == b"four\n"
        proxied.isolate()
        assert said(port, b"five") == b""
        proxied.rejoin()
        proxied.deliver()
        proxied.kill()
        proxied.start()
        assert said(port, b"six") == b"six\n"
        assert server.lines == ["one", "two", "four", "three", "six"]
    assert server.status().pid is None


# --- the guard


def spawn_sleep(folder: Path) -> tuple[GuardedProcess, int]:
    """Start a guard with `sleep` in the place of a server."""
    folder.mkdir()
    process = GuardedProcess(folder)
    pid = process.spawn(["sleep", "600"], folder / "log").pid
    assert pid is not None
    return process, pid


def test_close_kills_process_and_removes_folder(tmp_path: Path) -> None:
    """When `close` returns, process, guard and folder are gone; a second close does nothing."""
    process, pid = spawn_sleep(tmp_path / "home")
    process.close()
    process.close()
    assert not runs(pid)
    assert not runs(process.guard_pid)
    assert not (tmp_path / "home").exists()
    with pytest.raises(ServerFailed, match="closed"):
        process.status()


def test_signals_and_return_code(tmp_path: Path) -> None:
    """Signals reach the process and no other; its end and the way of it are reported."""
    process, pid = spawn_sleep(tmp_path / "home")
    try:
        with pytest.raises(ServerFailed, match="running"):
            process.spawn(["sleep", "600"], tmp_path / "home" / "log")
        assert process.signal(signal.SIGSTOP).running
        assert process.status().pid == pid
        process.signal(signal.SIGKILL)
        until(lambda: not process.status().running)
        assert process.status().returncode == -signal.SIGKILL
        assert process.signal(signal.SIGTERM).returncode == -signal.SIGKILL
        with pytest.raises(ServerFailed, match="No such file"):
            process.spawn([str(tmp_path / "nothing")], tmp_path / "home" / "log")
        again = process.spawn(["sleep", "600"], tmp_path / "home" / "log")
        assert again.running
        assert again.pid != pid
    finally:
        process.close()


# A parent that dies by SIGKILL while a child that it forked still holds the guard's pipe open.
_PARENT = """
import os, pathlib, sys, time
from kvi.conformance.guarded import GuardedProcess
folder = pathlib.Path(sys.argv[1])
process = GuardedProcess(folder)
state = process.spawn(["sleep", "600"], folder / "log")
heir = os.fork() if sys.argv[2] == "fork" else 0
if sys.argv[2] == "fork" and heir == 0:
    os.close(1)
    time.sleep(600)
print(state.pid, process.guard_pid, heir, flush=True)
time.sleep(600)
"""


@pytest.mark.parametrize("way", ["plain", "fork"])
def test_guard_outlives_a_killed_parent_only_to_clean_up(tmp_path: Path, way: str) -> None:
    """After SIGKILL of the tests, server and guard end and the folder goes, forks or not."""
    folder = tmp_path / "home"
    folder.mkdir()
    root = Path(__file__).parents[3]
    with subprocess.Popen(
        [sys.executable, "-c", _PARENT, str(folder), way],
        stdout=subprocess.PIPE,
        text=True,
        cwd=root,
    ) as parent:
        assert parent.stdout is not None
        pid, guard, heir = map(int, parent.stdout.readline().split())
        try:
            assert runs(pid)
            parent.kill()
            parent.wait()
            until(lambda: not folder.exists())
            until(lambda: not runs(pid) and not runs(guard))
        finally:
            if heir:
                os.kill(heir, signal.SIGKILL)


# --- ports


def test_free_ports_are_outside_the_ephemeral_range() -> None:
    """Chosen ports differ, and none is one that a client's own connection might be given."""
    ports = free_ports(20)
    assert len(set(ports)) == 20
    assert all(20000 <= port < 32768 for port in ports)
