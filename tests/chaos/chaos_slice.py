"""A slice of a chaos run: one stand under load, one fault after another, and the verdict."""

import os
import shutil
import subprocess
import tempfile
import time
import tomllib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Literal

import msgspec

from anabranch.errors import AnabranchError
from tests.chaos.checker import Checker, Verdict
from tests.chaos.faults import FAULTS, Fault, FaultMissed
from tests.chaos.load import Load, Plant
from tests.chaos.models import Reference
from tests.chaos.stand import Stand

HERE = Path(__file__).parent

_CALM_S = (3.0, 6.0)
#: Times before the end of a slice: the last begin of a fault, the last recovery, and the last answer.
_LAST_FAULT_S, _LAST_RECOVERY_S, _LAST_ANSWER_S = 300.0, 120.0, 60.0
_POLL_S = 0.1


class Slice(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The plan of a slice.

    Attributes:
        hold_s: Bounds of the time for which a fault lasts.
        limit_s: Time of the whole slice; near its end no further fault begins, and nothing is waited for.
    """

    mode: Literal["thread", "process"]
    delivery: Literal["exactly-once", "at-least-once"]
    faults: list[str]
    seed: int
    balance: Literal["offload", "off"] = "offload"
    task_managers: int = 2
    rate_per_s: float = 110.0
    hold_s: tuple[float, float] = (5.0, 30.0)
    limit_s: float = 840.0


class FaultResult(msgspec.Struct, kw_only=True):
    """One fault and the recovery from it.

    Attributes:
        at_s: Begin, from the begin of the load.
        lasted_s: Time for which it lasted, or that its command took.
        evidence: Evidence that it happened.
        missed: Reason for which it did not happen; empty if it did.
        answers_again_s: Time until a request sent after the fault was answered.
        caught_up_s: Time until all requests sent before were answered.

    Both times count from the end of the fault, or from its begin if a process was killed or replaced.
    """

    kind: str
    at_s: float
    lasted_s: float = 0.0
    evidence: str = ""
    missed: str = ""
    answers_again_s: float | None = None
    caught_up_s: float | None = None

    @property
    def recovered(self) -> bool:
        """True if the service recovered in time."""
        return self.answers_again_s is not None and self.caught_up_s is not None


class SliceResult(msgspec.Struct, kw_only=True):
    """The result of a slice, as it is written to a file.

    Attributes:
        load_average: Processes that wanted a core, on average over the last minutes of the run.
        runs: Number of times that `anabranch run` was started.
        refused: Requests beside those in the topic, whose timestamps the broker refused.
        note: The first thing that went wrong with the run itself; empty if nothing did.
    """

    name: str
    plan: Slice
    date: str
    commit: str
    cores: int
    load_average: float
    duration_s: float
    faults: list[FaultResult]
    verdict: Verdict
    runs: int
    refused: int = 0
    plant: Plant = "none"
    note: str = ""

    @property
    def is_clean(self) -> bool:
        """True if no guarantee was broken and the service recovered from each fault."""
        return (
            self.verdict.is_clean and not self.note and all(each.recovered for each in self.faults if not each.missed)
        )


def read_suite() -> dict[str, Slice]:
    """Reads the plans of all slices."""
    suite = msgspec.convert(tomllib.loads((HERE / "suite.toml").read_text())["slices"], dict[str, Slice])
    unknown = {kind for plan in suite.values() for kind in plan.faults} - FAULTS.keys()
    if unknown:
        raise ValueError(f"suite.toml has unknown faults {sorted(unknown)}; available: {', '.join(FAULTS)}")
    return suite


@dataclass
class _Course:
    """The course of a slice under load."""

    plan: Slice
    stand: Stand
    load: Load
    tell: Callable[[str], None]
    end_s: float

    def run(self) -> tuple[list[FaultResult], str]:
        """Does one fault after another; returns them, and a note if the service did not recover."""
        random, start_s, done = Random(self.plan.seed), time.monotonic(), list[FaultResult]()
        # In process mode, tasks load their models at the first request.
        while self.load.ledger.first_answer_after(start_s) is None and time.monotonic() < self.end_s - _LAST_FAULT_S:
            self._sleep(_POLL_S)
        for kind in random.sample(self.plan.faults, len(self.plan.faults)):
            fault = FAULTS[kind](self.stand, self.load, Random(random.random()), random.uniform(*self.plan.hold_s))
            if time.monotonic() > self.end_s - _LAST_FAULT_S:
                return done, ""
            self._sleep(random.uniform(*_CALM_S))
            result = self._do(fault, start_s)
            done.append(result)
            self.tell(_told(result))
            if not result.recovered:
                return done, f"no recovery from {kind!r} in time"
        return done, ""

    def _do(self, fault: Fault, start_s: float) -> FaultResult:
        began_s = time.monotonic()
        result = FaultResult(kind=fault.kind, at_s=round(began_s - start_s, 1))
        try:
            result.evidence = fault.begin()
            if not fault.is_outage:
                self._sleep(fault.hold_s)
        except (FaultMissed, AnabranchError, subprocess.SubprocessError) as error:
            result.missed = str(error)
        finally:
            try:
                result.evidence = "; ".join(filter(None, (result.evidence, fault.end())))
            except FaultMissed as error:
                result.missed = str(error)
        ended_s = time.monotonic()
        result.lasted_s = round(ended_s - began_s, 1)
        self._await_recovery(result, began_s if fault.is_outage else ended_s)
        return result

    def _await_recovery(self, result: FaultResult, from_s: float) -> None:
        ledger = self.load.ledger
        while not result.recovered and time.monotonic() < self.end_s - _LAST_RECOVERY_S:
            self._sleep(_POLL_S)
            again_s, caught_up_s = ledger.first_answer_after(from_s), ledger.caught_up_after(from_s)
            result.answers_again_s = None if again_s is None else round(max(0.0, again_s - from_s), 2)
            result.caught_up_s = None if caught_up_s is None else round(max(0.0, caught_up_s - from_s), 2)

    def _sleep(self, seconds: float) -> None:
        self.load.check()
        time.sleep(seconds)


def run_slice(
    name: str, plan: Slice, folder: Path | None = None, plant: Plant = "none", tell: Callable[[str], None] = print
) -> SliceResult:
    """Runs a slice.

    Args:
        folder: Folder of the stack, which stays; default: a temporary one, which stays if a guarantee was broken.
        plant: Defect that the checker must find.
        tell: Is told in one line what happens.
    """
    place = folder or Path(tempfile.mkdtemp(prefix=f"chaos-{name}-"))
    start_s, commit = time.monotonic(), checked_out_commit()
    tell(f"{name}: seed {plan.seed}, {len(plan.faults)} faults, in {place}")
    with Stand(place, plan.mode, plan.delivery, plan.balance, plan.task_managers) as stand:
        tell(f"{name}: the job serves after {time.monotonic() - start_s:.0f} s")
        with Load(
            stand.bootstrap_servers, stand.direct_servers, seed=plan.seed, rate_per_s=plan.rate_per_s, plant=plant
        ) as load:
            end_s = start_s + plan.limit_s
            faults, note = _Course(plan, stand, load, tell, end_s).run()
            load.finish_sending(end_s - _LAST_ANSWER_S)
            load.await_answers(end_s - _LAST_ANSWER_S)
            requests = load.read_requests()
        runs = stand.runs
    tell(f"{name}: checking {len(requests)} requests")
    checker = Checker(
        Reference(place / "reference"),
        exactly_once=plan.delivery == "exactly-once",
        order=plan.balance == "off",
        generations=load.generations,
        sent_s=load.ledger.sent_s,
    )
    result = SliceResult(
        name=name,
        plan=plan,
        date=time.strftime("%Y-%m-%d"),
        commit=commit,
        cores=os.cpu_count() or 1,
        load_average=round(os.getloadavg()[1], 1),
        duration_s=round(time.monotonic() - start_s, 1),
        refused=load.refused,
        faults=faults,
        verdict=checker.check(requests, load.answers, load.letters),
        runs=runs,
        plant=plant,
        note=note,
    )
    if folder is None and result.is_clean:
        shutil.rmtree(place, ignore_errors=True)
    return result


def summary_of(result: SliceResult) -> str:
    """Returns the verdict of a slice in a few lines."""
    found = result.verdict
    done = sum(not fault.missed for fault in result.faults)
    return "\n".join(
        [
            f"{result.name}: {found.requests} requests, {done} of {len(result.plan.faults)} faults, "
            f"lost {found.lost}, wrong {found.wrong}, doubled {found.doubled}, disordered {found.disordered} "
            f"of {found.ordered}, repeated {found.repeated}" + (f"; {result.note}" if result.note else ""),
            *(f"  {example}" for example in found.examples),
        ]
    )


def _told(result: FaultResult) -> str:
    if result.missed:
        return f"  {result.at_s:6.1f} s  {result.kind}: MISSED: {result.missed}"
    words = f"  {result.at_s:6.1f} s  {result.kind} ({result.evidence})"
    if not result.recovered:
        return f"{words}: NO RECOVERY"
    return f"{words}: answers again after {result.answers_again_s:.1f} s, caught up after {result.caught_up_s:.1f} s"


def checked_out_commit() -> str:
    done = subprocess.run(
        ["git", "describe", "--always", "--dirty", "--abbrev=7"], capture_output=True, text=True, check=False, cwd=HERE
    )
    return done.stdout.strip()
