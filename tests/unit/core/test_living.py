"""Objects that are known for as long as they live."""

from __future__ import annotations

import gc

from kvi.living import Living


class Thing:
    """Something that may be referred to weakly."""


def test_add_while_others_come() -> None:
    """One that another thread adds at the same moment hinders nobody."""
    living, things = Living[Thing](), [Thing() for _ in range(100)]
    for thing in things:
        living.add(thing)

    def come(phase: str, info: object) -> None:  # as a thread that a finalizer lets run
        other = Thing()
        things.append(other)
        living._references[id(other)] = living._references[id(things[0])]

    before = gc.get_threshold()
    gc.callbacks.append(come)
    gc.set_threshold(1)
    try:
        living.add(last := Thing())
    finally:
        gc.set_threshold(*before)
        gc.callbacks.remove(come)
    assert last in living
