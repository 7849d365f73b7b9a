"""The built wheels in clean environments: what users get, not what the source tree has."""

from __future__ import annotations

import email
import json
import os
import subprocess
import sys
import zipfile
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

from tests.cli.terminal import OnTerminal
from tests.servers import ConsulServer, EtcdServer
from tests.support.waiting import until

ROOT = Path(__file__).parents[2]
PROJECTS = {
    "kvi": ".",
    "kvi-core": "core",
    "kvi-memory": "plugins/memory",
    "kvi-sqlite": "plugins/sqlite",
    "kvi-etcd": "plugins/etcd",
    "kvi-consul": "plugins/consul",
}
# These are not compiled here: a bound without a wheel for this Python is a mistake.
COMPILED = "grpcio,protobuf,pydantic-core"
# What old libraries do and newer Pythons warn of. With the newest, every warning is an error.
PASSED_OVER = [
    "ignore:Type google._upb:DeprecationWarning",  # protobuf before 5.27, from Python 3.12 on
    "ignore:datetime.datetime.utcfromtimestamp:DeprecationWarning",
    "ignore:datetime.datetime.utcnow:DeprecationWarning",
]

# Python 3.12 warned of numbered placeholders in SQL until 3.12.4.
EVER_PASSED_OVER = ["ignore:Binding:DeprecationWarning"] if sys.version_info < (3, 12, 4) else []

pytestmark = [
    pytest.mark.slow,
    pytest.mark.xdist_group("packaging"),
    pytest.mark.timeout(400),
]


def run(*command: str | Path, cwd: Path | None = None) -> str:
    """Run a command; its output is shown if it fails."""
    done = subprocess.run(
        [str(part) for part in command], cwd=cwd, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout.strip()


@pytest.fixture(scope="module")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the wheels of all distributions, built from this tree."""
    folder = tmp_path_factory.mktemp("wheels")
    for project in PROJECTS.values():
        run(
            sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", folder,
            ROOT / project,
        )  # fmt: skip
    return folder


def oldest_of(wheels: Path, *extras: str) -> list[str]:
    """Return the oldest versions that the wheels allow on this Python, as requirements."""
    lowest: dict[str, Version] = {}
    for wheel in wheels.glob("*.whl"):
        with zipfile.ZipFile(wheel) as archive:
            name = next(name for name in archive.namelist() if name.endswith("/METADATA"))
            told = email.message_from_bytes(archive.read(name)).get_all("Requires-Dist", [])
        for required in map(Requirement, told):
            asked = [
                required.marker is None or required.marker.evaluate({"extra": extra})
                for extra in ("", *extras)
            ]
            for bound in required.specifier:
                if any(asked) and bound.operator == ">=" and not required.name.startswith("kvi"):
                    version = Version(bound.version)
                    lowest[required.name] = max(version, lowest.get(required.name, version))
    return [f"{name}=={version}" for name, version in lowest.items()]


class Environment:
    """A clean virtual environment."""

    def __init__(
        self, folder: Path, wheels: Path, *requirements: str, pins: Sequence[str] = ()
    ) -> None:
        run(sys.executable, "-m", "venv", "--without-pip", folder)
        self.python = folder / "bin" / "python"
        self.folder = folder
        self._warnings = [*EVER_PASSED_OVER, *(PASSED_OVER if pins else [])]
        pinned = folder / "pinned.txt"
        pinned.write_text("\n".join(pins))
        run(
            sys.executable, "-m", "pip", "--python", self.python, "install", "-q", "--no-compile",
            "--find-links", wheels, "-c", pinned, "--only-binary", COMPILED, *requirements,
        )  # fmt: skip

    def run(self, program: str) -> str:
        """Run a program far from the source tree."""
        warnings = [word for each in ("error", *self._warnings) for word in ("-W", each)]
        return run(self.python, "-I", *warnings, "-c", program, cwd=self.folder)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory, wheels: Path) -> Environment:
    """Core and memory only."""
    return Environment(tmp_path_factory.mktemp("small") / "env", wheels, "kvi-core", "kvi-memory")


EXTRAS = [
    *("cli", "shell", "conformance", "opentelemetry", "prometheus", "protobuf", "pydantic"),
    *("pytest", "settings"),
]
EVERYTHING = ["kvi[all]", f"kvi-core[{','.join(EXTRAS)}]"]


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory, wheels: Path) -> Environment:
    """Everything, in the newest versions."""
    return Environment(tmp_path_factory.mktemp("full") / "env", wheels, *EVERYTHING)


@pytest.fixture(scope="module")
def oldest(tmp_path_factory: pytest.TempPathFactory, wheels: Path) -> Environment:
    """Everything, in the oldest versions allowed."""
    folder = tmp_path_factory.mktemp("oldest") / "env"
    return Environment(folder, wheels, *EVERYTHING, pins=oldest_of(wheels, *EXTRAS))


@pytest.fixture(params=["full", "oldest"])
def either(request: pytest.FixtureRequest) -> Environment:
    """Both ends."""
    environment: Environment = request.getfixturevalue(request.param)
    return environment


def test_wheels_are_complete(wheels: Path) -> None:
    """Each distribution has its licence and, if it has code, py.typed; none has tests in it."""
    built = sorted(wheels.glob("*.whl"))
    assert len(built) == len(PROJECTS)
    for wheel in built:
        names = zipfile.ZipFile(wheel).namelist()
        assert any("LICENSE" in name for name in names), wheel.name
        packages = {name.split("/")[0] for name in names if name.endswith("__init__.py")}
        assert all(f"{package}/py.typed" in names for package in packages), wheel.name
        assert bool(packages) is not wheel.name.startswith("kvi-0")
        assert not any(name.startswith("tests/") for name in names), wheel.name


def test_small_installation(small: Environment) -> None:
    """With core and memory only, mem: works, and etcd:// names the package to install."""
    assert (
        small.run("import kvi; s = kvi.open('mem:'); s.store('k', 'v'); print(s.get('k').text)")
        == "v"
    )
    text = small.run(
        "import kvi\ntry: kvi.open('etcd://h')\nexcept kvi.UnknownBackend as e: print(e)"
    )
    assert "pip install kvi-etcd" in text
    assert "installed: mem" in text


PROGRAM = """
import kvi
with kvi.open({uri!r}) as store:
    store.delete_range(prefix="")
    assert store.tas("a", None, "1") and store.tas("a", "1", "2") and not store.tas("a", "1", "3")
    assert store.txn([kvi.Key("a").value == "2"], [kvi.Put("b//c", "x"), kvi.Get("a")])
    print([(e.key, e.text) for e in store.range()], store.delete_range(prefix=""))
"""
EXPECTED = "[('a', '2'), ('b//c', 'x')] 2"


@pytest.mark.parametrize(
    "store",
    [
        "mem",
        "sqlite",
        pytest.param("etcd", marks=pytest.mark.etcd),
        pytest.param("consul", marks=pytest.mark.consul),
    ],
)
def test_installed_plugins_work(either: Environment, store: str, tmp_path: Path) -> None:
    """Installed wheels are found by kvi.open and work on real servers, old and new libraries."""
    with ExitStack() as stack:
        if store == "mem":
            uri = "mem:"
        elif store == "sqlite":
            uri = f"sqlite:{tmp_path}/x.db"
        else:  # a server of its own: the suite empties that of the run at any moment
            server = EtcdServer(fast=True) if store == "etcd" else ConsulServer()
            uri = f"{stack.enter_context(server).uri}/packaging"
        assert either.run(PROGRAM.format(uri=uri)) == EXPECTED


def test_versions_of_the_two_ends(full: Environment, oldest: Environment) -> None:
    """The two environments really are two ends of the allowed ranges."""
    show = "import importlib.metadata as m; print(m.version('protobuf'), m.version('grpcio'))"
    newest = [int(part.split(".")[0]) for part in full.run(show).split()]
    assert newest[0] >= 7
    python = min(max(sys.version_info[:2], (3, 11)), (3, 14))
    assert (
        oldest.run(show)
        == {
            (3, 11): "4.21.1 1.49.1",
            (3, 12): "4.21.1 1.59.0",
            (3, 13): "4.21.1 1.66.2",
            (3, 14): "5.27.0 1.75.1",
        }[python]
    )


def test_all_backends_are_listed(full: Environment) -> None:
    """kvi.backends() finds every installed plugin, and each can be used."""
    listed = full.run(
        "import kvi; print([(b.scheme, b.distribution, b.error) for b in kvi.backends()])"
    )
    assert listed == str(
        [
            ("consul", "kvi-consul", None),
            ("etcd", "kvi-etcd", None),
            ("http", "kvi-etcd", None),
            ("https", "kvi-etcd", None),
            ("mem", "kvi-memory", None),
            ("sqlite", "kvi-sqlite", None),
        ]
    )


def test_suite_from_wheels(
    either: Environment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The suite runs from its wheel, with the oldest libraries allowed and with the newest."""
    monkeypatch.setenv("KVI_CONFORMANCE_EXAMPLES", "0.1")
    rules: list[str] = ["--rule", "tas", "--rule", "program", "--rule", "lock.fence"]
    files: list[str | Path] = [
        "--json",
        tmp_path / "report.json",
        "--html",
        tmp_path / "report.html",
    ]
    report = run(
        either.python, "-I", "-m", "kvi.conformance", "mem:suite", *rules, *files, cwd=tmp_path
    )
    found = json.loads((tmp_path / "report.json").read_text())
    outcomes = {rule["name"]: rule["outcome"] for rule in found["rules"]}
    assert found["passed"], report
    assert {name for name, outcome in outcomes.items() if outcome == "pass"} >= {
        "tas.table",
        "tas.atomic",
        "program.model",
        "lock.fence",
    }
    assert "<title>kvi-memory" in (tmp_path / "report.html").read_text()


def test_the_command(either: Environment, tmp_path: Path) -> None:
    """The distribution `kvi` brings a command that works at once, with nothing set up."""
    env = {"PATH": str(either.folder / "bin"), "HOME": str(tmp_path)}

    def kvi_(*words: str) -> str:
        return subprocess.run(
            ["kvi", *words], env=env, cwd=tmp_path, capture_output=True, text=True, check=True,
            executable=str(either.folder / "bin" / "kvi"),
        ).stdout  # fmt: skip

    assert kvi_("put", "greeting", "hello") == ""
    assert kvi_("get", "greeting") == "hello"
    assert list(tmp_path.rglob("kvi.db"))
    assert '"revision": 1' in kvi_("range", "--json")
    assert "kvi-consul\t" in kvi_("backends")
    assert "Examples:" in kvi_("copy", "--help")
    assert kvi_("lock", "jobs", "--", str(either.python), "-c", "print('held')") == "held\n"
    assert "verified   equal" in kvi_("copy", f"sqlite:{next(tmp_path.rglob('kvi.db'))}",
                                     f"sqlite:{tmp_path}/copy.db", "--verify")  # fmt: skip


def test_the_prompt(either: Environment, tmp_path: Path) -> None:
    """`kvi shell` has its prompt with the oldest library allowed, and with the newest."""
    env = {"PATH": os.environ["PATH"], "HOME": str(tmp_path), "KVI_URI": "mem:"}
    env["PROMPT_TOOLKIT_NO_CPR"] = "1"  # nobody answers here where the cursor is
    with OnTerminal(env, tmp_path, str(either.folder / "bin" / "kvi"), "shell") as shell:
        shell.shows("mem:>")
        shell.type("put greeting 'hello there'\r")
        until(lambda: shell.seen.count(b"\x1b[?2004h") == 2, within=60)
        shell.type("get gr\t")
        until(lambda: b"eeting" in shell.seen.rpartition(b"\x1b[?2004h")[2], within=60)
        shell.type("\r")
        shell.shows("hello there\r\n")
        until(lambda: shell.seen.count(b"\x1b[?2004h") == 3, within=60)
        shell.type("\x04")
        shell.end()
        assert shell.process.returncode == 0


def test_command_needs_its_extra(small: Environment) -> None:
    """With core alone it says what to install."""
    done = subprocess.run(
        [str(small.folder / "bin" / "kvi"), "get", "k"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert "pip install kvi-core[cli]" in done.stderr


def test_conformance_extra(small: Environment) -> None:
    """Without the extra the suite is not importable by accident: core needs no pytest."""
    program = "import kvi.conformance"
    done = subprocess.run(
        [str(small.python), "-I", "-c", program], capture_output=True, check=False
    )
    assert b"pytest" in done.stderr


OBSERVED = """
import kvi, kvi.observers
from kvi.observers.opentelemetry import OpenTelemetryObserver
from kvi.observers.prometheus import PrometheusObserver
from prometheus_client import REGISTRY
kvi.observers.register(PrometheusObserver())
kvi.observers.register(OpenTelemetryObserver())
with kvi.Backend("mem:observed") as store:
    store.get("k")
    where = {"store": store.uri, "operation": "get", "outcome": "ok"}
print(REGISTRY.get_sample_value("kvi_operations_total", where))
"""

TYPED = """
import kvi, pydantic
from google.protobuf.wrappers_pb2 import StringValue
from kvi.loader.pydantic import PydanticCodec

class Meter(pydantic.BaseModel):
    id: int
    rate: float

with kvi.open("mem:typed") as store:
    names = kvi.Loader(store, "names", kvi.ProtobufCodec(StringValue), lambda one: one.value)
    meters = kvi.Loader(store, "meters", PydanticCodec(Meter), lambda meter: meter.id)
    with kvi.lock_many(names.at("a"), meters.at(1)) as (name, meter):
        name.stage(StringValue(value="a"))
        meter.stage(Meter(id=1, rate=2.5))
        kvi.commit(name, meter)
    again = kvi.Loader(store, "meters", PydanticCodec(Meter), lambda meter: meter.id)
    store.store("meters/2", "{}")
    print([error.key for error in again.load()], list(again))
"""


LIVE = """
import kvi, threading
from kvi.settings import KviSettingsSource, LiveSettings
from pydantic_settings import BaseSettings, SettingsConfigDict

class Settings(BaseSettings):
    model_config = SettingsConfigDict(frozen=True)
    name: str = "none"
    tags: list[str] = []

class Once(Settings):
    @classmethod
    def settings_customise_sources(cls, settings_cls, init_settings, *others, **named):
        return init_settings, KviSettingsSource(settings_cls, store, "app")

changed = threading.Semaphore(0)
with kvi.open("mem:live") as store, LiveSettings(Settings, store, "app") as live:
    live.on_change(lambda change: changed.release())
    store.txn(then=[kvi.Put("app/name", "n"), kvi.Put("app/tags", '["a"]')])
    assert changed.acquire(timeout=20)
    print(live.current == Settings(name="n", tags=["a"]), Once().tags)
    store.store("app/tags", "a, b")
    assert changed.acquire(timeout=20)
    print(live.error.message)
"""

OWN_TESTS = """
import kvi
import pytest

@pytest.mark.parametrize("applied", [True, False])
def test_own(kvi_store, kvi_faults, applied):
    kvi_faults.unknown("store", applied=applied)
    with pytest.raises(kvi.OutcomeUnknown):
        kvi_store.store("k", "v")
    assert kvi_store.count() == applied
"""


def test_extras(either: Environment) -> None:
    """They bring what observers and codecs need, in the newest and the oldest versions."""
    assert either.run(OBSERVED) == "1.0"
    assert either.run(TYPED) == "['meters/2'] [Meter(id=1, rate=2.5)]"


def test_live_settings(either: Environment) -> None:
    """Settings work with pydantic-settings in the newest and the oldest version."""
    made, refused = either.run(LIVE).splitlines()
    assert made == "True ['a']"
    assert refused == "this is no Settings: tags: Input should be a valid list"


def test_own_tests(either: Environment, tmp_path: Path) -> None:
    """Pytest finds the fixtures by itself, in the newest and the oldest version."""
    (tmp_path / "test_own.py").write_text(OWN_TESTS)
    passed = run(either.python, "-I", "-m", "pytest", "-q", "-W", "error", cwd=tmp_path)
    assert "2 passed" in passed


def test_extras_are_needed(small: Environment) -> None:
    """Without them everything else works, and their modules say what is missing."""
    for module, name in {
        "observers.opentelemetry": "opentelemetry",
        "observers.prometheus": "prometheus",
        "loader.pydantic": "pydantic",
        "settings": "pydantic",
    }.items():
        done = subprocess.run(
            [str(small.python), "-I", "-c", f"import kvi.{module}"],
            capture_output=True,
            check=False,
        )
        assert name.encode() in done.stderr
    assert small.run("import kvi.health, kvi.testing; print(kvi.testing.Faults)")
    program = "import kvi\nwith kvi.Backend('mem:') as s: print(s.store('k', 'v'), s.alive)"
    assert small.run(program) == "1 True"
