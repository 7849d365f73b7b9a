"""Processes that gather, and copies that they keep, while they are struck at random.

As in `test_torture_shared`, workers are killed, paused and cut off, and note what they are told.
What has to hold in the end:

* who surely was a member is in every list of that time, who had left or not come yet is in none,
  and in the end nobody is left;
* all parties of a barrier go on, or none: each place in the order of arrival was passed as often as
  the others, but for calls of which nobody knows the end;
* no value in a copy is ever followed by an older one, an own write is in it once it was waited
  for, and in the end all copies are what the store is.
"""

from __future__ import annotations

import os
import random
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import kvi
import pytest
from kvi.clock import now
from kvi.recipes import Barrier, Cache, Group

from tests.recipes.test_torture import uri
from tests.recipes.test_torture_shared import PASSING, Check, Note, torture
from tests.support.waiting import until

__all__ = ["uri"]  # the fixture

PARTIES = 3

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


def work(uri: str, recipe: str, ttl: float, notes: str, number: int) -> None:
    """Do it again and again, until somebody says that it is enough."""
    dice = random.Random()
    enough = Path(notes).with_name("enough").exists
    with kvi.open(uri, timeout=5) as store, Path(notes).open("a", buffering=1) as told:

        def note(what: str) -> None:
            told.write(f"{what}\n")

        match recipe:
            case "group":
                join(Group(store, "it", ttl=ttl), note, enough, dice)
            case "barrier":
                meet(Barrier(store, "it", PARTIES, ttl=ttl), note, enough)
            case _:
                copy(store, ttl if number % 2 else None, note, enough, dice)


# -- who is there ----------------------------------------------------------------------------------


def join(group: Group, note: Note, enough: Callable[[], bool], dice: random.Random) -> None:
    """Come, look around, and leave."""
    while not enough():
        name = f"{os.getpid()}-{dice.getrandbits(32):x}"
        note(f"comes {name} {now()!r}")
        try:
            with group.join("here", id=name) as member:
                for _ in range(dice.randint(1, 20)):
                    look(group, name, note)
                    before, mine = now(), member.rejoined
                    time.sleep(dice.random() / 100)
                    after = now()
                    if member.alive and member.rejoined == mine:
                        note(f"is {name} {mine} {before!r} {after!r}")
            note(f"left {name} {now()!r}")
        except PASSING as error:
            note(f"# {error!r}")


def look(group: Group, name: str, note: Note) -> None:
    """Note who is there."""
    before = now()
    seen = [member.id for member in group.members()]
    note(f"saw {before!r} {now()!r} {','.join(seen) or '-'}")


def check_group(store: kvi.Kvi, notes: list[list[str]]) -> None:
    """What was seen agrees with what was."""
    came = {name: float(at) for what, name, at in (n for n in notes if n[0] == "comes")}
    left = {name: float(at) for what, name, at in (n for n in notes if n[0] == "left")}
    there: dict[tuple[str, str], tuple[float, float]] = {}
    for _, name, turn, begin, end in (n for n in notes if n[0] == "is"):
        first, last = there.get((name, turn), (float(begin), float(end)))
        there[name, turn] = min(first, float(begin)), max(last, float(end))
    for _, begin, end, names in (n for n in notes if n[0] == "saw"):
        seen = set(names.split(",")) - {"-"}
        first, last = float(begin), float(end)
        for name in seen:
            assert came[name] <= last, f"{name} was seen before it came"
            assert left.get(name, last) >= first, f"{name} was seen after it had left"
        surely = {name for (name, _), (a, b) in there.items() if a <= first and last <= b}
        assert surely <= seen, f"not seen at {first}: {surely - seen}"
    assert many_looked(notes)
    until(lambda: not Group(store, "it").members(), within=60)


# -- all or none -----------------------------------------------------------------------------------


def meet(barrier: Barrier, note: Note, enough: Callable[[], bool]) -> None:
    """Wait for the others, again and again."""
    while not enough():
        note("came")
        try:
            note(f"passed {barrier.wait(20)}")
        except (kvi.LockTimeout, kvi.BrokenBarrier):
            note("back")
        except PASSING as error:
            note(f"# {error!r}")


def check_barrier(store: kvi.Kvi, notes: list[list[str]]) -> None:
    """Every place was passed as often, but for calls of which nobody knows the end."""
    kinds = Counter(note[0] for note in notes)
    passed = Counter(int(note[1]) for note in notes if note[0] == "passed")
    unknown = kinds["came"] - kinds["passed"] - kinds["back"]
    assert set(passed) == set(range(PARTIES))
    assert max(passed.values()) - min(passed.values()) <= unknown, (passed, unknown)
    until(lambda: not store.count(prefix="it/.kvi/queue"), within=60)


# -- what is copied --------------------------------------------------------------------------------


def copy(
    store: kvi.Kvi,
    max_age: float | None,
    note: Note,
    enough: Callable[[], bool],
    dice: random.Random,
) -> None:
    """Write keys of its own, and read all by a copy."""
    newest = dict[str, int]()
    while True:
        # After an error another key: what was sent may be done later, and is older then.
        mine, written = f"{os.getpid()}-{dice.getrandbits(32):x}", 0
        try:
            with Cache(store, "it/", max_age=max_age) as cache:
                while not enough():
                    written += 1
                    revision = store.store(f"it/{mine}", f"{written}")
                    if dice.random() < 0.2:
                        store.delete(f"it/{dice.choice([mine, *newest])}")
                    elif cache.wait(revision, 5) and int(cache.get(mine, written)) < written:
                        note(f"wrong {mine} is not yet {written}")
                    for key, value in cache.items():
                        if int(value) < newest.get(key, 0):
                            note(f"wrong {key} goes back from {newest[key]} to {int(value)}")
                        newest[key] = int(value)
                    note(f"read {len(cache)}")
                note(f"ends {cache.wait(store.store(f'it/{mine}', f'{written + 1}'), 60)}")
                return
        except PASSING as error:
            note(f"# {error!r}")


def check_cache(store: kvi.Kvi, notes: list[list[str]]) -> None:
    """Nothing was wrong, and a new copy is what the store is."""
    assert not [note for note in notes if note[0] == "wrong"]
    assert {tuple(note) for note in notes if note[0] == "ends"} == {("ends", "True")}
    with Cache(store, "it/") as cache:
        assert cache.wait(store.store("it/last", "1"), 20)
        assert dict(cache) == {
            entry.key.removeprefix("it/"): entry.value for entry in store.range(prefix="it/")
        }


def many_looked(notes: list[list[str]]) -> bool:
    """Whether more have come than are there at once, and more often looked around."""
    said = Counter(note[0] for note in notes)
    return said["saw"] > said["comes"] > PARTIES


def each_place_passed(notes: list[list[str]]) -> bool:
    """Whether somebody has come through at each place."""
    return {int(note[1]) for note in notes if note[0] == "passed"} == set(range(PARTIES))


ENOUGH = {"group": many_looked, "barrier": each_place_passed}
CHECKS: dict[str, Check] = {"group": check_group, "barrier": check_barrier, "cache": check_cache}


@pytest.mark.parametrize("recipe", CHECKS)
def test_short(uri: str, recipe: str, tmp_path: Path) -> None:
    """A few faults."""
    torture(uri, recipe, work, CHECKS[recipe], tmp_path, 4.0, ENOUGH.get(recipe, bool))


@pytest.mark.soak
@pytest.mark.parametrize("recipe", CHECKS)
def test_long(uri: str, recipe: str, tmp_path: Path) -> None:
    """A minute of faults."""
    torture(uri, recipe, work, CHECKS[recipe], tmp_path, 60.0, ENOUGH.get(recipe, bool))
