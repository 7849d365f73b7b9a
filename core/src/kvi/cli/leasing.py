"""`leases`, and `lease revoke`: the leases of a store, whoever has them."""

from __future__ import annotations

import re
from uuid import UUID

import click

import kvi
from kvi.cli.app import NOT_FOUND, Context, Failed, command
from kvi.cli.entries import UNASKED, confirm
from kvi.cli.output import say_json, say_table
from kvi.errors import InvalidArgument
from kvi.model import LeaseInfo, Span
from kvi.ops import LeasesOp, RevokeOp

_SHOWN = 3  # keys of a lease in a table
_UNTOLD = "-"
_ID = re.compile(
    "(?P<decimal>[0-9]{1,39})|0x(?P<hex>[0-9a-f]{1,32})"
    "|(?P<uuid>[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12})",
    re.IGNORECASE,
)


@command(
    "leases",
    "kvi lease -- kvi leases\n"
    "kvi lease -- sh -c 'kvi put member/ada here --lease $KVI_LEASE && kvi leases --json'",
)
def leases_(context: Context) -> int:
    """Show the leases that are alive: id, ttl, seconds left, and keys.

    The seconds are those that it has left if it is not renewed. Of the keys a table has the number
    and the first ones, and JSON has all. What the store does not tell is - there, and null in JSON.
    Leases are the whole store's; with a namespace the keys are those of the namespace alone.
    """
    found = sorted(_look(context.store(), None, Span()), key=lambda lease: lease.id)
    if context.json:
        for lease in found:
            say_json(lease._asdict())
    else:
        titles = ("id", "ttl", "left", "keys", "first keys")
        say_table(titles, map(_row, found), right=titles[:-1])
    return 0


def _row(lease: LeaseInfo) -> tuple[str, ...]:
    left = _UNTOLD if lease.left is None else f"{lease.left:.0f}"
    count, first = _UNTOLD, ""
    if lease.keys is not None:
        count = f"{len(lease.keys)}"
        first = ", ".join(lease.keys[:_SHOWN]) + ", …" * (len(lease.keys) > _SHOWN)
    return f"{lease.id}", f"{lease.ttl:g}", left, count, first


def revoke(context: Context, text: str, *, yes: bool) -> int:
    """End the lease with the id ``text``; exit code 1 if there is none."""
    id = lease_id(text)
    store = context.store()
    store._scope.ensure_writable()  # before anybody is asked in vain
    found = _there(store, id, None if yes else Span())
    if found is not None and not yes:
        _ask(store, found)
        context.go_on()
    if found is not None:
        try:
            store._do(RevokeOp(id), None)
        except kvi.KviError as error:
            raise store._placed(error, "lease_revoke", None)
    if context.json:
        say_json({"id": id, "revoked": found is not None})
        return 0 if found is not None else NOT_FOUND
    if found is None:
        raise Failed(f"no lease with the id {text} is alive", NOT_FOUND)
    click.echo("revoked")
    return 0


def lease_id(text: str) -> int:
    """The id of a lease: in decimal, in hexadecimal behind ``0x``, or as Consul's session."""
    found = _ID.fullmatch(text)
    if found is None:
        raise InvalidArgument(
            f"{text!r} is not the id of a lease: a number as `kvi leases` shows it, 0x and "
            "hexadecimal digits, or the session of a lease on Consul"
        )
    decimal, hexadecimal, uuid = found.groups()
    if decimal is not None:
        return int(decimal)
    return UUID(uuid).int if hexadecimal is None else int(hexadecimal, 16)


def _look(store: kvi.Kvi, id: int | None, span: Span | None) -> list[LeaseInfo]:
    ids = None if id is None else (id,)
    try:
        return store._do(LeasesOp(ids, span), None)
    except kvi.KviError as error:
        raise store._placed(error, "leases", None)


def _there(store: kvi.Kvi, id: int, span: Span | None) -> LeaseInfo | None:
    """The lease if it is alive; where the store does not tell, it is taken to be."""
    try:
        found = _look(store, id, span)
    except kvi.NotSupported:
        return LeaseInfo(id, 0.0, None, None)
    return found[0] if found else None


def _ask(store: kvi.Kvi, lease: LeaseInfo) -> None:
    """Whether a lease is to be ended. Raises `Failed` if not."""
    count = None if lease.keys is None else len(lease.keys)
    keys = "its keys" if count is None else f"its {count:,} keys"
    if store._scope.prefix:  # the others are not to be seen from here, and vanish as well
        keys += " here (and those in other namespaces)"
    confirm(
        f"Revoke the lease, and delete {keys}?",
        f"with the lease {keys} are deleted; --yes revokes it",
        "nothing was revoked",
        at_terminal=count != 0 or bool(store._scope.prefix),
        in_script=count is not None and count > UNASKED,
    )
