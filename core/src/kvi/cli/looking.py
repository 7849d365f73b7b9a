"""`backends doctor explain ping conformance bench`: what is installed, and how a store is."""

from __future__ import annotations

import difflib
import json
import re
import secrets
import shutil
import statistics
import sys
import textwrap
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict
from importlib import resources
from pathlib import Path
from typing import Any

import click

import kvi
from kvi.cli.app import NOT_FOUND, UNAVAILABLE, Context, Failed, Seconds, command
from kvi.cli.output import (
    bare,
    in_colour,
    on_terminal,
    progress,
    say_fields,
    say_json,
    say_styled,
    say_table,
)
from kvi.options import MAX_SECONDS

_LARGEST = 2**30  # bytes of a value of `bench`: more than any store takes


@command("backends", "kvi backends\nkvi backends --json")
def backends_(context: Context) -> int:
    """Show the installed plugins, their versions and schemes, and what their stores can do."""
    # A plugin stands there once for each entry point.
    found = {(one.distribution, one.schemes or one.scheme): one for one in kvi.backends()}
    installed = list(found.values())
    if context.json:
        for one in installed:
            say_json(
                {
                    "distribution": one.distribution,
                    "version": one.version,
                    "schemes": list(one.schemes),
                    "capabilities": one.capabilities and asdict(one.capabilities),
                    "error": one.error and str(one.error),
                }
            )
        return 0
    titles = [
        "plugin",
        "version",
        "schemes",
        "shared",
        "durable",
        "fair locks",
        "history",
        "past",
        "status",
    ]
    rows = []
    for one in installed:
        can = one.capabilities
        marks = [""] * 5
        if can is not None:
            flags = (
                can.shared,
                can.durable,
                can.lock_fair,
                can.watch_history,
                can.read_at_revision,
            )
            marks = ["yes" if flag else "no" for flag in flags]
        status = "ready" if one.error is None else f"unusable: {one.error}"
        rows.append([one.distribution, one.version, " ".join(one.schemes), *marks, status])
    say_table(titles, rows)
    return 0


# -- doctor ----------------------------------------------------------------------------------------

_ADVICE: dict[type[kvi.KviError], str] = {
    kvi.AuthenticationFailed: "check user, password, token or certificate in the URI",
    kvi.PermissionDenied: "give this user or token the permission for these keys",
    kvi.Timeout: "the server does not answer: look at its load and leader, or give more --timeout",
    kvi.Unavailable: "check that the server runs, its address and port, firewalls and TLS",
    kvi.OutcomeUnknown: "the connection breaks while it writes: look at proxies and at the leader",
    kvi.UnknownBackend: "install the plugin that the message names",
    kvi.InvalidArgument: "mend the URI",
    kvi.NotSupported: "this store cannot do it; see kvi backends --json",
}


def _steps(store: kvi.Kvi, own: kvi.Kvi) -> list[tuple[str, Callable[[], object]]]:
    """What is tried, on keys of its own."""

    def write() -> None:
        own.store("k", b"1")

    def read() -> None:
        entry = own.get("k")
        if entry is None or entry.value != b"1":
            raise kvi.Unavailable("what was written is not read back")

    def transact() -> None:
        if not own.txn([kvi.Key("k").value == b"1"], [kvi.Put("k", b"2")]):
            raise kvi.Unavailable("a condition that holds was denied")

    def list_() -> None:
        if [entry.key for entry in own.range()] != ["k"]:
            raise kvi.Unavailable("what was written is not listed")

    def watch() -> None:
        with own.watch("k") as changes:
            own.store("k", b"3")
            changes.next(10)

    def lock() -> None:
        with own.lock("l", timeout=10) as held:
            if not held.held:
                raise kvi.Unavailable("the lock was lost at once")

    def temporary() -> None:
        with own.temp_key("t", b"", ttl=10):
            pass
        if own.get("t") is not None:
            raise kvi.Unavailable("a temporary key is still there")

    def look() -> None:
        with own.watch("k", initial=True):
            pass

    if store._scope.read_only:
        return [
            ("connect", lambda: store.ping()),
            ("read", lambda: own.get("k")),
            ("list", lambda: list(own.range())),
            ("watch", look),
        ]
    return [
        ("connect", lambda: store.ping()),
        ("write", write),
        ("read", read),
        ("transaction", transact),
        ("list", list_),
        ("watch", watch),
        ("lock", lock),
        ("temporary key", temporary),
        ("delete", lambda: own.delete_range(prefix="")),
    ]


@command("doctor", "kvi doctor\nkvi doctor --uri etcd://127.0.0.1:2379 --json")
def doctor_(context: Context) -> int:
    """Check whether the store can be used, step by step, and what to do about each failure.

    Writes a few keys below a name of its own, and removes them; with --read-only, it only reads.
    Exit code 3 if a step fails.
    """
    failed = False

    def tell(step: str, took: float, error: kvi.KviError | None) -> None:
        advice = (
            ""
            if error is None
            else next((text for kind, text in _ADVICE.items() if isinstance(error, kind)), "")
        )
        if context.json:
            found: dict[str, Any] = {"step": step, "ok": error is None, "seconds": round(took, 6)}
            if error is not None:
                found |= {"error": f"{type(error).__name__}: {error}", "advice": advice}
            say_json(found)
            return
        if error is None:
            say_styled("ok", fg="green")
            click.echo(f"      {step:<14} {took * 1000:8.2f} ms")
        else:
            say_styled("FAILED", fg="red", bold=True)
            click.echo(f"  {step:<14} {type(error).__name__}: {error}")
            if advice:
                click.echo(f"{'':<22} {advice}")

    def attempt(step: str, act: Callable[[], Any]) -> Any:
        nonlocal failed
        began = time.perf_counter()
        try:
            made = act()
        except kvi.KviError as error:
            failed = True
            tell(step, time.perf_counter() - began, error)
            return None
        tell(step, time.perf_counter() - began, None)
        return made

    store: kvi.Kvi | None = attempt("open", context.store)
    if store is not None:
        if not context.json:
            click.echo(f"store   {store.uri}")
        own = store.namespace(f"kvi-doctor-{secrets.token_hex(4)}")
        try:
            for step, act in _steps(store, own):
                attempt(step, act)
                if failed and step == "connect":
                    break  # nothing else can work
        finally:
            with suppress(kvi.KviError):
                own.delete_range(prefix="")
    return UNAVAILABLE if failed else 0


# -- ping ------------------------------------------------------------------------------------------


@command("ping", "kvi ping\nkvi ping --watch --interval 5\nkvi ping --watch --count 3")
@click.option("--watch", "again", is_flag=True, help="Again and again, until Ctrl-C.")
@click.option(
    "--interval", type=Seconds(0.01, MAX_SECONDS), default=1.0, show_default=True, metavar="SECONDS"
)
@click.option("-c", "--count", type=click.IntRange(1), metavar="N", help="With --watch: so often.")
def ping_(context: Context, again: bool, interval: float, count: int | None) -> int:
    """Ask whether the store answers; exit code 3 if it does not, at last."""
    store = context.store()
    number, alive = 0, False
    while True:
        began = time.perf_counter()
        error: kvi.KviError | None = None
        try:
            store.ping()
        except kvi.KviError as raised:
            error = raised
        took = time.perf_counter() - began
        alive = error is None
        number += 1
        if not again and error is not None:
            raise error
        _pinged(context, took, error)
        if not again or number == count:
            return 0 if alive else UNAVAILABLE
        time.sleep(interval)


def _pinged(context: Context, took: float, error: kvi.KviError | None) -> None:
    now = time.strftime("%Y-%m-%dT%H:%M:%S")
    if context.json:
        found: dict[str, Any] = {"time": now, "alive": error is None, "seconds": round(took, 6)}
        if error is not None:
            found["error"] = f"{type(error).__name__}: {error}"
        say_json(found)
    elif error is None:
        say_fields(now, "alive", f"{took * 1000:.2f} ms")
    else:
        say_fields(now, "away", f"{type(error).__name__}: {error}")


# -- conformance and bench -------------------------------------------------------------------------


@command(
    "conformance",
    "kvi conformance mem:scratch --rule tas\n"
    "kvi conformance mem:scratch --rule tas.atomic --json\n"
    "kvi conformance mem:scratch --rule tas.atomic --aio",
)
@click.argument("store", metavar="URI", required=False)
@click.option("--erase", is_flag=True, help="Go on although the store is not empty.")
@click.option("--rule", "rules", multiple=True, metavar="NAME", help="Only this rule, or these.")
@click.option("--html", type=click.Path(dir_okay=False), metavar="FILE", help="Also as a page.")
@click.option(
    "--also",
    multiple=True,
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    metavar="FILE",
    help="A test file with more rules, such as those of faults with their fixture kvi_server.",
)
@click.option("--aio", is_flag=True, help="Check kvi.aio on the store.")
def conformance_(
    context: Context,
    store: str | None,
    erase: bool,
    rules: tuple[str, ...],
    html: str | None,
    also: tuple[Path, ...],
    aio: bool,
) -> int:
    """Check the store against the contract, rule by rule. EVERYTHING IN IT IS DELETED.

    Needs the extra kvi-core[conformance]. Exit code 1 if a rule is broken. The store must be named:
    as URI, with --uri, or by KVI_URI. Where there is no terminal, standard error has a line for
    each group of tests that is done.
    """
    if store is not None:
        context.uri, context.uri_from_file = store, None
    if context.namespace is not None or context.timeout is not None:
        raise click.UsageError("The suite takes a whole store: no --namespace, no --timeout.")
    if context.read_only:
        raise kvi.PermissionDenied(
            "the suite writes, and deletes everything; run it without --read-only",
            operation="conformance",
        )
    if store == "" or context.named_uri is None:
        raise click.UsageError("Name the store: everything in it is deleted.")
    try:
        from kvi.conformance.plugin import NotRun
        from kvi.conformance.session import run, told_in_lines
    except ModuleNotFoundError as error:
        raise Failed(f"{error.name} is not installed: pip install kvi-core[conformance]") from None
    if html is not None:
        Path(html).open("a").close()  # before all is deleted for a report that cannot be there
    with progress("checking", None, context.json) as tell:

        def told(done: int, total: int) -> None:
            tell(done)

        try:
            report = run(
                context.store_uri,
                erase=erase,
                select=rules,
                also=also,
                aio=aio,
                progress=told,
                finished=told_in_lines(),
            )
        except NotRun as error:
            context.go_on()
            raise Failed(str(error)) from error
    if context.json:
        say_json(json.loads(report.json()))
    else:
        bare(sys.stdout).write(report.text(width=100, colour=in_colour()))
    if html is not None:
        Path(html).write_text(report.html(), encoding="utf-8", errors="backslashreplace")
    return 0 if report.passed else NOT_FOUND


@command("bench", "kvi bench --uri mem:\nkvi bench --seconds 0.2 --json")
@click.option(
    "--seconds",
    type=Seconds(0.01, MAX_SECONDS),
    default=1.0,
    show_default=True,
    help="For each operation.",
)
@click.option(
    "--size",
    type=click.IntRange(0, _LARGEST),
    default=100,
    show_default=True,
    help="Bytes of a value.",
)
def bench_(context: Context, seconds: float, size: int) -> int:
    """Measure the usual operations, one after the other from one thread.

    Writes below a name of its own, and removes that at the end.
    """
    store = context.store()
    name = f"kvi-bench-{secrets.token_hex(4)}"
    own = store.namespace(name)
    value = b"x" * size
    clean = False
    try:
        try:
            own.store("k", value)
        except kvi.PermissionDenied:
            clean = True
            raise
        measured = [
            ("ping", lambda: store.ping()),
            ("get", lambda: own.get("k")),
            ("store", lambda: own.store("k", value)),
            ("tas", lambda: own.tas("k", value, value)),
            ("txn", lambda: own.txn([kvi.Key("k").exists], [kvi.Put("k", value), kvi.Get("k")])),
            ("lock", lambda: _locked(own)),
        ]
        rows = []
        for operation, act in measured:
            times = _measure(act, seconds)
            cuts = statistics.quantiles(times, n=100) if len(times) > 1 else [times[0]] * 99
            found = {
                "operation": operation,
                "per_second": round(len(times) / sum(times), 1),
                "median": cuts[49],
                "p99": cuts[98],
                "count": len(times),
            }
            if context.json:
                say_json(found)
            rows.append(
                [
                    operation,
                    f"{found['per_second']:,.0f}",
                    f"{cuts[49] * 1e3:.3f} ms",
                    f"{cuts[98] * 1e3:.3f} ms",
                ]
            )
    finally:
        try:
            if not clean:
                own.delete_range(prefix="")
        except kvi.KviError:
            click.echo(f"kvi: keys are left: kvi del --prefix {name}/", err=True)
    if not context.json:
        titles = ["operation", "per second", "median", "99 %"]
        say_table(titles, rows, right=titles[1:])
    return 0


def _locked(store: kvi.Kvi) -> None:
    with store.lock("bench"):
        pass


def _measure(act: Callable[[], object], seconds: float) -> list[float]:
    end = time.perf_counter() + seconds
    times: list[float] = []
    while not times or time.perf_counter() < end:
        began = time.perf_counter()
        act()
        times.append(time.perf_counter() - began)
    return times


@command("explain", "kvi explain\nkvi explain OutcomeUnknown\nkvi explain leaselost --json")
@click.argument("error", required=False)
def explain_(context: Context, error: str | None) -> int:
    """Tell what ERROR means, where it comes from, and what to do; without one, list them all."""
    texts = explanations()
    if error is None:
        for name, text in texts.items():
            first = text.partition("\n\n")[0].replace("\n", " ")
            say_json({"error": name, "meaning": first}) if context.json else say_fields(name, first)
        return 0
    asked = error.rpartition(".")[2].casefold()
    found = {name.casefold(): name for name in texts}
    if asked not in found:
        near = difflib.get_close_matches(asked, found, n=1, cutoff=0.5)
        mend = f"did you mean {found[near[0]]}?" if near else "`kvi explain` lists them all"
        raise Failed(f"kvi has no error of the name {error!r}; {mend}")
    name = found[asked]
    if context.json:
        say_json({"error": name, "text": texts[name]})
    else:
        text = _filled(texts[name]) if on_terminal() else texts[name]
        click.echo(f"{name}\n\n{text}")
    return 0


def _filled(text: str) -> str:
    """Paragraphs and their points, in lines as wide as the terminal."""
    width = shutil.get_terminal_size().columns
    return "\n\n".join(
        "\n".join(
            textwrap.fill(
                " ".join(part.split()), width, subsequent_indent="  " * part.startswith("- ")
            )
            for part in re.split(r"\n(?=- )", paragraph)
        )
        for paragraph in text.split("\n\n")
    )


def explanations() -> dict[str, str]:
    """The text on each error, from the page of the documentation."""
    page = (resources.files("kvi.cli") / "errors.md").read_text(encoding="utf-8")
    parts = (part.partition("\n") for part in page.split("\n## ")[1:])
    return {name: text.strip() for name, _, text in parts}
