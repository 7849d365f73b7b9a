"""The command `kvi`: look into a store, move it, mend it, and use its locks from a shell.

It needs the extra ``kvi-core[cli]``, which the distribution `kvi` brings.

============  =================================================================================
module        holds
============  =================================================================================
``app``       the command and its common options; each subcommand is imported when it is asked for
``output``    entries, tables and errors as text and as JSON; what a terminal may be sent
``entries``   ``get put del ls range count tas cas``
``changing``  ``update edit``: a value changed by a command, or in an editor
``renaming``  ``mv cp`` within one store
``txn``       ``txn`` and the text form of transactions
``watching``  ``watch``
``jobs``      commands that kvi runs: their signals, their terminal, their end
``running``   ``lock lease temp``: a command runs while something is held
``leasing``   ``leases``, and ``lease revoke``
``records``   the lines of an export: encoding and checking, without I/O
``moving``    ``export copy``
``importing`` ``import``
``foreign``   what ``consul kv export`` and ``etcdctl get -w json`` write, as entries, without I/O
``shell``     ``shell``: lines, scripts, completion
``prompt``    its prompt on a terminal, by prompt_toolkit
``looking``   ``backends doctor explain ping conformance bench``
============  =================================================================================

Exit codes: 0 found or done; 1 not found, test failed; 2 wrong usage or input; 3 the store is not
available or refuses; 4 the outcome of a write is unknown; 75 the lock is not had; 130 after Ctrl-C,
141 when the reader of the output has gone; of ``lock``, ``lease``, ``temp``, ``update`` and
``edit``, otherwise, what their command ended with.
"""

from __future__ import annotations

import signal
import sys


def main() -> int:
    """Run the command of this process's arguments; returns its exit code."""
    _end_without_a_word()  # while it imports what it needs
    try:
        from kvi.cli.app import run
    except ModuleNotFoundError as error:
        if error.name in {"click", "platformdirs", "rich"}:
            print(  # noqa: T201
                f"kvi: the command needs {error.name}: pip install kvi-core[cli]", file=sys.stderr
            )
            return 2
        raise
    code = run(sys.argv[1:])
    _end_without_a_word()  # while Python ends
    return code


def _end_without_a_word() -> None:
    """Let signals do what they do by themselves, where an exception would be a traceback."""
    for name in ("SIGINT", "SIGTERM", "SIGHUP"):
        number = getattr(signal, name, None)
        if number is not None and signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, signal.SIG_DFL)
