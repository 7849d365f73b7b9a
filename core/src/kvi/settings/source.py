"""`KviSettingsSource`: the entries below a prefix, as a source of pydantic-settings."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo
from pydantic_settings import (
    BaseSettings,
    DotEnvSettingsSource,
    EnvSettingsSource,
    InitSettingsSource,
    PydanticBaseSettingsSource,
    SecretsSettingsSource,
)

from kvi.errors import BadRecord, InvalidArgument, KviError, shown
from kvi.loader.pydantic import told
from kvi.settings.tree import merged, tree_of
from kvi.sync.kvi import Kvi
from kvi.sync.opening import open as open_store
from kvi.text import check_bound

M = TypeVar("M", bound=BaseModel)


class KviSettingsSource(PydanticBaseSettingsSource):
    """What is stored below ``prefix/``, once for each time that the settings are made.

    For `BaseSettings.settings_customise_sources`, which gives it its rank::

        return init_settings, env_settings, KviSettingsSource(settings_cls, "etcd://…", "app")

    ``store`` is a handle, or a URI that is opened for as long as it is read. `kvi.settings.tree`
    says what keys and values mean. A key that the model does not have is passed on, as by a file of
    settings: its ``extra`` decides.

    ``timeout`` (seconds) bounds each page of what is read, by default that of the store. It
    keeps nothing between two times, so threads may share it.

    Raises `InvalidArgument` for what is no store. Making the settings raises `BadRecord` for a
    value that is no text, and what `kvi.open` and `kvi.Kvi.range` raise.
    """

    def __init__(
        self,
        settings_cls: type[BaseSettings],
        store: Kvi | str,
        prefix: str = "",
        *,
        timeout: float | None = None,
    ) -> None:
        super().__init__(settings_cls)
        if not isinstance(store, Kvi | str):
            raise InvalidArgument(f"settings come from a handle or a URI, not {shown(store)}")
        self._store = store
        self._prefix = folder(prefix)
        self._timeout = timeout

    def get_field_value(self, field: FieldInfo, field_name: str) -> tuple[Any, str, bool]:
        """What pydantic-settings asks for one ``field`` of the model, by its ``field_name``."""
        return self().get(field_name), field_name, False

    def __call__(self) -> dict[str, Any]:
        """Read all."""
        if isinstance(self._store, Kvi):
            return self._read(self._store)
        with open_store(self._store) as store:
            return self._read(store)

    def _read(self, store: Kvi) -> dict[str, Any]:
        found = store.range(prefix=self._prefix, timeout=self._timeout)
        skip = len(self._prefix)
        entries = {entry.key[skip:]: entry.value or b"" for entry in found}
        try:
            return tree_of(self.settings_cls, entries)
        except KviError as error:
            raise error.located("settings", self._prefix, store.uri) from error.__cause__

    def __repr__(self) -> str:
        store = self._store.uri if isinstance(self._store, Kvi) else "a store"
        return f"KviSettingsSource({self._prefix!r} of {store})"


def folder(prefix: object) -> str:
    """What the keys of settings begin with. Raises `InvalidKey`."""
    checked = check_bound("prefix", prefix, None).rstrip("/")
    return f"{checked}/" if checked else ""


def made(model: type[M], entries: Mapping[str, bytes]) -> M:
    """The settings that entries make; a model's own sources, such as the environment, go first.

    Raises `BadRecord`, whose message has nothing of what is stored.
    """
    values = tree_of(model, entries)
    try:
        if issubclass(model, BaseSettings):
            _check_names(values)
            values = merged(values, _of_its_own(model))
        return model.model_validate(values)
    except KviError:
        raise
    except ValidationError as error:
        raise BadRecord(f"this is no {model.__name__}: {told(error)}") from error
    except Exception as error:
        raise BadRecord(
            f"{model.__name__} could not be made: {type(error).__name__}; its cause is chained"
        ) from error


def _check_names(values: Mapping[str, Any]) -> None:
    """Nobody who writes settings may name files to read, as ``_env_file`` does."""
    for name in values:
        if name.startswith("_"):
            raise BadRecord(f"{name!r} is no setting: delete it", key=name)


def _of_its_own(model: type[BaseSettings]) -> dict[str, Any]:
    config = model.model_config  # which the oldest sources do not look at themselves
    names: dict[str, Any] = {
        "case_sensitive": config.get("case_sensitive"),
        "env_prefix": config.get("env_prefix"),
        "env_nested_delimiter": config.get("env_nested_delimiter"),
    }
    sources = model.settings_customise_sources(
        model,
        init_settings=InitSettingsSource(model, init_kwargs={}),
        env_settings=EnvSettingsSource(model, **names),
        dotenv_settings=DotEnvSettingsSource(
            model,
            env_file=config.get("env_file"),
            env_file_encoding=config.get("env_file_encoding"),
            **names,
        ),
        file_secret_settings=SecretsSettingsSource(model, secrets_dir=config.get("secrets_dir")),
    )
    values: dict[str, Any] = {}
    for source in sources:  # the first has the highest rank
        values = merged(source(), values)
    return values
