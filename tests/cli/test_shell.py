"""`shell`: a prompt on a real terminal, scripts, completion; on every store where that matters."""

from __future__ import annotations

import json
import signal
import socket
import stat
import subprocess
import sys
import termios
from collections.abc import Iterator
from pathlib import Path

import kvi
import pytest
from kvi.cli.app import Context, Kept
from kvi.cli.shell import Completer, commands, last_word, unfinished

from tests.cli.conftest import Command
from tests.cli.terminal import OnTerminal
from tests.support.waiting import until

pytestmark = pytest.mark.slow

BEGUN, ENDED = b"\x1b[?2004h", b"\x1b[?2004l"
"""What a terminal gets when a prompt has begun to read keys, and when it has ended."""


class Shell(OnTerminal):
    """`kvi shell` on a terminal of its own."""

    columns = 300  # no line is broken

    def __init__(self, cli: Command, *options: str, code: str = "") -> None:
        program = ["-c", code] if code else ["-m", "kvi.cli"]
        # Nobody answers here where the cursor is.
        env = {**cli.env, "PROMPT_TOOLKIT_NO_CPR": "1", "NO_COLOR": "1"}
        super().__init__(env, cli.folder, sys.executable, *program, *options, "shell")
        self._prompts = 0

    def ready(self) -> None:
        """Wait for the next prompt."""
        self._prompts += 1
        until(lambda: self.seen.count(BEGUN) >= self._prompts, within=60)

    def run(self, line: str) -> str:
        """Type a line, and wait for the next prompt; what was shown between."""
        self.type(f"{line}\r")
        self.ready()
        return self.seen.split(ENDED)[-1].partition(BEGUN)[0].decode().replace("\r\n", "\n")

    def asks(self, text: str) -> None:
        """Wait until the prompt that is there has this in it."""
        until(lambda: text.encode() in self.seen.rpartition(BEGUN)[2], within=60)

    def completes(self, typed: str, rest: str) -> None:
        """Type the beginning of a line, and Tab; ``rest`` is what it goes on with."""
        self.type(f"{typed}\t")
        self.asks(rest)


def reads_lines(terminal: OnTerminal) -> bool:
    """Whether no prompt has the terminal, which reads keys."""
    return bool(termios.tcgetattr(terminal._ours)[3] & termios.ICANON)


def test_prompt(local: Command) -> None:
    """Commands run as they do alone; an exit code is shown; the prompt goes on until Ctrl-D."""
    with Shell(local) as shell:
        shell.ready()
        shell.asks("sqlite:")
        assert shell.run("put greeting 'hello  world'   # no more") == ""
        assert shell.run("kvi get greeting") == "hello  world\n"
        assert json.loads(shell.run("get greeting --json"))["value"] == "hello  world"
        assert "'nothing' is not there" in shell.run("get nothing")
        shell.asks("[1] sqlite:")
        assert "No such command 'gte'. Did you mean 'get'?" in shell.run("gte nothing")
        shell.asks("[2] sqlite:")
        shell.type("put two 'a\r")
        shell.asks("> ")  # the word goes on
        assert shell.run("get b'") == ""
        assert shell.run("get two") == "a\nget b\n"
        assert "exit takes one exit code" in shell.run("exit now")
        assert "This is kvi shell already" in shell.run("shell")
        assert "Compare" not in shell.run("help get")
        shell.asks("sqlite:")
        shell.type("get greeting")
        shell.type("\x03")  # clears the line
        shell.ready()
        shell.type("\x04")
        shell.end()
        assert shell.process.returncode == 0
    with Shell(local) as shell:
        shell.ready()
        shell.type("exit 7\r")
        shell.end()
        assert shell.process.returncode == 7


def test_store_that_stays_open(cli: Command, store: kvi.Kvi) -> None:
    """On every store: what one line writes, the next one reads; also after one that holds."""
    with Shell(cli) as shell:
        shell.ready()
        shell.run("put quokka one")
        assert shell.run("get quokka") == "one\n"
        assert shell.run("lock jobs -- echo held") == "held\n"
        store.store("quokka", "two")
        assert "quokka" in shell.run("range q --keys-only")
        assert shell.run("get quokka") == "two\n"
        shell.completes("get q", "uokka")


def test_memory_lasts(tmp_path: Path) -> None:
    """A memory store is there from the first line to the last, for completion too."""
    cli = Command("mem:", tmp_path)
    with Shell(cli) as shell:
        shell.ready()
        shell.run("put app/quokka one")
        assert shell.run("get app/quokka") == "one\n"
        shell.completes("get app/", "quokka")
    assert cli("shell", given="put k v\nget k\n") == "v\n"


def test_interrupt_ends_the_command(cli: Command, store: kvi.Kvi) -> None:
    """Ctrl-C ends what runs, and only that; what it held is free."""
    store.store("k", "v")
    with Shell(cli) as shell:
        shell.ready()
        shell.type("watch k --initial\r")
        shell.shows("PUT")
        shell.type("\x03")
        shell.ready()
        shell.asks("[130] ")
        shell.type("lock jobs -- sh -c 'echo r''unning; read x'\r")
        shell.shows("running")
        shell.type("\x03")
        shell.ready()
        shell.asks("[130] ")
        assert store.lock("jobs").acquire(0)
        assert shell.run("get k") == "v\n"


def test_commands_that_need_the_terminal(local: Command) -> None:
    """Questions, editors, standard input until Ctrl-D: each has the terminal as if it ran alone."""
    local.env["EDITOR"] = "sed -i.bak s/20/30/"
    local("put", "a", "20")
    local("put", "tmp/a", "")
    with Shell(local) as shell:
        shell.ready()
        shell.run("edit a")
        assert shell.run("get a") == "30\n"
        shell.type("del --prefix tmp/\r")
        shell.shows("Delete 1 keys?")
        shell.type("\x03")
        shell.ready()
        shell.asks("[130]")
        shell.type("put typed -\r")
        until(lambda: reads_lines(shell), within=60)
        shell.type("one\rtwo\r\x04")
        shell.ready()
        assert shell.run("get typed") == "one\ntwo\n\n"
        assert shell.run("count tmp/") == "1\n"


def test_killed_at_the_prompt(local: Command) -> None:
    """SIGTERM ends the shell with its code, and the terminal is as it was."""
    with Shell(local) as shell:
        before = termios.tcgetattr(shell._ours)
        shell.ready()
        assert termios.tcgetattr(shell._ours) != before
        shell.process.terminate()
        assert shell.process.wait(60) == 128 + signal.SIGTERM
        assert termios.tcgetattr(shell._ours) == before


def test_killed_in_a_command(local: Command) -> None:
    """SIGTERM while a command runs ends that, and then the shell."""
    with Shell(local) as shell:
        shell.ready()
        shell.type("temp member\r")
        with kvi.open(local.uri) as store:
            until(lambda: store.get("member"), within=60)
            shell.process.terminate()
            assert shell.process.wait(60) == 128 + signal.SIGTERM
            assert store.get("member") is None


def test_history(local: Command) -> None:
    """It comes back in the next session, is nobody else's, and has no line with a space before."""
    with Shell(local) as shell:
        shell.ready()
        shell.run("put greeting hello")
        shell.run(" put password s3cret")
        shell.run("count")
        shell.type("\x04")
        shell.end()
    (file,) = local.folder.rglob("history")
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert stat.S_IMODE(file.parent.stat().st_mode) == 0o700
    assert "s3cret" not in file.read_text()
    file.chmod(0o644)
    with Shell(local) as shell:
        shell.ready()
        shell.type("\x1b[A\x1b[A")
        shell.asks("put greeting hello")
        assert shell.run("") == ""
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
    file.unlink()
    file.mkdir()  # no history can be had, and the shell works all the same
    with Shell(local) as shell:
        shell.ready()
        assert shell.run("get password") == "s3cret\n"


def test_completion(cli: Command, store: kvi.Kvi) -> None:
    """Tab completes commands, options, and keys of the store, quoted where a shell wants it."""
    store.store("app/its quokka", "here")
    store.store("n/inner", "deep")
    with Shell(cli) as shell:
        shell.ready()
        shell.completes("cou", "nt")
        assert shell.run("") == "2\n"
        shell.completes("get app/i", "ts quokka'")
        assert shell.run("") == "here\n"
        shell.completes("get --namespace n i", "nner")
        assert shell.run("") == "deep\n"
        shell.completes("range app/ --keys-o", "nly")
        assert "app/its quokka" in shell.run("")


def test_pasted_lines(local: Command) -> None:
    """Each is a command of its own; the first that fails is the last that runs."""
    with Shell(local) as shell:
        shell.ready()
        shell.type("\x1b[200~put a 'one\ntwo'\nget a\nget b\nput c 3\x1b[201~")
        assert shell.run("") == "one\ntwo\nkvi: 'b' is not there\n"
        assert shell.run("count") == "1\n"


@pytest.fixture
def silent() -> Iterator[str]:
    """The URI of a server that takes connections, and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        yield f"consul://127.0.0.1:{listening.getsockname()[1]}"


def test_typing_beside_a_store_that_does_not_answer(local: Command, silent: str) -> None:
    """Tab finds nothing, says nothing and hinders nothing; a command ends with its error."""
    with Shell(local, "--uri", silent, "--timeout", "0.2") as shell:
        shell.ready()
        shell.completes("get q", "q")
        shell.completes("uok", "uok")
        shell.type("ka")
        shell.asks("ka")
        assert "kvi: " in shell.run("")
        shell.asks("[3] consul:")
        assert "Traceback" not in shell.seen.decode()
        shell.type("\x04")
        shell.end()
        assert shell.process.returncode == 0


def test_options_of_the_shell(local: Command) -> None:
    """They hold for each line, where the line does not say otherwise; the prompt has no secret."""
    local("put", "n/k", "v")
    local("put", "n/quokka", "")
    with Shell(local, "--namespace", "n", "--read-only", "--json") as shell:
        shell.ready()
        shell.asks("'n'>")
        assert json.loads(shell.run("get k"))["value"] == "v"
        assert "PermissionDenied" in shell.run("put k w")
        shell.asks("[3]")
        shell.completes("get q", "uokka")
        shell.run("")
    with Shell(local, "--uri", "etcd://ada:s3cret@127.0.0.1:1") as shell:
        shell.ready()
        shell.asks("etcd://ada:***@127.0.0.1:1>")
        assert shell.run(f"get n/k --uri '{local.uri}'") == "v\n"
        assert b"s3cret" not in shell.seen


def test_uri_that_is_wrong(local: Command) -> None:
    """It is said before the first prompt."""
    with Shell(local, "--uri", "nope:x") as shell:
        assert b"no backend for the scheme" in shell.end()
        assert shell.process.returncode == 2


def test_no_extra_for_the_shell(local: Command) -> None:
    """Without the library a prompt says what to install, and a script runs."""
    code = (
        "import sys; sys.modules['prompt_toolkit'] = None\nimport kvi.cli; sys.exit(kvi.cli.main())"
    )
    with Shell(local, code=code) as shell:
        assert b"pip install 'kvi[shell]'" in shell.end()
        assert shell.process.returncode == 2
    done = subprocess.run(
        [sys.executable, "-c", code, "shell"], input=b"put k v\nget k\n",
        capture_output=True, env=local.env, check=True,
    )  # fmt: skip
    assert done.stdout == b"v\n"


def test_script(cli: Command, store: kvi.Kvi) -> None:
    """The lines of standard input are run, with the words that a shell would give them."""
    script = """
        # comments and blank lines
        put 'a key' "two\nlines"   # and what stands behind

        kvi put b \\
            x#y
        cas b 0 never --json --namespace other
        get 'a key' --json
        range
    """
    output = cli("shell", given=script).splitlines()
    assert json.loads(output[0])["set"] is True
    assert json.loads(output[1])["value"] == "two\nlines"
    assert output[2:] == ["a key\ttwo\\nlines", "b\tx#y", "other/b\tnever"]
    cli("shell", given=b"put bytes '\xff'\r\n")
    assert store.get("bytes").value == b"\xff"  # type: ignore[union-attr]


def test_values_in_a_script(cli: Command, store: kvi.Kvi) -> None:
    """Each ends with a newline more than it has; alone it is exactly what is stored."""
    output = cli("shell", given="put a 1\nget a\nls\nput b '2\n'\nget b\nget b --as hex\n")
    assert output == "1\na\n2\n\n320a\n"
    assert cli("get", "b") == "2\n"
    assert cli("get", "a") == "1"


def test_script_that_fails(local: Command) -> None:
    """The first line that fails is the last, and its exit code is the shell's."""
    for line, code, text in (
        ("get nothing", 1, "line 2 ended with 1; the rest was not run"),
        ("gte nothing", 2, "Did you mean 'get'?"),
        ("put a b c", 2, "unexpected extra argument"),
        ("put a -", 2, "standard input holds the commands"),
        ("txn", 2, "standard input holds the commands"),
        ("shell", 2, "This is kvi shell already"),
        ("get k --uri 'etcd://127.0.0.1:1?retry=off'", 3, "line 2 ended with 3"),
        ("lock jobs -- sh -c 'exit 9'", 9, "line 2 ended with 9"),
        ("put a 'b", 2, "InvalidArgument: line 2: No closing quotation"),
        ("exit 5", 5, ""),
        ("exit", 0, ""),
    ):
        local("shell", given=f"put before 1\n{line}\nput behind 1\n", code=code)
        assert text in local.errors
        assert local("get", "before") == "1"
        local("get", "behind", code=1)
    assert local("shell") == ""


def test_words_with_a_nul(local: Command) -> None:
    """A key may hold it; commands see an escape of it; names of files, and words to run, cannot."""
    script = "put 'a\0b' v\nupdate 'a\0b' -- sh -c 'cat; printf %s \"$KVI_KEY\"'\nget 'a\0b'\n"
    assert local("shell", given=script) == "va\\0b\n"
    script = "put k v\ntemp 'c\0d' -- printenv KVI_KEY\nlock 'e\0f' -- printenv KVI_LOCK_NAME\n"
    assert local("shell", given=script) == "c\\0d\ne\\0f\n"
    local.env["EDITOR"] = 'sh -c \'printf "%s" "$KVI_KEY" >"$0"\''
    assert local("shell", given="edit 'g\0h'\nget 'g\0h'\n") == "g\\0h\n"
    for line in (
        "put k '@a\0b'", "get k --uri-file 'a\0b'", "export 'a\0b'", "export --resume 'a\0b'",
        "import 'a\0b'", "txn 'a\0b'", "backup 'a\0b'",
    ):  # fmt: skip
        local("shell", given=f"put k v\n{line}\n", code=2)
        assert "no name of a file can hold a NUL" in local.errors, line
    for line in ("update k --", "lock jobs --", "lease --", "temp t --", "once o --", "elect e --"):
        local("shell", given=f"put k v\n{line} echo 'a\0b'\n", code=2)
        assert "No word of a command can hold a NUL" in local.errors, line
    assert local("range", "--keys-only") == "a\\x00b\ng\\x00h\nk\n"


def test_script_is_read_by_nobody_else(local: Command) -> None:
    """What a line runs finds nothing on its standard input."""
    script = "lock jobs -- cat\nupdate k -- sh -c 'cat; cat /dev/stdin; echo end'\nget k\n"
    assert local("shell", given=script) == "end\n\n"


def test_script_that_is_interrupted(local: Command) -> None:
    """Ctrl-C and SIGTERM end the line that runs, and the script."""
    for number in (signal.SIGINT, signal.SIGTERM):
        with local.start("shell", stdin=subprocess.PIPE) as running:
            assert running.stdin is not None
            running.stdin.write("watch k --initial\nput behind 1\n")
            running.stdin.close()
            with kvi.open(local.uri) as store:
                store.store("k", "v")
            assert running.stdout is not None
            assert running.stdout.readline().startswith("PUT")
            running.send_signal(number)
            assert running.wait(60) == 128 + number
    local("get", "behind", code=1)


def test_reader_of_a_script_that_goes_away(local: Command) -> None:
    """It ends quietly."""
    for start in range(0, 3000, 1000):
        with kvi.open(local.uri) as store:
            store.txn(then=[kvi.Put(f"k{n:06}", "x" * 90) for n in range(start, start + 1000)])
    with local.start("shell", stdin=subprocess.PIPE) as running:
        assert running.stdin is not None
        running.stdin.write("range\nrange\nrange\n")
        running.stdin.close()
        assert running.stdout is not None
        assert running.stdout.readline()
        running.stdout.close()
        assert running.wait(60) == 141
        assert running.stderr is not None
        assert running.stderr.read() == ""


# -- without a process -----------------------------------------------------------------------------


def found(uri: str, line: str, **said: object) -> list[str]:
    """What a line may go on with: the line then."""
    completer = Completer(Context(uri=uri, **said))  # type: ignore[arg-type]
    try:
        return [line[: len(line) - one.size] + one.text for one in completer.found(line)]
    finally:
        completer.close()


def test_what_is_offered() -> None:
    """Names, options, choices, keys: where each belongs."""
    uri = "mem:offered"
    with kvi.open(uri) as store:
        for key in ("app/a", "app/b/c", "app/b/d", "apple", "it's", "n/x", "\x1b]0;pwn", "a\u202e"):
            store.store(key, "")
        assert found(uri, "co") == ["count", "copy", "conformance"]
        assert found(uri, "  kvi explai") == ["  kvi explain"]
        assert found(uri, "ex") == ["export", "explain", "exit"]
        assert found(uri, "help cou") == ["help count"]
        assert found(uri, "get --a") == ["get --as"]
        assert found(uri, "get k --as b") == ["get k --as base64"]
        assert found(uri, "get a") == ["get app/", "get apple"]
        assert found(uri, "get app") == ["get app/", "get apple"]
        assert found(uri, "get app/") == ["get app/a", "get app/b/"]
        assert found(uri, "del x app/b/") == ["del x app/b/c", "del x app/b/d"]
        assert found(uri, "get it") == ["get 'it'\"'\"'s'"]
        assert found(uri, 'get "it') == ["get 'it'\"'\"'s'"]
        assert found(uri, "get --prefix app/b") == ["get --prefix app/b/"]
        assert found(uri, "get --prefix=app/b") == ["get --prefix=app/b/"]
        assert found(uri, "get --namespace n ") == ["get --namespace n x"]
        assert found(uri, "get ", namespace="n") == ["get x"]
        assert found(uri, "put k ") == []
        assert found(uri, "mv app/a ap") == ["mv app/a app/", "mv app/a apple"]
        assert found(uri, "lock jobs -- ") == []
        assert found(uri, "get --uri mem:other a") == []
        assert found(uri, "nonsense a") == []
        assert found(uri, "get \x1b") == []
        for level in range(200):
            store.store(f"many/{level:03}/x", "")
            store.store(f"many/{level:03}/y", "")
        assert found(uri, "get many/")[:2] == ["get many/000/", "get many/001/"]
        assert len(found(uri, "get many/")) == 50


def test_nothing_is_offered_by_a_store_that_fails(tmp_path: Path, silent: str) -> None:
    """No error comes out, and nothing is made."""
    missing = f"sqlite:{tmp_path}/missing.db"
    for uri in (missing, "nope:x", "etcd://127.0.0.1:1", silent):
        assert found(uri, "get a") == []
        assert found(uri, "coun") == ["count"]
    assert list(tmp_path.iterdir()) == []


def test_words_of_lines() -> None:
    """Quotes, comments and backslashes are those of a shell, over lines too."""
    lines = ["a 'b", "c' d # e", "", "# f", "kvi g \\", "h", 'i "j\\', 'k"', "kvi", "l#m"]
    assert [(number, words) for number, words in commands(lines)] == [
        (1, ["a", "b\nc", "d"]), (5, ["g", "h"]), (7, ["i", "jk"]), (10, ["l#m"]),
    ]  # fmt: skip
    ((_, words),) = commands(['put "a', "b\\", "c\\\\", 'd"', ""])
    assert words == ["put", "a\nbc\\\nd"]
    ((_, words),) = commands(["put 'a", "b\\", "c'"])
    assert words == ["put", "a\nb\\\nc"]
    many = ["put k 'first", *('a "quoted" \\ line' for _ in range(20_000)), "last'"]
    ((_, words),) = commands(many)
    assert words[2].count("\n") == 20_001
    with pytest.raises(kvi.InvalidArgument, match="line 2: No closing quotation"):
        list(commands(["a", "b 'c", "d"]))


def test_last_word_of_a_line() -> None:
    """Where it begins, and what it is without its quotes."""
    for line, (rest, word) in {
        "": ("", ""), "get ": ("", ""), "get a": ("a", "a"), "get 'a b": ("'a b", "a b"),
        "get a\\ b": ("a\\ b", "a b"), 'get "a \'b': ('"a \'b', "a 'b"), "get a\\": ("a\\", "a"),
        "get 'a'": ("'a'", "a"), "get 'a b' ": ("", ""), 'a "b\\"c': ('"b\\"c', 'b"c'),
        "a 'b'c\\'": ("'b'c\\'", "bc'"),
    }.items():  # fmt: skip
        assert (line[last_word(line) :], unfinished(rest)) == (rest, word), line


def test_kept() -> None:
    """One handle for those who want the same; a new one after it was closed."""
    kept = Kept()
    first = kept.open("mem:kept", {})
    assert kept.open("mem:kept", {}) is first
    assert kept.open("mem:kept", {"read_only": True}) is not first
    assert first.closed
    again = kept.open("mem:kept", {})
    again.close()
    assert not kept.open("mem:kept", {}).closed
    kept.close()
    kept.close()
