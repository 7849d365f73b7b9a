"""The prompt of `kvi shell`, by prompt_toolkit; the extra ``kvi[shell]`` brings it.

Keys are completed on a thread, so that typing goes on while a store does not answer. The history is
a file of the user's own, mode 0600, and has no line that begins with a space.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from types import FrameType

from prompt_toolkit import PromptSession
from prompt_toolkit.completion import CompleteEvent, Completer, Completion
from prompt_toolkit.document import Document
from prompt_toolkit.filters import Condition
from prompt_toolkit.history import FileHistory
from prompt_toolkit.output import create_output

from kvi.cli.app import ENDING, Ended
from kvi.cli.output import bare
from kvi.cli.shell import Found, handled, is_open


class Prompt:
    """Asks for lines. ``complete`` says what a line may go on with."""

    def __init__(self, complete: Callable[[str], Iterable[Found]]) -> None:
        self._session: PromptSession[str] = PromptSession(
            history=_History(_history_file()),
            completer=_Completer(complete),
            complete_in_thread=True,
            complete_while_typing=False,  # a store is asked when Tab asks for it
            multiline=Condition(lambda: is_open(self._session.default_buffer.text)),
            prompt_continuation="> ",
            output=create_output(bare(sys.stdout)),
        )

    def ask(self, prompt: str) -> str | None:
        """The next line; ``None`` after Ctrl-D.

        Raises `KeyboardInterrupt` after Ctrl-C, and `Ended` after a signal.
        """
        try:
            with handled(self._end, ENDING):
                return self._session.prompt(prompt)
        except EOFError:
            return None

    def _end(self, number: int, frame: FrameType | None) -> None:
        """Handle a signal: the prompt ends in its own way, so that the terminal is as it was."""
        app = self._session.app
        if app.loop is None or not app.is_running:
            raise Ended(number)

        def leave() -> None:
            if app.future is not None and not app.future.done():
                app.exit(exception=Ended(number))

        # From the handler, in the thread of the loop: it sleeps, and nothing else wakes it.
        app.loop.call_soon_threadsafe(leave)


class _Completer(Completer):
    def __init__(self, complete: Callable[[str], Iterable[Found]]) -> None:
        self._complete = complete

    def get_completions(self, document: Document, event: CompleteEvent) -> Iterator[Completion]:
        for found in self._complete(document.text_before_cursor):
            yield Completion(found.text, -found.size, found.shown, found.told)


def _history_file() -> Path:
    import platformdirs

    return platformdirs.user_state_path("kvi", appauthor=False) / "history"


class _History(FileHistory):
    """A history that is nobody else's, and no reason to fail."""

    def __init__(self, file: Path) -> None:
        self._file = file
        with suppress(OSError):
            file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            file.chmod(0o600)
        super().__init__(str(file))

    def load_history_strings(self) -> Iterable[str]:
        with suppress(OSError):
            return super().load_history_strings()
        return []

    def append_string(self, string: str) -> None:
        if not string.startswith(" "):
            super().append_string(string)

    def store_string(self, string: str) -> None:
        with suppress(OSError):
            os.close(os.open(self._file, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600))
            super().store_string(string)
