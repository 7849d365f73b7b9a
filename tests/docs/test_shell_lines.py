"""The shell lines of the other pages, as they are printed, but for what they are about.

docs/running-*.md, docs/authors.md and the sessions in docs/cli.md have tests of their own.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from kvi.conformance.server_process import free_ports

from tests.servers import ConsulServer, EtcdServer, find_consul, find_etcdctl
from tests.support.waiting import until

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
BLOCK = re.compile(r"^```sh\n(.*?)^```$", re.MULTILINE | re.DOTALL)
ELSEWHERE = {"authors.md", "running-consul.md", "running-etcd.md", "running-sqlite.md"}
BIN = Path(sys.executable).parent

pytestmark = pytest.mark.slow


def lines_of(page: str) -> list[str]:
    """Each line of the page's shell blocks, without what is said behind it."""
    blocks = BLOCK.findall((DOCS / page).read_text(encoding="utf-8"))
    return [line.partition("  #")[0].strip() for block in blocks for line in block.splitlines()]


def shell(line: str, folder: Path, **variables: str) -> str:
    """Run it in a shell that finds kvi; what it printed."""
    path = os.pathsep.join([str(BIN), os.environ["PATH"]])
    env = {**os.environ, "PATH": path, **variables}
    done = subprocess.run(
        ["bash", "-c", line], cwd=folder, env=env, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, (line, done.stdout, done.stderr)
    return done.stdout


RUN = {
    "asyncio.md": 1,
    "cli.md": 3,
    "conformance.md": 4,
    "documentation.md": 1,
    "reports.md": 1,
    "start.md": 4,
    "tested.md": 1,
}


def test_each_line_is_run() -> None:
    """No page has a line that nothing here runs."""
    pages = [page.name for page in DOCS.glob("*.md") if page.name not in ELSEWHERE]
    assert {page: len(lines_of(page)) for page in pages if lines_of(page)} == RUN


def on_memory(line: str, *more: str) -> str:
    """The line about a store of an author's, about one in memory."""
    return " ".join([re.sub(r"acme:\S+", "mem:lines", line), *more])


def test_cancelling(tmp_path: Path) -> None:
    """docs/asyncio.md: one operation is cancelled again and again."""
    (line,) = lines_of("asyncio.md")
    shell(on_memory(line), tmp_path)


def test_conformance(tmp_path: Path) -> None:
    """docs/conformance.md, reports.md: both commands, and pytest. Of the extra: test_wheels."""
    extra, module, command, by_pytest = lines_of("conformance.md")
    assert extra == "pip install 'kvi-core[conformance]'"
    for line in (module, command, *lines_of("reports.md")):
        shell(on_memory(line, "--rule get"), tmp_path)
        assert "get.absent" in (tmp_path / "report.html").read_text()
        (tmp_path / "report.html").unlink()
    assert by_pytest.endswith("-k TestLocks")
    shell(on_memory(by_pytest.replace("-k TestLocks", "-k 'TestLocks and fence'")), tmp_path)


@pytest.fixture
def served(tmp_path: Path) -> Iterator[str]:
    """The address at which the line of docs/documentation.md serves the site."""
    (line,) = lines_of("documentation.md")
    program, *words = line.split()
    assert program == ".venv/bin/mkdocs"
    (port,) = free_ports(1)
    with (tmp_path / "log").open("w") as log:
        process = subprocess.Popen(
            [BIN / "mkdocs", *words, "--no-livereload", "-a", f"127.0.0.1:{port}"],
            cwd=ROOT,
            stdout=log,
            stderr=log,
            env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
        )
        try:
            yield f"http://127.0.0.1:{port}/"
        finally:
            process.kill()
            process.wait()


@pytest.mark.timeout(400)
def test_site_is_served(served: str) -> None:
    """While one writes, the site can be read."""

    def there() -> bool:
        try:
            with urllib.request.urlopen(served, timeout=10) as answer:
                return b"kvi" in answer.read()
        except (urllib.error.URLError, ConnectionError):
            return False

    until(there, within=300)


@pytest.mark.timeout(400)
def test_install(tmp_path: Path) -> None:
    """docs/start.md: what is to be installed resolves, from wheels and from a checkout."""
    index, wheels, small, servers = lines_of("start.md")
    assert index == "pip install 'kvi[all]'"
    built = tmp_path / "built"
    parts = [*small.split()[2:], *servers.split()[2:]]
    assert {"./core", ".", "./plugins/etcd"} < set(parts)
    for part in parts:  # as pip does it, but once
        shell(f"{sys.executable} -m build --wheel --no-isolation -o {built} {part}", ROOT)
    environment = tmp_path / "env"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", environment], check=True)
    python = environment / "bin" / "python"
    pip = f"pip --python {python} install --dry-run --no-compile -q --report report.json"
    for line in (index, wheels):
        line = line.replace("pip install", pip).replace("FOLDER", str(built))
        shell(line, tmp_path, PIP_FIND_LINKS=str(built), PIP_DISABLE_PIP_VERSION_CHECK="1")
        assert "kvi_etcd" in (tmp_path / "report.json").read_text()


def test_simulate(tmp_path: Path) -> None:
    """docs/tested.md: what the target of the Makefile runs."""
    (line,) = lines_of("tested.md")
    values = dict(word.split("=") for word in line.split()[2:])
    told = shell(
        f"{sys.executable} -m tests.simulation --scenario {values['SCENARIO']} "
        f"--seed {values['SEED']} --schedules {values['SCHEDULES']}",
        ROOT,
    )
    assert "scenario lock, seed 7: all holds" in told


@pytest.mark.etcd
@pytest.mark.consul
def test_command(tmp_path: Path) -> None:
    """docs/cli.md: exports of other tools, and completion."""
    from_consul, from_etcd, completion = lines_of("cli.md")
    tools = tmp_path / "tools"
    tools.mkdir()
    for name, found in (("consul", find_consul()), ("etcdctl", find_etcdctl())):
        (tools / name).symlink_to(found.path)
    path = os.pathsep.join([str(BIN), str(tools), os.environ["PATH"]])
    uri = f"sqlite:{tmp_path}/store.db"
    with ConsulServer() as consul, EtcdServer(fast=True) as etcd:
        for server in (consul, etcd):
            shell("kvi put app/a 1", tmp_path, KVI_URI=server.uri)
        addresses = {
            "PATH": path,
            "KVI_URI": uri,
            "CONSUL_HTTP_ADDR": f"{consul.host}:{consul.port}",
            "ETCDCTL_ENDPOINTS": f"{etcd.host}:{etcd.port}",
        }
        for line in (from_consul, from_etcd):
            shell(line, tmp_path, **addresses)
            assert shell("kvi get app/a && kvi del app/a --json", tmp_path, KVI_URI=uri)
    if shutil.which("bash"):
        said = shell(f"{completion.partition('    ')[0]}; complete -p kvi", tmp_path)
        assert "_kvi_completion" in said
