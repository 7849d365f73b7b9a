"""Where a watch goes on, what it takes from an answer, and when it has enough."""

from __future__ import annotations

import pytest
from kvi_etcd import wire_pb2 as pb
from kvi_etcd.cursor import MAX_BYTES, MAX_EVENTS, MAX_TOTAL, Chunk, Cursor, Meaning, fits, meaning


def answer(*revisions: int, at: int = 0, fragment: bool = False) -> pb.WatchResponse:
    """An answer with a change of each revision, from a store at revision ``at``."""
    return pb.WatchResponse(
        header=pb.ResponseHeader(revision=at or max(revisions, default=0)),
        events=[pb.Event(kv=pb.KeyValue(key=b"k", mod_revision=r)) for r in revisions],
        fragment=fragment,
    )


def revisions(chunk: Chunk | None) -> list[int] | None:
    """Those of the changes of ``chunk``."""
    return None if chunk is None else [change.kv.mod_revision for change in chunk.changes]


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (pb.WatchResponse(created=True), Meaning.CREATED),
        (pb.WatchResponse(created=True, canceled=True), Meaning.REFUSED),
        (pb.WatchResponse(canceled=True, compact_revision=7), Meaning.COMPACTED),
        (pb.WatchResponse(compact_revision=7), Meaning.COMPACTED),
        (pb.WatchResponse(canceled=True, cancel_reason="gone"), Meaning.CANCELLED),
        (pb.WatchResponse(), Meaning.CHANGES),
        (answer(3), Meaning.CHANGES),
    ],
)
def test_meaning(given: pb.WatchResponse, expected: Meaning) -> None:
    """What an answer tells is read off its flags."""
    assert meaning(given) is expected


@pytest.mark.parametrize(
    ("seen", "ahead", "start"),
    [(7, True, 8), (7, False, 7), (1, False, 1), (0, False, 1), (0, True, 1)],
)
def test_start(seen: int, ahead: bool, start: int) -> None:
    """A watch goes on at what it has seen, begins behind it, and never at 0, which means now."""
    assert Cursor(seen).start(ahead=ahead) == start


@pytest.mark.parametrize(
    ("ahead", "store", "behind"),
    [(True, 7, False), (True, 8, True), (True, 20, True), (False, 20, False)],
)
def test_behind(ahead: bool, store: int, behind: bool) -> None:
    """A start behind 7 is sure only if the store had not reached it; one at 7 always is."""
    cursor = Cursor(7)
    cursor.start(ahead=ahead)
    assert cursor.behind(store) is behind


@pytest.mark.parametrize(
    ("answers", "expected", "seen"),
    [
        ([answer(8)], [[8]], 8),
        ([answer(8, 8, 9)], [[8, 8, 9]], 9),
        ([answer(6, 7, 8)], [[8]], 8),  # from before the start
        ([answer(6, 7)], [None], 7),
        ([answer(8, at=50)], [[8]], 8),  # the store is further than the answer
        ([answer(at=50)], [[]], 50),  # progress
        ([answer(at=7)], [None], 7),
        ([answer(at=3)], [None], 7),  # a start in the future
        ([answer(8, fragment=True), answer(8)], [None, [8, 8]], 8),
        ([answer(8, 9, fragment=True), answer(9, 10)], [[8], [9, 9, 10]], 10),
        ([answer(8, 9, fragment=True), answer(10, fragment=True)], [[8], [9]], 9),
        ([answer(6, 7, fragment=True), answer(8)], [None, [8]], 8),
        ([answer(8, fragment=True), answer(at=50)], [None, None], 7),
    ],
)
def test_take(answers: list[pb.WatchResponse], expected: list[list[int] | None], seen: int) -> None:
    """Each change once, whole revisions only, and no further than what is surely complete."""
    cursor = Cursor(7)
    cursor.start(ahead=False)
    chunks = [cursor.take(given, 100) for given in answers]
    assert [revisions(chunk) for chunk in chunks] == expected
    assert cursor.seen == seen
    for chunk in chunks:
        if chunk is not None:
            assert chunk.revision == (chunk.changes[-1].kv.mod_revision if chunk.changes else seen)


def test_a_new_start_forgets_fragments() -> None:
    """What was not complete when the stream broke comes again, and is not taken twice."""
    cursor = Cursor(7)
    cursor.start(ahead=False)
    assert cursor.take(answer(8, 8, fragment=True), 100) is None
    assert cursor.start(ahead=False) == 7
    assert revisions(cursor.take(answer(8, 8, 8), 100)) == [8, 8, 8]


def test_fragments_keep_their_weight() -> None:
    """What an answer weighs is counted once, with the changes that it brought."""
    cursor = Cursor(7)
    cursor.start(ahead=False)
    first = cursor.take(answer(8, 9, fragment=True), 1000)
    last = cursor.take(answer(9), 700)
    assert first is not None
    assert last is not None
    events = len(first.changes) + len(last.changes)
    whole = Cursor(7)
    whole.start(ahead=False)
    chunk = whole.take(answer(8, 9, 9), 1700)
    assert chunk is not None
    assert events == 3
    assert first.weight + last.weight == chunk.weight


@pytest.mark.parametrize(
    ("kept", "events", "weight", "total", "expected"),
    [
        (0, 10**9, 10**12, 10**12, True),  # a revision is told whole
        (1, MAX_EVENTS, MAX_BYTES, MAX_TOTAL, True),
        (1, MAX_EVENTS + 1, 0, 0, False),
        (1, 1, MAX_BYTES + 1, 0, False),
        (1, 1, 1, MAX_TOTAL + 1, False),
    ],
)
def test_fits(kept: int, events: int, weight: int, total: int, expected: bool) -> None:
    """A watch that keeps something takes more only within all bounds."""
    assert fits(kept, events, weight, total) is expected
