"""The lines of *One of many* in docs/recipes.md, with the tools that they are for."""

from __future__ import annotations

import signal
import subprocess
import textwrap
from pathlib import Path

import pytest

from tests.cli.conftest import Command
from tests.support.waiting import until

pytestmark = pytest.mark.slow

HOSTS = 3


def write(path: Path, text: str) -> None:
    """Write a file of a project."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(textwrap.dedent(text))


def on_all_hosts(local: Command, *words: str) -> None:
    """Run the line as often as there are hosts, at once; it must succeed on each."""
    running = [local.start(*words) for _ in range(HOSTS)]
    told = [process.communicate(timeout=120) for process in running]
    assert [process.returncode for process in running] == [0] * HOSTS, told


def test_alembic(local: Command) -> None:
    """One host migrates, the others wait until that is done."""
    folder = local.folder
    write(
        folder / "alembic.ini",
        """
        [alembic]
        script_location = migrations
        sqlalchemy.url = sqlite:///app.db
        """,
    )
    write(
        folder / "migrations" / "env.py",
        """
        from alembic import context
        from sqlalchemy import create_engine

        with create_engine("sqlite:///app.db").connect() as connection:
            context.configure(connection=connection)
            with context.begin_transaction():
                context.run_migrations()
        """,
    )
    write(
        folder / "migrations" / "versions" / "one.py",
        """
        import time

        import sqlalchemy as sa
        from alembic import op

        revision, down_revision = "one", None


        def upgrade():
            with open("ran", "a") as log:
                log.write("upgraded\\n")
            time.sleep(0.5)  # two at once would both be here
            op.create_table("devices", sa.Column("id", sa.Integer, primary_key=True))
        """,
    )
    on_all_hosts(local, "once", "schema-1", "--", "alembic", "upgrade", "head")
    assert (folder / "ran").read_text() == "upgraded\n"


def test_django(local: Command) -> None:
    """The same with Django's own command."""
    folder = local.folder
    write(
        folder / "manage.py",
        """
        import sys

        from django.conf import settings
        from django.core.management import execute_from_command_line

        settings.configure(
            INSTALLED_APPS=["shop"],
            DATABASES={"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": "app.db"}},
            DEFAULT_AUTO_FIELD="django.db.models.AutoField",
        )
        execute_from_command_line(sys.argv)
        """,
    )
    write(folder / "shop" / "__init__.py", "")
    write(folder / "shop" / "migrations" / "__init__.py", "")
    write(
        folder / "shop" / "migrations" / "0001_initial.py",
        """
        import time

        from django.db import migrations


        def fill(apps, schema_editor):
            with open("ran", "a") as log:
                log.write("migrated\\n")
            time.sleep(0.5)


        class Migration(migrations.Migration):
            initial = True
            operations = [migrations.RunPython(fill)]
        """,
    )
    on_all_hosts(local, "once", "migrate-1", "--", "python", "manage.py", "migrate")
    assert (folder / "ran").read_text() == "migrated\n"


@pytest.mark.soak
def test_celery_beat(local: Command) -> None:
    """One host sends the tasks; once it ends, another does."""
    write(
        local.folder / "app.py",
        """
        import os

        from celery import Celery
        from celery.signals import beat_init

        app = Celery("app", broker="memory://")


        @beat_init.connect
        def note(**_):
            with open("beats", "a") as log:
                log.write(f"{os.environ['KVI_LOCK_FENCE']}\\n")
        """,
    )
    beats = local.folder / "beats"

    def fences() -> list[int]:
        return [int(line) for line in beats.read_text().split()] if beats.exists() else []

    line = ("elect", "beat", "--ttl", "2", "--", "celery", "-A", "app", "beat", "--pidfile=")
    with local.start(*line) as first:
        until(lambda: len(fences()) == 1, within=60)
        with local.start(*line) as second:
            with pytest.raises(subprocess.TimeoutExpired):
                second.wait(1.5)
            assert len(fences()) == 1
            first.send_signal(signal.SIGTERM)
            until(lambda: len(fences()) == 2, within=60)
            second.send_signal(signal.SIGTERM)
            second.communicate(timeout=60)
        first.communicate(timeout=60)
    assert fences() == sorted(set(fences()))
