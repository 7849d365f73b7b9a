"""What is known about a server's program, and the errors of this package."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from os import environ
from pathlib import Path
from typing import Literal

Tool = Literal["etcd", "etcdctl", "consul"]
EtcdSource = Literal["debian", "wheel"]

VARIABLE: dict[Tool, str] = {
    "etcd": "KVI_ETCD",
    "etcdctl": "KVI_ETCDCTL",
    "consul": "KVI_CONSUL",
}

_ASK: dict[Tool, str] = {"etcd": "--version", "etcdctl": "version", "consul": "version"}
_VERSION = re.compile(r"\bv?(\d+\.\d+\.\d+[^\s,]*)")
# Older lines know neither the flags used here nor all of the v3 protocol.
_OLDEST: dict[Tool, tuple[int, ...]] = {"etcd": (3, 4), "etcdctl": (3, 4), "consul": (1, 8)}


class ServerError(Exception):
    """Base of all errors of this package."""


class BinaryUnusable(ServerError):
    """A program is there, but it does not run or is too old."""


class ServerMissing(ServerError):
    """A program could not be found or fetched; the text says where it was sought and the mend."""

    def __init__(self, tool: Tool, looked: Sequence[str]) -> None:
        self.tool: Tool = tool
        self.looked = tuple(looked)
        places = "".join(f"\n  - {place}" for place in self.looked)
        product = "consul" if tool == "consul" else "etcd"
        super().__init__(
            f"{tool} was not found. Looked at:{places}\n"
            f"Mend: set {VARIABLE[tool]} to the path of the program, or install it where "
            f"PATH finds it (macOS: `brew install {product}`)."
        )


@dataclass(frozen=True, slots=True)
class Binary:
    """One program that has been run once to learn its version."""

    tool: Tool
    path: Path
    origin: str
    version: str

    def __str__(self) -> str:
        return f"{self.tool} {self.version} (from {self.origin})"


def version_tuple(version: str) -> tuple[int, ...]:
    """Return the leading numbers of a version, for comparing: `"3.4.23+x"` is `(3, 4, 23)`."""
    match = re.match(r"\d+(?:\.\d+)*", version)
    return tuple(int(part) for part in match.group().split(".")) if match else ()


@cache
def inspect(tool: Tool, path: Path, origin: str) -> Binary:
    """Ask the program at `path` for its version; `BinaryUnusable` if it cannot serve as `tool`."""
    try:
        answer = subprocess.run(
            [str(path), _ASK[tool]],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=30,
            check=True,
            env={**environ, "ETCDCTL_API": "3"},
        )
    except subprocess.CalledProcessError as error:
        last = (error.stderr or error.stdout or "").strip().splitlines()[-1:]
        raise BinaryUnusable(f"{path} does not run as {tool}: {''.join(last)}") from error
    except (OSError, subprocess.TimeoutExpired) as error:
        raise BinaryUnusable(f"{path} does not run as {tool}: {error}") from error
    match = _VERSION.search(answer.stdout)
    if match is None:
        raise BinaryUnusable(f"{path} does not tell its version as {tool} does")
    version = match.group(1)
    if version_tuple(version) < _OLDEST[tool]:
        oldest = ".".join(map(str, _OLDEST[tool]))
        raise BinaryUnusable(f"{path} is {tool} {version}; {oldest} or newer is needed")
    return Binary(tool, path, origin, version)
