"""From a URI to an open store: find the one plugin of its scheme, check it, let it open.

Only the plugin of the scheme that is asked for is imported. Plugins are found anew through the
entry points of the installed distributions, so that installing one more needs no change here.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from urllib.parse import quote

import pluggy

from kvi import hookspecs
from kvi.capabilities import Capabilities
from kvi.discovery import GROUP, Claim, all_claims, claims_on
from kvi.errors import (
    AmbiguousBackend,
    BackendLoadError,
    InvalidArgument,
    InvalidOption,
    KviError,
    NotSupported,
    UnknownBackend,
)
from kvi.flow.scope import Scope
from kvi.hookspecs import INTERFACE, PROJECT, BackendInfo
from kvi.late import ImportLock
from kvi.middleware.namespace import check_name
from kvi.middleware.read_only import ReadOnly
from kvi.middleware.retry import Retrying
from kvi.ops import Executor
from kvi.options import COMMON, resolve
from kvi.policy.retry import RetryPolicy
from kvi.port import Runtime
from kvi.primitives import Primitives
from kvi.uri import StoreUri

__all__ = ["InstalledBackend", "anchored", "around", "back_up", "backends", "open_scope", "within"]

around: list[Callable[[Scope], Executor]] = []
"""Makes what stands around each handle that is opened from now on, outermost: for tests."""

_PACKAGES = {
    "mem": "kvi-memory",
    "sqlite": "kvi-sqlite",
    "etcd": "kvi-etcd",
    "http": "kvi-etcd",
    "https": "kvi-etcd",
    "consul": "kvi-consul",
}


_DEFAULT_POLICY = RetryPolicy()
_GUESSES = {"memory": "mem", "ram": "mem", "sqlite3": "sqlite", "file": "sqlite"}


@dataclass(frozen=True, slots=True)
class _Plugin:
    module: object
    info: BackendInfo
    hooks: pluggy.HookRelay


@dataclass(frozen=True, slots=True, kw_only=True)
class InstalledBackend:
    """One installed plugin, as `backends` lists it.

    Attributes:
        distribution: the distribution that it came with, such as ``"kvi-etcd"``.
        version: that distribution's version.
        scheme: the name of the entry point: the scheme's part before ``+``.
        schemes: the whole schemes it answers to; empty if it cannot be used.
        capabilities: what its stores can do; ``None`` if it cannot be used.
        error: why it cannot be used, or ``None``.

    """

    distribution: str
    version: str
    scheme: str
    schemes: tuple[str, ...] = ()
    capabilities: Capabilities | None = None
    error: KviError | None = None


class _Registry:
    """The plugins loaded so far in this process, by entry-point name. Safe for threads."""

    def __init__(self) -> None:
        self._loaded: dict[str, _Plugin] = {}
        # Of its own: a plugin may make use of what kvi itself imports late.
        self._loading = ImportLock()

    def plugin(self, name: str) -> _Plugin:
        loaded = self._loaded.get(name)
        if loaded is None:
            with self._loading.get():
                loaded = self._loaded.get(name)
                if loaded is None:
                    loaded = self._loaded[name] = _load(_find(name))
        return loaded


def _find(name: str) -> Claim:
    found = claims_on(name)
    if not found:
        installed = sorted({claim.scheme for claim in all_claims()})
        mend = _mend(name, installed)
        raise UnknownBackend(
            f"no backend for the scheme {name!r} is installed "
            f"(installed: {', '.join(installed) or 'none'}); {mend}"
        )
    if len({claim.distribution for claim in found}) > 1:
        owners = " and ".join(claim.distribution for claim in found)
        raise AmbiguousBackend(f"the scheme {name!r} is claimed by {owners}; uninstall one")
    return found[0]


def _mend(name: str, installed: list[str]) -> str:
    if package := _PACKAGES.get(name):
        return f"install it with: pip install {package}"
    import difflib  # costs more than an open, and is needed for a mistake only

    known = sorted({*installed, *_PACKAGES})
    near = _GUESSES.get(name) or next(iter(difflib.get_close_matches(name, known, n=1)), None)
    if near:
        return f"did you mean {near!r}?"
    return f"a backend is a distribution with an entry point {name!r} in {GROUP!r}"


def _load(claim: Claim) -> _Plugin:
    origin = f"the backend {claim.scheme!r} of {claim.distribution}"
    try:
        module = claim.load()
    except Exception as error:
        raise BackendLoadError(
            f"{origin} cannot be imported: {type(error).__name__}: {error}"
        ) from error
    manager = pluggy.PluginManager(PROJECT)  # one each: a module may serve several schemes
    manager.add_hookspecs(hookspecs)
    try:
        manager.register(module, name=claim.scheme)
        manager.check_pending()
    except pluggy.PluginValidationError as error:
        raise BackendLoadError(
            f"{origin} implements a hook that kvi does not have, or with other arguments: {error}"
        ) from error
    try:
        info = manager.hook.kvi_describe()
    except Exception as error:
        raise BackendLoadError(f"{origin} fails to describe itself: {error!r}") from error
    if not isinstance(info, BackendInfo):
        raise BackendLoadError(f"{origin} does not describe itself: kvi_describe gave {info!r}")
    if info.interface.partition(".")[0] != INTERFACE.partition(".")[0]:
        raise BackendLoadError(
            f"{origin} was built for the backend interface {info.interface}, "
            f"this kvi speaks {INTERFACE}; install versions that match"
        )
    return _Plugin(module, info, manager.hook)


_registry = _Registry()


def open_scope(runtime: Runtime, uri: str, options: Mapping[str, object]) -> Scope:
    """Open the store at ``uri``; see `kvi.open`."""
    shown = None
    try:
        parsed = StoreUri.parse(uri)
        shown = parsed.redacted
        plugin = _plugin_for(parsed)
        info = plugin.info
        parsed = _showing(parsed, info)
        shown = parsed.redacted
        scope = _scope_of(runtime, plugin, parsed, options)
    except KviError as error:
        error.operation, error.uri = "open", shown
        raise
    for wrap in around:
        scope.executor = wrap(scope)
    return scope


def redacted(uri: str) -> str:
    """The URI, fit for logs, with the values of all options that its plugin declares no secrets.

    As much of it as without a plugin, if none can be had. Raises `InvalidOption` for what is no
    URI.
    """
    parsed = StoreUri.parse(uri)
    try:
        info = _plugin_for(parsed).info
    except KviError:
        return parsed.redacted
    return _showing(parsed, info).redacted


def within(uri: str, name: str) -> str:
    """The URI of the keys below ``name/`` of what is at ``uri``, which may be a namespace itself.

    Raises what `open_scope` does for a URI of no store, and `InvalidOption` for a bad name.
    """
    parsed = StoreUri.parse(uri)
    info = _plugin_for(parsed).info
    check_name(name)
    place, _, query = uri.partition("?")
    if info.path_is_namespace and parsed.path.strip("/"):
        return f"{place.rstrip('/')}/{quote(name)}" + (f"?{query}" if query else "")
    options = dict(parsed.query)
    outer = options.pop("namespace", None)
    options["namespace"] = name if outer is None else f"{outer}/{name}"
    return f"{place}?" + "&".join(f"{quote(n)}={quote(v)}" for n, v in options.items())


def anchored(uri: str) -> str:
    """The URI for who works in another folder: a path that names a file is absolute.

    It stays relative where no URI can say the folder: one that is no UTF-8, or is gone. Raises what
    `open_scope` does for a URI of no store.
    """
    parsed = StoreUri.parse(uri)
    if not _plugin_for(parsed).info.path_is_file:
        return uri
    from pathlib import Path  # as late as it can be: it takes a while

    if parsed.authority or not parsed.path or Path(parsed.path).is_absolute():
        return uri
    scheme, colon, rest = uri.partition(":")
    try:
        folder = quote(Path.cwd().as_posix())
    except (OSError, UnicodeEncodeError):
        return uri
    return f"{scheme}{colon}{folder.rstrip('/')}/{rest}"


def back_up(uri: str, target: str | os.PathLike[str], *, replace: bool = False) -> None:
    """Copy the store at ``uri``, while others use it, to a file, as its plugin does that.

    Raises `NotSupported` where the plugin cannot, `InvalidArgument` for a part of a store or a
    target that is there (unless ``replace``), and what reading the store does.
    """
    from pathlib import Path  # as late as it can be: it takes a while

    shown = None
    try:
        parsed = StoreUri.parse(uri)
        shown = parsed.redacted
        plugin = _plugin_for(parsed)
        if not plugin.hooks.kvi_backup.get_hookimpls():
            raise NotSupported(
                f"a store of {plugin.info.name} is no file that could be copied; "
                "kvi export writes the entries of any store"
            )
        if resolve((*COMMON, *plugin.info.options), parsed, {})["namespace"] is not None:
            raise InvalidArgument("a backup is of a whole store: leave out the namespace")
        plugin.hooks.kvi_backup(uri=parsed, target=Path(target), replace=replace)
    except KviError as error:
        error.operation, error.uri = "backup", shown
        raise


def _showing(uri: StoreUri, info: BackendInfo) -> StoreUri:
    return uri.showing(option.name for option in info.options if not option.secret)


def _plugin_for(uri: StoreUri) -> _Plugin:
    plugin = _registry.plugin(uri.backend)
    if uri.scheme not in plugin.info.schemes:
        raise UnknownBackend(
            f"the backend {uri.backend!r} does not know the scheme {uri.scheme!r}; "
            f"its schemes are {', '.join(plugin.info.schemes)}"
        )
    return plugin


def _scope_of(
    runtime: Runtime, plugin: _Plugin, uri: StoreUri, keywords: Mapping[str, object]
) -> Scope:
    policy = _DEFAULT_POLICY if plugin.info.has_passing_faults else None
    if "retry" in keywords:
        given = keywords["retry"]
        if isinstance(given, RetryPolicy):
            policy, given = given, "on"
        keywords = {**keywords, "retry": "off" if given is None else given}
    values = resolve((*COMMON, *plugin.info.options), uri, keywords)
    namespace = values.pop("namespace")
    if values.pop("retry") == "off":
        policy = None
    if plugin.info.path_is_namespace:
        namespace = _namespace_of(uri, namespace)
    if namespace is not None:
        check_name(namespace)
    try:
        primitives = plugin.hooks.kvi_open(uri=uri, options=values)
    except KviError:
        raise
    except Exception as error:
        raise BackendLoadError(
            f"the backend {uri.backend!r} fails to open: {type(error).__name__}: {error}"
        ) from error
    if not isinstance(primitives, Primitives):
        raise BackendLoadError(
            f"the backend {uri.backend!r} opened a {type(primitives).__name__}, not a Primitives"
        )
    scope = Scope(runtime, primitives)
    if values["read_only"]:
        scope.read_only = True
        scope.executor = ReadOnly(scope.executor)
    if namespace is not None:
        try:
            scope.narrow(namespace)
        except KviError:
            primitives._close()
            raise
        if "namespace" not in keywords:
            scope.uri = primitives.uri  # which has it
    if policy is not None:
        scope.executor = Retrying(scope.executor, policy, scope.uri, lambda: scope.closed)
    return scope


def _namespace_of(uri: StoreUri, option: str | None) -> str | None:
    path = uri.path.removeprefix("/") or None
    if path is not None and option is not None:
        raise InvalidOption("the URI has a namespace as its path and as an option; keep one")
    return path if option is None else option


def backends() -> list[InstalledBackend]:
    """List the installed backend plugins, sorted by scheme. Imports all of them.

    One that cannot be used is listed with its ``error`` and hides no other.
    """
    return [_inspect(claim) for claim in all_claims()]


def _inspect(claim: Claim) -> InstalledBackend:
    info, failure = None, None
    try:
        info = _registry.plugin(claim.scheme).info
    except KviError as error:
        failure = error
    return InstalledBackend(
        distribution=claim.distribution,
        version=claim.version,
        scheme=claim.scheme,
        schemes=info.schemes if info else (),
        capabilities=info.capabilities if info else None,
        error=failure,
    )
