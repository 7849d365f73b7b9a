"""`backup`: a copy of a store that is a file."""

from __future__ import annotations

import os
from pathlib import Path

import click

from kvi.cli.app import Context, Failed, command
from kvi.cli.output import say_json
from kvi.registry import back_up


@command(
    "backup",
    "kvi put greeting hello\n"
    "kvi backup copy.db\n"
    "kvi backup --force copy.db\n"
    "kvi get greeting --uri sqlite:copy.db",
)
@click.argument("file", type=click.Path())
@click.option("--force", is_flag=True, help="Replace FILE, once the copy is whole.")
def backup_(context: Context, file: str, force: bool) -> int:
    """Copy the store, as of one moment, to the new file FILE, which is a SQLite store then.

    Others may read and write the store meanwhile, and nothing is written to it. It takes as long as
    it takes. A store of another kind is no file: kvi export writes its entries.
    """
    if file == "-":
        raise click.UsageError("A backup is a file of its own: name one, or use kvi export.")
    if context.namespace is not None or context.timeout is not None:
        raise click.UsageError("A backup is of a whole store: no --namespace, no --timeout.")
    if os.path.lexists(file) and not force:
        raise Failed(f"{file} exists: choose another name, or --force")
    context.read_only = True  # it makes no store to copy
    back_up(context.store_uri, file, replace=force)
    size = Path(file).stat().st_size
    if context.json:
        say_json({"file": file, "bytes": size})
    else:
        click.echo(f"copied {size:,} bytes", err=True)
    return 0
