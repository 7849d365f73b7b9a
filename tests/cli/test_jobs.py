"""A command that kvi runs: on a terminal as under a shell, elsewhere with all that it started."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import kvi
import pytest

from tests.cli.conftest import Command
from tests.cli.terminal import OnTerminal, state
from tests.support.inside import revoke
from tests.support.waiting import until

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not Path("/proc/self/stat").exists() or shutil.which("bash") is None,
        reason="needs /proc and bash",
    ),
]

KVI = f"{sys.executable} -m kvi.cli"
BEATS = f"{sys.executable} {Path(__file__).with_name('beats.py')}"


@pytest.fixture
def shell(local: Command) -> Iterator[OnTerminal]:
    """An interactive shell on a terminal."""
    with OnTerminal(local.env, local.folder) as shell:
        shell.shows("$ ")
        yield shell


def number(file: Path) -> int:
    """The number that a process writes to this file."""
    until(lambda: file.exists() and file.read_text().endswith("\n"), within=60)
    return int(file.read_text())


def beats(folder: Path) -> int:
    return (folder / "beats").stat().st_size if (folder / "beats").exists() else 0


def beats_on(folder: Path) -> None:
    """Wait until the command works on."""
    before = beats(folder)
    until(lambda: beats(folder) > before, within=60)


def stopped(folder: Path) -> None:
    """Wait until kvi and its command are stopped."""
    pids = number(folder / "kvi"), number(folder / "cmd")
    until(lambda: [state(pid) for pid in pids] == ["T", "T"], within=60)


@pytest.mark.parametrize("behind", ["", "</dev/null", "2>&1 | cat"])
def test_ctrl_z_stops_both_and_fg_continues_both(
    local: Command, shell: OnTerminal, behind: str
) -> None:
    """As a command of the shell's own; the lock is still held if it was not for long."""
    shell.type(f"set -o pipefail; {KVI} lock jobs --ttl 60 -- {BEATS} {behind}\n")
    beats_on(local.folder)
    shell.type("\x1a")
    stopped(local.folder)
    at = beats(local.folder)
    shell.type("echo back $((40 + 2))\n")
    shell.shows("back 42")
    assert beats(local.folder) == at
    shell.type("fg\n")
    beats_on(local.folder)
    with kvi.open(local.uri) as store:
        assert not store.lock("jobs").acquire(0)
    (local.folder / "stop").touch()
    shell.type("echo code $?\n")
    shell.shows("code 7")


def test_at_the_prompt_of_kvi(local: Command, shell: OnTerminal) -> None:
    """Ctrl-Z stops what runs, and `kvi shell`; `fg` goes on with both, and then asks again."""
    shell.type(f"PROMPT_TOOLKIT_NO_CPR=1 {KVI} shell\r")
    shell.shows("sqlite:")
    shell.type(f"lock jobs -- {BEATS}\r")
    beats_on(local.folder)
    shell.type("\x1a")
    shell.shows("Stopped")
    stopped(local.folder)
    shell.type("fg\r")
    beats_on(local.folder)
    (local.folder / "stop").touch()
    shell.shows("[7] sqlite:")
    shell.type("put done yes\r")
    with kvi.open(local.uri) as store:
        until(lambda: store.get("done"), within=60)


def test_lock_that_ran_out_while_both_were_stopped(local: Command, shell: OnTerminal) -> None:
    """Somebody else gets it; the command is ended before it does anything more."""
    shell.type(f"{KVI} lock jobs --ttl 1 -- {BEATS} </dev/null\n")
    beats_on(local.folder)
    shell.type("\x1a")
    stopped(local.folder)
    at = beats(local.folder)
    with kvi.open(local.uri) as store, store.lock("jobs", timeout=60) as held:
        shell.type("fg\n")
        shell.type("echo code $?\n")
        shell.shows("the lock 'jobs' was lost")
        shell.shows("code 3")
        assert held.held
    assert beats(local.folder) == at


def test_one_within_another(local: Command, shell: OnTerminal) -> None:
    """A command that is `kvi` itself, with one of its own: all stop, all go on."""
    shell.type(f"{KVI} lock outer -- {KVI} lock jobs -- {BEATS}\n")
    beats_on(local.folder)
    for _ in range(2):
        shell.type("\x1a")
        stopped(local.folder)
        shell.type("fg\n")
        beats_on(local.folder)
    (local.folder / "stop").touch()
    shell.type("echo code $?\n")
    shell.shows("code 7")


def test_shell_within_kvi(local: Command, shell: OnTerminal) -> None:
    """A shell as the command has jobs of its own; `suspend` stops all."""
    shell.type(f"{KVI} lock jobs --ttl 60 -- bash --norc --noprofile -i\n")
    shell.type("echo $$ >cmd; echo $PPID >kvi\n")
    inner = number(local.folder / "cmd")
    shell.type("sh -c 'echo $$ >nap; exec sleep 1000'\n")
    number(local.folder / "nap")  # in the foreground by then
    shell.type("\x1a")
    until(lambda: re.search(rb"Stopped +sh -c", shell.seen), within=60)
    assert state(inner) != "T"
    shell.type("suspend\n")
    stopped(local.folder)
    shell.type("fg\n")
    shell.type("exec sh -c 'exit 9'\n")
    shell.type("echo code $?\n")
    shell.shows("code 9")


def test_command_that_ignores_ctrl_z(local: Command, shell: OnTerminal) -> None:
    """It works on, so kvi does too: the lock stays held, though others of the pipeline stop."""
    cat = "sh -c 'echo $$ >cat; exec cat'"
    shell.type(f"{KVI} lock jobs --ttl 1 -- {BEATS} SIGTSTP | {cat}\n")
    beats_on(local.folder)
    shell.type("\x1a")
    cat_pid = number(local.folder / "cat")
    until(lambda: state(cat_pid) == "T", within=60)
    with kvi.open(local.uri) as store:
        assert not store.lock("jobs").acquire(3)
    beats_on(local.folder)
    assert state(number(local.folder / "cmd")) != "T"


def test_kill_tstp_at_kvi_stops_both(local: Command, shell: OnTerminal) -> None:
    """Never kvi alone, which would let its lock run out under a command that works."""
    shell.type(f"{KVI} lock jobs --ttl 60 -- {BEATS}\n")
    beats_on(local.folder)
    os.kill(number(local.folder / "kvi"), signal.SIGTSTP)
    stopped(local.folder)
    shell.type("bg\n")
    beats_on(local.folder)


def test_command_reads_the_terminal(local: Command, shell: OnTerminal) -> None:
    """Though the standard input of kvi is another; and so does what it starts."""
    ask = "sh -c 'read x </dev/tty; echo got $x; sh -c \"read y </dev/tty; echo then \\$y\"'"
    for behind in ("</dev/null", "</dev/null | cat"):
        shell.type(f"{KVI} lock jobs -- {ask} {behind}; echo code $?\n")
        shell.type("this\nthat\n")
        shell.shows("got this")
        shell.shows("then that")
        shell.shows("code 0")
        shell.seen = b""


def test_background_job_that_needs_the_terminal(local: Command, shell: OnTerminal) -> None:
    """It stops, and the shell tells; in the foreground it gets what it wants."""
    ask = "sh -c 'echo $PPID >kvi; echo $$ >cmd; read x </dev/tty; echo got $x'"
    shell.type(f"{KVI} lock jobs --ttl 60 -- {ask} </dev/null &\n")
    stopped(local.folder)

    def told() -> bool:
        shell.type("\n")  # the shell tells at its next prompt, once it knows
        return b"Stopped" in shell.seen

    until(told)
    shell.type("fg\n")
    shell.type("this\n")
    shell.shows("got this")


def test_running_background_job_in_the_foreground(local: Command, shell: OnTerminal) -> None:
    """Ctrl-C reaches the command of a job that the shell brought to the front."""
    shell.type(f"{KVI} lock jobs -- {BEATS} &\n")
    beats_on(local.folder)
    shell.type("fg\n")
    shell.gives_way()  # before that, Ctrl-C would be for the shell, which then forgets the line
    shell.type("\x03")
    cmd = number(local.folder / "cmd")
    until(lambda: state(cmd) in "Z", within=60)
    shell.type("echo code $?\n")
    shell.shows("code 130")


def test_no_shell_to_continue_it(local: Command) -> None:
    """As first process of a terminal it does not stop; neither does its command."""
    words = [*KVI.split(), "lock", "jobs", "--ttl", "1", "--", *BEATS.split()]
    with OnTerminal(local.env, local.folder, *words) as terminal:
        beats_on(local.folder)
        terminal.type("\x1a")
        terminal.shows("^Z")
        beats_on(local.folder)
        (local.folder / "stop").touch()
        terminal.end()
        assert terminal.process.returncode == 7


def test_loss_on_a_terminal_ends_what_the_command_started(
    local: Command, shell: OnTerminal
) -> None:
    """Not the command alone."""
    shell.type(f"{KVI} lock jobs --ttl 1 -- sh -c 'sleep 1000 & echo $! >child; wait'\n")
    child = number(local.folder / "child")
    with kvi.open(local.uri) as store:
        for entry in store.range(prefix="jobs/"):
            assert entry.lease is not None
            revoke(store, entry.lease)
    shell.shows("the lock 'jobs' was lost")
    until(lambda: state(child) in "Z", within=60)


@pytest.mark.parametrize("command", ["lease", "temp k"])
def test_other_commands_that_run_one(local: Command, shell: OnTerminal, command: str) -> None:
    """`lease temp`: a loss while both are stopped is known at once."""
    shell.type(f"{KVI} {command} --ttl 1 -- {BEATS} </dev/null\n")
    beats_on(local.folder)
    shell.type("\x1a")
    stopped(local.folder)
    at = beats(local.folder)
    with kvi.open(local.uri) as store:
        store.store("tick", "")
        if command != "lease":
            until(lambda: store.get("k") is None, within=60)
        else:
            other = store.lease(1.5, keep_alive=False)  # outlives the one that is not renewed
            assert other.lost.wait(60)
    shell.type("fg\n")
    shell.type("echo code $?\n")
    shell.shows("code 3")
    assert beats(local.folder) == at


def test_watch_on_a_terminal(local: Command, shell: OnTerminal) -> None:
    """Ctrl-Z stops the watch and its handler, `fg` continues both, Ctrl-C ends both."""
    local("put", "k", "v")
    shell.type(f"{KVI} watch k --initial --exec '{BEATS}'\n")
    beats_on(local.folder)
    shell.type("\x1a")
    cmd = number(local.folder / "cmd")
    until(lambda: state(cmd) == "T", within=60)
    shell.type("echo back $((40 + 2))\n")
    shell.shows("back 42")
    shell.type("fg\n")
    beats_on(local.folder)
    shell.type("\x03")
    until(lambda: state(cmd) in "Z", within=60)
    shell.type("echo code $?\n")
    shell.shows("code 130")


def test_ctrl_c_ends_what_runs_again_and_again(local: Command, shell: OnTerminal) -> None:
    """`every` too, though only the command gets it."""
    shell.type(f"{KVI} every t 0.2 -- {BEATS}\n")
    beats_on(local.folder)
    shell.type("\x03")
    shell.type("echo code $?\n")
    shell.shows("code 130")


# -- without a terminal ----------------------------------------------------------------------------


def test_sigterm_ends_the_handler_of_a_watch(local: Command) -> None:
    """It is passed on, to what the handler started too; the watch ends behind it."""
    script = "(trap 'echo child; exit' TERM; echo ready; while :; do sleep 0.05; done) & wait"
    local("put", "k", "v")
    with local.start(
        "watch",
        "k",
        "--initial",
        "--exec",
        script,
        stdin=subprocess.DEVNULL,
    ) as watch:
        assert watch.stdout is not None
        until(lambda: watch.stdout.readline() == "ready\n")  # type: ignore[union-attr]
        watch.terminate()
        output, _ = watch.communicate(timeout=60)
    assert (output, watch.returncode) == ("child\n", 143)


def test_handler_of_a_watch_that_does_not_end_is_killed(local: Command) -> None:
    """After the grace, with what it started."""
    script = "trap '' TERM; sh -c 'echo $$ >child; while :; do sleep 0.05; done' & wait; wait"
    local("put", "k", "v")
    with local.start(
        "watch", "k", "--initial", "--grace", "0.3", "--exec", script,
        stdin=subprocess.DEVNULL,
    ) as watch:  # fmt: skip
        child = number(local.folder / "child")
        watch.terminate()
        assert watch.wait(60) == 143
        until(lambda: state(child) in "Z")


def test_what_the_command_started_is_killed_after_a_loss(local: Command) -> None:
    """Once the grace is over, also where the command itself has ended long before."""
    script = "(trap '' TERM; echo ready; while :; do sleep 0.05; done) & wait"
    words = ["lock", "jobs", "--ttl", "1", "--grace", "0.3", "--", "sh", "-c", script]
    with kvi.open(local.uri) as store, local.start(*words, stdin=subprocess.DEVNULL) as running:
        assert running.stdout is not None
        assert running.stdout.readline() == "ready\n"
        for entry in store.range(prefix="jobs/"):
            assert entry.lease is not None
            revoke(store, entry.lease)
        assert running.stdout.read() == ""  # which the child has, until it ends
        assert running.wait(60) == 3


@pytest.mark.parametrize(
    ("name", "told", "code"),
    [("SIGQUIT", "", 131), ("SIGUSR1", "1\n", 5), ("SIGUSR2", "2\n", 5)],
)
def test_other_signals_are_passed_on(local: Command, name: str, told: str, code: int) -> None:
    """They are the command's; kvi alone would die of them, and leave it without its lock."""
    traps = "trap 'echo 1; exit 5' USR1; trap 'echo 2; exit 5' USR2"
    script = f"{traps}; echo ready; while :; do sleep 0.05; done"
    with local.start("lock", "jobs", "--", "sh", "-c", script) as running:
        assert running.stdout is not None
        assert running.stdout.readline() == "ready\n"
        running.send_signal(signal.Signals[name])
        assert running.communicate(timeout=60)[0] == told
        assert running.returncode == code
    local("lock", "jobs", "--wait", "0", "--", "true")


@pytest.mark.skipif(
    os.geteuid() != 0 or shutil.which("setpriv") is None, reason="needs two users, and setpriv"
)
def test_command_of_another_user(local: Command) -> None:
    """One that kvi may not signal, as of sudo: its lock is held as long as it works."""
    script = "echo ready; read x; echo worked on"
    words = [
        "setpriv", "--bounding-set=-kill", *KVI.split(), "lock", "jobs", "--",
        "setpriv", "--reuid=65534", "--clear-groups", "sh", "-c", script,
    ]  # fmt: skip
    with subprocess.Popen(
        words, env=local.env, text=True, start_new_session=True,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    ) as running:  # fmt: skip
        assert running.stdout is not None
        assert running.stderr is not None
        assert running.stdout.readline() == "ready\n"
        running.terminate()
        assert "another user's" in running.stderr.readline()
        local("lock", "jobs", "--wait", "0", "--", "true", code=75)
        assert running.communicate("\n", timeout=60)[0] == "worked on\n"
        assert running.returncode == 0


@pytest.mark.parametrize(
    "words",
    [["lock", "jobs", "--", "sh", "-c"], ["watch", "k", "--initial", "-n", "1", "--exec"]],
)
def test_files_that_are_meant_for_the_command(local: Command, words: list[str]) -> None:
    """What a shell has opened for it, as by `<(…)`, reaches it, and nothing of kvi's does."""
    local("put", "k", "v")
    reader, writer = os.pipe()
    os.write(writer, b"read\n")
    os.close(writer)
    done = subprocess.run(
        [*KVI.split(), *words, f"cat /dev/fd/{reader} && ls /proc/$$/fd"],
        env=local.env, cwd=local.folder, stdout=subprocess.PIPE, pass_fds=[reader], check=True,
    )  # fmt: skip
    os.close(reader)
    words = done.stdout.decode().split()
    assert words[words.index("read") + 1 :] == sorted(["0", "1", "2", str(reader)])


def test_handler_that_reads_nothing(local: Command) -> None:
    """A large value is no trouble for it, nor for the watch."""
    local("put", "k", "-", given=b"x" * 1_000_000)
    local("watch", "k", "--initial", "-n", "1", "--exec", "echo done; exit 0", "--as", "hex")
    assert local.raw.endswith(b"done\n")
    assert local.errors == ""


def test_exit_code_where_children_are_ignored(local: Command) -> None:
    """A parent that ignores SIGCHLD does not hide how the command ended."""
    words = [*KVI.split(), "lock", "jobs", "--", "sh", "-c", "exit 6"]
    code = (
        "import os, signal; signal.signal(signal.SIGCHLD, signal.SIG_IGN); "
        f"os.execv({words[0]!r}, {words!r})"
    )
    done = subprocess.run([sys.executable, "-c", code], env=local.env, timeout=60, check=False)
    assert done.returncode == 6
