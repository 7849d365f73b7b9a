"""The journal: one file that is the store, and the lock around it.

The directory has three files. ``journal`` is a snapshot and the records of the commits behind it
(see `kvi_directory.state`); ``lock`` and ``turn`` are empty and exist to be locked. All there is to
know of the store is in the journal; each handle keeps in memory what it has read of it, up to byte
``_at``::

    journal:  snapshot │ record │ record │ record │ torn…
                                         ▲ _at    ▲ what a killed writer left; cut off by the next

*Who may do what.* The journal is written and read with two locks held: the handle's ``_mutex``
among threads, then ``flock`` on ``lock`` among handles and processes; the kernel frees the latter
when a process dies. Memory is read and changed under ``_mutex``. The one thing done without locks
is `stale`: the file's identity and length say whether memory is up to date. That makes reads cheap,
and they stay linearizable: a commit is acknowledged after the file has grown.

*Turns.* ``flock`` serves whoever asks at the right moment, and a busy process would be first again
and again. So whoever wants ``lock`` holds ``turn`` while it waits for it: who has just released the
former finds the latter taken by somebody who waits, and is behind him.

*Commit.* Append the record, fsync, then take it into memory. A process killed at any moment has
written the whole record, or a part that its checksum betrays. If the append fails, the file is cut
back to ``_at`` while the lock is still held, so that nobody has seen it: surely not applied. Only
if that fails too, nobody knows.

*Leases* end by the clock that counts on while the machine sleeps, which is the same in all its
processes. Before anything is read or written under the locks, what has expired is ended by a commit
of its own; `stale` is true as long as this is due, so that no read sees an expired key. The clock
begins anew when the machine boots: a lease whose deadline is further away than its ttl is from
before, and whoever reads that first lets it begin anew (`_catch_up`): it ends late, never early.

*Rewriting.* When the journal has grown, it is replaced: a snapshot of the state some records ago
and the last ``history`` records as they are (fewer if they are large), written to ``journal.new``,
fsynced and renamed. The other handles see another file, and read it from its beginning.

*Watches* are served by `kvi.backend.tail`, whose thread reads memory (`State.since`) and waits here
(`wait`). What this handle reads or commits ends that at once; for what other handles do, it asks
`stale` every 20 milliseconds.

*Fork.* A child shares its parent's lock on the file, as long as it has its descriptor open. It
closes it (`forked`), else the lock would outlive a parent that is killed while it holds it.
"""

from __future__ import annotations

import fcntl
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from io import FileIO
from pathlib import Path

from kvi.clock import now
from kvi.errors import Closed, KviError, OutcomeUnknown, PermissionDenied, Timeout, Unavailable

from kvi_directory.state import FORMAT, Record, State, decode, encode

LOOK = 0.02  # seconds between two looks for what other processes did
PAST = 4 * 1024 * 1024  # bytes of past records that are kept at the most, however few they are


class Journal:
    """The state of a directory, kept in memory as its file has it, for any number of threads."""

    def __init__(self, folder: Path, history: int) -> None:
        self._folder = folder
        self._path = folder / "journal"
        self._history = history
        self._closed = threading.Event()
        self._mutex = threading.Lock()  # guards all below
        self._files: dict[str, FileIO] = {}  # by name, those that are open
        self._identity: tuple[int, int] | None = None  # device and inode of the file
        self._at = 0
        self._snapshot = 0  # the length of the snapshot in the file
        self._records = 0  # behind it
        self._state = State()
        self._moved = threading.Event()  # memory has, or the end

    # -- what the store uses ----------------------------------------------------------------------

    @contextmanager
    def reading(self, timeout: float) -> Iterator[State]:
        """The present state, which nobody changes meanwhile in this handle."""
        deadline = now() + timeout
        with self._alone(timeout):
            if self.stale():
                with self._exclusive(deadline):
                    pass
            yield self._state

    @contextmanager
    def writing(self, timeout: float) -> Iterator[State]:
        """The present state, which nobody but ``commit`` changes meanwhile."""
        deadline = now() + timeout
        with self._alone(timeout), self._exclusive(deadline):
            yield self._state

    def commit(self, record: Record) -> None:
        """Make ``record`` the next of the journal, within ``writing``."""
        file, line = self._files["journal"], encode(record)
        try:
            file.seek(self._at)
            _write(file, line)
            os.fsync(file.fileno())
        except OSError as error:
            self._take_back(error)
        self._take(record, len(line))

    def stale(self) -> bool:
        """Whether the file has moved on, or a lease is to be ended. Needs no lock."""
        try:
            found = self._path.stat()
        except OSError:
            return True  # whoever reads next finds out what is wrong
        known = (found.st_dev, found.st_ino) == self._identity and found.st_size == self._at
        return not known or self._state.next_deadline <= now()

    def wait(self, after: int, timeout: float) -> None:
        """Return when there may be commits behind revision ``after``, or ``timeout`` seconds later.

        For one thread.
        """
        deadline = now() + timeout
        while True:
            self._moved.clear()
            if self._state.revision > after or self.stale() or now() >= deadline:
                return
            if self._closed.is_set():
                return
            self._moved.wait(LOOK)

    def close(self) -> None:
        """Wake whoever waits for a lock, and close the files once nobody uses them."""
        self._closed.set()
        self._moved.set()
        with self._mutex:  # soon: its holder does not wait for others any more
            self._let_go()

    def forked(self) -> None:
        """In a child: close the copies of its parent's descriptors; the parent keeps its own."""
        self._let_go()

    # -- locks ------------------------------------------------------------------------------------

    @contextmanager
    def _alone(self, timeout: float) -> Iterator[None]:
        if not self._mutex.acquire(timeout=timeout):
            raise Timeout("other threads used the store all the time")
        try:
            if self._closed.is_set():
                raise Closed("the store is closed")
            yield
        except PermissionError as error:
            raise PermissionDenied(f"the system refuses: {error.strerror}") from error
        except OSError as error:
            raise Unavailable(f"the journal cannot be used: {error.strerror}") from error
        except KviError:
            raise
        except BaseException:  # memory may be half-made: read it all again
            self._identity = None
            raise
        finally:
            self._mutex.release()

    @contextmanager
    def _exclusive(self, deadline: float) -> Iterator[None]:
        """Hold the lock among processes, with memory up to date and expired leases ended."""
        self._enter(deadline)
        revision = self._state.revision
        try:
            self._catch_up()
            for lease in self._state.expired():
                self.commit(self._state.ended(lease))
            yield
            if self._has_grown():
                with suppress(OSError):  # what was committed is committed; the next one tries again
                    self._rewrite()
        finally:
            fcntl.flock(self._files["lock"], fcntl.LOCK_UN)
            if self._state.revision != revision:
                self._moved.set()

    def _enter(self, deadline: float) -> None:
        """Take ``lock``, in turn."""
        if "lock" not in self._files:
            self._folder.mkdir(exist_ok=True)
            for name in ("turn", "lock"):
                self._files[name] = FileIO(self._folder / name, "a")
        self._flock(self._files["turn"], deadline)
        try:
            self._flock(self._files["lock"], deadline)
        finally:
            fcntl.flock(self._files["turn"], fcntl.LOCK_UN)

    def _flock(self, file: FileIO, deadline: float) -> None:
        pause = 0.0001
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return
            except BlockingIOError:
                left = deadline - now()
                if left <= 0:
                    raise Timeout("other processes used the store all the time") from None
                if self._closed.wait(min(pause, left)):
                    raise Closed("the store is closed") from None
                pause = min(2 * pause, 0.002)

    # -- the file ---------------------------------------------------------------------------------

    def _catch_up(self) -> None:
        """Read what others have appended, or the whole file if it is another one."""
        if "journal" not in self._files and not self._path.exists():
            self._replace(encode(State().snapshot()))
            _sync(self._folder.parent)
        found = self._path.stat()
        identity = (found.st_dev, found.st_ino)
        if identity == self._identity:
            self._read()
            return
        if "journal" in self._files:
            self._files["journal"].close()
        self._files["journal"] = FileIO(self._path, "r+")
        self._state, self._at = State(), 0
        self._read()
        self._identity = identity  # whatever broke off before this begins again
        for lease, (ttl, deadline) in list(self._state.leases.items()):
            if deadline > now() + ttl:  # the machine has booted since
                self.commit(self._state.renewed(lease, ttl))

    def _read(self) -> None:
        """Take in what the file has behind ``_at``."""
        file = self._files["journal"]
        file.seek(self._at)
        lines = file.read().splitlines(keepends=True)
        if self._at == 0 and (decode(b"".join(lines[:1])) or {}).get("format") != FORMAT:
            raise Unavailable("the journal in this directory is not one of kvi-directory")
        for i, line in enumerate(lines):
            record = decode(line)
            if record is None:
                if any(map(decode, lines[i + 1 :])):
                    raise Unavailable(f"the journal is damaged at byte {self._at}")
                file.truncate(self._at)  # a killed writer's; nobody was told that it had applied
                break
            self._take(record, len(line))

    def _take(self, record: Record, length: int) -> None:
        self._state.apply(record)
        self._at += length
        if "format" in record:
            self._snapshot, self._records = length, 0
        else:
            self._records += 1

    def _take_back(self, error: OSError) -> None:
        try:
            self._files["journal"].truncate(self._at)
        except OSError:
            raise OutcomeUnknown(f"the journal broke off: {error.strerror}") from error
        raise Unavailable(f"the journal cannot be written: {error.strerror}") from error

    def _has_grown(self) -> bool:
        """Whether the journal is long enough for rewriting to cost little in comparison."""
        many = self._records > 2 * self._history + len(self._state.entries)
        return many or self._at > 2 * (self._snapshot + PAST)

    def _rewrite(self) -> None:
        """Replace the journal by a shorter one that says the same, with a shorter past."""
        file = self._files["journal"]
        file.seek(0)
        lines = file.read().splitlines(keepends=True)
        first = len(lines)  # of the records that stay as they are
        length = len(lines[-1])
        while length <= PAST and len(lines) - first < self._history:
            first -= 1
            length += len(lines[first - 1])
        past = State()
        for line in lines[:first]:
            record = decode(line)
            if record is None:
                return  # it could be read before: leave a failing disk as it is
            past.apply(record)
        self._replace(encode(past.snapshot()) + b"".join(lines[first:]))
        # The other file is noticed, and read, by the next operation.

    def _replace(self, content: bytes) -> None:
        draft = self._folder / "journal.new"
        with FileIO(draft, "w") as file:
            _write(file, content)
            os.fsync(file.fileno())
        draft.replace(self._path)
        _sync(self._folder)

    def _let_go(self) -> None:
        for file in self._files.values():
            file.close()


def _write(file: FileIO, content: bytes) -> None:
    rest = memoryview(content)
    while rest:
        rest = rest[file.write(rest) :]


def _sync(folder: Path) -> None:
    """Make sure that what was made or renamed in ``folder`` survives a loss of power."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
