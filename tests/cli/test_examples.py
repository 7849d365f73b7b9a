"""The examples of ``--help`` and of the documentation do what they say."""

from __future__ import annotations

import re
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from kvi.cli import app

from tests.cli.conftest import Command, Inside

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]

NOT_RUN = {
    "kvi --uri etcd://127.0.0.1:2379 ls",
    "KVI_URI=consul://127.0.0.1:8500 kvi watch --prefix jobs/",
    "kvi watch greeting",
    "kvi watch --prefix jobs/ --initial --json",
    "kvi watch --prefix config/ --exec 'systemctl reload myservice'",
    "kvi watch greeting | head -1",
    "kvi temp members/ada here   # until Ctrl-C",
    "kvi every report '30 4 * * *' --missed skip -- make report   # until Ctrl-C",
    "kvi copy sqlite:app.db etcd://127.0.0.1:2379/app --dry-run",
    "kvi copy sqlite:app.db etcd://127.0.0.1:2379/app --verify",
    "kvi copy etcd://127.0.0.1:2379 consul://127.0.0.1:8500 --prefix config/",
    "kvi copy --uri-file etcd.uri --to-uri-file consul.uri --verify",
    "kvi shell   # until exit, or Ctrl-D",
    "kvi doctor --uri etcd://127.0.0.1:2379 --json",
    "kvi ping --watch --interval 5",
    "kvi bench --uri mem:",
    "kvi export --resume backup.jsonl",
    "kvi import backup.jsonl",
    "gunzip -c app.jsonl.gz | kvi import -",
    "kvi import backup.jsonl --dry-run",
    "consul kv export app/ | kvi import -",
    "etcdctl get --prefix -w json app/ | kvi import -",
}
"""Those that need a server, last for ever, or another example's file; tested elsewhere."""


@pytest.fixture
def shell(local: Command) -> Command:
    """A shell in which `kvi` is this one."""
    script = local.folder / "bin" / "kvi"
    script.parent.mkdir()
    script.write_text(f'#!/bin/sh\nexec {sys.executable} -m kvi.cli "$@"\n')
    script.chmod(script.stat().st_mode | stat.S_IXUSR)
    local.env["PATH"] = f"{script.parent}:{local.env['PATH']}"
    return local


def run(shell: Command, line: str) -> str:
    done = subprocess.run(
        line, shell=True, capture_output=True, text=True, env=shell.env, cwd=shell.folder,
        timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, f"{line}\n{done.stdout}{done.stderr}"
    return done.stdout


def examples(shell: Command, *words: str) -> list[str]:
    output = Inside(shell.uri, shell.folder)(*words, "--help")
    part = output.partition("Examples:\n")[2].partition("\n\n")[0]
    return [line.strip() for line in part.splitlines()]


def test_examples_of_help(shell: Command) -> None:
    """Each is run as it stands there, those of a command in order; which are not is known."""
    left = set()
    for words in ([], *([name] for name in app._COMMANDS)):
        lines = examples(shell, *words)
        assert lines, words
        for line in lines:
            if line in NOT_RUN:
                left.add(line)
            elif words != ["conformance"]:  # runs twice as long as all others, and is tested
                run(shell, line)
    assert left == NOT_RUN


def test_commands_of_the_readme(shell: Command) -> None:
    """Those that need no server are run."""
    text = (ROOT / "README.md").read_text()
    lines = re.findall(r"^    (kvi (?!servers).*)$", text, re.MULTILINE)
    assert len(lines) >= 4
    for line in lines:
        if "127.0.0.1" not in line:
            run(shell, line)


def test_examples_of_the_documentation(shell: Command) -> None:
    """Blocks of docs/cli.md that show a session give what they show."""
    page = (ROOT / "docs" / "cli.md").read_text()
    blocks = re.findall(r"^```console\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    assert len(blocks) >= 4
    for block in blocks:
        for part in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]:
            line, _, shown = part.partition("\n")
            output = run(shell, line)
            # What the page shows is a terminal, where a value has a newline.
            assert output + "\n" * (not output.endswith("\n")) == shown, line
