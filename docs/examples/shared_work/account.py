"""What happened in a run, and whether every promise was kept."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from math import inf

import kvi

from docs.examples.shared_work.plan import COUNT, CREWS, LEDGER, MEMBER, Job, Note, Seen, ledger_key

SLACK = 3.0  # seconds that a busy machine may take to notice what has happened


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that must be exactly so, and whether it is."""

    claim: str
    holds: bool


@dataclass(slots=True)
class Strike:
    """What happened in the middle of a crew's job."""

    what: str  # killed, or stopped
    victim: Note
    pid: int
    time: float
    heir: Note | None = None  # who had the lock next
    after: float = inf  # seconds until then


@dataclass(slots=True)
class Account:
    """What happened in a run."""

    uri: str
    job: Job
    capabilities: kvi.Capabilities
    workers: list[str] = field(default_factory=list)
    members: list[str] = field(default_factory=list)  # as the store listed them
    notes: list[Note] = field(default_factory=list)
    strikes: dict[str, Strike] = field(default_factory=dict)
    left: dict[str, kvi.KeyValue] = field(default_factory=dict)
    seen: list[Seen] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def good(self) -> bool:
        """Whether every promise was kept."""
        return all(check.holds for check in self.checks())

    @property
    def counted(self) -> list[Note]:
        """The writes that were acknowledged."""
        return [note for note in self.notes if note.what == "counted"]

    @property
    def written(self) -> int:
        """How many changes were made: a member comes and goes, a number is written twice."""
        return 2 * len(self.workers) + 2 * len(self.counted)

    @property
    def gone_after(self) -> float:
        """Seconds until the watcher saw the temporary key of the one who was killed vanish."""
        strike = next(strike for strike in self.strikes.values() if strike.what == "killed")
        key = MEMBER + strike.victim.worker
        times = (seen.time for seen in self.seen if seen.key == key and seen.value is None)
        return next(times, inf) - strike.time

    @property
    def gone_within(self) -> float:
        """Seconds after which a key of the dead has vanished, and it was seen."""
        return self.capabilities.lease_expiry_factor * self.job.ttl + 1 + SLACK

    @property
    def freed_within(self) -> float:
        """Seconds after which another one has the lock of the dead."""
        return self.gone_within + self.capabilities.lock_delay_factor * self.job.ttl

    def checks(self) -> Iterator[Check]:
        """All that was promised."""
        yield Check(
            f"members: {', '.join(self.members)}; the key of the one who was killed vanished "
            f"after {self.gone_after:.1f} s",
            self.members == sorted(self.workers) and self.gone_after <= self.gone_within,
        )
        for crew in CREWS:
            yield from self._struck(crew, self.strikes[crew])
            yield self._exact(crew)
        yield self._watched()

    def _struck(self, crew: str, strike: Strike) -> Iterator[Check]:
        victim, heir = strike.victim, strike.heir
        if heir is None:
            yield Check(f"crew {crew}: nobody had the lock after {victim.worker}", False)
            return
        yield Check(
            f"crew {crew}: {victim.worker} was {strike.what} holding the lock, fence "
            f"{victim.fence}; {strike.after:.1f} s later {heir.worker} had it, fence {heir.fence}",
            heir.fence > victim.fence and strike.after <= self.freed_within,
        )
        if strike.what == "stopped":
            late = [
                (note.what, note.held)
                for note in self.notes
                if (note.worker, note.fence) == (victim.worker, victim.fence)
            ]
            yield Check(
                f"crew {crew}: {victim.worker} went on later, saw that the lock was lost, and the "
                "write it still made was refused",
                late == [("inside", True), ("refused", False)],
            )

    def _exact(self, crew: str) -> Check:
        last = self.left[COUNT + crew].text
        ledger = [entry for key, entry in self.left.items() if key.startswith(LEDGER + crew)]
        wanted = sorted(
            (ledger_key(crew, note.number), f"{note.worker} {note.fence}")
            for note in self.counted
            if note.crew == crew
        )
        fences = [int(entry.text.split()[1]) for entry in ledger]
        return Check(
            f"crew {crew}: counted to {last}, each number once, with ever larger fences",
            last == str(self.job.target)
            and [entry.key for entry in ledger]
            == [ledger_key(crew, number) for number in range(1, self.job.target + 1)]
            and [(entry.key, entry.text) for entry in ledger] == wanted
            and fences == sorted(set(fences)),
        )

    def _watched(self) -> Check:
        made = {(ledger_key(note.crew, note.number), note.revision) for note in self.counted}
        made |= {(COUNT + note.crew, note.revision) for note in self.counted}
        came = [(seen.key, seen.revision) for seen in self.seen if not seen.key.startswith(MEMBER)]
        gone = sorted(seen.key for seen in self.seen if seen.value is None)
        missed = made - set(came)
        claim = f"watcher: saw {len(self.seen):,} of {self.written:,} changes"
        holds = (
            set(came) <= made
            and len(came) == len(set(came))
            and gone == sorted(MEMBER + name for name in self.workers)
        )
        if self.capabilities.watch_history:
            revisions = [seen.revision for seen in self.seen]
            return Check(
                f"{claim}, each once, in order",
                holds and not missed and revisions == sorted(revisions),
            )
        newest = {(COUNT + crew, self.left[COUNT + crew].revision) for crew in CREWS}
        return Check(
            f"{claim}: of each key newer and newer states, and the last",
            holds and all(key.startswith(COUNT) for key, _ in missed) and not missed & newest,
        )

    def as_json(self) -> dict[str, object]:
        """The figures that runs are compared by."""
        return {
            "ttl": self.job.ttl,
            "seconds": self.seconds,
            "counted": len(self.counted),
            "after": {strike.what: strike.after for strike in self.strikes.values()},
            "gone_after": self.gone_after,
            "seen": len(self.seen),
            "written": self.written,
            "good": self.good,
        }
