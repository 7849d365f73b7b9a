"""Plugins: found through entry points, loaded one by one, checked before they are used."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

import kvi
import pytest
from kvi import registry
from kvi.flow.scope import Scope
from kvi.ops import Executor
from kvi.registry import anchored, around, within

GOOD = """
    from kvi.hookspecs import BackendInfo, hookimpl
    from kvi_memory.store import CAPABILITIES, MemoryKvi

    @hookimpl
    def kvi_describe():
        return BackendInfo(
            name="{name}", interface="{interface}", schemes=("{name}",), capabilities=CAPABILITIES
        )

    @hookimpl
    def kvi_open(uri, options):
        return MemoryKvi(uri.redacted, "registry-test", timeout=options["timeout"])
"""
Install = Callable[..., None]


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Install:
    """Install a distribution with a backend plugin, for this test only."""
    monkeypatch.syspath_prepend(str(tmp_path))

    def do(scheme: str, source: str, *, distribution: str | None = None) -> None:
        name = distribution or f"kvi-{scheme}"
        module = name.replace("-", "_") + "_plugin"
        (tmp_path / f"{module}.py").write_text(textwrap.dedent(source))
        info = tmp_path / f"{name.replace('-', '_')}-1.2.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.2\n")
        (info / "entry_points.txt").write_text(f"[kvi.backends]\n{scheme} = {module}\n")

    return do


def test_uri_to_be_shown(install: Install) -> None:
    """Declared options are shown, but no secrets, unknown options, passwords and lone names."""
    option = "from kvi.options import Option\n"
    declared = """options=(
        Option(name="schema", kind="text", help="where"),
        Option(name="pin", kind="text", help="who", secret=True),
    ), schemes="""
    source = textwrap.dedent(GOOD.format(name="shown", interface="1.0"))
    install("shown", option + source.replace("schemes=", declared))
    assert registry.redacted("shown://ada:pw@h/base?schema=app&pin=1&pni=2&timeout=3") == (
        "shown://ada:***@h/base?schema=app&pin=***&pni=***&timeout=3"
    )
    assert registry.redacted("shown://token@h?schema=app") == "shown://***@h?schema=app"
    assert registry.redacted("nobody://token@h?schema=app") == "nobody://***@h?schema=***"


def test_third_party_backend(install: Install) -> None:
    """A distribution with an entry point is found and opened; core needs no change."""
    install("acme", GOOD.format(name="acme", interface="1.7"))
    with kvi.open("acme:anything?timeout=3") as store:
        store.store("k", b"v")
        assert store.uri == "acme:anything?timeout=3"
    listed = {backend.scheme: backend for backend in kvi.backends()}
    assert listed["acme"].distribution == "kvi-acme"
    assert listed["acme"].version == "1.2"
    assert listed["acme"].error is None
    assert listed["mem"].capabilities is not None


@pytest.mark.parametrize(
    ("uri", "texts"),
    [
        ("nonsense://h", ["'nonsense'", "installed: ", "mem", "kvi.backends"]),
        ("mem+tls:x", ["'mem+tls'", "schemes are mem"]),
        ("sqllite:x.db", ["did you mean 'sqlite'?"]),
        ("memory:", ["did you mean 'mem'?"]),
    ],
)
def test_unknown_scheme(uri: str, texts: list[str]) -> None:
    """An unknown scheme lists what is installed and how to get more."""
    with pytest.raises(kvi.UnknownBackend) as caught:
        kvi.open(uri)
    for text in texts:
        assert text in str(caught.value)


def test_two_claims(install: Install) -> None:
    """Two distributions that claim one scheme are an error that names both, and hide no other."""
    install("twice", GOOD.format(name="twice", interface="1.0"), distribution="kvi-one")
    install("twice", GOOD.format(name="twice", interface="1.0"), distribution="kvi-two")
    with pytest.raises(kvi.AmbiguousBackend, match="kvi-one and kvi-two"):
        kvi.open("twice:")
    listed = kvi.backends()
    assert [type(b.error) for b in listed if b.scheme == "twice"] == [kvi.AmbiguousBackend] * 2
    assert [b.error for b in listed if b.scheme == "mem"] == [None]


def test_import_failure(install: Install) -> None:
    """A plugin that fails to import is an error chained to its cause."""
    install("unimportable", "import no_such_module_anywhere\n")
    with pytest.raises(kvi.BackendLoadError, match="no_such_module_anywhere") as caught:
        kvi.open("unimportable:")
    assert isinstance(caught.value.__cause__, ModuleNotFoundError)
    assert isinstance(
        next(b.error for b in kvi.backends() if b.scheme == "unimportable"), kvi.BackendLoadError
    )


def test_other_major_version(install: Install) -> None:
    """A plugin built for another major version is refused with both versions named."""
    install("old", GOOD.format(name="old", interface="0.9"))
    with pytest.raises(kvi.BackendLoadError, match=r"interface 0\.9, this kvi speaks 1\.0"):
        kvi.open("old:")


def test_misspelled_hook(install: Install) -> None:
    """A hook that does not exist is an error, not silence."""
    install("typo", GOOD.format(name="typo", interface="1.0").replace("kvi_open", "kvi_opne"))
    with pytest.raises(kvi.BackendLoadError, match="hook"):
        kvi.open("typo:")


@pytest.mark.parametrize(
    ("old", "new", "text"),
    [
        ("(uri, options)", "(url, options)", "other arguments"),
        ("return BackendInfo(", "return {}['x'](", "describe itself: KeyError"),
        ("return MemoryKvi(", "return {}['x'](", "fails to open: KeyError"),
    ],
)
def test_plugin_with_a_mistake(install: Install, old: str, new: str, text: str) -> None:
    """What a plugin does wrong is a BackendLoadError that says where, and hides no other plugin."""
    name = f"wrong{len(text)}"  # a name of its own, as what is imported stays imported
    install(name, GOOD.format(name=name, interface="1.0").replace(old, new))
    with pytest.raises(kvi.BackendLoadError, match=text):
        kvi.open(f"{name}:")
    assert "mem" in {backend.scheme for backend in kvi.backends()}


def test_plugin_without_description(install: Install) -> None:
    """A plugin that does not describe itself is refused."""
    install("mute", "x = 1\n")
    with pytest.raises(kvi.BackendLoadError, match="describe"):
        kvi.open("mute:")


def test_plugin_that_opens_something_else(install: Install) -> None:
    """What a plugin opens must be a Kvi."""
    source = GOOD.format(name="odd", interface="1.0")
    install("odd", source[: source.index("return MemoryKvi")] + "return {}\n")
    with pytest.raises(kvi.BackendLoadError, match="opened a dict"):
        kvi.open("odd:")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this platform cannot fork")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_fork_while_a_plugin_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    """A child can open stores although its parent was loading a plugin, and took too long."""
    loading = registry._registry._loading
    with loading.get():
        monkeypatch.setattr(loading._made, "_patience", 0.05)
        child = os.fork()
        if child == 0:
            signal.alarm(20)  # a hang becomes a failure
            kvi.open("sqlite:never-touched.db").close()
            os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_installed_twice(install: Install, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of one distribution that is on the path twice, the first is used, as import does."""
    install("double", "import nothing_like_this\n")
    first = tmp_path / "first"
    (first / "kvi_double-2.0.dist-info").mkdir(parents=True)
    (first / "kvi_double-2.0.dist-info" / "entry_points.txt").write_text(
        "[kvi.backends]\ndouble = kvi_memory.plugin\n"
    )
    monkeypatch.syspath_prepend(str(first))
    with pytest.raises(kvi.UnknownBackend, match="schemes are mem"):
        kvi.open("double:")


def test_claim_in_an_egg_info(install: Install, tmp_path: Path) -> None:
    """A rival claim of an old-style installation is seen too."""
    install("egg", GOOD.format(name="egg", interface="1.0"))
    rival = tmp_path / "rival_egg-1.0-py3.11.egg-info"
    rival.mkdir()
    (rival / "PKG-INFO").write_text("Metadata-Version: 2.1\nName: rival-egg\nVersion: 1.0\n")
    (rival / "entry_points.txt").write_text("[kvi.backends]\negg = kvi_memory.plugin\n")
    with pytest.raises(kvi.AmbiguousBackend, match="kvi-egg and rival-egg"):
        kvi.open("egg:")


def test_only_the_asked_plugin_is_imported() -> None:
    """`import kvi` and mem: import none of the heavy modules, and no other plugin."""
    code = """
        import sys
        import kvi
        with kvi.open("mem:") as store:
            store.store("k", b"v")
            store.tas("k", b"v", b"w")
            list(store.range())
        heavy = {"grpc", "google.protobuf", "etcd3", "requests", "urllib3", "consul", "sqlite3",
                 "pytest", "kvi_sqlite", "kvi_etcd", "kvi_consul", "kvi.conformance"}
        print(sorted(heavy & set(sys.modules)))
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=False
    )
    assert (done.stdout, done.stderr) == ("[]\n", "")


@pytest.mark.parametrize(
    ("uri", "inner"),
    [
        ("mem:", "mem:?namespace=t"),
        ("mem:x?timeout=2", "mem:x?timeout=2&namespace=t"),
        ("sqlite:a%20b.db?namespace=app", "sqlite:a%20b.db?namespace=app/t"),
        ("etcd://h:1", "etcd://h:1?namespace=t"),
        ("etcd://h:1/?timeout=2", "etcd://h:1/?timeout=2&namespace=t"),
        ("etcd://u:p%40ss@h:1/a/b?timeout=2", "etcd://u:p%40ss@h:1/a/b/t?timeout=2"),
        ("consul://h/app/", "consul://h/app/t"),
        ("consul://h?token=a%26b%3D", "consul://h?token=a%26b%3D&namespace=t"),
    ],
)
def test_within(uri: str, inner: str) -> None:
    """A namespace can be put into a URI, whatever it has already; it opens."""
    assert within(uri, "t") == inner
    if not uri.startswith("sqlite:"):
        kvi.open(inner).close()


@pytest.mark.parametrize(
    ("uri", "same"),
    [
        ("sqlite:a%20b.db?namespace=x", "sqlite:{here}/a%20b.db?namespace=x"),
        ("sqlite:sub/../b.db", "sqlite:{here}/sub/../b.db"),
        ("sqlite:/b.db", "sqlite:/b.db"),
        ("sqlite:///b.db", "sqlite:///b.db"),
        ("mem:b", "mem:b"),
        ("consul://h/b", "consul://h/b"),
    ],
)
def test_anchored(uri: str, same: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The path of a file is made absolute, and nothing else is changed."""
    here = tmp_path / "a folder"
    here.mkdir()
    monkeypatch.chdir(here)
    assert anchored(uri) == same.format(here=f"{tmp_path}/a%20folder")


def test_anchored_where_no_uri_can_say_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At the root no host comes of it; a folder that is no UTF-8 or is gone leaves it relative."""
    monkeypatch.chdir("/")
    assert anchored("sqlite:b.db") == "sqlite:/b.db"
    odd = Path(os.fsdecode(bytes(tmp_path) + b"/\xff"))
    odd.mkdir()
    monkeypatch.chdir(odd)
    assert anchored("sqlite:b.db") == "sqlite:b.db"
    odd.rmdir()
    assert anchored("sqlite:b.db") == "sqlite:b.db"


def test_within_refuses() -> None:
    """What is no URI or no name is refused."""
    with pytest.raises(kvi.UnknownBackend):
        within("nosuch:x", "t")
    with pytest.raises(kvi.InvalidOption):
        within("mem:", "/t")


def test_around() -> None:
    """What tests put around handles is outermost, also on `kvi.aio`, and gone again."""
    made: list[Scope] = []

    def wrap(scope: Scope) -> Executor:
        made.append(scope)
        return scope.executor

    around.append(wrap)
    try:
        kvi.open("mem:around").close()
        asyncio.run(kvi.aio.open("mem:around").close())
    finally:
        around.remove(wrap)
    kvi.open("mem:around").close()
    assert len(made) == 2
