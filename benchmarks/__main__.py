"""Run the benchmarks: `python -m tests.servers --fast -- python -m benchmarks`.

Takes the servers from ``KVI_TEST_ETCD`` and ``KVI_TEST_CONSUL``; what is not there is left out and
said. It measures and tells; it never fails because something is slow.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import kvi

from benchmarks import machine
from benchmarks.measure import QUICK, THOROUGH, Effort
from benchmarks.report import Report, Row, show

PARTS = ("start", "memory", "entities", "sqlite", "etcd", "consul", "locks", "watches", "aio")
_SERVERS: dict[str, Callable[[str], str]] = {
    "etcd": machine.etcd_version,
    "consul": machine.consul_version,
}
_ON_ALL = ("locks", "watches", "aio")  # they take all the servers there are


def main(argv: list[str]) -> int:
    """Measure what was asked for, print the table, write the JSON."""
    options = _parse(argv)
    effort = QUICK if options.quick else THOROUGH
    chosen = options.only or PARTS
    report = Report(machine=machine.versions())
    with ExitStack() as stack:
        uris = {}
        for name in _SERVERS:
            if name not in chosen and not set(_ON_ALL) & set(chosen):
                continue
            uri = os.environ.get(f"KVI_TEST_{name.upper()}")
            if name == "etcd" and options.fsync:
                from tests.servers import EtcdServer

                uri = stack.enter_context(EtcdServer()).uri
            if uri:
                uris[name] = uri
                report.machine.append(f"server: {_SERVERS[name](uri)}")
            else:
                report.notes.append(
                    f"{name} was left out: KVI_TEST_{name.upper()} is not set; "
                    "run under python -m tests.servers"
                )
        for part in chosen:
            try:
                for row in _rows(part, effort, uris):
                    report.rows.append(row)
                    print(f"measured: {row.store}, {row.case}", file=sys.stderr, flush=True)
            except (ImportError, kvi.UnknownBackend) as error:
                report.notes.append(f"{part} was left out: {error}")
    show(report)
    if options.json:
        options.json.write_text(json.dumps(report.as_json(), indent=1))
    return 0


def _rows(part: str, effort: Effort, uris: dict[str, str]) -> Iterator[Row]:
    if part in _SERVERS and part not in uris:
        return
    # A module is imported only if its part is asked for: it may need packages of a store.
    rows = importlib.import_module(f"benchmarks.{part}").rows
    if part in _ON_ALL:
        yield from rows(effort, uris)
    elif part in _SERVERS:
        yield from rows(effort, uris[part])
    else:
        yield from rows(effort)


def _parse(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description="kvi beside the least work that could do the job, and beside other libraries.",
    )
    parser.add_argument("--quick", action="store_true", help="few and short rounds, less data")
    parser.add_argument(
        "--only", action="append", choices=PARTS, help="this part only; may be given again"
    )
    parser.add_argument(
        "--fsync", action="store_true", help="start an etcd that syncs each write to disk, use it"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every sample there")
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
