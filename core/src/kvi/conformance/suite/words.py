"""What the programs of `kvi.conformance.suite.machine` are made of: keys, values, arguments."""

from __future__ import annotations

from typing import Any, NamedTuple

import hypothesis.strategies as st

import kvi

# What goes wrong easily: keys around the namespace, keys that begin like others, that a path or a
# URL would change, that sort differently as text of some kind. The simplest come first.
KEYS = [
    "a",
    "b",
    "a/a",
    "a/b",
    "ab",
    "a/",
    "a0",
    "a\0",
    "a//",
    "a/b/",
    "/",
    "//",
    "/a",
    ".",
    "..",
    "a/../b",
    "\0",
    "\n",
    " ",
    "%41",
    "A",
    "?#",
    "a?b=c",
    "ü",
    "\uffff",
    "😀",
]
ALPHABET = (
    "abA0/.\0\1\n \\\"'?#%&+:=\x7f\x80\u07ff\u0800\ud7ff\ue000\ufeff\uffff\U00010000\U0010ffff"
)
VALUES: list[bytes | str] = [b"", b"1", b"2", b"\0", b"\xff", "1", "ü", b"x" * 5000]

WORDS = st.lists(st.sampled_from(ALPHABET), min_size=1, max_size=3).map("".join)
# A program has few keys, so that its calls meet. Steps name them by number.
POOL = st.lists(
    st.one_of(st.sampled_from(KEYS), st.sampled_from(KEYS), WORDS), min_size=4, max_size=4
)
KEY = st.integers(0, 3)
VALUE = st.sampled_from(VALUES)
HANDLE = st.sampled_from("abcdab")
LEASE = st.sampled_from([0, 0, 1, 2, 3])  # none, or the first, second …
NUMBER = st.integers(0, 3)
OPERATOR = st.sampled_from(["=", "!=", "<", ">"])
REVISION = st.sampled_from(["its own", "zero", "first", "last", "future"])
BACK = st.integers(-1, 12)  # from the last revision
BOUND = st.one_of(KEY, KEY, st.sampled_from(["", "a", "a/", "b", "\U0010ffff"]))
OPEN_BOUND = st.one_of(BOUND, BOUND, st.none())
PART = st.one_of(st.tuples(BOUND), st.tuples(OPEN_BOUND, OPEN_BOUND))  # a prefix, or start and end
SPAN = st.one_of(PART, st.just(("",)))
COMPARE = st.one_of(
    st.tuples(st.just("value"), KEY, OPERATOR, VALUE),
    st.tuples(st.sampled_from(["revision", "create_revision"]), KEY, OPERATOR, REVISION),
    st.tuples(st.just("version"), KEY, OPERATOR, NUMBER),
    st.tuples(st.just("lease"), KEY, OPERATOR, LEASE),
)
OPERATION = st.one_of(
    st.tuples(st.just("get"), KEY),
    st.tuples(st.just("put"), KEY, VALUE, LEASE),
    st.tuples(st.just("delete"), KEY),
    st.tuples(st.just("get"), KEY),
)
BRANCH = st.lists(OPERATION, max_size=3)


class Bad(NamedTuple):
    """A call that must be refused."""

    error: type[kvi.KviError]
    method: str
    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = {}  # noqa: RUF012  (read only)


BAD_CALLS = [
    Bad(kvi.InvalidKey, "get", ("",)),
    Bad(kvi.InvalidKey, "get", ("\ud800",)),
    Bad(kvi.InvalidKey, "store", ("", b"")),
    Bad(kvi.InvalidArgument, "store", ("a", 7)),
    Bad(kvi.InvalidArgument, "store", ("a", b""), {"lease": 0}),
    Bad(kvi.InvalidKey, "delete", (b"a",)),
    Bad(kvi.InvalidKey, "tas", ("", None, b"")),
    Bad(kvi.InvalidArgument, "tas", ("a", 0, b"")),
    Bad(kvi.InvalidArgument, "cas", ("a", -1, b"")),
    Bad(kvi.InvalidArgument, "cas", ("a", None, b"")),
    Bad(kvi.InvalidArgument, "range", (), {"limit": -1}),
    Bad(kvi.InvalidArgument, "range", ("a",), {"prefix": "a"}),
    Bad(kvi.InvalidKey, "count", (), {"prefix": "\udfff"}),
    Bad(kvi.InvalidArgument, "delete_range"),
    Bad(kvi.InvalidArgument, "delete_range", ("a",), {"prefix": "a"}),
    Bad(kvi.InvalidArgument, "transaction", ("a", "~", b"", "a", b"", "b", b"")),
    Bad(kvi.InvalidArgument, "txn", ([], [kvi.Put("a", b""), kvi.Delete("a")])),
    Bad(kvi.InvalidKey, "txn", ([], [kvi.Put("a", b""), kvi.Get("")])),
    Bad(kvi.InvalidArgument, "txn", ([], kvi.Put("a", b""))),
    Bad(kvi.InvalidArgument, "lease", (0,)),
    Bad(kvi.InvalidKey, "temp_key", ("", b"")),
    Bad(kvi.InvalidArgument, "temp_key", ("a", b""), {"ttl": -1}),
    Bad(kvi.InvalidKey, "lock", ("",)),
    Bad(kvi.InvalidArgument, "watch"),
    Bad(kvi.InvalidArgument, "watch", ("a",), {"prefix": "a"}),
    Bad(kvi.InvalidArgument, "watch", ("a",), {"events": []}),
    Bad(kvi.InvalidOption, "namespace", ("/",)),
]


def bad_calls(limits: kvi.Capabilities) -> list[Bad]:
    """The calls that a store with these capabilities must refuse."""
    calls = list(BAD_CALLS)
    if limits.max_key is not None:
        calls.append(Bad(kvi.InvalidKey, "store", ("a" * (limits.max_key + 1), b"")))
    if limits.max_txn_ops is not None:
        puts = [kvi.Put(f"b{number}", b"") for number in range(limits.max_txn_ops + 1)]
        calls.append(Bad(kvi.InvalidArgument, "txn", ([], puts)))
    if not limits.watch_history:
        calls.append(Bad(kvi.NotSupported, "watch", ("a",), {"from_revision": 1}))
    if not limits.key_version:
        compare = kvi.Key("a").version == 0
        calls.append(Bad(kvi.NotSupported, "txn", ([compare], [kvi.Put("a", b"")])))
    return calls
