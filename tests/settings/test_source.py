"""The source of pydantic-settings."""

from __future__ import annotations

from typing import Any, Literal

import kvi
import pytest
from kvi.settings import KviSettingsSource
from pydantic import BaseModel, ValidationError
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict


class Database(BaseModel):
    """A part."""

    host: str = "localhost"
    port: int = 5432


def settings_from(
    store: kvi.Kvi | str, *, extra: Literal["forbid", "ignore"] = "forbid"
) -> type[Any]:
    """A class of settings with a store below its environment."""

    class Settings(BaseSettings):
        model_config = SettingsConfigDict(env_prefix="APP_", env_nested_delimiter="__", extra=extra)
        name: str = "none"
        tags: list[str] = []
        database: Database = Database()

        @classmethod
        def settings_customise_sources(
            cls,
            settings_cls: type[BaseSettings],
            init_settings: PydanticBaseSettingsSource,
            env_settings: PydanticBaseSettingsSource,
            dotenv_settings: PydanticBaseSettingsSource,
            file_secret_settings: PydanticBaseSettingsSource,
        ) -> tuple[PydanticBaseSettingsSource, ...]:
            return init_settings, env_settings, KviSettingsSource(settings_cls, store, "app")

    return Settings


def test_ranks(uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each value comes from the highest source that has it, member by member."""
    with kvi.open(uri) as store:
        store.store("app/name", "stored")
        store.store("app/tags", '["a"]')
        store.store("app/database/host", "db1")
        store.store("app/database/port", "1")
        store.store("application", "no setting of these")
        monkeypatch.setenv("APP_DATABASE__PORT", "2")
        for given in (store, uri):
            made = settings_from(given)(tags=["b"])
            assert (made.name, made.tags) == ("stored", ["b"])
            assert made.database == Database(host="db1", port=2)


def test_unknown_keys() -> None:
    """What the model does not have is judged by its `extra`, as in a file of settings."""
    with kvi.open("mem:source-extra") as store:
        store.store("app/nmae", "a misspelt key")
        with pytest.raises(ValidationError, match="nmae"):
            settings_from(store)()
        assert settings_from(store, extra="ignore")().name == "none"


def test_errors() -> None:
    """Errors of the store, and of what is stored, come out as kvi's."""
    with kvi.open("mem:source-errors") as store:
        store.store("app/name", b"\xff")
        with pytest.raises(kvi.BadRecord) as raised:
            settings_from(store)()
        assert raised.value.key == "name"
    with pytest.raises(kvi.Closed):
        settings_from(store)()
    with pytest.raises(kvi.UnknownBackend):
        settings_from("nosuch:x")()
    with pytest.raises(kvi.InvalidArgument, match="a handle or a URI, not 7"):
        settings_from(7)()  # type: ignore[arg-type]


def test_single_member() -> None:
    """It says what a member is, as sources do."""
    with kvi.open("mem:source-member") as store:
        store.store("app/name", "stored")
        cls = settings_from(store)
        source = KviSettingsSource(cls, store, "app")
        assert source.get_field_value(cls.model_fields["name"], "name") == ("stored", "name", False)
        assert repr(source) == "KviSettingsSource('app/' of mem:source-member)"
        assert "secret" not in repr(KviSettingsSource(cls, "consul://secret@h"))
