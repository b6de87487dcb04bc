"""The moments at which a fault strikes. Each brings a cluster there with requests under way, and can say afterwards whether the
fault did strike then: one that came too late is tried again, and counts only when it hit."""

import concurrent.futures
import os
import signal
import time

import grpc
from ask import Ask
from cluster import signal_of
from mix import BEST

NAMES = ("idle", "loading", "prefill", "decode", "streaming", "draining")
REACH_S = 20


class Missed(Exception):
    """The moment had passed before the fault could strike."""


def wait_for(check, what):
    end = time.monotonic() + REACH_S
    while not check():
        if time.monotonic() > end:
            raise Missed(f"{what} did not happen within {REACH_S} s")
        time.sleep(0.001)


class Moment:
    """asks: the requests under way, all of them posted before the fault. said: what the live line tells."""

    def __init__(self, cluster, mix, rng, n_streams, pause=True):
        self.cluster, self.mix, self.rng, self.n = cluster, mix, rng, n_streams
        self.asks, self.said = [], ""
        self.may_pause = pause
        self.comes_back = False  # the clients, when their connection breaks

    def ask(self, specs, **how):
        asks = [Ask(self.cluster.server, self.cluster.rpc, self.cluster.channel, s, comes_back=self.comes_back, **how) for s in specs]
        self.asks += asks
        for a in asks:
            a.start()
        return asks

    def reach(self):
        raise NotImplementedError

    def after_strike(self):
        """What follows at once upon the fault."""

    def check(self, struck_at):
        """Raises Missed when the fault did not strike at this moment."""

    def finish(self):
        """Ends what the moment began, when the requests have ended."""


class Idle(Moment):
    """Nothing runs. The requests come right after the fault, and are asked again while the server refuses them."""

    name = "idle"

    def reach(self):
        pass

    def after_strike(self):
        self.ask(self.mix.pick(self.rng, self.n, ("stream", "whole", "grpc")), may_retry=True)


class Prefill(Moment):
    """Long prompts were just accepted and none of them has its first token."""

    name = "prefill"

    def reach(self):
        asks = self.ask(self.mix.pick(self.rng, min(self.n, 6), ("stream", "grpc"), is_long=True))
        group = self.cluster.group
        wait_for(lambda: group()["n_open"] >= len(asks) or any(a.n_events for a in asks), "all are accepted")
        time.sleep(self.rng.uniform(0, 0.04))

    def check(self, struck_at):
        early = [a for a in self.asks if a.n_events and a.times[0] < struck_at]
        if len(early) == len(self.asks):
            raise Missed("every prompt was read already")
        self.said = f"{len(self.asks) - len(early)} of {len(self.asks)} prompts under way"


class Running(Moment):
    """Answers are being made: the fault strikes when so many events have come in all."""

    hows = ()
    n_extra = 0

    def pick(self):
        return self.mix.pick(self.rng, self.n - self.n_extra, self.hows) + self.mix.pick(self.rng, self.n_extra, ("stream",))

    def reach(self):
        specs = self.pick()
        asks = self.ask(specs[:-1])
        is_slow = self.may_pause and specs[-1].how == "stream" and self.rng.random() < 0.3
        asks += self.ask(specs[-1:], pause_s=self.rng.uniform(0.1, 0.5) if is_slow else 0.0)
        counted = [a for a in asks if a.spec.how != "whole"]
        k = self.rng.randint(1, 60 * len(counted))
        self.said = f"after {k} events of {len(counted)} streams" + (", one of which is not read" if is_slow else "")
        wait_for(lambda: sum(a.n_events for a in counted) >= k or all(a.result for a in asks), f"{k} events")

    def check(self, struck_at):
        if all(a.result == "whole" and a.times[-1] < struck_at for a in self.asks):
            raise Missed("every answer had ended")


class Decode(Running):
    """Answers that are told whole at their end, and one stream that shows how far they are."""

    name = "decode"
    hows = ("whole",)
    n_extra = 1


class Streaming(Running):
    """Streams of both APIs, in the middle."""

    name = "streaming"
    hows = ("stream", "grpc")


class Loading(Streaming):
    """A group that has just been launched for one that was killed is not ready yet, and the requests wait."""

    name = "loading"

    def reach(self):
        super().reach()
        victim = self.cluster.pid_of(self.rng.randrange(self.cluster.n_ranks()))
        if self.cluster.hosts:
            self.cluster.hosts.before = set(self.cluster.hosts.workers())
        self.first_at = time.time()
        os.kill(victim, signal.SIGKILL)
        self.new = self.cluster.launched(self.first_at)
        if not self.new:
            raise Missed("no group was launched again")
        time.sleep(self.rng.uniform(0, 0.06))

    def check(self, struck_at):
        super().check(self.first_at)
        ready = self.cluster.log.first(r"^group ready", self.first_at)
        if ready and ready[0] < struck_at:
            raise Missed("the new group was ready already")


class Draining(Streaming):
    """Nothing new is taken, and what is open shall end. By Cluster/Drain, or by SIGTERM, upon which the server ends with 0."""

    name = "draining"

    def pick(self):
        """Of those the ones that show when they were accepted: the best of several is told at its end."""
        return [s for s in super().pick() if f" {BEST} " not in s.name]

    def reach(self):
        super().reach()
        wait_for(lambda: all(a.n_events or a.result for a in self.asks), "all are accepted")
        self.n_starts = self.cluster.n_starts
        self.by_signal = self.rng.random() < 0.3
        self.said += ", drained by " + ("SIGTERM" if self.by_signal else "Cluster/Drain")
        self.pool = concurrent.futures.ThreadPoolExecutor(1)
        if self.by_signal:
            signal_of(self.cluster.server.p.pid, signal.SIGTERM)
        else:
            self.answer = self.pool.submit(self.cluster.drain)
        wait_for(lambda: not self.cluster.server.is_ready(), "/readyz is red")

    def finish(self):
        if self.cluster.n_starts != self.n_starts:  # the fault ended the coordinator, and the drain with it
            return
        if self.by_signal:
            status = self.cluster.server.wait_exit(40)
            self.cluster.restart()
            if status != 0:
                raise AssertionError(f"drained by SIGTERM the server ended with {status}, expected 0")
            return
        self.pool.shutdown()
        try:
            cancelled = self.answer.result().n_cancelled
            self.cluster.take_back()
        except grpc.RpcError as e:
            raise AssertionError(f"after the drain: {e.code().name}: {e.details()}") from e
        if cancelled:
            raise AssertionError(f"the drain cancelled {cancelled} requests, expected 0")


ALL = {m.name: m for m in (Idle, Loading, Prefill, Decode, Streaming, Draining)}
