from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from typing import ClassVar as _ClassVar, Iterable as _Iterable, Mapping as _Mapping, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Flow(_message.Message):
    __slots__ = ["id", "in_port", "meter", "out_port", "vlan"]
    ID_FIELD_NUMBER: _ClassVar[int]
    IN_PORT_FIELD_NUMBER: _ClassVar[int]
    METER_FIELD_NUMBER: _ClassVar[int]
    OUT_PORT_FIELD_NUMBER: _ClassVar[int]
    VLAN_FIELD_NUMBER: _ClassVar[int]
    id: int
    in_port: int
    meter: int
    out_port: int
    vlan: int
    def __init__(self, id: _Optional[int] = ..., in_port: _Optional[int] = ..., vlan: _Optional[int] = ..., out_port: _Optional[int] = ..., meter: _Optional[int] = ...) -> None: ...

class Group(_message.Message):
    __slots__ = ["id", "ports"]
    ID_FIELD_NUMBER: _ClassVar[int]
    PORTS_FIELD_NUMBER: _ClassVar[int]
    id: int
    ports: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, id: _Optional[int] = ..., ports: _Optional[_Iterable[int]] = ...) -> None: ...

class Meter(_message.Message):
    __slots__ = ["burst_kb", "flows", "id", "rate_kbps"]
    BURST_KB_FIELD_NUMBER: _ClassVar[int]
    FLOWS_FIELD_NUMBER: _ClassVar[int]
    ID_FIELD_NUMBER: _ClassVar[int]
    RATE_KBPS_FIELD_NUMBER: _ClassVar[int]
    burst_kb: int
    flows: int
    id: int
    rate_kbps: int
    def __init__(self, id: _Optional[int] = ..., rate_kbps: _Optional[int] = ..., burst_kb: _Optional[int] = ..., flows: _Optional[int] = ...) -> None: ...

class Pool(_message.Message):
    __slots__ = ["free", "id", "next"]
    FREE_FIELD_NUMBER: _ClassVar[int]
    ID_FIELD_NUMBER: _ClassVar[int]
    NEXT_FIELD_NUMBER: _ClassVar[int]
    free: _containers.RepeatedScalarFieldContainer[int]
    id: int
    next: int
    def __init__(self, id: _Optional[int] = ..., next: _Optional[int] = ..., free: _Optional[_Iterable[int]] = ...) -> None: ...

class Profile(_message.Message):
    __slots__ = ["ports", "subscriber", "template"]
    PORTS_FIELD_NUMBER: _ClassVar[int]
    SUBSCRIBER_FIELD_NUMBER: _ClassVar[int]
    TEMPLATE_FIELD_NUMBER: _ClassVar[int]
    ports: _containers.RepeatedScalarFieldContainer[int]
    subscriber: int
    template: ProfileTemplate
    def __init__(self, subscriber: _Optional[int] = ..., template: _Optional[_Union[ProfileTemplate, _Mapping]] = ..., ports: _Optional[_Iterable[int]] = ...) -> None: ...

class ProfileTemplate(_message.Message):
    __slots__ = ["downstream_class", "name", "path", "queues", "scheduling", "upstream_class", "version"]
    DOWNSTREAM_CLASS_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    PATH_FIELD_NUMBER: _ClassVar[int]
    QUEUES_FIELD_NUMBER: _ClassVar[int]
    SCHEDULING_FIELD_NUMBER: _ClassVar[int]
    UPSTREAM_CLASS_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    downstream_class: str
    name: str
    path: str
    queues: _containers.RepeatedCompositeFieldContainer[Queue]
    scheduling: str
    upstream_class: str
    version: int
    def __init__(self, path: _Optional[str] = ..., name: _Optional[str] = ..., version: _Optional[int] = ..., scheduling: _Optional[str] = ..., downstream_class: _Optional[str] = ..., upstream_class: _Optional[str] = ..., queues: _Optional[_Iterable[_Union[Queue, _Mapping]]] = ...) -> None: ...

class Queue(_message.Message):
    __slots__ = ["direction", "discard_policy", "encrypted", "max_probability", "max_threshold", "min_threshold", "name", "priority", "weight"]
    DIRECTION_FIELD_NUMBER: _ClassVar[int]
    DISCARD_POLICY_FIELD_NUMBER: _ClassVar[int]
    ENCRYPTED_FIELD_NUMBER: _ClassVar[int]
    MAX_PROBABILITY_FIELD_NUMBER: _ClassVar[int]
    MAX_THRESHOLD_FIELD_NUMBER: _ClassVar[int]
    MIN_THRESHOLD_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    PRIORITY_FIELD_NUMBER: _ClassVar[int]
    WEIGHT_FIELD_NUMBER: _ClassVar[int]
    direction: str
    discard_policy: str
    encrypted: bool
    max_probability: int
    max_threshold: int
    min_threshold: int
    name: str
    priority: int
    weight: int
    def __init__(self, name: _Optional[str] = ..., direction: _Optional[str] = ..., priority: _Optional[int] = ..., weight: _Optional[int] = ..., discard_policy: _Optional[str] = ..., min_threshold: _Optional[int] = ..., max_threshold: _Optional[int] = ..., max_probability: _Optional[int] = ..., encrypted: bool = ...) -> None: ...

class ResourceRecord(_message.Message):
    __slots__ = ["ports", "subscriber", "template"]
    PORTS_FIELD_NUMBER: _ClassVar[int]
    SUBSCRIBER_FIELD_NUMBER: _ClassVar[int]
    TEMPLATE_FIELD_NUMBER: _ClassVar[int]
    ports: _containers.RepeatedScalarFieldContainer[int]
    subscriber: int
    template: str
    def __init__(self, subscriber: _Optional[int] = ..., template: _Optional[str] = ..., ports: _Optional[_Iterable[int]] = ...) -> None: ...
