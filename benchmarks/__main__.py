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

STORES = ("start", "memory", "sqlite", "etcd", "consul")
_VERSIONS: dict[str, Callable[[str], str]] = {
    "etcd": machine.etcd_version,
    "consul": machine.consul_version,
}


def main(argv: list[str]) -> int:
    """Measure what was asked for, print the table, write the JSON."""
    options = _parse(argv)
    effort = QUICK if options.quick else THOROUGH
    chosen = options.only or STORES
    report = Report(machine=machine.versions())
    with ExitStack() as stack:
        uris = {"etcd": os.environ.get("KVI_TEST_ETCD")} if not options.fsync else {}
        uris["consul"] = os.environ.get("KVI_TEST_CONSUL")
        if options.fsync and "etcd" in chosen:
            from tests.servers import EtcdServer

            uris["etcd"] = stack.enter_context(EtcdServer()).uri
        for store in chosen:
            try:
                for row in _rows(store, effort, uris, report):
                    report.rows.append(row)
                    print(f"measured: {row.store}, {row.case}", file=sys.stderr, flush=True)
            except (ImportError, kvi.UnknownBackend) as error:
                report.notes.append(f"{store} was left out: {error}")
    show(report)
    if options.json:
        options.json.write_text(json.dumps(report.as_json(), indent=1))
    return 0


def _rows(store: str, effort: Effort, uris: dict[str, str | None], report: Report) -> Iterator[Row]:
    # A module is imported only if its store is asked for: it may need packages of that store.
    rows = importlib.import_module(f"benchmarks.{store}").rows
    if store not in _VERSIONS:
        yield from rows(effort)
    elif uri := uris.get(store):
        report.machine.append(f"server: {_VERSIONS[store](uri)}")
        yield from rows(effort, uri)
    else:
        report.notes.append(
            f"{store} was left out: KVI_TEST_{store.upper()} is not set; "
            "run under python -m tests.servers"
        )


def _parse(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description="kvi beside the least work that could do the job, and beside other libraries.",
    )
    parser.add_argument("--quick", action="store_true", help="few and short rounds, less data")
    parser.add_argument(
        "--only", action="append", choices=STORES, help="this part only; may be given again"
    )
    parser.add_argument(
        "--fsync", action="store_true", help="start an etcd that syncs each write to disk, use it"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every sample there")
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
