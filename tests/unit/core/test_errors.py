"""The error hierarchy."""

from __future__ import annotations

import pickle

import kvi
import pytest
from kvi import errors

ALL = [getattr(errors, name) for name in errors.__all__]


@pytest.mark.parametrize("cls", ALL)
def test_every_error(cls: type[kvi.KviError]) -> None:
    """Each is a KviError, is public, carries its place, and pickles with it."""
    assert issubclass(cls, kvi.KviError)
    assert getattr(kvi, cls.__name__) is cls
    error = cls("what went wrong", operation="get", key="k", uri="mem:")
    copy = pickle.loads(pickle.dumps(error))
    assert type(copy) is cls
    assert str(copy) == str(error) == "what went wrong [get 'k' mem:]"


def test_bad_input_is_a_value_error() -> None:
    """What the caller did wrong can be caught as ValueError, and nothing else can."""
    bad = {cls.__name__ for cls in ALL if issubclass(cls, ValueError)}
    assert bad == {"InvalidArgument", "InvalidKey", "InvalidOption", "ValueTooLarge"}


def test_what_can_be_caught_together() -> None:
    """A lost lease is a lock not held, a parent's handle is closed; all else stands alone."""
    assert issubclass(kvi.LeaseLost, kvi.NotHeld)
    assert issubclass(kvi.UsedAfterFork, kvi.Closed)
    parents = {base for cls in ALL for base in cls.__mro__[1:] if base in ALL}
    assert parents == {kvi.KviError, kvi.InvalidArgument, kvi.NotHeld, kvi.Closed}


def test_long_keys_are_shortened_in_text_only() -> None:
    """A long key does not flood the log; the attribute has it whole."""
    error = kvi.Timeout("late", operation="get", key="k" * 5000)
    assert len(str(error)) < 150
    assert error.key == "k" * 5000


def test_key_that_is_no_text() -> None:
    """What was given for a key and is none is left out; the error can be shown."""
    with pytest.raises(kvi.InvalidKey) as caught:
        kvi.open("mem:").tas(123, None, b"")  # type: ignore[arg-type]
    assert caught.value.key is None
    assert "int" in str(caught.value)


def test_first_place_stays() -> None:
    """The layer nearest to the fault names the place."""
    error = kvi.Timeout("late").located("get", "inner", "mem:")
    assert error.located("list", "outer", "etcd:") is error
    assert (error.operation, error.key, error.uri) == ("get", "inner", "mem:")
