"""Consul's JSON: operations to bytes, answers to entries. Pure; no I/O, clock or randomness.

Keys travel inside the JSON of ``PUT /v1/txn``, never in a path: Consul cleans paths, so that
``a//b``, ``/a`` or ``..`` would name other keys, and refuses what cannot be printed.

* ``Flags`` is a nonce (`kvi_consul.store` draws it): Consul ignores a write that changes nothing,
  and the same value written again must make a new revision and an event all the same.
* An empty value comes back as ``null``.
* A session is a lease. Its id is a UUID as text there and the same 128 bits as an integer here.
* `Parser` reads lists of any length from the pieces of an answer in bounded memory.
"""

from __future__ import annotations

import codecs
import json
import re
from binascii import a2b_base64, b2a_base64
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple
from uuid import UUID

from kvi.model import KeyValue

MAX_BODY = 524_288  # bytes of a transaction's JSON: the server's limit, checked before sending
MAX_OPS = 64

_WRITES = frozenset({"set", "cas", "lock", "unlock", "delete", "delete-cas", "delete-tree"})
_SILENT = frozenset({"delete", "delete-cas", "delete-tree", "check-not-exists"})
# Flags by which `consul lock` and its semaphores know their own keys.
_MAGIC = frozenset({0x2DDCCBC058A50C18, 0xE0F69A2BAA414DE0})
_NOBODY = (1 << 128) - 1
_LONGEST_ENTRY = 8 << 20  # a key and a value of 512 KiB each, written with escapes, fit well

_quote = json.JSONEncoder(ensure_ascii=False).encode
_SAFE = re.compile(r"([A-Za-z0-9_.~-]+/)*[A-Za-z0-9_.~-]*\Z")
_DOTS = re.compile(r"(^|/)\.\.?(/|\Z)")
_HEAD = re.compile(r'\s*(?:\{\s*"Results"\s*:\s*)?(\[|null)')


class NotAList(Exception):
    """An answer that should be a list is not, or is cut short."""


class Op(NamedTuple):
    """One operation of Consul's transaction."""

    verb: str
    key: str
    value: bytes | None = None
    revision: int | None = None  # Consul's Index
    session: str | None = None
    flags: int | None = None

    @property
    def writes(self) -> bool:
        """Whether it makes the transaction a write, also if it then changes nothing."""
        return self.verb in _WRITES

    @property
    def answers(self) -> bool:
        """Whether there is a result for it in the answer."""
        return self.verb not in _SILENT


def nonce(drawn: int) -> int:
    """64 random bits as Flags, never one of Consul's own marks."""
    return drawn ^ 1 if drawn in _MAGIC else drawn


def encode(ops: Iterable[Op]) -> bytes:
    """The body of a transaction."""
    return b"[%b]" % b",".join([_encode(*op) for op in ops])


def _encode(
    verb: str,
    key: str,
    value: bytes | None,
    revision: int | None,
    session: str | None,
    flags: int | None,
) -> bytes:
    body = b'{"KV":{"Verb":"%b","Key":%b' % (verb.encode(), _quote(key).encode())
    if value is not None:
        body += b',"Value":"%b"' % b2a_base64(value, newline=False)
    if flags is not None:
        body += b',"Flags":%d' % flags
    if revision is not None:
        body += b',"Index":%d' % revision
    if session is not None:
        body += b',"Session":"%b"' % session.encode()
    return body + b"}}"


def encode_get(key: str) -> bytes:
    """``encode([Op("get", key)])``, quicker."""
    return b'[{"KV":{"Verb":"get","Key":%b}}]' % _quote(key).encode()


def encode_set(key: str, value: bytes, flags: int) -> bytes:
    """``encode([Op("set", key, value, flags=flags)])``, quicker."""
    return b'[{"KV":{"Verb":"set","Key":%b,"Value":"%b","Flags":%d}}]' % (
        _quote(key).encode(),
        b2a_base64(value, newline=False),
        flags,
    )


def decode_results(body: bytes) -> list[dict[str, Any]]:
    """The results of a transaction that was applied. Raises `ValueError` for anything else."""
    results = json.loads(body)["Results"]
    return [result["KV"] for result in results or ()]


def decode_refusals(body: bytes) -> list[tuple[int, str]]:
    """The position and the text of each operation that was refused, in order."""
    return [(error["OpIndex"], error["What"]) for error in json.loads(body)["Errors"]]


def entry_of(kv: dict[str, Any], *, keys_only: bool = False) -> KeyValue:
    """The entry that one result tells of."""
    value = kv["Value"]
    session = kv.get("Session")
    return KeyValue(
        kv["Key"],
        None if keys_only else a2b_base64(value) if value else b"",
        kv["ModifyIndex"],
        kv["CreateIndex"],
        None,
        lease_of(session) if session else None,
    )


def lease_of(session: str) -> int:
    """The lease id of a session id."""
    return UUID(session).int


def session_of(lease: int) -> str:
    """The session id of a lease id. Above 128 bits it is one that no session has."""
    return str(UUID(int=min(lease, _NOBODY)))


def path_of(prefix: str) -> str | None:
    """``prefix`` as a path below ``/v1/kv/``, or ``None`` if Consul would clean it into another."""
    if _SAFE.match(prefix) and not _DOTS.search(prefix):
        return prefix
    return None


class Parser:
    """The items of one JSON list, out of the pieces of an answer as they come.

    The list is the answer itself (a prefix read), or the member ``Results`` of a transaction's.
    Entries are objects, which a transaction wraps in ``{"KV": …}``; keys alone are texts.
    """

    def __init__(self) -> None:
        self._text = codecs.getincrementaldecoder("utf-8")()
        self._rest = ""
        self._inside = False
        self.finished = False

    def feed(self, piece: bytes) -> Iterator[Any]:
        """The items that are complete with this piece. Raises `NotAList`."""
        try:
            text = self._rest + self._text.decode(piece)
        except ValueError as error:
            raise NotAList("the answer is not UTF-8") from error
        if self.finished:
            return
        at = 0
        if not self._inside:
            head = _HEAD.match(text)
            if head is None:
                if len(text) > 1000:
                    raise NotAList("the answer is not a list")
                self._rest = text
                return
            self._inside, self.finished = True, head[1] == "null"
            at = head.end()
        while not self.finished:
            while text[at : at + 1] in (",", " ", "\n", "\r", "\t"):
                at += 1
            if text[at : at + 1] == "]":
                self.finished = True
                break
            try:
                item, at = _scan(text, at)
            except ValueError as error:
                if len(text) - at > _LONGEST_ENTRY:
                    raise NotAList("the answer is not JSON") from error
                break  # the rest of it comes with the next piece
            yield item
        self._rest = text[at:]

    def end(self) -> None:
        """Raises `NotAList` if the list was cut short."""
        if not self.finished:
            raise NotAList("the answer ends inside of its list")


_scan = json.JSONDecoder().raw_decode
