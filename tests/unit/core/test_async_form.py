"""A store's asyncio form: who asks it, and how it ends."""

from __future__ import annotations

import asyncio
import itertools
import threading

import kvi
import pytest
from kvi import aio
from kvi.aio.kvi import AsyncKvi
from kvi.driver.loop import Loop
from kvi.flow.scope import Scope
from kvi.model import Scan, Span

from tests.support.backends import Awaited, AwaitedForm
from tests.support.looping import in_loop, until

_numbers = itertools.count()


class Gated(AwaitedForm):
    """Writes wait for a gate."""

    def __init__(self, store: Awaited) -> None:
        super().__init__(store)
        self.inside = 0
        self.gate = asyncio.Event()

    async def _put(self, key: str, value: bytes, lease: int | None, timeout: float) -> int:
        self.inside += 1
        await self.gate.wait()
        return await super()._put(key, value, lease, timeout)


class Store(Awaited):
    """A store that remembers its forms."""

    def __init__(self) -> None:
        super().__init__(kvi.open(f"mem:form-{next(_numbers)}"))
        self.forms: list[Gated] = []

    def _async_form(self) -> Gated:
        self.forms.append(Gated(self))
        return self.forms[-1]


def opened(store: Store) -> AsyncKvi:
    """A handle on it."""
    return aio.AsyncKvi(Scope(Loop(), store))


@in_loop
async def test_one_form_that_ends_once() -> None:
    """It is asked for at the first call, for all views, and closed in the loop with the handle."""
    store = Store()
    async with opened(store) as handle:
        assert store.forms == []
        await handle.get("k")
        await handle.namespace("n").get("k")
        (form,) = store.forms
        assert form.closed == 0
    assert form.closed == 1
    await handle.close()
    assert form.closed == 1


@in_loop
async def test_no_thread() -> None:
    """No call of a task takes a thread; what only threads can do still has them."""
    async with opened(Store()) as handle:
        before = threading.active_count()
        await asyncio.gather(*(handle.get("k") for _ in range(100)))
        assert threading.active_count() == before
        async with handle.watch("k") as watch:
            store = handle._scope.primitives
            await asyncio.to_thread(store._put, "k", b"v", None, 5)
            assert (await watch.next(10)).value == b"v"


@in_loop
async def test_close_wakes() -> None:
    """Whoever waits for the store gets `Closed`; its task is not left as if cancelled."""
    store = Store()
    handle = opened(store)
    await handle.get("k")
    (form,) = store.forms

    async def write() -> int:
        with pytest.raises(kvi.Closed):
            await handle.store("k", "v")
        task = asyncio.current_task()
        assert task is not None
        await asyncio.sleep(0)
        return task.cancelling()

    writing = [asyncio.create_task(write()) for _ in range(3)]
    await until(lambda: form.inside == 3)
    await handle.close()
    assert await asyncio.gather(*writing) == [0, 0, 0]


@in_loop
async def test_cancelled_write() -> None:
    """It comes out as cancelled, and says that it may have applied; a read says nothing."""
    store = Store()
    async with opened(store) as handle:
        await handle.get("k")
        (form,) = store.forms
        writing = asyncio.create_task(handle.store("k", "v"))
        await until(lambda: form.inside)
        writing.cancel()
        with pytest.raises(asyncio.CancelledError) as caught:
            await writing
        assert "may have applied" in "".join(caught.value.__notes__)
        reading = asyncio.create_task(handle.get("k"))
        await asyncio.sleep(0)
        reading.cancel()
        with pytest.raises(asyncio.CancelledError) as caught:
            await reading
        assert not hasattr(caught.value, "__notes__")


@in_loop
async def test_cancelled_close() -> None:
    """A close that is cancelled goes on, and the form ends too."""
    store = Store()
    handle = opened(store)
    await handle.get("k")
    (form,) = store.forms
    closing = asyncio.create_task(handle.close())
    await asyncio.sleep(0)
    closing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await closing
    assert handle.closed
    await until(lambda: form.closed == 1)


def test_a_loop_that_ended_first() -> None:
    """The handle can be closed from another loop; nobody waits for the form's end."""
    store = Store()
    handle = opened(store)

    async def use() -> None:
        await handle.get("k")

    asyncio.run(use())
    asyncio.run(handle.close())
    assert handle.closed
    assert store.forms[0].closed == 0


@in_loop
async def test_derived_pages() -> None:
    """What is derived reads all pages, and deletes in as few transactions as allowed."""
    store = Store()
    for number in range(25):
        store._put(f"k{number:02}", b"", None, 5)
    form = store._async_form()
    span = Span.of_prefix("k")
    assert await form._count(span, 5) == 25
    assert await form._delete_range(Span("k00", "k20"), 5) == 20
    found = await form._range(Scan(span), 5)
    assert [e.key async for page in found._pages() for e in page] == [  # type: ignore[union-attr]
        f"k{number}" for number in range(20, 25)
    ]
    store._close()
