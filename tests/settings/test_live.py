"""Settings that follow the store, on every store and for both faces."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
import os
import stat
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import kvi
import kvi.settings.aio
import kvi.settings.core
import pytest
from kvi.conformance.proxy import TcpProxy
from kvi.settings import LiveSettings, SettingsChange
from kvi.testing import Faults
from pydantic import BaseModel, ConfigDict, ValidationError, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from tests.support.waiting import until


class Pool(BaseModel):
    """A part."""

    model_config = ConfigDict(frozen=True)
    low: int = 1
    high: int = 9

    @model_validator(mode="after")
    def ordered(self) -> Pool:
        """Both belong together."""
        if self.low > self.high:
            raise ValueError("low is above high")
        return self


class Settings(BaseModel):
    """What the tests follow."""

    model_config = ConfigDict(frozen=True)
    name: str = "none"
    pool: Pool = Pool()


@pytest.fixture
def store(uri: str) -> Iterator[kvi.Kvi]:
    """A store of this test's own."""
    with kvi.open(uri) as opened:
        yield opened


Live = LiveSettings[Settings]
Change = SettingsChange[Settings]


def test_follows(store: kvi.Kvi) -> None:
    """A new model is in force soon after each change; the old one is as it was."""
    store.store("app/name", "one")
    with LiveSettings(Settings, store, "app") as live:
        changes: list[Change] = []
        live.on_change(changes.append)
        first = live.current
        assert (first.name, live.error, live.offline) == ("one", None, False)
        store.store("app/name", "two")
        until(lambda: live.current.name == "two")
        assert first.name == "one"
        with pytest.raises(ValidationError):
            live.current.name = "three"
        store.delete("app/name")
        until(lambda: live.current.name == "none")
        until(lambda: len(changes) == 2)
        assert [(one.before.name, one.current.name) for one in changes] == [
            ("one", "two"),
            ("two", "none"),
        ]
        store.store("application", "none of these")
    store.store("app/name", "after")
    assert live.current.name == "none"
    live.close()


def test_refused(store: kvi.Kvi) -> None:
    """A change that makes no model is told, and the last good one is kept until it is mended."""
    with LiveSettings(Settings, store, "app") as live:
        changes: list[Change] = []
        live.on_change(changes.append)
        before = live.current
        store.store("app/pool/high", "s3cret")
        until(lambda: live.error is not None)
        assert live.current is before
        assert isinstance(live.error, kvi.BadRecord)
        assert "pool.high" in str(live.error)
        assert "s3cret" not in str(live.error)
        assert isinstance(live.error.__cause__, ValidationError)
        until(lambda: changes)
        assert changes == [SettingsChange(before, before, live.error)]
        store.delete("app/pool/high")
        until(lambda: live.error is None)
        until(lambda: len(changes) == 2)
        assert changes[1] == SettingsChange(before, before)
        store.store("app/pool/high", "5")
        until(lambda: live.current.pool.high == 5)


def test_whole_transactions(store: kvi.Kvi) -> None:
    """What one transaction changes comes into force together."""
    seen: list[SettingsChange[Settings]] = []
    with LiveSettings(Settings, store, "app") as live:
        live.on_change(seen.append)
        for low in (*range(20, 400, 20), 7):
            store.txn(then=[kvi.Put("app/pool/low", str(low)), kvi.Put("app/pool/high", str(low))])
        until(lambda: live.current.pool.low == 7)
        assert live.error is None
    assert all(one.error is None for one in seen)
    assert all(one.current.pool.low == one.current.pool.high for one in seen)


def test_environment(store: kvi.Kvi, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The sources of a class of pydantic-settings go before the store, in their own order."""
    (tmp_path / ".env").write_text("APP_POOL__HIGH=60\nAPP_TITLE=of the file\n")

    class Mine(BaseSettings):
        model_config = SettingsConfigDict(
            frozen=True,
            env_prefix="APP_",
            env_nested_delimiter="__",
            env_file=tmp_path / ".env",
        )
        name: str = "none"
        title: str = "none"
        pool: Pool = Pool()

    monkeypatch.setenv("APP_POOL__HIGH", "50")
    stored = {"name": "stored", "title": "stored", "pool/high": "5"}
    store.txn(then=[kvi.Put(f"app/{key}", value) for key, value in stored.items()])
    with LiveSettings(Mine, store, "app") as live:
        assert type(live.current) is Mine
        assert live.current.title == "of the file"
        assert (live.current.name, live.current.pool.high) == ("stored", 50)
        store.store("app/pool/low", "40")
        until(lambda: live.current.pool == Pool(low=40, high=50))
        store.store("app/_env_file", "/etc/passwd")
        until(lambda: live.error)
        assert "'_env_file' is no setting" in str(live.error)


def test_age(store: kvi.Kvi) -> None:
    """The age begins anew with each look, also while nothing changes."""
    with LiveSettings(Settings, store, "app", interval=0.5) as live:
        for _ in range(2):
            until(lambda: live.age > 0.4)
            until(lambda: live.age < 0.4)


def test_unreachable_meanwhile() -> None:
    """While the store does not answer, settings grow older and say so; then they go on."""
    with Faults() as faults, kvi.open("mem:live-away", timeout=0.5) as store:
        live = LiveSettings(Settings, store, "app", interval=0.1)
        with live:
            away = faults.unavailable("range", times=None)
            until(lambda: live.error is not None)
            assert isinstance(live.error, kvi.Unavailable)
            store.store("app/name", "new")
            until(lambda: live.age > 0.5)
            assert live.current.name == "none"
            away.end()
            until(lambda: live.current.name == "new")
            assert live.error is None


def test_unreachable_at_start(tmp_path: Path) -> None:
    """Without a snapshot that helps, the beginning fails as the store does."""
    others = other_prefix(tmp_path)
    path = tmp_path / "settings.json"
    with Faults() as faults, kvi.open("mem:live-start") as store:
        faults.unavailable("watch", times=None)
        with pytest.raises(kvi.Unavailable):
            LiveSettings(Settings, store, "app")
        for text in (None, "{", "[]", '{"kvi-settings": 2}', others):
            if text is not None:
                path.write_text(text)
            with pytest.raises(kvi.Unavailable) as raised:
                LiveSettings(Settings, store, "app", snapshot=path)
            assert str(path) in raised.value.__notes__[0]
            assert raised.value.operation == "settings"


def other_prefix(tmp_path: Path) -> str:
    """A snapshot of other settings."""
    path = tmp_path / "other.json"
    with kvi.open("mem:live-other") as store:
        LiveSettings(Settings, store, "other", snapshot=path).close()
    return path.read_text()


def test_snapshot(tmp_path: Path, uri: str) -> None:
    """A start without the store has what was last good, says how old it is, and then goes on."""
    path = tmp_path / "settings.json"
    with Faults() as faults, kvi.open(uri, timeout=1) as store:
        store.store("app/name", "kept")
        with LiveSettings(Settings, store, "app", snapshot=path) as live:
            assert stat.S_IMODE(path.stat().st_mode) == 0o600
            store.store("app/name", "last")
            until(lambda: live.current.name == "last")
            store.store("app/pool/low", "1000")
            until(lambda: live.error)
        told = json.loads(path.read_text())
        assert time.time() - 60 < told["saved"] < time.time()
        path.write_text(json.dumps({**told, "saved": told["saved"] - 3600}))
        store.delete("app/pool/low")
        faults.unavailable("watch", times=None)
        with LiveSettings(Settings, store, "app", snapshot=path) as live:
            changes: list[Change] = []
            live.on_change(changes.append)
            assert (live.current.name, live.offline) == ("last", True)
            assert 3600 <= live.age < 3700
            assert isinstance(live.error, kvi.Unavailable)
            store.store("app/name", "newest")
            faults.clear()
            until(lambda: live.current.name == "newest")
            assert not live.offline
            assert live.error is None
            assert live.age < 60
            until(lambda: changes)
            until(lambda: json.loads(path.read_text())["saved"] > time.time() - 60)
    names = [one.name for one in tmp_path.iterdir()]
    assert "settings.json" in names
    assert [name for name in names if name.startswith(".")] == []


def test_snapshot_of_what_was_good(tmp_path: Path) -> None:
    """A start with settings that make no model has the snapshot; without one it fails."""
    path = tmp_path / "settings.json"
    with kvi.open("mem:live-good") as store:
        store.store("app/name", "good")
        LiveSettings(Settings, store, "app", snapshot=path).close()
        store.store("app/pool/low", "x")
        with pytest.raises(kvi.BadRecord) as raised:
            LiveSettings(Settings, store, "app")
        assert isinstance(raised.value.__cause__, ValidationError)
        with LiveSettings(Settings, store, "app", snapshot=path) as live:
            assert (live.current.name, live.offline) == ("good", True)
            assert isinstance(live.error, kvi.BadRecord)
            store.store("app/pool/low", "2")
            until(lambda: live.current.pool.low == 2)
            assert not live.offline


def test_snapshot_is_refreshed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """While nothing changes it is written anew now and then, with the moment of the last look."""
    monkeypatch.setattr(kvi.settings.core, "_REFRESH", 0.2)
    path = tmp_path / "settings.json"
    path.write_text("what was there")
    path.chmod(0o644)
    with (
        kvi.open("mem:live-refreshed") as store,
        LiveSettings(Settings, store, "app", snapshot=path, interval=0.1),
    ):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        first = json.loads(path.read_text())
        until(lambda: json.loads(path.read_text())["saved"] > first["saved"] + 0.2)


def test_snapshot_cannot_be_written(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """It is logged, and harms nobody; the old one stays whole."""
    path = tmp_path / "folder" / "settings.json"
    path.parent.mkdir()
    with kvi.open("mem:live-unwritable") as store:
        with LiveSettings(Settings, store, "app", snapshot=path) as live:
            old = path.read_text()
            path.unlink()
            path.mkdir()  # nothing can take its place
            store.store("app/name", "x")
            until(lambda: live.current.name == "x")
            until(lambda: "could not be written" in caplog.text)
            assert [one.name for one in path.parent.iterdir()] == ["settings.json"]
        path.rmdir()
        path.write_text(old)


@pytest.mark.etcd
@pytest.mark.xdist_group("etcd")
def test_lost_connection(etcd_uri: str, tmp_path: Path) -> None:
    """A server that goes away is waited for, at the start and later; no change is missed."""
    host, _, port = etcd_uri.partition("//")[2].partition("/")[0].rpartition(":")
    path = tmp_path / "settings.json"
    name = f"live-{os.urandom(4).hex()}"
    with (
        kvi.open(f"{etcd_uri}?namespace={name}") as store,
        TcpProxy(int(port), host) as proxy,
    ):
        away = f"etcd://127.0.0.1:{proxy.port}?namespace={name}&timeout=1"
        with LiveSettings(Settings, away, "app", snapshot=path) as live:
            proxy.refuse()
            proxy.cut()
            store.store("app/name", "while away")
            proxy.refuse(False)
            until(lambda: live.current.name == "while away", within=30)
        proxy.refuse()
        proxy.cut()
        with LiveSettings(Settings, away, "app", snapshot=path) as live:
            assert (live.current.name, live.offline) == ("while away", True)
            store.store("app/name", "back")
            proxy.refuse(False)
            until(lambda: live.current.name == "back", within=30)
        store.delete_range(prefix="")


def test_by_uri(uri: str) -> None:
    """A store that was given by its URI is closed with the settings."""
    threads = threading.active_count()
    with LiveSettings(Settings, uri, "app") as live, kvi.open(uri) as store:
        store.store("app/name", "x")
        until(lambda: live.current.name == "x")
        inner = live._store
    assert inner.closed
    until(lambda: threading.active_count() <= threads)
    with pytest.raises(kvi.InvalidArgument):
        LiveSettings(Settings, uri, "app", interval=0)


def test_by_uri_of_nobody() -> None:
    """A store that was given by its URI, and cannot be reached, is closed again; it says why."""
    threads = threading.active_count()
    with pytest.raises(kvi.Unavailable) as raised:
        LiveSettings(Settings, "consul://127.0.0.1:1?timeout=1&retry=off", "app")
    assert raised.value.operation == "settings"
    until(lambda: threading.active_count() <= threads)
    with pytest.raises(kvi.UnknownBackend):
        LiveSettings(Settings, "nosuch:x", "app")


def test_dropped(store: kvi.Kvi) -> None:
    """Settings that nobody has any more are followed no more."""
    live = LiveSettings(Settings, store, "app")
    flow = live._core.flow
    del live
    until(lambda: (gc.collect(), flow.ended)[1])


def test_closed_store(uri: str) -> None:
    """With the handle they end, and stay readable; they cannot begin on a closed one."""
    store = kvi.open(uri)
    live = LiveSettings(Settings, store, "app")
    store.close()
    assert live.current == Settings()
    live.close()
    with pytest.raises(kvi.Closed):
        LiveSettings(Settings, store, "app")


def test_observer_fails(store: kvi.Kvi, caplog: pytest.LogCaptureFixture) -> None:
    """What an observer raises is logged; the others are told, and all goes on."""
    with LiveSettings(Settings, store, "app") as live:
        names: list[str] = []

        def fail(change: Change) -> None:
            raise RuntimeError("oh no")

        live.on_change(fail)
        live.on_change(lambda change: names.append(change.current.name))
        store.store("app/name", "a")
        until(lambda: names == ["a"])
        store.store("app/name", "b")
        until(lambda: names == ["a", "b"])
        assert "oh no" in caplog.text


def test_observer_closes(store: kvi.Kvi) -> None:
    """An observer may use the store, and end it all: then nobody is told any more."""
    live = LiveSettings(Settings, store, "app")
    told: list[str] = []

    def close(change: Change) -> None:
        entry = store.get("app/name")
        assert entry is not None
        told.append(entry.text)
        live.close()

    live.on_change(close)
    live.on_change(lambda change: told.append("one more"))
    store.store("app/name", "x")
    until(lambda: told)
    store.store("app/name", "y")
    until(lambda: live._core.flow.ended)
    assert told == ["x"]


def test_observer_closes_the_store(uri: str) -> None:
    """Also where the store was given by its URI."""
    live = LiveSettings(Settings, uri, "app")
    live.on_change(lambda change: live.close())
    with kvi.open(uri) as store:
        store.store("app/name", "x")
    until(lambda: live._store.closed)
    assert live.current.name == "x"


def test_asyncio(uri: str, tmp_path: Path) -> None:
    """The twin for asyncio follows in the same way; its observers run in the loop."""
    path = tmp_path / "settings.json"

    async def follow() -> None:
        async with kvi.aio.open(uri, timeout=1) as store:
            live = kvi.settings.aio.LiveSettings(Settings, store, "app", snapshot=path)
            with pytest.raises(kvi.Unavailable, match="not read yet"):
                _ = live.current
            async with live:
                assert await live is live
                changed = asyncio.Event()
                seen: list[str] = []

                async def note(change: Change) -> None:
                    await store.get("app/name")
                    seen.append(change.current.name)
                    changed.set()

                live.on_change(note)
                await store.store("app/name", "one")
                async with asyncio.timeout(20):
                    await changed.wait()
                assert (seen, live.current.name) == (["one"], "one")
                assert live.error is None
                assert live.age < 20
                await store.store("app/pool/low", "x")
                async with asyncio.timeout(20):
                    while live.error is None:
                        await asyncio.sleep(0.01)
                assert live.current.name == "one"
                await store.delete("app/pool/low")
            await live.close()
            until(path.exists)

    async def offline() -> None:
        with Faults() as faults:
            async with kvi.aio.open(uri, timeout=1) as store:
                faults.unavailable("watch", times=None)
                async with kvi.settings.aio.LiveSettings(
                    Settings, store, "app", snapshot=path
                ) as live:
                    assert live.offline
                    assert live.current.name in ("one", "none")
                    await store.store("app/name", "two")
                    faults.clear()
                    async with asyncio.timeout(20):
                        while live.current.name != "two":
                            await asyncio.sleep(0.01)
                    assert not live.offline
                faults.unavailable("watch", times=None)
                with pytest.raises(kvi.Unavailable):
                    await kvi.settings.aio.LiveSettings(Settings, store, "app")

    asyncio.run(follow())
    asyncio.run(offline())


def test_asyncio_begins_once_and_ends(tmp_path: Path) -> None:
    """Tasks that await them at once begin one watch; after the end nothing is told."""

    async def use() -> None:
        async with kvi.aio.open(f"sqlite:{tmp_path}/store.db") as store:
            live = kvi.settings.aio.LiveSettings(Settings, store, "app")

            async def begin() -> str:
                return (await live).current.name

            assert set(await asyncio.gather(begin(), begin(), begin())) == {"none"}
            assert len(store._scope.ledger._members) == 1
            seen, handed = list[object](), threading.Event()
            live.on_change(seen.append)
            live._core.observers.append(lambda _: handed.set())
            await store.store("app/name", "one")
            assert handed.wait(20)  # the loop stands still
            await live.close()
            for _ in range(10):
                await asyncio.sleep(0)
            assert not seen
            assert not store._scope.ledger._members

    asyncio.run(use())


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"store": 7}, "a handle or a URI, not 7"),
        ({"prefix": 7}, "prefix"),
        ({"interval": "x"}, "interval= is a positive number of seconds"),
        ({"interval": float("inf")}, "interval= is a positive number"),
        ({"snapshot": 7}, "snapshot= is a path, not 7"),
        ({"snapshot": "/nowhere/there/x"}, "in a folder that is there"),
        ({"snapshot": "/"}, "in a folder that is there"),
        ({"model": Exception}, "a model class of pydantic"),
    ],
)
def test_mistakes(arguments: dict[str, object], words: str) -> None:
    """What makes no sense is refused, with what to do."""
    with kvi.open("mem:live-mistakes") as store, contextlib.ExitStack():
        with pytest.raises(kvi.InvalidArgument) as raised:
            LiveSettings(**{"model": Settings, "store": store, **arguments})  # type: ignore[arg-type]
        assert words in str(raised.value)


def test_shown() -> None:
    """Nothing of the settings is shown."""
    with kvi.open("mem:live-shown") as store:
        store.store("app/name", "s3cret")
        with LiveSettings(Settings, store, "app") as live:
            assert repr(live) == "<LiveSettings Settings of 'app/' mem:live-shown>"
