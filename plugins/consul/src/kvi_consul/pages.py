"""The entries of one answer, kept for iterating any number of times in bounded memory.

Consul has no paging: a prefix comes as one answer, however large, and the next question would be
answered from another moment. So the answer is kept: its first megabytes as they are, the rest in a
temporary file, page by page. A page is closed at a number of entries or of bytes, so that a page
read back is small whatever the values are; only the places of the pages stay in memory, which is
what makes the reverse order as cheap as the other.
"""

from __future__ import annotations

import marshal
import tempfile
import threading
from collections.abc import Iterator
from typing import IO

from kvi.errors import KviError
from kvi.model import KeyValue

PAGE_ENTRIES = 256
PAGE_BYTES = 256 << 10
IN_MEMORY = 4 << 20  # bytes of keys and values kept without a file
_OVERHEAD = 200  # bytes that an entry takes beside its key and value


class Pages:
    """Entries in order. Filled by one thread, then read by any number."""

    def __init__(self) -> None:
        self._page: list[KeyValue] = []
        self._page_size = 0
        self._memory: list[list[KeyValue]] = []
        self._memory_size = 0
        self._places: list[tuple[int, int]] = []  # pages in the file: where, and how long
        self._file: IO[bytes] | None = None
        self._lock = threading.Lock()  # the file has one position for all its readers
        self.count = 0

    def add(self, entry: KeyValue) -> None:
        """Append an entry. Raises `KviError` if there is no room for it on the disk."""
        self._page.append(entry)
        self._page_size += len(entry.key) + len(entry.value or b"") + _OVERHEAD
        self.count += 1
        if len(self._page) >= PAGE_ENTRIES or self._page_size >= PAGE_BYTES:
            self.finish()

    def finish(self) -> None:
        """Close the last page."""
        page, size = self._page, self._page_size
        self._page, self._page_size = [], 0
        if not page:
            return
        if self._memory_size + size <= IN_MEMORY and self._file is None:
            self._memory_size += size
            self._memory.append(page)
            return
        try:
            if self._file is None:
                self._file = tempfile.TemporaryFile(prefix="kvi-consul-")  # noqa: SIM115
            data = marshal.dumps([tuple(entry) for entry in page])
            self._places.append((self._file.tell(), len(data)))
            self._file.write(data)
        except OSError as error:
            raise KviError(
                "the entries cannot be kept in a temporary file; make room in "
                f"{tempfile.gettempdir()} or read a smaller range"
            ) from error

    def read(self, limit: int | None = None, *, reverse: bool = False) -> Iterator[list[KeyValue]]:
        """Pages of the first ``limit`` entries, in order; or of the last, from the last down."""
        numbers = range(len(self._memory) + len(self._places))
        for number in reversed(numbers) if reverse else numbers:
            page = self._read(number)[:: -1 if reverse else 1]
            if limit is not None:
                page, limit = page[:limit], limit - len(page)
            yield page
            if limit is not None and limit <= 0:
                return

    def _read(self, number: int) -> list[KeyValue]:
        if number < len(self._memory):
            return self._memory[number]
        file = self._file
        assert file is not None  # there are places in it
        offset, length = self._places[number - len(self._memory)]
        try:
            with self._lock:
                file.seek(offset)
                data = file.read(length)
        except OSError as error:
            raise KviError(
                "the temporary file of a range cannot be read back; read it again"
            ) from error
        # The file has no name: nobody but this object has written to it.
        return [KeyValue._make(entry) for entry in marshal.loads(data)]  # noqa: S302

    def __del__(self) -> None:
        file = self._file
        if file is not None:
            file.close()
