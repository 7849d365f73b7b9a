"""The third program of `make demo`: agents are killed, and all adds up; by halves it would not."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any
from urllib.parse import quote

import kvi
import pytest

from docs.examples.device_agent.checker import check
from docs.examples.device_agent.device import TEMPLATES, pack, unpack
from docs.examples.device_agent.device_pb2 import Flow, Meter, Pool, Profile, ResourceRecord

ROOT = Path(__file__).parents[2]
HOME = min(TEMPLATES)
STORES = [
    "sqlite",
    pytest.param("etcd", marks=[pytest.mark.etcd, pytest.mark.xdist_group("etcd")]),
    pytest.param("consul", marks=[pytest.mark.consul, pytest.mark.xdist_group("consul")]),
]


def of(store: str, request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if store == "sqlite":
        return "sqlite:" + quote(f"{tmp_path}/a name with spaces.db")
    uri: str = request.getfixturevalue(f"{store}_uri")
    return uri


def run(uri: str, tmp_path: Path, *options: str) -> tuple[int, str, dict[str, Any]]:
    figures = tmp_path / "figures.json"
    command = [sys.executable, "-m", "docs.examples.device_agent", "--uri", uri, *options]
    done = subprocess.run(
        [*command, "--json", str(figures)], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert figures.exists(), done.stdout + done.stderr
    return done.returncode, done.stdout + done.stderr, json.loads(figures.read_text())


@pytest.mark.slow
@pytest.mark.parametrize("store", STORES)
def test_agents_are_killed_and_all_adds_up(
    request: pytest.FixtureRequest, store: str, tmp_path: Path
) -> None:
    """Six agents for eight seconds, one killed every two: counts are exact, and caches agree."""
    code, output, told = run(of(store, request, tmp_path), tmp_path)
    assert code == 0, output
    assert "WRONG" not in output
    assert told["wrong"] == []
    assert (told["agents"], told["kills"]) in {(6, 3), (6, 4)}
    assert told["changes"] > 50
    assert told["stored"] < told["whole"] / 10


@pytest.mark.soak
@pytest.mark.parametrize("store", STORES)
def test_agents_for_a_minute(request: pytest.FixtureRequest, store: str, tmp_path: Path) -> None:
    """The same for sixty seconds."""
    code, output, told = run(of(store, request, tmp_path), tmp_path, "--seconds", "60")
    print(f"\n{output}")
    assert code == 0, output
    assert told["wrong"] == []
    assert told["kills"] >= 29
    assert told["converged"] <= 1


@pytest.mark.slow
@pytest.mark.parametrize("store", STORES)
def test_checker_finds_what_is_written_by_halves(
    request: pytest.FixtureRequest, store: str, tmp_path: Path
) -> None:
    """With two writes instead of the transaction the agents leave what does not add up."""
    uri = of(store, request, tmp_path)
    deadline = time.monotonic() + 120
    told: dict[str, Any] = {}
    code, output = 0, ""
    while code == 0 and time.monotonic() < deadline:  # chance may let a short run end well
        options = ["--one-by-one", "--seconds", "1.5", "--kill-every", "0.3"]
        code, output, told = run(uri, tmp_path, *options)
    assert code == 1, output
    assert "WRONG  every meter counts exactly" in output
    assert told["wrong"]


def message(**members: Any) -> dict[str, bytes]:
    """A consistent small device, with some of its records replaced."""
    made = {
        "flows/1": Flow(id=1, meter=2),
        "flows/2": Flow(id=2, meter=2),
        "meters/2": Meter(id=2, flows=2),
        "pools/1": Pool(id=1, next=10, free=[9]),
        "profiles/9": ResourceRecord(subscriber=9, template=HOME, ports=range(1, 9)),
    }
    replaced = {key.replace("_", "/"): record for key, record in members.items()}
    return {key: one.SerializeToString() for key, one in (made | replaced).items() if one}


@pytest.mark.parametrize(
    ("replaced", "finding"),
    [
        ({"meters_2": Meter(id=2, flows=3)}, "meter 2 counts 3 flows, 2 use it"),
        ({"flows_2": None}, "meter 2 counts 2 flows, 1 use it"),
        ({"meters_2": None}, "2 flows use meter 2, which is not there"),
        ({"flows_2": Flow(id=3, meter=2)}, "a flow stands under 2"),
        ({"pools_1": Pool(id=1, next=11, free=[9])}, "port 10 is nobody's"),
        ({"pools_1": Pool(id=1, next=10, free=[2, 9])}, "port 2 was given out 2 times"),
        ({"pools_1": Pool(id=1, next=8)}, "port 8 was never in the pool"),
        ({"pools_1": Pool(id=1, next=9)}, None),
        (
            {"profiles_9": ResourceRecord(subscriber=8, template=HOME, ports=range(1, 9))},
            "a profile stands under 9",
        ),
        (
            {
                "profiles_9": ResourceRecord(subscriber=9, template=HOME, ports=range(1, 8)),
                "pools_1": Pool(id=1, next=10, free=[8, 9]),
            },
            "subscriber 9 has 7 ports",
        ),
    ],
)
def test_checker(replaced: dict[str, Any], finding: str | None) -> None:
    """It finds every kind of thing that does not add up, and nothing else."""
    with kvi.open("mem:checker") as store:
        store.delete_range(prefix="")
        for key, value in message(**replaced).items():
            store.store(key, value)
        found = check(store)
    assert found.wrong == ([] if finding is None else [finding])


def test_profiles_are_rebuilt_from_small_records() -> None:
    """The stored record has a fraction of the bytes, and gives the same profile again."""
    template = TEMPLATES[HOME]
    profile = Profile(subscriber=7, template=template, ports=range(100, 108))
    record = pack(profile)
    assert unpack(record) == profile
    assert len(record.SerializeToString()) < len(profile.SerializeToString()) / 15
