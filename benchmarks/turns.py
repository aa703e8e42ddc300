"""Peers in turns, each in its own process: only one computes, the others wait for a message."""

import contextlib
import os
import random
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from multiprocessing import get_context
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from benchmarks.job import Job
from benchmarks.worker import serve

# Before each turn, so that threads of the peer before have stopped spinning: each runtime spins as
# it does by default, for some milliseconds, because that is how it is fast.
PAUSE = 0.15
MIN_ROUNDS = 5


@dataclass
class Worker:
    """The driver's end of one peer's process."""

    peer: str
    process: BaseProcess
    connection: Connection
    state: dict[str, Any] = field(default_factory=dict)
    times: list[float] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        return self.state.get("status") == "ok"

    def ask(self, *message: object) -> Any:
        """The answer to ``message``, or None if the process is gone or its peer has failed."""
        try:
            if message:
                self.connection.send(message)
            answer = self.connection.recv()
        except (EOFError, OSError):
            self.process.join(10)
            code = self.process.exitcode
            self.state |= {"status": "failed", "reason": f"process ended with code {code}"}
            return None
        if isinstance(answer, dict):
            self.state |= answer
            return None
        return answer

    def processor_seconds(self) -> float:
        """Processor time of all its threads so far."""
        try:
            stat = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            return 0.0
        return (int(stat[11]) + int(stat[12])) / os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class Disturbance:
    """Processors that were busy with something else during a turn; 0 is fair.

    ``waiting`` by the other peers' processes, ``others`` by other programs and the hypervisor.
    """

    waiting: float
    others: float


@contextlib.contextmanager
def workers(peers: list[str], job: Job, say: Callable[[str], None]) -> Iterator[list[Worker]]:
    """One prepared worker per peer, one after the other; all are ended at the end."""
    context = get_context("spawn")
    started: list[Worker] = []
    try:
        for peer in peers:
            say(f"{job.label}: preparing {peer}")
            here, there = context.Pipe()
            process = context.Process(target=serve, args=(there, peer, job), daemon=True)
            process.start()
            there.close()  # so that a process that dies is noticed here
            worker = Worker(peer, process, here)
            started.append(worker)
            worker.ask()
        yield started
    finally:
        for worker in started:
            with contextlib.suppress(OSError):
                worker.connection.send(("stop",))
        for worker in started:
            worker.process.join(10)
            if worker.process.is_alive():
                worker.process.kill()
                worker.process.join()


def take_turns(
    running: list[Worker], seconds: float, each_round: Callable[[], None] | None = None
) -> list[Disturbance]:
    """Fill ``times`` of the workers, in rounds of changing order.

    A turn is one run that is not counted, because the caches hold what the peer before left there,
    and then as many as fill its share of the time. Returns how busy others were meanwhile.
    """
    order = random.Random(0)
    share = seconds / max(1, len(running)) / MIN_ROUNDS
    disturbances = []
    end = time.perf_counter() + seconds
    rounds = 0
    while rounds < MIN_ROUNDS or time.perf_counter() < end:
        if each_round is not None:
            each_round()
        for worker in order.sample(running, len(running)):
            if not worker.ok:
                continue
            typical = statistics.median(worker.times or [worker.state["warm_ms"]])
            count = max(1, min(200, round(share * 1e3 / typical)))
            waiting = [other for other in running if other is not worker]
            time.sleep(PAUSE)
            start = _clocks(worker, waiting)
            times = worker.ask("time", 1 + count)
            elapsed, used, idle, machine = (
                after - before
                for after, before in zip(_clocks(worker, waiting), start, strict=True)
            )
            if worker.ok:
                others = max(0.0, machine - used - idle)
                disturbances.append(Disturbance(idle / elapsed, others / elapsed))
            worker.times += times[1:] if times else []
        rounds += 1
    return disturbances


def _clocks(worker: Worker, waiting: list[Worker]) -> tuple[float, float, float, float]:
    """Now; processor seconds of the worker, of those that wait, and of the whole machine."""
    idle = sum(other.processor_seconds() for other in waiting)
    try:
        fields = Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]
        machine = sum(map(int, fields)) - int(fields[3]) - int(fields[4])  # less idle and iowait
    except OSError:
        machine = 0
    used = worker.processor_seconds()
    return time.perf_counter(), used, idle, machine / os.sysconf("SC_CLK_TCK")
