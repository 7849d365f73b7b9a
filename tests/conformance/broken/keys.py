"""Stores that are not true to keys, values or revisions."""

# What a mutant breaks is told by its class.
# ruff: noqa: D102, D106, N801

from __future__ import annotations

import posixpath
import re
import unicodedata
from collections import Counter
from typing import Any
from urllib.parse import unquote

from kvi.errors import InvalidKey, ValueTooLarge
from kvi.model import KeyValue, RangeResult, Scan

from tests.conformance.broken.correct import Correct, Handle, Results, broken


@broken("key.exact")
class SlashesJoined(Correct):
    """Two slashes are one."""

    def key_in(self, key: str) -> str:
        return re.sub("//+", "/", key)


@broken("key.exact")
class FirstSlashDropped(Correct):
    """A slash at the beginning does not count."""

    def key_in(self, key: str) -> str:
        return key.lstrip("/") or key


@broken("key.exact")
class DotsResolved(Correct):
    """`a/../b` is `b`."""

    def key_in(self, key: str) -> str:
        return posixpath.normpath(key) if "/." in key else key


@broken("key.exact")
class EndsAtNul(Correct):
    """A key ends at its first NUL."""

    def key_in(self, key: str) -> str:
        return key.partition("\0")[0] or key


@broken("key.exact")
class Composed(Correct):
    """Different ways to write an accent are the same key."""

    def key_in(self, key: str) -> str:
        return unicodedata.normalize("NFC", key)


@broken("key.exact")
class PercentDecoded(Correct):
    """`%41` is `A`."""

    def key_in(self, key: str) -> str:
        return unquote(key)


@broken("key.exact")
class Lowered(Correct):
    """Case does not count."""

    def key_in(self, key: str) -> str:
        return key.lower()


class _Sorted(Correct):
    def order(self, key: str) -> Any:
        raise NotImplementedError

    def _range(self, scan: Scan, timeout: float) -> RangeResult:
        found = super()._range(scan, timeout)
        entries = sorted(found, key=lambda entry: self.order(entry.key), reverse=scan.reverse)
        return RangeResult(found.revision, lambda: (entries,))


@broken("key.order")
class Utf16Order(_Sorted):
    """Keys sort by their UTF-16 units."""

    def order(self, key: str) -> bytes:
        return key.encode("utf-16-be")


@broken("key.order")
class CaselessOrder(_Sorted):
    """Keys sort as in a dictionary."""

    def order(self, key: str) -> str:
        return key.casefold()


@broken("key.invalid")
class AnyTextIsAKey(Correct):
    """What is no UTF-8 is looked for, and not found."""

    class face(Handle):
        def get(
            self, key: str, *, revision: int | None = None, timeout: float | None = None
        ) -> KeyValue | None:
            return super().get(
                key.encode(errors="replace").decode() or "x", revision=revision, timeout=timeout
            )


@broken("key.invalid")
class BytesAreKeys(Correct):
    """Bytes are taken for the text that they encode."""

    class face(Handle):
        def delete(self, key: str, *, timeout: float | None = None) -> bool:
            return super().delete(key.decode() if isinstance(key, bytes) else key, timeout=timeout)


@broken("key.length", max_key=8192)
class CutsKeys(Correct):
    """What is too long for a key is cut."""

    class face(Handle):
        def store(self, key: str, value: bytes | str, **options: Any) -> int:
            return super().store(key[:8192], value, **options)


@broken("key.length", max_key=8192)
class CountsCharacters(Correct):
    """A key may be longer than declared, if it has less characters than bytes."""

    class face(Handle):
        def get(
            self, key: str, *, revision: int | None = None, timeout: float | None = None
        ) -> KeyValue | None:
            return (
                None
                if len(key) <= 8192 < len(key.encode())
                else super().get(key, revision=revision, timeout=timeout)
            )


@broken("key.length", max_key=8192)
class RefusesTheLongestKey(Correct):
    """A key of exactly the declared length is refused."""

    def key_in(self, key: str) -> str:
        if len(key) == 8192:
            raise InvalidKey("too long")
        return key


@broken("value.exact")
class TextOnly(Correct):
    """Values that are no text lose what is none."""

    def value_in(self, value: bytes) -> bytes:
        return value.decode(errors="replace").encode()


@broken("value.exact")
class ValueEndsAtNul(Correct):
    """A value ends at its first NUL."""

    def value_in(self, value: bytes) -> bytes:
        return value.partition(b"\0")[0]


@broken("value.exact")
class LineEndings(Correct):
    """The end of a line in a value is translated."""

    def value_in(self, value: bytes) -> bytes:
        return value.replace(b"\r\n", b"\n")


@broken("value.exact")
class Stripped(Correct):
    """White space around a value does not count."""

    def value_in(self, value: bytes) -> bytes:
        return value.strip()


@broken("value.exact")
class NumbersAreNumbers(Correct):
    """A value that looks like a number comes back as Python writes it."""

    def value_in(self, value: bytes) -> bytes:
        try:
            return str(int(value)).encode()
        except ValueError:
            return value


@broken("value.exact", "get.absent")
class EmptyIsMissing(Correct):
    """A key with an empty value is not found."""

    def _get(self, key: str, timeout: float) -> KeyValue | None:
        entry = super()._get(key, timeout)
        return entry if entry is not None and entry.value else None


@broken("value.exact")
class TextAsUtf16(Correct):
    """Text is stored in another encoding than UTF-8."""

    class face(Handle):
        def store(self, key: str, value: bytes | str, **options: Any) -> int:
            data = value.encode("utf-16") if isinstance(value, str) else value
            return super().store(key, data, **options)


@broken("value.invalid")
class NoneIsEmpty(Correct):
    """No value is an empty one."""

    class face(Handle):
        def store(self, key: str, value: bytes | str, **options: Any) -> int:
            return super().store(key, b"" if value is None else value, **options)


@broken("value.invalid")
class NumbersAreText(Correct):
    """A number is stored as its digits."""

    class face(Handle):
        def store(self, key: str, value: bytes | str, **options: Any) -> int:
            return super().store(key, str(value) if isinstance(value, int) else value, **options)


@broken("value.length", max_value=65_536)
class CutsValues(Correct):
    """What is too large for a value is cut."""

    class face(Handle):
        def store(self, key: str, value: bytes | str, **options: Any) -> int:
            return super().store(key, value[:65_536] if len(value) > 65_536 else value, **options)


@broken("value.length", max_value=65_536)
class RefusesTheLargestValue(Correct):
    """A value of exactly the declared size is refused."""

    def value_in(self, value: bytes) -> bytes:
        if len(value) == 65_536:
            raise ValueTooLarge("too large")
        return value


@broken("revision.grows")
class RevisionPerKey(Correct):
    """Each key counts its own writes, and tells that as the revision."""

    def _put(self, key: str, value: bytes, lease: int | None, timeout: float) -> int:
        super()._put(key, value, lease, timeout)
        entry = self._get(key, timeout)
        return entry.version or 1 if entry else 1


@broken("revision.grows")
class DeletesUncounted(Correct):
    """Deleting a key makes no revision."""

    def _delete(self, key: str, timeout: float) -> bool:
        with self._state.lock:
            self._state._keys = None
            return self._state.entries.pop(key, None) is not None


@broken("revision.grows")
class RangeDeletesUncounted(Correct):
    """Deleting a range makes no revision."""

    def _delete_range(self, span: Any, timeout: float) -> int:
        keys = [entry.key for entry in self._range(Scan(span), timeout)]
        with self._state.lock:
            self._state._keys = None
            for key in keys:
                del self._state.entries[key]
        return len(keys)


@broken("revision.entry")
class ForgetsItsCreation(Correct):
    """The revision of the last change is told as that of the creation."""

    def show(self, entry: KeyValue) -> KeyValue:
        return entry._replace(create_revision=entry.revision)


@broken("revision.entry")
class NeverCounts(Correct):
    """The version is always 1."""

    def show(self, entry: KeyValue) -> KeyValue:
        return entry._replace(version=1)


@broken("revision.entry")
class NoVersion(Correct):
    """Versions are declared, and not told."""

    def show(self, entry: KeyValue) -> KeyValue:
        return entry._replace(version=None)


@broken("revision.entry", key_version=False)
class VersionUndeclared(Correct):
    """Versions are told, and declared not to be."""


@broken("revision.created")
class OneCreation(Correct):
    """A key that is created again keeps the revision of its first creation."""

    def show(self, entry: KeyValue) -> KeyValue:
        first = self.notes.setdefault(entry.key, entry.create_revision)
        return entry._replace(create_revision=first)


@broken("revision.created")
class CountsAllLives(Correct):
    """A key that is created again goes on counting its writes."""

    def apply(self, branch: Any) -> Results:
        self.notes.setdefault("writes", Counter()).update(op.key for op in branch)
        return super().apply(branch)

    def show(self, entry: KeyValue) -> KeyValue:
        return entry._replace(version=self.notes["writes"][entry.key])


@broken("key.exact")
class ReadsLines(Correct):
    """Whatever ends a line for Python is a newline."""

    def key_in(self, key: str) -> str:
        return "\n".join(key.splitlines()) or key


@broken("key.exact")
class Compatible(Correct):
    """Letters that look alike are the same key, other accents are not."""

    def key_in(self, key: str) -> str:
        return "".join(unicodedata.normalize("NFKC", one) for one in key)
