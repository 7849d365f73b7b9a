"""Debian packages without installing them: apt with a private state, then `dpkg -x`.

Nothing here needs root or changes the system. The machine's own configuration (sources, keys,
proxies) is read; lists, caches and packages live in a folder that the caller throws away.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path

_APT = Path("/etc/apt")
_OS_RELEASE = Path("/etc/os-release")
_DPKG_STATUS = Path("/var/lib/dpkg/status")
_ONE_LINE = re.compile(
    r"deb\s+(?P<options>\[[^\]]*\]\s+)?(?P<uri>\S+)\s+(?P<suite>\S+)\s+(?P<components>.+)"
)
# Names that a source may use for the release itself instead of its code name.
_ALIASES = frozenset({"stable", "oldstable", "oldoldstable", "testing", "unstable", "sid"})


class AptFailed(Exception):
    """apt or dpkg is missing, or refused; the text is the last thing it said."""


def release_names(os_release: str) -> frozenset[str]:
    """Return the suite names under which a source may carry the release described by the text."""
    match = re.search(r'^VERSION_CODENAME="?([^"\s]+)', os_release, re.MULTILINE)
    return _ALIASES | {match.group(1)} if match else _ALIASES


def source_for_suite(text: str, suite: str, own: Collection[str], *, deb822: bool) -> str:
    """Turn the text of a machine's apt source file into one for another suite.

    Only sources of the release itself (a suite in `own`, component `main`) are taken, with their
    addresses, keys and options as they are; `-updates`, `-security` and other vendors' suites are
    left out, because another release has no counterpart of the same name. An empty answer means
    that the text has no such source. `deb822` says which of apt's two formats the text has.
    """
    made = _stanzas(text, suite, own) if deb822 else _lines(text, suite, own)
    separator = "\n" if deb822 else ""
    return separator.join(dict.fromkeys(made))


def _lines(text: str, suite: str, own: Collection[str]) -> Iterator[str]:
    for line in text.splitlines():
        match = _ONE_LINE.fullmatch(line.partition("#")[0].strip())
        if match and match["suite"] in own and "main" in match["components"].split():
            yield f"deb {match['options'] or ''}{match['uri']} {suite} main\n"


def _stanzas(text: str, suite: str, own: Collection[str]) -> Iterator[str]:
    lines = (line for line in text.splitlines() if not line.startswith("#"))
    for stanza in re.split(r"\n\s*\n", "\n".join(lines)):
        fields = _fields(stanza)
        words = {name: value.lower().split() for name, value in fields.items()}
        if (
            "deb" in words.get("types", [])
            and words.get("enabled", ["yes"]) not in (["no"], ["false"], ["off"], ["0"])
            and any(name in own for name in words.get("suites", []))
            and "main" in words.get("components", [])
        ):
            fields |= {"types": " deb", "suites": f" {suite}", "components": " main"}
            yield "".join(f"{name.title()}:{value}\n" for name, value in fields.items())


def _fields(stanza: str) -> dict[str, str]:
    """Return a stanza's fields by lower-case name; a value keeps its continuation lines."""
    fields: dict[str, str] = {}
    name = ""
    for line in stanza.splitlines():
        if line[:1].isspace():
            if name:
                fields[name] += "\n" + line
        elif ":" in line:
            name, _, value = line.partition(":")
            name = name.lower()
            fields[name] = value.rstrip()
    return fields


class PrivateApt:
    """apt on the machine's own sources, with all of its state under `folder`."""

    def __init__(self, folder: Path) -> None:
        for tool in ("apt-get", "dpkg"):
            if shutil.which(tool) is None:
                raise AptFailed(f"this machine has no {tool}")
        self._parts = folder / "sources"
        self._config = folder / "apt.conf"
        for name in ("state/lists/partial", "cache/archives/partial"):
            (folder / name).mkdir(parents=True)
        self._parts.mkdir()
        for pattern in ("*.list", "*.sources"):
            for source in (_APT / "sources.list.d").glob(pattern):
                shutil.copyfile(source, self._parts / source.name)
        # The hooks of the machine would clean and refresh the *system's* caches: not ours to do.
        self._config.write_text(
            f'Dir::State "{folder / "state"}";\n'
            f'Dir::State::lists "{folder / "state" / "lists"}";\n'
            f'Dir::State::status "{_DPKG_STATUS}";\n'
            f'Dir::Cache "{folder / "cache"}";\n'
            f'Dir::Etc::sourceparts "{self._parts}";\n'
            'APT::Sandbox::User "";\n'
            'Acquire::Languages "none";\n'
            'Acquire::Retries "2";\n'
            'Acquire::http::Timeout "30";\n'
            'Acquire::https::Timeout "30";\n'
            "#clear APT::Update::Pre-Invoke;\n"
            "#clear APT::Update::Post-Invoke;\n"
            "#clear APT::Update::Post-Invoke-Success;\n"
        )

    def add_suite(self, suite: str) -> None:
        """Offer another suite of the same archive, made out of the machine's own sources."""
        own = release_names(_OS_RELEASE.read_text() if _OS_RELEASE.exists() else "")
        made = False
        for path in (_APT / "sources.list", *sorted(self._parts.iterdir())):
            if path.is_file():
                deb822 = path.suffix == ".sources"
                text = source_for_suite(path.read_text(), suite, own, deb822=deb822)
                if text:
                    (self._parts / f"kvi-{path.stem}-{suite}{path.suffix}").write_text(text)
                    made = True
        if not made:
            raise AptFailed(f"no source of this machine can be turned into one for {suite}")

    def download(self, packages: Sequence[str], folder: Path) -> None:
        """Fetch the packages' newest candidates and unpack them into `folder`."""
        try:
            self._run("update", cwd=self._parts)
            problem = ""
        except AptFailed as error:
            # One broken source of many must not keep us from a package of another source.
            problem = f"{error}; "
        archives = self._parts.parent / "packages"
        archives.mkdir()
        try:
            self._run("download", *packages, cwd=archives)
        except AptFailed as error:
            shutil.rmtree(archives)
            raise AptFailed(f"{problem}{error}") from error
        for archive in archives.iterdir():
            _run(["dpkg", "-x", str(archive), str(folder)], cwd=archives)

    def _run(self, *words: str, cwd: Path) -> None:
        _run(["apt-get", "-q", "-y", "-c", str(self._config), *words], cwd=cwd)


def _run(command: Sequence[str], cwd: Path) -> None:
    try:
        done = subprocess.run(
            command,
            cwd=cwd,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=600,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise AptFailed(str(error)) from error
    if done.returncode:
        said = [line for line in done.stderr.splitlines() if line.startswith("E:")]
        text = " ".join(said) or done.stderr.strip() or f"exit code {done.returncode}"
        raise AptFailed(f"{command[0]}: {text}")
