"""`kvi.open`: from a URI to a handle for threads."""

from __future__ import annotations

from kvi.driver.threads import Threads
from kvi.errors import KviError
from kvi.registry import open_scope
from kvi.sync.kvi import Kvi


def open(uri: str, **options: object) -> Kvi:  # noqa: A001  (kvi.open, as gzip.open)
    """Open the store at ``uri``.

    ======================================================================  ====================
    URI                                                                     store
    ======================================================================  ====================
    ``mem:``, ``mem:NAME``                                                  this process's memory
    ``sqlite:PATH``, ``sqlite:///abs/path``                                 a file
    ``etcd://[user:password@]host:port[,host:port…][/namespace]``           etcd v3
    ``consul://[token@]host:port[,host:port…][/namespace]``                 Consul KV
    ======================================================================  ====================

    ``etcd+tls://`` and ``consul+tls://`` speak TLS; ``http://`` and ``https://`` are an etcd
    endpoint. Options stand in the URI (``?timeout=2``) or are keywords: ``timeout`` (seconds,
    default 5, bounds every call that does not give its own), ``namespace`` (puts ``NAMESPACE/``
    before every key), ``retry`` (as keyword a `RetryPolicy`, or ``None`` for none; ``?retry=off``
    for none: how operations that failed are tried again within their time-out, by default as
    `RetryPolicy` says), ``read_only`` (everything that could write raises `PermissionDenied`,
    before anything is sent), and what the backend adds.

    Opening does not block on a server that cannot be reached; the first operation does, within
    its time-out.

    Raises `InvalidOption` for a malformed URI or an unknown or bad option; `UnknownBackend`,
    `AmbiguousBackend` or `BackendLoadError` if there is no usable plugin for the scheme.
    """
    runtime = Threads()
    try:
        return runtime.apart(lambda: Kvi(open_scope(runtime, uri, options)), Kvi.close)
    except KviError:
        runtime.stop()
        raise
