"""How far a process grows while it reads a large range of etcd.

`python -m benchmarks.growth NAME URI PREFIX` prints one line of JSON: ``growth`` (bytes, the peak
of resident memory over what it was before) or ``error``. Needs Linux's ``/proc``.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import kvi

from benchmarks.etcd import Stub, etcd3_client, read_all
from benchmarks.machine import address, installed
from benchmarks.measure import FLOOR, KVI

STATUS = Path("/proc/self/status")


def measure(name: str, uri: str, prefix: str) -> tuple[int, str]:
    """Read the range by the contender called ``name``: the growth, and what went wrong."""
    with kvi.open(uri) as store, closing(Stub(uri)) as stub:
        readers: dict[str, Callable[[], int]] = {
            FLOOR: lambda: stub.read_all(prefix),
            KVI: lambda: read_all(store, prefix),
            "etcd3": _peer(etcd3_client(uri), prefix),
        }
        if (etcd3gw := installed("etcd3gw")) is not None:
            host, port = address(uri)
            gateway = etcd3gw.client(host=host, port=port, api_path="/v3/")
            readers["etcd3gw"] = _peer(gateway, prefix)
        if name not in readers:
            return 0, "not installed"
        store.get(prefix)
        stub.store(prefix + "0", b"")
        before = memory("VmRSS")
        try:
            readers[name]()
        except Exception as error:  # noqa: BLE001  (whatever a peer fails with is its result)
            code = getattr(error, "code", None)
            return 0, f"fails ({code().name if callable(code) else type(error).__name__})"
        return memory("VmHWM") - before, ""


def _peer(client: Any, prefix: str) -> Callable[[], int]:
    return lambda: sum(len(value) for value, _ in client.get_prefix(prefix))


def memory(field: str) -> int:
    """A figure of this process, in bytes."""
    for line in STATUS.read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    raise LookupError(field)


if __name__ == "__main__":
    if STATUS.exists():
        grown, wrong = measure(*sys.argv[1:4])
    else:
        grown, wrong = 0, "not measured here"
    print(json.dumps({"growth": grown, "error": wrong}))
