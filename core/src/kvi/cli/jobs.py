"""`Job`: a command that kvi runs; its signals, its terminal, and how it ends.

*Groups.* The command has a process group of its own, so that a signal reaches what it has started
too. Only where kvi shares its own group with others, in a pipeline or a script on a terminal, the
command stays in that group: there Ctrl-C and Ctrl-Z are meant for all of them.

*Terminal.* While kvi is in the foreground of its terminal the command's group is, as under a shell:
it reads the terminal, and gets Ctrl-C and Ctrl-Z. kvi never stops while the command works on: it
passes the signal on, and stops itself once the command has. Where nobody could continue kvi (it is
the session's first process) the system does not let it stop, and the command is continued.

===========================  ======================================================================
what happens                 what kvi does
===========================  ======================================================================
the command stops            takes the terminal back and stops, with the rest of its own group
kvi is continued             if the command is still wanted: gives it the terminal, continues it
the command needs the        gives it the terminal and continues it, if kvi has it; else as if it
terminal, and stops          had stopped
SIGTERM, SIGHUP, SIGINT,     passes it on, and after ``patience`` seconds kills the command
SIGQUIT
SIGUSR1, SIGUSR2             passes it on
the command is not wanted    SIGTERM, and after ``grace`` seconds SIGKILL; it is continued for that
the command has ended, and   leaves it alone; if it was to be ended as well, waits for it, and kills
what it started has not      it at the same time as it would the command
===========================  ======================================================================
"""

from __future__ import annotations

import errno
import os
import signal
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from math import inf
from queue import Empty, SimpleQueue
from types import FrameType
from typing import IO, Any, Self

import click

from kvi.cli.app import ENDING, Failed, Seconds

_WAKE = 0.25  # seconds between two looks at who has the terminal, and whether it is still wanted
_POSIX = os.name == "posix"
_KEYS = (signal.SIGINT, signal.SIGQUIT) if _POSIX else (signal.SIGINT,)  # of a terminal, to end


def grace_option(told: str) -> Callable[[Any], Any]:
    """The option ``--grace``."""
    return click.option(
        "--grace",
        type=Seconds(0),
        default=5.0,
        show_default=True,
        metavar="SECONDS",
        help=told,
    )


class TooLong(Failed):
    """The words of a command and its environment are more than the system takes."""


class Job:
    """A command that runs; made and used by the main thread, in a ``with`` block.

    Args:
        words: the command and its arguments, or a line for a shell.
        env: what it finds in its environment, besides that of kvi.
        stdin: its standard input; that of kvi by default.
        stdout: its standard output; that of kvi by default.
        patience: seconds from a signal that asks it to end until it is killed.

    Attributes:
        asked_to_end: the signals that were passed on to end it, and one of the terminal's that did.

    """

    def __init__(
        self,
        words: Sequence[str] | str,
        env: Mapping[str, str],
        *,
        stdin: IO[bytes] | None = None,
        stdout: IO[bytes] | None = None,
        patience: float = inf,
    ) -> None:
        self._words = words
        # No environment can hold a NUL, which a key can.
        self._env: dict[str, str | bytes] = {
            **os.environ,
            **{name: _for_the_system(text.replace("\0", "\\0")) for name, text in env.items()},
        }
        self._stdin = stdin
        self._stdout = stdout
        self._patience = patience
        self._terminal = _Terminal.own()
        self._grouped = _POSIX and (self._terminal is None or not _has_company())
        self._process: subprocess.Popen[bytes] | None = None
        self._early: list[int] = []  # signals that came before the command was there
        self._news: SimpleQueue[str] = SimpleQueue()  # a signal handler may put into this one
        self._stop = 0
        self._kill_at = inf
        self._handlers: dict[int, Any] = {}
        self.asked_to_end: list[int] = []

    def __enter__(self) -> Self:
        try:
            self._begin()
        except BaseException:
            self._leave()
            raise
        return self

    def __exit__(self, *raised: object) -> None:
        self._leave()

    def look(self) -> None:
        """Let `wait` look at once whether the command is still wanted. Safe for threads."""
        self._news.put("look")

    def wait(self, is_wanted: Callable[[], bool] = lambda: True, grace: float = inf) -> int:
        """Wait for its end, or end it when it is not wanted any more; its exit code.

        Negative is the number of the signal that ended it.
        """
        wanted = True
        while True:
            with suppress(Empty):
                news = self._news.get(timeout=_WAKE)
                if news == "end":
                    self._end_rest()
                    code = self._command.returncode
                    if -code in _KEYS:  # of the terminal, where only the command got it
                        self.asked_to_end.append(-code)
                    return code
                if news == "denied":
                    click.echo("kvi: the command is another user's, and got no signal", err=True)
                if news == "stopped":
                    self._follow(is_wanted)
                elif news == "continued":
                    self._continue(is_wanted)
            if wanted and not is_wanted():
                wanted = False
                self._kill_at = min(self._kill_at, time.monotonic() + grace)
                self._ask(signal.SIGTERM)
            if time.monotonic() >= self._kill_at:
                self._kill_at = inf
                self._send(signal.SIGKILL if _POSIX else signal.SIGTERM)
            self._lend()

    # -- its beginning and end --------------------------------------------------------------------

    def _begin(self) -> None:
        for number in ENDING:
            self._handle(number, self._pass_on)
        for number in _KEYS:
            self._handle(number, self._pass_on if self._grouped else _leave_it)
        if _POSIX:
            self._handle(signal.SIGUSR1, self._pass_on)
            self._handle(signal.SIGUSR2, self._pass_on)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # ignored, nobody tells how it ended
            self._handle(signal.SIGTSTP, self._pass_on if self._grouped else _leave_it)
            self._handle(signal.SIGTTIN, _leave_it)
            self._handle(signal.SIGCONT, lambda number, frame: self._news.put("continued"))
        words = self._words
        try:
            self._process = subprocess.Popen(
                _for_the_system(words)
                if isinstance(words, str)
                else [_for_the_system(word) for word in words],
                shell=isinstance(words, str),
                stdin=self._stdin,
                stdout=self._stdout,
                env=self._env,
                close_fds=False,  # those of kvi itself are not inherited; others are meant for it
                process_group=0 if self._grouped else None,
            )
        except OSError as error:
            code = 127 if isinstance(error, FileNotFoundError) else 126
            kind = TooLong if error.errno == errno.E2BIG else Failed
            called = words if isinstance(words, str) else words[0]
            raise kind(f"cannot run {called!r}: {error.strerror}", code) from None
        if _POSIX:
            # From now on, since a command inherits what is ignored: kvi in the background may write
            # to its terminal, and hand it on.
            self._handle(signal.SIGTTOU, signal.SIG_IGN)
        self._lend()
        threading.Thread(target=self._watch_over, name="kvi-command", daemon=True).start()
        while self._early:
            self._pass_on(self._early.pop(0), None)

    def _handle(self, number: int, handler: Any) -> None:
        """Until the end; what was ignored stays so, as under nohup."""
        before = signal.getsignal(number)
        if before is not signal.SIG_IGN:
            signal.signal(number, handler)
            self._handlers[number] = before

    def _leave(self) -> None:
        if self._terminal is not None:
            self._terminal.take_back()
            self._terminal.close()
        for number, handler in self._handlers.items():
            signal.signal(number, handler)

    def _watch_over(self) -> None:
        """Tell of its stops and of its end; on a thread of its own."""
        process = self._command
        if not _POSIX:
            process.wait()
        while _POSIX:
            _, status = os.waitpid(process.pid, os.WUNTRACED)
            if os.WIFSTOPPED(status):
                self._stop = os.WSTOPSIG(status)
                self._news.put("stopped")
            else:
                process.returncode = os.waitstatus_to_exitcode(status)
                break
        self._news.put("end")

    @property
    def _command(self) -> subprocess.Popen[bytes]:
        assert self._process is not None  # it runs
        return self._process

    # -- signals ----------------------------------------------------------------------------------

    def _pass_on(self, number: int, frame: FrameType | None) -> None:
        """Handle a signal that is meant for the command."""
        if self._process is None:
            self._early.append(number)
        elif number in (*ENDING, *_KEYS):
            self.asked_to_end.append(number)
            self._kill_at = min(self._kill_at, time.monotonic() + self._patience)
            self._ask(number)
        else:
            self._send(number)

    def _ask(self, number: int) -> None:
        """Ask it to end; who is stopped could not answer."""
        self._send(number)
        if _POSIX:
            self._send(signal.SIGCONT)

    def _send(self, number: int) -> None:
        process = self._command
        try:
            if self._grouped:
                os.killpg(process.pid, number)
            elif process.returncode is None:
                os.kill(process.pid, number)
        except ProcessLookupError:
            pass
        except PermissionError:  # as of sudo; what is held stays held while the command works
            self._news.put("denied")

    def _end_rest(self) -> None:
        """Wait for what the command started, if it was to end with it, and kill it in the end."""
        while self._grouped and self._kill_at < inf:
            try:
                os.killpg(self._command.pid, 0)
            except OSError:  # nobody is left, or nobody of this user's
                return
            if time.monotonic() >= self._kill_at:
                self._send(signal.SIGKILL)
                return
            time.sleep(min(_WAKE, max(0, self._kill_at - time.monotonic())))

    # -- stopping and going on --------------------------------------------------------------------

    def _follow(self, is_wanted: Callable[[], bool]) -> None:
        """It has stopped: stop as well, if there is a shell that sees it."""
        terminal = self._terminal
        if terminal is None:
            return  # whoever stopped it will continue it
        self._lend()
        asks = self._stop in (signal.SIGTTIN, signal.SIGTTOU)
        if not (asks and self._grouped and terminal.is_of(self._command.pid)):
            terminal.take_back()
            if not self._grouped:
                os.killpg(os.getpgrp(), signal.SIGTSTP)  # the rest of the job; it is not for kvi
            handler = signal.signal(signal.SIGTSTP, signal.SIG_DFL)
            signal.raise_signal(signal.SIGTSTP)  # returns when it is continued
            signal.signal(signal.SIGTSTP, handler)
        self._continue(is_wanted)

    def _continue(self, is_wanted: Callable[[], bool]) -> None:
        if is_wanted():  # else it is told to end first
            self._lend()
            self._send(signal.SIGCONT)

    def _lend(self) -> None:
        if self._grouped and self._terminal is not None:
            self._terminal.lend(self._command.pid)


class _Terminal:
    """The controlling terminal of this process."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._lent = False

    @classmethod
    def own(cls) -> _Terminal | None:
        """That of this process, if it has one."""
        if not _POSIX:
            return None
        try:
            return cls(os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC))
        except OSError:
            return None

    def is_of(self, group: int) -> bool:
        """Whether this group is in its foreground."""
        try:
            return os.tcgetpgrp(self._fd) == group
        except OSError:  # it was hung up
            return False

    def lend(self, group: int) -> None:
        """Put this group in its foreground, if the own one is there."""
        if self.is_of(os.getpgrp()):
            with suppress(OSError):
                os.tcsetpgrp(self._fd, group)
                self._lent = True

    def take_back(self) -> None:
        """Put the own group in its foreground, if that was lent."""
        if self._lent:
            self._lent = False
            with suppress(OSError):
                os.tcsetpgrp(self._fd, os.getpgrp())

    def close(self) -> None:
        """Close it."""
        os.close(self._fd)


def _for_the_system(text: str) -> str | bytes:
    """A word or a variable as the system takes it: in the locale's encoding, else as UTF-8."""
    try:
        os.fsencode(text)
    except UnicodeEncodeError:
        return text.encode("utf-8", "surrogateescape") if _POSIX else text
    return text


def _leave_it(number: int, frame: FrameType | None) -> None:
    """Handle a signal that the command got as well: what it does with it decides."""


def _has_company() -> bool:
    """Whether others are likely to be in the group of this process."""
    return os.getpgrp() != os.getpid() or any(
        stream is not None and _is_pipe(stream) for stream in (sys.stdin, sys.stdout, sys.stderr)
    )


def _is_pipe(stream: Any) -> bool:
    try:
        mode = os.fstat(stream.fileno()).st_mode
    except (OSError, ValueError):
        return False
    return stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode)
