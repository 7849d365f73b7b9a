"""What a call tells of its write, before a server that says what is asked of this."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import kvi
import pytest
from kvi.coroutine import run
from kvi_etcd import wire_pb2 as pb
from kvi_etcd.driver import Connection

WITHIN = 20.0


class Forgetful:
    """A member that applies writes, and does not say so.

    Attributes:
        applied: how many.

    """

    def __init__(self) -> None:
        self.applied = 0

    def status(self, request: pb.StatusRequest, context: Any) -> pb.StatusResponse:
        """It is there."""
        return pb.StatusResponse()

    def put(self, request: pb.PutRequest, context: Any) -> pb.PutResponse:
        """Apply it, and lose the answer."""
        self.applied += 1
        context.abort(grpc.StatusCode.UNAVAILABLE, "etcdserver: leader changed")
        raise AssertionError("unreachable")


@pytest.fixture
def member() -> Forgetful:
    """The member."""
    return Forgetful()


@pytest.fixture
def place(member: Forgetful) -> Iterator[tuple[str, int]]:
    """Where it serves."""
    server = grpc.server(ThreadPoolExecutor(4))
    for service, method, answer, request in (
        ("Maintenance", "Status", member.status, pb.StatusRequest),
        ("KV", "Put", member.put, pb.PutRequest),
    ):
        handler = grpc.unary_unary_rpc_method_handler(
            answer,
            request_deserializer=request.FromString,
            response_serializer=lambda message: message.SerializeToString(),
        )
        server.add_generic_rpc_handlers(
            (grpc.method_handlers_generic_handler(f"etcdserverpb.{service}", {method: handler}),)
        )
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        yield "127.0.0.1", port
    finally:
        server.stop(None).wait(WITHIN)


class Doubted(Connection):
    """Calls of which another one fails at the unluckiest moment."""

    async def _ready(self, *args: Any, **named: Any) -> Any:
        token = await super()._ready(*args, **named)
        args[0].doubt()
        return token


@pytest.mark.parametrize("calls", [Connection, Doubted])
@pytest.mark.parametrize("places", [1, 2])
def test_write_whose_answer_is_lost(
    member: Forgetful, place: tuple[str, int], calls: type[Connection], places: int
) -> None:
    """It may have applied, and is sent once, whatever becomes of other calls to that endpoint."""
    connection = calls([place] * places, None, None)
    with pytest.raises(kvi.OutcomeUnknown):
        connection.call("put", pb.PutRequest(key=b"k"), WITHIN, write=True)
    assert member.applied == 1
    run(connection.close())
