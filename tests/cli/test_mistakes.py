"""What goes wrong is told in a line or two, with the fix and the right exit code."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import kvi
import pytest
from kvi.cli import app, records
from kvi.cli.shell import commands, last_word
from kvi.cli.txn import parse

from tests.cli.conftest import Command, Inside
from tests.support.waiting import until

pytestmark = pytest.mark.slow


class Within:
    """Runs the command within this process, where only what it says matters."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self._capsys = capsys
        self.output = self.errors = ""

    def __call__(self, *words: str) -> int:
        """Run it; its exit code."""
        before = {number: signal.getsignal(number) for number in (*app.ENDING, signal.SIGINT)}
        try:
            return app.run(list(words))
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
            self.output, self.errors = self._capsys.readouterr()


@pytest.fixture
def within(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Within:
    """The command on an SQLite file, in an empty folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("KVI_URI", f"sqlite:{tmp_path}/local.db")
    return Within(capsys)


AWAY = "etcd://127.0.0.1:1?retry=off"
"""Nobody listens there, which is known at once: a long time-out costs nothing."""

MISTAKES = [
    (["gte", "k"], 2, "Did you mean 'get'?"),
    (["get"], 2, "Missing argument 'KEY'"),
    (["get", "a", "--prefix", "a"], 2, "Give KEY or --prefix"),
    (["get", ""], 2, "a key has at least one character"),
    (["del"], 2, "Give keys, or a range"),
    (["del", "k", "--prefix", "k"], 2, "Give keys, or a range"),
    (["tas", "k", "a"], 2, "Give TEST or --absent"),
    (["put", "k", "xyz", "--as", "hex"], 2, "this value is not hex"),
    (["put", "k", "v", "--lease", "99"], 3, "LeaseLost"),
    (["range", "a", "--start", "b"], 2, "prefix= cannot stand beside"),
    (["range", "a", "b"], 2, "unexpected extra argument"),
    (["count", "--prefix", "a"], 2, "No such option"),
    (["ls", "--delimiter", ""], 2, "at least one character"),
    (["watch"], 2, "watch needs a key"),
    (["lock", "jobs"], 2, "What is to be run?"),
    (["lock", "jobs", "--", "no-such-program"], 127, "cannot run 'no-such-program'"),
    (["lease", "--ttl", "-1", "--", "true"], 2, "InvalidArgument"),
    (["txn", "no-such-file"], 2, "No such file"),
    (["import", "no-such-file"], 2, "does not exist"),
    (["export", "no/such/folder/file"], 2, "No such file or directory"),
    (["export", "-", "--resume"], 2, "--resume needs a file"),
    (["get", "k", "--uri", "nope:x"], 2, "no backend for the scheme 'nope'"),
    (["get", "k", "--uri", "sqlite:x.db?nope=1"], 2, "unknown option 'nope'"),
    (["get", "k", "--uri", "mem:", "--timeout", "-1"], 2, "timeout"),
    (["get", "k", "--uri", "sqlite:no/such/folder/x.db"], 3, "no/such/folder"),
    (["get", "k", "--uri", AWAY, "--timeout", "20"], 3, "is it running there?"),
    (["copy", "mem:a", "nope:b"], 2, "no backend"),
    (["copy", "mem:a", "mem:a"], 2, "SameStore"),
    (["copy", "mem:a", "mem:a?namespace=b"], 2, "SameStore"),
    (["copy", "mem:a", "mem:b", "mem:c"], 2, "takes two stores"),
    (["copy", "mem:a", "mem:b", "--uri", "mem:"], 2, "takes two stores"),
    (["copy", "mem:a"], 2, "Name the target"),
    (["get", "k", "--uri-file", "no-such-file"], 2, "does not exist"),
    (["copy", "mem:a", "mem:b", "--delete"], 2, "--delete would delete all"),
    (["get", "k", "--uri", ""], 2, "--uri is empty"),
    (["del", "--start", ""], 2, "--start and --end are empty"),
    (["conformance", "mem:x", "--namespace", "a"], 2, "takes a whole store"),
    (["conformance", "mem:x", "--rule", "tas.atomic", "--html", "no/dir/x"], 2, "no/dir/x: No"),
    (["lock", "jobs", "true"], 2, "A command to run stands behind --"),
    (["put", "k", "-5"], 2, "No such option"),
]


@pytest.mark.parametrize(("words", "code", "text"), MISTAKES, ids=lambda one: str(one)[:40])
def test_mistakes(within: Within, words: list[str], code: int, text: str) -> None:
    """One or two lines on standard error, none of them a traceback."""
    assert within(*words) == code
    assert text in within.errors
    assert len(within.errors.splitlines()) <= 4
    assert "Traceback" not in within.errors
    assert within.output == ""


def test_a_mistake_as_a_process(local: Command) -> None:
    """The exit code is the process's, and nothing goes to standard output."""
    local("gte", "k", code=2)
    assert "Did you mean 'get'?" in local.errors
    assert local.raw == b""


@pytest.mark.parametrize("module", ["kvi", "kvi.cli"])
def test_where_the_script_is_not_on_the_path(local: Command, module: str) -> None:
    """`python -m kvi` is the command: its exit codes, and its name in what it says."""
    for words, code, output, errors in (
        (["put", "k", "v"], 0, "", ""),
        (["get", "k"], 0, "v", ""),
        (["get", "nothing"], 1, "", ""),
        (["get"], 2, "", "Usage: kvi get "),
    ):
        done = subprocess.run(
            [sys.executable, "-m", module, *words],
            capture_output=True, text=True, env=local.env, check=False,
        )  # fmt: skip
        assert (done.returncode, done.stdout) == (code, output)
        assert done.stderr.startswith(errors)


def test_debug_shows_the_traceback(local: Command) -> None:
    """Only then."""
    done = subprocess.run(
        [sys.executable, "-m", "kvi.cli", "get", "", "--debug"],
        capture_output=True, text=True, env=local.env, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    assert "Traceback" in done.stderr
    assert "a key has at least one character" in done.stderr.splitlines()[-1]


def test_secrets_are_not_shown(local: Command) -> None:
    """No error tells the password of the URI."""
    local("get", "k", "--uri", "etcd://ada:s3cret@127.0.0.1:1", "--timeout", "0.3", code=3)
    assert "s3cret" not in local.errors
    assert "ada:***@" in local.errors or "***" in local.errors


@pytest.mark.parametrize("words", [["get", "k"], ["get", "k", "--as"], []])
def test_secrets_out_of_place_are_not_shown(local: Command, words: list[str]) -> None:
    """A URI where none belongs is told without what may be secret in it."""
    local(*words, "etcd://ada:s3/cr@et@127.0.0.1:1?token=s3cret", code=2)
    assert "s3" not in local.errors
    assert "cret" not in local.errors
    assert "://***@127.0.0.1:1?***" in local.errors


def test_store_of_ones_own(local: Command) -> None:
    """Without a URI it is a file in the user's data directory, which is made."""
    env = {name: value for name, value in local.env.items() if name != "KVI_URI"}
    local("put", "greeting", "hello", env=env)
    assert local("get", "greeting", env=env) == "hello"
    assert list(local.folder.rglob("kvi.db"))
    for named in (env, env | {"KVI_URI": ""}):  # a variable that is empty names none
        local("conformance", "--erase", "--rule", "tas.atomic", code=2, env=named)
        assert "Name the store" in local.errors
        assert local("get", "greeting", env=named) == "hello"
        assert local("lock", "jobs", "--", "sh", "-c", "echo $KVI_URI", env=named) == "\n"
    local("conformance", "", "--erase", "--rule", "tas.atomic", code=2)  # nor that of the variable
    assert "Name the store" in local.errors


def test_doctor_says_what_to_do(local: Command) -> None:
    """A dead server, a bad URI: the step that fails, and advice."""
    output = local("doctor", "--uri", AWAY, "--timeout", "20", code=3)
    assert "FAILED  connect" in output
    assert "is it running there?" in output
    assert "check that the server runs" in output
    assert "mend the URI" in local("doctor", "--uri", "sqlite:x.db?nope=1", code=3)
    assert "install the plugin" in local("doctor", "--uri", "nope:", code=3)
    found = local.lines("ping", "--watch", "-c", "2", "--interval", "0.01", "--timeout", "0.2",
                        "--uri", "etcd://127.0.0.1:1", code=3)  # fmt: skip
    assert [one["alive"] for one in found] == [False, False]
    local("ping", "--uri", "etcd://127.0.0.1:1", "--timeout", "0.3", code=3)


def test_exit_codes() -> None:
    """Each error of kvi has the code that the help tells."""
    codes = {
        kvi.InvalidKey: 2, kvi.ValueTooLarge: 2, kvi.UnknownBackend: 2, kvi.NotSupported: 2,
        kvi.Unavailable: 3, kvi.Timeout: 3, kvi.AuthenticationFailed: 3, kvi.PermissionDenied: 3,
        kvi.OutcomeUnknown: 4, kvi.LockTimeout: 1, kvi.Conflict: 1,
    }  # fmt: skip
    for kind, code in codes.items():
        assert app.told(kind("x")) == code, kind


def test_interrupt_is_quiet(local: Command) -> None:
    """Ctrl-C ends a watch at once, with 130 and without a word."""
    with local.start("watch", "k", "--initial") as watch:
        with kvi.open(local.uri) as store:
            store.store("k", "v")
        assert watch.stdout is not None
        assert watch.stdout.readline()
        watch.send_signal(signal.SIGINT)
        _, errors = watch.communicate(timeout=60)
    assert (watch.returncode, errors) == (130, "")


AT_ITS_BEGINNING = """
class Finder:
    def find_spec(self, name, *others):
        if name == "kvi.cli.app":
            interrupt()
sys.meta_path.insert(0, Finder())
"""
AT_ITS_END = "import atexit; atexit.register(interrupt)"


@pytest.mark.skipif(os.name != "posix", reason="a signal to oneself is the end elsewhere")
@pytest.mark.parametrize("when", [AT_ITS_BEGINNING, AT_ITS_END], ids=["begins", "ends"])
def test_interrupt_while_python_is_busy_with_itself(local: Command, when: str) -> None:
    """As it imports, and at its very end: no traceback either."""
    code = (
        "import os, signal, sys\nfrom kvi.cli import main\n"
        f"def interrupt(): os.kill(os.getpid(), signal.SIGINT)\n{when}\n"
        "sys.argv = ['kvi', 'get', 'nothing']\nsys.exit(main())"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=local.env, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (-signal.SIGINT, "", "")


def test_reader_that_goes_away(local: Command) -> None:
    """A long range piped into something short ends quietly."""
    with kvi.open(local.uri) as store:
        for start in range(0, 20_000, 1000):
            store.txn(then=[kvi.Put(f"k{n:06}", "x" * 50) for n in range(start, start + 1000)])
    for words in (["range"], ["range", "--json"], ["export", "-"], ["ls", "-r"]):
        with local.start(*words) as running:
            assert running.stdout is not None
            assert running.stdout.readline()
            running.stdout.close()
            assert running.stderr is not None
            assert running.stderr.read() == ""
            assert running.wait(60) in {141, 0}


@pytest.mark.parametrize(
    "line",
    [
        *(f"ping --watch --count 2 --interval {odd}" for odd in ("nan", "inf", "1e10", "0")),
        *(f"bench --seconds {odd}" for odd in ("nan", "inf", "1e10", "-1")),
        *(f"bench --size {odd}" for odd in (2**30 + 1, 2**70, -1)),
        "lock l --grace nan -- false",
        "lock l --wait nan -- false",
        "lease --grace nan -- false",
        "temp k v --grace nan -- false",
        "once o --wait nan -- false",
        "queue put q v --delay nan",
        "queue get q --hold nan",
    ],
)
def test_odd_numbers(local: Command, line: str) -> None:
    """They are refused with the option's name, and nothing is begun."""
    run = Inside(local.uri, local.folder)
    run(*line.split(), code=2)
    name = re.findall(r"--[a-z]+", line.partition(" -- ")[0])[-1]
    assert re.search(f"Invalid value for .*'{name}'", run.errors)
    assert run("count") == "0\n"


@pytest.mark.skipif(sys.platform != "linux", reason="names of files are bytes")
def test_data_folder_that_is_no_utf8(local: Command) -> None:
    """No URI can name a store in it: it is said, and nothing is made."""
    folder = f"{local.folder}/\udcff"
    env = {name: value for name, value in local.env.items() if name != "KVI_URI"}
    local("put", "k", "v", env=env | {"XDG_DATA_HOME": folder}, code=2)
    assert "no UTF-8" in local.errors
    assert "--uri or KVI_URI" in local.errors
    assert not Path(folder).exists()


def test_txn_comments_are_those_of_a_shell() -> None:
    """A # begins a comment only where a word begins, and not within quotes."""
    _, then, _ = parse(
        "then put color a#b#\nthen put 'x # y' \"# z\" # no\n#\nthen put \\# '\u2028'"
    )
    assert then == [
        kvi.Put("color", b"a#b#"),
        kvi.Put("x # y", b"# z"),
        kvi.Put("#", "\u2028".encode()),
    ]


@pytest.mark.parametrize("space", ["\u3000", "\u00a0", "\u2028", "\x0c", "\x1f"])
def test_hash_behind_a_space_that_parts_no_words(space: str) -> None:
    """It is a part of its word, in `txn`, `kvi shell` and completion alike."""
    value = f"x{space}#1"
    assert parse(f"then put k {value}")[1] == [kvi.Put("k", value.encode())]
    assert [line.words for line in commands([f"put k {value}"])] == [["put", "k", value]]
    text = f"put k{space}x"
    assert text[last_word(text) :] == f"k{space}x"


def test_txn_text() -> None:
    """Every form of a line; what is wrong is told with its number."""
    when, then, otherwise = parse(
        "if value a = x\nif value a != 'y z'\nif revision a > 3\nif version a < 9\n"
        "if create_revision a = 0\nif lease a = 0\nif exists a\nif absent b # no\n\n"
        "then put a 'v w'\nthen get a\nthen delete b\nelse get a\n"
    )
    key = kvi.Key("a")
    assert when == [
        key.value == b"x", key.value != b"y z", key.revision > 3, key.version < 9,
        key.create_revision == 0, key.lease == 0, key.exists, kvi.Key("b").absent,
    ]  # fmt: skip
    assert then == [kvi.Put("a", b"v w"), kvi.Get("a"), kvi.Delete("b")]
    assert otherwise == [kvi.Get("a")]
    for text, told in {
        "\nfoo": "line 2: a line begins with if, then or else",
        "if value a ~ x": "line 1: unknown operator",
        "if color a = x": "line 1: unknown property 'color'",
        "if revision a = x": "line 1: revision compares with a whole number",
        "then put a": "line 1: this is no operation",
        "then put a 'x": "line 1: No closing quotation",
    }.items():
        with pytest.raises(kvi.InvalidArgument, match=re.escape(told)):
            parse(text)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (b"\xff", "not UTF-8"),
        (b"{", "not JSON"),
        (b"[]", "not a JSON object"),
        (b'{"format": "kvi-export", "version": 2}', "version 1"),
        (b'{"value": "x"}', '"key" is missing'),
        (b'{"key": ""}', '"key" is missing'),
        (b'{"key": "k"}', "neither"),
        (b'{"key": "k", "value": 5}', "neither"),
        (b'{"key": "k", "value": "a", "value_base64": "YQ=="}', "neither"),
        (b'{"key": "k", "value_base64": "?"}', "not base64"),
        (b'{"key": "k", "value": "\\ud800"}', '"value" is not Unicode'),
        (b'{"key": "\\ud800", "value": "k"}', '"key" is not Unicode'),
        (b'{"end": true, "entries": "5"}', "not a number"),
    ],
)
def test_bad_records(text: bytes, told: str) -> None:
    """Each kind of bad line says what is wrong with it."""
    with pytest.raises(kvi.InvalidArgument, match=re.escape(told)):
        records.parse(text)


def test_starts_quickly(local: Command) -> None:
    """`kvi --help` and `kvi get` import neither rich nor any plugin that they do not need."""
    local("put", "k", "v")
    for words in (["--help"], ["get", "k"]):
        done = subprocess.run(
            [sys.executable, "-X", "importtime", "-m", "kvi.cli", *words],
            capture_output=True, text=True, env=local.env, check=True,
        )  # fmt: skip
        imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
        assert not imported & {
            "rich", "grpc", "requests", "consul", "asyncio", "prompt_toolkit",
            "click.shell_completion",
            "kvi.loader", "kvi.cli.moving", "kvi.cli.shell",
        }  # fmt: skip


def test_completion(local: Command) -> None:
    """Shells get what they need to complete commands and options."""
    env = {**local.env, "_KVI_COMPLETE": "bash_complete", "COMP_WORDS": "kvi ge", "COMP_CWORD": "1"}
    assert "plain,get" in local(env=env)


def test_help_of_each_command(within: Within) -> None:
    """Every command tells what it does, and has examples."""
    for name in app._COMMANDS:
        assert within(name, "--help") == 0
        assert "Examples:" in within.output, name
        assert f"kvi {name}" in within.output


def test_closed_streams(local: Command) -> None:
    """A script whose streams are closed, or full, gets the right exit code all the same."""
    kvi_ = f"{sys.executable} -m kvi.cli"
    for line, code in {
        f"{kvi_} put b 1 >&-": 0,
        f"{kvi_} get nothing 2>&-": 1,
        f"{kvi_} put k - <&-": 0,
        f"{kvi_} count > /dev/full": 3,
        f"{kvi_} get nothing/ 2> /dev/full": 1,
        f"{kvi_} get '' 2> /dev/full": 2,
        f"{kvi_} gte k 2> /dev/full": 2,
        f"{kvi_} get '' --debug 2> /dev/full": 2,
        f"{kvi_} ping --uri {AWAY} 2> /dev/full": 3,
        f"{kvi_} mv nothing k 2> /dev/full": 1,
        f"{kvi_} export - 2> /dev/full": 0,
        f"{kvi_} lock jobs -- no-such-program 2> /dev/full": 127,
    }.items():
        if "/dev/full" in line and not Path("/dev/full").exists():
            continue
        done = subprocess.run(line, shell=True, env=local.env, capture_output=True, check=False)
        assert done.returncode == code, (line, done.stderr)
        assert b"mistake" not in done.stderr


def test_output_is_utf8_everywhere(local: Command) -> None:
    """Whatever the locale is; so that JSON is JSON."""
    local("put", "größe→", "ü")
    env = {**local.env, "PYTHONIOENCODING": "cp1252"}
    assert json.loads(local("range", "--json", env=env))["key"] == "größe→"


def test_typed_options_override_those_of_the_uri(local: Command) -> None:
    """A time-out may stand in both; a policy of the URI stays."""
    local.env["KVI_URI"] += "?timeout=7&retry=off"
    local("put", "k", "v", "--timeout", "3")
    assert local("get", "k") == "v"
    local("copy", local.env["KVI_URI"], f"sqlite:{local.folder}/copy.db?retry=off&timeout=2")


def test_nohup_is_respected(local: Command) -> None:
    """A signal that is ignored stays ignored, for `kvi` and for its command."""
    script = "trap '' HUP; kill -HUP $$; exec \"$@\""
    inner = [
        sys.executable,
        "-m",
        "kvi.cli",
        "lock",
        "jobs",
        "--",
        "sh",
        "-c",
        "kill -HUP $$; exit 6",
    ]
    done = subprocess.run(["sh", "-c", script, "sh", *inner], env=local.env, check=False)
    assert done.returncode == 6


def test_doctor_that_is_interrupted_leaves_nothing(local: Command) -> None:
    """Its keys are removed, whatever ends it."""
    code = (
        "import sys, kvi.cli.app as a, kvi.cli.looking as l\n"
        "real = l._steps\n"
        "def steps(store, own):\n"
        "    yield from real(store, own)[:2]\n"
        "    raise KeyboardInterrupt\n"
        "l._steps = steps\n"
        "sys.exit(a.run(['doctor']))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], env=local.env, check=False)
    assert done.returncode == 130
    assert local("count") == "0\n"


def test_interval_between_pings(local: Command) -> None:
    """It goes on until it is ended."""
    with local.start("ping", "--watch", "--interval", "0.05") as running:
        assert running.stdout is not None
        began = time.monotonic()
        for _ in range(3):
            assert "alive" in running.stdout.readline()
        assert time.monotonic() - began >= 0.1
        running.send_signal(signal.SIGINT)
        until(lambda: running.poll() is not None)
    assert running.returncode == 130


def test_no_extra(tmp_path: Path) -> None:
    """Without click it says what to install."""
    code = "import sys; sys.modules['click'] = None; import kvi.cli; sys.exit(kvi.cli.main())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "pip install kvi-core[cli]" in done.stderr
