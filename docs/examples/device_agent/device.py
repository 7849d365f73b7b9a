"""The device: its entities and where they are stored. No name of a store stands here."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any, Self

import kvi

from docs.examples.device_agent.device_pb2 import (
    Flow,
    Group,
    Meter,
    Pool,
    Profile,
    ProfileTemplate,
    Queue,
    ResourceRecord,
)

POOL = 1
"""The id of the only pool."""

_KINDS = (("voice", 7), ("video", 5), ("business", 4), ("data", 1))


def _template(name: str) -> ProfileTemplate:
    return ProfileTemplate(
        path=f"profiles/{name}/1",
        name=f"{name}, four queues each way",
        version=1,
        scheduling="strict priority, then weighted round robin",
        downstream_class="additional bandwidth from the excess",
        upstream_class="none",
        queues=[
            Queue(
                name=f"{kind} {direction}",
                direction=direction,
                priority=priority,
                weight=10 * priority,
                discard_policy="weighted random early",
                min_threshold=64 * priority,
                max_threshold=256 * priority,
                max_probability=20,
                encrypted=direction == "downstream",
            )
            for direction in ("upstream", "downstream")
            for kind, priority in _KINDS
        ],
    )


TEMPLATES = {one.path: one for one in map(_template, ("home", "office"))}


def pack(profile: Profile) -> ResourceRecord:
    """What is stored of a profile: its template's path and the ports given out."""
    return ResourceRecord(
        subscriber=profile.subscriber, template=profile.template.path, ports=profile.ports
    )


def unpack(record: ResourceRecord) -> Profile:
    """The whole profile, from its record and the template."""
    return Profile(
        subscriber=record.subscriber, template=TEMPLATES[record.template], ports=record.ports
    )


class Device:
    """All loaders of the device on one store; they follow what other agents write."""

    def __init__(self, store: kvi.Kvi) -> None:
        self.store = store
        self.flows = kvi.Loader(
            store, "flows", kvi.ProtobufCodec(Flow), lambda flow: flow.id, follow=True
        )
        self.meters = kvi.Loader(
            store, "meters", kvi.ProtobufCodec(Meter), lambda meter: meter.id, follow=True
        )
        self.groups = kvi.Loader(
            store, "groups", kvi.ProtobufCodec(Group), lambda group: group.id, follow=True
        )
        self.pools = kvi.Loader(
            store, "pools", kvi.ProtobufCodec(Pool), lambda pool: pool.id, follow=True
        )
        self.profiles = kvi.Loader(
            store,
            "profiles",
            kvi.ProtobufCodec(ResourceRecord),
            lambda profile: profile.subscriber,
            pack=pack,
            unpack=unpack,
            follow=True,
        )
        self._loaders: dict[str, kvi.Loader[int, Any]] = {
            "flows": self.flows,
            "meters": self.meters,
            "groups": self.groups,
            "pools": self.pools,
            "profiles": self.profiles,
        }

    def load(self) -> None:
        """Read all there is, and follow it from now on."""
        for loader in self._loaders.values():
            bad = loader.load()
            if bad:
                raise bad[0]

    def contents(self) -> Iterator[tuple[str, bytes]]:
        """What the caches hold, as it should stand in the store, in the order of its keys."""
        found: dict[str, bytes] = {}
        for path, loader in self._loaders.items():
            for id, entity in loader.items():
                stored = pack(entity) if isinstance(entity, Profile) else entity
                found[f"{path}/{id}"] = stored.SerializeToString(deterministic=True)
        yield from sorted(found.items())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        with ExitStack() as stack:
            for loader in self._loaders.values():
                stack.callback(loader.close)
