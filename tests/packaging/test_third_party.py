"""The example of a third-party backend as its users get it: from wheels, in a clean environment."""

from __future__ import annotations

import random
import shutil
import subprocess
import sys
from pathlib import Path
from urllib.parse import quote

import pytest

from tests.packaging.test_wheels import ROOT, Environment, run
from tests.support.waiting import until

PROJECT = ROOT / "docs" / "examples" / "kvi-directory"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.xdist_group("packaging"),
    pytest.mark.timeout(400),
]


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Environment:
    """The wheels of core and the example with what its tests need, and nothing else of kvi."""
    folder = tmp_path_factory.mktemp("third-party")
    for project in (ROOT / "core", PROJECT):
        run(
            sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", folder, project
        )  # fmt: skip
    return Environment(folder / "env", folder, "kvi-directory[test]")


@pytest.fixture
def uri(tmp_path: Path) -> str:
    """A store of this test alone, which forgets its past soon and is rewritten often."""
    return f"directory:{quote(str(tmp_path / 'a store'))}?history=9"


def test_it_is_listed(installed: Environment) -> None:
    """kvi.backends() finds it through its entry point, and only it."""
    listed = installed.run(
        "import kvi; print([(b.scheme, b.distribution, b.error) for b in kvi.backends()])"
    )
    assert listed == "[('directory', 'kvi-directory', None)]"


def test_it_is_typed(installed: Environment) -> None:
    """The wheel has its types, and nothing but the package."""
    (site,) = installed.folder.glob("lib/python*/site-packages")
    package = site / "kvi_directory"
    assert {file.name for file in package.glob("*") if file.is_file()} == {
        file.name for file in (PROJECT / "src" / "kvi_directory").glob("*") if file.is_file()
    }
    assert (package / "py.typed").exists()
    assert not (site / "tests").exists()


WATCHER = """
import kvi
with kvi.open({uri!r}) as store, store.watch("from parent") as watch:
    print(store.get("k").text, flush=True)
    event = watch.next(20)
    store.store("from child", event.value)
"""


def test_processes_share_it(installed: Environment, uri: str) -> None:
    """What one process writes another sees, in both directions, and so do watches."""
    installed.run(f"import kvi; kvi.open({uri!r}).store('k', 'v')")
    program = [str(installed.python), "-I", "-c", WATCHER.format(uri=uri)]
    with subprocess.Popen(program, stdout=subprocess.PIPE, text=True) as watcher:
        assert watcher.stdout is not None
        assert watcher.stdout.readline() == "v\n"
        installed.run(f"import kvi; kvi.open({uri!r}).store('from parent', 'hello')")
        assert watcher.wait(20) == 0
    assert installed.run(f"import kvi; print(kvi.open({uri!r}).get('from child').text)") == "hello"


WRITER = """
import itertools, kvi
with kvi.open({uri!r}, timeout=30) as store:
    for count in itertools.count():
        size = (10, 100_000)[count % 2]  # a short write, and one that a kill can tear
        while True:
            total = store.get("total")
            written = str(int(total.value) + 1)
            if store.txn(
                when=[kvi.Key("total").revision == total.revision],
                then=[kvi.Put("total", written), kvi.Put("last/{name}", written.rjust(size))],
            ):
                break
        print(written, flush=True)
"""

READER = """
import kvi
with kvi.open({uri!r}) as store:
    for entry in store.range():
        print(entry.key, int(entry.value))
    store.store("readable", "0")
    assert store.delete("readable")
"""


def killed_writers(installed: Environment, uri: str, folder: Path, after: float) -> list[list[int]]:
    """Run two writers at once, kill them so many seconds after both wrote; what each was told."""
    files = [folder / "0", folder / "1"]
    processes = []
    try:
        for file in files:
            program = WRITER.format(uri=uri, name=file.name)
            with file.open("w") as output:
                processes.append(
                    subprocess.Popen([str(installed.python), "-I", "-c", program], stdout=output)
                )
        until(lambda: all(file.stat().st_size for file in files))
        with pytest.raises(subprocess.TimeoutExpired):
            processes[0].wait(after)
    finally:
        for process in processes:
            process.kill()
            process.wait()
    return [
        [int(line) for line in file.read_text().splitlines(keepends=True) if line.endswith("\n")]
        for file in files
    ]


def test_killed_writers_lose_nothing(installed: Environment, uri: str, tmp_path: Path) -> None:
    """Writers killed at random moments: all acknowledged is there, all is whole, all goes on."""
    installed.run(f"import kvi; kvi.open({uri!r}).store('total', '0')")
    moments, total = random.Random(), 0
    for _ in range(15):
        told = killed_writers(installed, uri, tmp_path, moments.uniform(0.01, 0.2))
        lines = installed.run(READER.format(uri=uri)).splitlines()
        found = {key: int(value) for key, value in map(str.split, lines)}
        numbers = sorted(told[0] + told[1])
        assert len(set(numbers)) == len(numbers)  # no two were told the same
        assert total < numbers[0]
        assert numbers[-1] <= found["total"] <= total + len(numbers) + 2  # one each was on its way
        assert told[0][-1] <= found["last/0"]
        assert told[1][-1] <= found["last/1"]
        assert found["total"] == max(found["last/0"], found["last/1"])  # whole, or not at all
        total = found["total"]


def test_the_authors_tests(installed: Environment, tmp_path: Path) -> None:
    """The author's own tests, with a part of the suite, run on the installed wheels."""
    shutil.copytree(PROJECT / "tests", tmp_path / "tests")
    shutil.copy(PROJECT / "pyproject.toml", tmp_path)
    told = run(
        installed.python, "-I", "-m", "pytest", "-q", "-p", "no:cacheprovider",
        "-k", "TestTas or TestTransactions or TestLocks or test_journal",
        cwd=tmp_path,
    )  # fmt: skip
    assert " passed" in told
    assert "failed" not in told
