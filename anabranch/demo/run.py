"""One run of the demo: starts the stack, sends requests, and compares the answers."""

import signal
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

import numpy as np
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from anabranch.client import Client
from anabranch.demo import reference, workload
from anabranch.demo.bad_requests import bad_requests
from anabranch.demo.error_check import ErrorOutcome, send_and_check
from anabranch.demo.features import FeatureReader, ModelFile, RuledFile, ScoreReader, UnreadFile
from anabranch.demo.files import FoundFile, find_files
from anabranch.demo.local_job import LocalJob
from anabranch.demo.report import Figures
from anabranch.errors import UnusableArgument
from anabranch.schemas.tensors import Array

_IN_FLIGHT = 64
_LARGE_ROWS = 1_024
_HTTP_REQUESTS = 500
#: Pace as a share of the measured throughput; low enough that no queue builds up.
_PACE = 0.4
_PACED_S = 6.0
_FIRST_ANSWER_TIMEOUT_S = 240.0
_FIRST_ANSWER_AGAIN_S = 40.0
_LARGE_TIMEOUT_S = 120.0
_ERRORS_TIMEOUT_S = 30.0
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_RAISE_AGAIN_S = 1.0

Advance = Callable[[int], object]


@dataclass
class _Sorted:
    """Files that need the model, files that do not, and unreadable files."""

    model: list[ModelFile]
    ruled: list[RuledFile]
    unread: list[UnreadFile]


@dataclass
class _Asked:
    """The answers of the job."""

    streamed: workload.DemoResponses
    paced: workload.DemoResponses
    paced_rows: Array
    paced_rps: float
    through: workload.DemoResponses
    large_tokens: Array
    large: workload.LargeAnswer | None
    outcomes: list[ErrorOutcome]
    problems: list[str]


class Demo:
    """One run of the demo.

    Args:
        folder: Folder of files to stream; None for Python's standard library.
        limit: Largest number of files; 0 for all.
        tasks: Number of inference tasks, each in its own process.
    """

    def __init__(self, console: Console, folder: Path | None, limit: int, tasks: int) -> None:
        self._console = console
        self._folder = folder
        self._limit = limit
        self._tasks = tasks
        self._seconds: dict[str, float] = {}

    def run(self) -> tuple[Figures, list[ErrorOutcome]]:
        """Run the demo; end every process that it started, even after an error.

        Raises:
            UnusableArgument: No file needs the model.
            StackError, InstallationError, TransportError: The stack or the job did not start.
        """
        with (
            _interruptible(),
            tempfile.TemporaryDirectory(prefix="anabranch-demo-", ignore_cleanup_errors=True) as work,
        ):
            job = LocalJob(Path(work), self._tasks)
            try:
                with self._timed("start"):
                    files = self._start(job)
                asked = self._ask(job, files)
            finally:
                with _uninterrupted():
                    job.kill()
            return self._compare(files, asked), asked.outcomes

    def _start(self, job: LocalJob) -> _Sorted:
        found = find_files(self._folder, self._limit)
        self._say(f"Found [bold]{len(found.files):,}[/] files in {found.folder}{_left_out(found)}")
        job.launch()
        self._say(f"Starting a Kafka broker and a Flink cluster of {self._tasks} TaskManagers: {job.flink_url}")
        files = self._read(found)
        job.await_ready()
        self._say("Submitting the job")
        job.submit()
        with Client.for_job(job.config) as client:
            workload.wait_until_served(
                client,
                files.model[0].tokens[np.newaxis],
                _FIRST_ANSWER_TIMEOUT_S,
                _FIRST_ANSWER_AGAIN_S,
                lambda: self._say(f"No answer yet; sending another request. {escape(job.explain())}"),
            )
        job.await_gateway()
        self._say(f"The job answers: one inference task in each of {self._tasks} processes; HTTP at {job.http_url}")
        return files

    def _read(self, found: FoundFile) -> _Sorted:
        reader = FeatureReader()
        files = _Sorted([], [], [])
        with self._progress("Reading features", len(found.files)) as advance:
            for path in found.files:
                match reader.read(path):
                    case ModelFile() as file:
                        files.model.append(file)
                    case RuledFile() as file:
                        files.ruled.append(file)
                    case UnreadFile() as file:
                        files.unread.append(file)
                advance(1)
        self._say(
            f"[bold]{len(files.model):,}[/] files for the model; {len(files.ruled):,} too short or empty to need it; "
            f"{len(files.unread) + found.unread_folders:,} unreadable; "
            f"{found.linked_folders:,} links to folders not followed"
        )
        if not files.model:
            raise UnusableArgument(
                f"{found.folder} has no file that needs Magika's model: name another folder with --input"
            )
        return files

    def _ask(self, job: LocalJob, files: _Sorted) -> _Asked:
        tokens = np.stack([file.tokens for file in files.model])
        large_tokens = np.resize(tokens, (_LARGE_ROWS, tokens.shape[1]))
        problems: list[str] = []
        with Client.for_job(job.config, timeout_s=60) as client:
            with self._timed("stream"), self._progress("Streaming files", len(tokens)) as advance:
                streamed = workload.stream(client, tokens, _IN_FLIGHT, lambda: advance(1))
            paced_rps = max(1.0, _PACE * streamed.per_second)
            paced_rows = np.arange(max(20, int(_PACED_S * paced_rps))) % len(tokens)
            with self._timed("pace"), self._progress(f"At a steady {paced_rps:.0f}/s", len(paced_rows)) as advance:
                paced = workload.pace(client, tokens[paced_rows], paced_rps, lambda: advance(1))
            with self._timed("large"), self._console.status(f"One request of {_LARGE_ROWS:,} rows"):
                large = _ask_large(client, large_tokens, problems)
        first = tokens[:_HTTP_REQUESTS]
        with (
            Client(job.http_url, timeout_s=60) as client,
            self._timed("http"),
            self._progress("Over HTTP", len(first)) as advance,
        ):
            through = workload.stream(client, first, _IN_FLIGHT, lambda: advance(1))
        with self._timed("errors"), self._console.status("Bad requests of every kind"):
            kafka = job.config.kafka
            outcomes = send_and_check(kafka, bad_requests("demo", kafka.max_message_bytes), _ERRORS_TIMEOUT_S)
        problems += [f"file {files.model[i].path}: {error}" for i, error in streamed.failures.items()]
        problems += [f"at a steady pace: {error}" for error in paced.failures.values()]
        problems += [f"over HTTP: {error}" for error in through.failures.values()]
        return _Asked(streamed, paced, paced_rows, paced_rps, through, large_tokens, large, outcomes, problems)

    def _compare(self, files: _Sorted, asked: _Asked) -> Figures:
        rows = 2 * len(files.model) + len(asked.large_tokens)
        with self._timed("check"), self._progress("Running the model directly, and Magika itself", rows) as advance:
            right = reference.compute(files.model, asked.large_tokens, advance)
        wrong_streamed = reference.differing_rows(asked.streamed.scores, right.scores)
        wrong_paced = reference.differing_rows(asked.paced.scores, right.scores[asked.paced_rows])
        wrong_through = reference.differing_rows(asked.through.scores, right.scores[: len(asked.through.scores)])
        large_scores = asked.large.scores if asked.large else np.full_like(right.large_scores, np.nan)
        wrong_large = reference.differing_rows(large_scores, right.large_scores)
        asked.problems += [f"file {files.model[row].path}: other scores than a direct run" for row in wrong_streamed]
        asked.problems += [f"row {row} of the large request: other scores than a direct run" for row in wrong_large]
        types, compared, agreed = _types(files, asked.streamed.scores, right.labels)
        p50_ms, p95_ms, p99_ms = asked.paced.latency_ms(50, 95, 99)
        return Figures(
            requests=sum(len(each.scores) for each in (asked.streamed, asked.paced, asked.through)) + 1,
            answered=sum(each.answered for each in (asked.streamed, asked.paced, asked.through))
            + (asked.large is not None),
            mismatches=sum(map(len, (wrong_streamed, wrong_paced, wrong_through, wrong_large))),
            errors_sent=len(asked.outcomes),
            errors_answered=sum(not outcome.problem for outcome in asked.outcomes),
            shards=asked.large.shards if asked.large else 0,
            tasks=asked.large.tasks if asked.large else 0,
            throughput_rps=asked.streamed.per_second,
            p50_ms=p50_ms,
            p95_ms=p95_ms,
            p99_ms=p99_ms,
            paced_requests=len(asked.paced.scores),
            paced_rps=asked.paced_rps,
            http_requests=len(asked.through.scores),
            http_rps=asked.through.per_second,
            in_flight=_IN_FLIGHT,
            saturated_p50_ms=asked.streamed.latency_ms(50)[0],
            large_rows=len(asked.large_tokens),
            large_latency_ms=asked.large.latency_ms if asked.large else 0.0,
            files=len(files.model) + len(files.ruled),
            files_by_rule=len(files.ruled),
            files_unread=len(files.unread),
            magika_compared=compared,
            magika_agreements=agreed,
            types=types,
            error_codes={outcome.request.kind: outcome.code for outcome in asked.outcomes},
            seconds={name: round(seconds, 1) for name, seconds in self._seconds.items()},
            problems=asked.problems,
        )

    def _say(self, text: str) -> None:
        self._console.print(text, soft_wrap=True, highlight=False)

    @contextmanager
    def _timed(self, name: str) -> Iterator[None]:
        start_s = time.monotonic()
        yield
        self._seconds[name] = time.monotonic() - start_s

    @contextmanager
    def _progress(self, text: str, total: int) -> Iterator[Advance]:
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        with Progress(*columns, console=self._console) as progress:
            task = progress.add_task(text, total=total)
            yield lambda count: progress.advance(task, count)


def _ask_large(client: Client, tokens: Array, problems: list[str]) -> workload.LargeAnswer | None:
    try:
        return workload.ask_large(client, tokens, _LARGE_TIMEOUT_S)
    except Exception as error:  # noqa: BLE001 - counted and shown
        problems.append(f"the large request: {error}")
        return None


def _types(files: _Sorted, scores: Array, magika_labels: list[str]) -> tuple[dict[str, int], int, int]:
    """Return the number of files of each type, of compared files, and of files with Magika's label."""
    reader = ScoreReader()
    types = Counter(file.label for file in files.ruled)
    compared = agreed = 0
    for file, row, magika_label in zip(files.model, scores, magika_labels, strict=True):
        if np.isnan(row).any() or not magika_label:
            continue
        try:
            label = reader.label(file, row)
        except OSError:
            continue
        types[label] += 1
        compared += 1
        agreed += label == magika_label
    return dict(types.most_common()), compared, agreed


def _left_out(found: FoundFile) -> str:
    return f" ({found.left_out:,} more left out: --limit 0 takes all)" if found.left_out else ""


@contextmanager
def _interruptible() -> Iterator[None]:
    """Turn SIGTERM and SIGHUP into `KeyboardInterrupt`, too, and ignore all signals after the first."""
    interrupted = threading.Event()

    def interrupt(number: int, frame: FrameType | None) -> None:  # noqa: ARG001 - Python's signature
        interrupted.set()
        for each in _SIGNALS:
            signal.signal(each, signal.SIG_IGN)
        # Python drops an exception that a finalizer raises.
        signal.setitimer(signal.ITIMER_REAL, _RAISE_AGAIN_S)
        raise KeyboardInterrupt

    before = {number: signal.signal(number, interrupt) for number in (*_SIGNALS, signal.SIGALRM)}
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before.pop(signal.SIGALRM))
        if not interrupted.is_set():
            for number, handler in before.items():
                signal.signal(number, handler)


@contextmanager
def _uninterrupted() -> Iterator[None]:
    """Ignore signals."""
    signal.setitimer(signal.ITIMER_REAL, 0)
    before = {number: signal.signal(number, signal.SIG_IGN) for number in _SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
