"""The faults. Each strikes a cluster once and undoes what it did; what must follow is the same for all: every accepted request is
told what it would have been told.

`expects`: "loss": the group is given up, which must be noticed; "refusal": it is kept, and something else must be noticed;
"nothing": it is kept; "either": it may be given up.
"""

import concurrent.futures
import http.client
import os
import pathlib
import random
import re
import resource
import shutil
import signal
import socket
import tempfile
import time

from ask import Ask
from cluster import is_stopped, signal_of
from serving import TENSORD, Process, tensord, wait_until

LOST = r"^group lost"


def names_of(server):
    return [f"{pid} {' '.join(argv[:4])}" for pid, argv in server.processes().items()]


def has_option(name):
    return f"--{name}" in tensord("serve", "--help").stdout.decode()


class Fault:
    name = ""
    moments = ()
    expects = "nothing"
    needs = "local"  # what must be there: nothing special, "hosts" of a lab, a "disk" of its own
    said = LOST  # the log line that shows that it was noticed
    slow_moments = ()  # left out of the short form
    notice_s = 8  # a loss that was not noticed by then never will be
    ends_coordinator = False  # clients come back then

    def __init__(self, cluster, rng):
        self.cluster, self.rng = cluster, rng

    def choose(self):
        """Before the moment: picks the victim; the live line shows what this returns."""
        return ""

    def strike(self):
        """Signals, cuts or breaks; returns when it is done."""

    def undo(self):
        """While the requests still run, once it was noticed or was given time."""

    def finish(self):
        """When the requests have ended; raises AssertionError for what must not be."""


class RankFault(Fault):
    """One rank, chosen beforehand so that the strike itself takes no time."""

    expects = "loss"
    moments = ("idle", "loading", "prefill", "decode", "streaming", "draining")

    def choose(self):
        self.rank = self.rng.randrange(self.cluster.n_ranks())
        self.pid = self.cluster.pid_of(self.rank)
        return f"rank {self.rank}"

    def again(self, pids):
        """The victim among the ranks of a group that is being launched: no rank number is known yet."""
        self.pid = self.rng.choice(pids)


class Kill(RankFault):
    """SIGKILL to one rank, or to mpirun."""

    name = "kill"

    def choose(self):
        said = super().choose()
        if self.rng.random() < 0.15 and not self.cluster.hosts:
            self.pid, said = self.cluster.mpirun(), "mpirun"
        return said

    def strike(self):
        signal_of(self.pid, signal.SIGKILL)


class Stop(RankFault):
    """SIGSTOP to one rank, which is never continued: the coordinator must give it up and end it."""

    name = "stop"
    slow_moments = ("loading",)  # a rank that is stopped before it has registered is known only by the limit of a launch, 5 s
    notice_s = 90

    def strike(self):
        signal_of(self.pid, signal.SIGSTOP)

    def finish(self):
        end = time.monotonic() + 5
        while is_stopped(self.pid) and time.monotonic() < end:
            time.sleep(0.02)
        if is_stopped(self.pid):
            signal_of(self.pid, signal.SIGKILL)
            raise AssertionError(f"the stopped rank (process {self.pid}) was left behind")


class Blink(RankFault):
    """SIGSTOP to one rank, and SIGCONT after less time than it takes to be given up."""

    name = "blink"
    expects = "nothing"
    moments = ("idle", "prefill", "decode", "streaming")

    def strike(self):
        signal_of(self.pid, signal.SIGSTOP)

    def undo(self):
        time.sleep(self.rng.uniform(0.05, 0.4))
        signal_of(self.pid, signal.SIGCONT)


class OutOfMemory(RankFault):
    """The address space of one rank may not grow any more: every allocation that needs the kernel fails."""

    name = "oom"
    expects = "either"
    moments = ("idle", "prefill", "decode", "streaming")

    def strike(self):
        pages = int(pathlib.Path(f"/proc/{self.pid}/statm").read_text().split()[0])
        size = pages * resource.getpagesize()
        self.before = resource.prlimit(self.pid, resource.RLIMIT_AS, (size, resource.prlimit(self.pid, resource.RLIMIT_AS)[1]))

    def finish(self):
        try:
            resource.prlimit(self.pid, resource.RLIMIT_AS, self.before)
        except ProcessLookupError:
            pass


class StrangeWorkers(Fault):
    """Workers that do not belong dial in; they are refused, which the log tells, and nobody else notices."""

    expects = "refusal"
    moments = ("idle", "decode", "streaming")

    def start(self, key_file, *args):
        argv = ["mpirun", "-n", self.cluster.ranks, TENSORD, "worker", "--coordinator", self.cluster.server.address,
                "--threads", 1, "--cluster-key-file", key_file, *args]
        self.group = Process(argv)

    def finish(self):
        try:
            status = self.group.wait_exit(30)
            wait_until(lambda: f"left: {self.group.processes()}", lambda: not self.group.processes(), 5)
            log = self.group.log()
        finally:
            self.group.kill()
        if status == 0 or not re.search(self.reason, log):
            raise AssertionError(f"expected workers that end with '{self.reason}', got status {status}: {log[-500:]}")


class WrongKey(StrangeWorkers):
    """A group with another cluster key."""

    name = "wrong-key"
    said = r"wrong one|Unauthenticated|UNAUTHENTICATED"
    reason = r"key"

    def strike(self):
        self.folder = tempfile.mkdtemp(prefix="tensord-fault-")
        path = pathlib.Path(self.folder, "key")
        path.write_text("no-key-of-this-cluster\n")
        self.start(path)

    def finish(self):
        try:
            super().finish()
        finally:
            shutil.rmtree(self.folder)


class Duplicate(StrangeWorkers):
    """A second group with the right key, beside the one that is there: of its generation, or of none."""

    name = "duplicate"
    said = r"^worker refused"

    def choose(self):
        self.generation = self.cluster.group()["generation"] if self.rng.random() < 0.5 else None
        self.reason = r"already here" if self.generation else r"belongs to generation"
        return f"of generation {self.generation}" if self.generation else "of another generation"

    def strike(self):
        self.start(self.cluster.key_file, *(("--generation", self.generation) if self.generation else ()))


class SlowClient(Fault):
    """Clients that ask for much and take nothing for a while; they too are told everything in the end."""

    name = "slow-client"
    moments = ("idle", "prefill", "decode", "streaming")
    n_slow = 6
    mix = None  # the run's Mix, given by suite.py

    def strike(self):
        specs = self.mix.pick(self.rng, self.n_slow, ("stream",))
        pauses = [self.rng.uniform(0.1, 1.0) for _ in specs]
        self.asks = [Ask(self.cluster.server, self.cluster.rpc, self.cluster.channel, s, pause_s=p, may_retry=True)
                     for s, p in zip(specs, pauses)]
        for a in self.asks:
            a.start()


class Flood(Fault):
    """Hundreds of connections at once: silent ones, rubbish, half requests, and requests beyond what may wait, which are refused in
    order."""

    name = "flood"
    moments = ("idle", "prefill", "decode", "streaming")
    n_sockets, n_requests = 150, 60

    def strike(self):
        self.sockets = []
        for i in range(self.n_sockets):
            s = socket.socket()
            self.sockets.append(s)
            s.settimeout(5)
            try:
                s.connect(("127.0.0.1", self.cluster.server.port))
                s.send((b"", random.Random(i).randbytes(300), b"POST /v1/completions HTTP/1.1\r\nContent-Le", b"PRI * HTTP/2.0\r\n")[i % 4])
            except OSError:
                pass  # cut off already, as rubbish may be
        body = {"prompt": "flood", "max_tokens": 4, "n": 8, "ignore_eos": True}

        def one(_):
            try:
                r = self.cluster.server.post("/v1/completions", body, 60)
                return r.status, r.headers.get("retry-after"), r.body[:200]
            except (OSError, http.client.HTTPException) as e:
                return 0, None, repr(e)

        self.pool = concurrent.futures.ThreadPoolExecutor(20)
        self.answers = [self.pool.submit(one, i) for i in range(self.n_requests)]

    def finish(self):
        answers = [a.result(90) for a in self.answers]
        self.pool.shutdown()
        for s in self.sockets:
            s.close()
        for status, retry_after, body in answers:
            if status not in (200, 429, 503) or (status != 200 and not retry_after):
                raise AssertionError(f"a request of the flood got {status} with Retry-After {retry_after}: {body}")


class CoordinatorKill(Fault):
    """SIGKILL to the coordinator. Its ranks and mpirun must go by themselves and leave nothing; it is started again on the same port
    with the same journal. Clients come back, and have the rest of what they had."""

    name = "coordinator"
    expects = "loss"
    moments = ("idle", "loading", "prefill", "decode", "streaming", "draining")
    ends_coordinator = True

    def strike(self):
        self.server = self.cluster.server
        self.server.note_shm()
        self.folders = set(re.findall(r" dir=(\S+)", self.server.log())) | self.server.seen_shm
        os.kill(self.server.p.pid, signal.SIGKILL)
        self.server.p.wait(10)

    def undo(self):
        """What the dead one left goes by itself, and its folders at the latest when the next one starts."""
        try:
            wait_until(lambda: f"the dead coordinator's processes are gone: {names_of(self.server)}", lambda: not self.server.processes(), 10)
        finally:
            self.before_restart()
            self.cluster.restart(self.server.port)
        left = [f for f in self.folders if os.path.exists(f)]
        if left:
            raise AssertionError(f"the dead coordinator's ranks left {left}")

    def before_restart(self):
        pass


class TornJournal(CoordinatorKill):
    """The coordinator is killed, and what its journal had of the tenth of a second before is gone: it is computed again. What was
    accepted lies in front of that."""

    name = "torn-journal"
    moments = ("prefill", "decode", "streaming")

    def strike(self):
        self.before = self.cluster.disk.log_state()
        time.sleep(0.1)
        super().strike()

    def before_restart(self):
        self.cluster.disk.tear_journal(self.rng, self.before)


class FullDisk(Fault):
    """The disk of the journal has no room for a byte; it has again when that was noticed."""

    name = "full-disk"
    needs = "disk"
    expects = "refusal"
    moments = ("idle", "prefill", "decode", "streaming")
    said = r"^journal down"

    def strike(self):
        self.cluster.disk.fill()

    def undo(self):
        self.struck_at = time.time()
        self.cluster.disk.free()

    def finish(self):
        wait_until(lambda: f"the journal is back:\n{self.cluster.log.tail()}",
                   lambda: self.cluster.log.first(r"^journal is back", self.struck_at), 10)


class Roll(Fault):
    """An operator has the group replaced, now and then with no time for what runs."""

    name = "roll"
    moments = ("idle", "prefill", "decode", "streaming")

    def choose(self):
        self.timeout_s = self.rng.choice((0.05, 0.3, 20))
        return f"{self.timeout_s} s for what runs"

    def strike(self):
        self.pool = concurrent.futures.ThreadPoolExecutor(1)
        self.answer = self.pool.submit(self.cluster.rpc.call, self.cluster.channel, "Cluster/Replace", timeout=60,
                                       timeout_ns=int(self.timeout_s * 1e9), wait=True)

    def finish(self):
        self.answer.result(60)
        self.pool.shutdown()


class HostFault(Fault):
    """Of one of a lab's hosts that have a rank."""

    needs = "hosts"

    def choose(self):
        self.host = self.rng.choice(self.cluster.group()["ranks"])["host"]
        return self.host


class Cut(HostFault):
    """A host's cable is pulled, or packets vanish on it; it is healed once the loss was noticed."""

    name = "cut"
    expects = "loss"
    moments = ("idle", "loading", "prefill", "decode", "streaming")

    def choose(self):
        self.verb = self.rng.choice(("cut", "blackhole"))
        return f"{self.verb} {super().choose()}"

    def strike(self):
        self.cluster.hosts.lab(self.verb, self.host)

    def undo(self):
        self.cluster.hosts.lab("heal", self.host)


class Flap(HostFault):
    """A host's packets vanish, or its cable is pulled, for up to 0.3 s. Behind a pulled cable the kernel looks for its neighbours
    again, once a second, so that the rank there may be given up."""

    name = "flap"
    moments = ("idle", "prefill", "decode", "streaming")

    def choose(self):
        self.verb = self.rng.choice(("cut", "blackhole"))
        self.expects = "either" if self.verb == "cut" else "nothing"
        return f"{self.verb} {super().choose()}"

    def strike(self):
        self.cluster.hosts.lab(self.verb, self.host)
        time.sleep(self.rng.uniform(0.0, 0.3))
        self.cluster.hosts.lab("heal", self.host)


class Delay(HostFault):
    """Every link takes ten times as long for a while, then as before."""

    name = "delay"
    base_us = 200
    moments = ("idle", "prefill", "decode", "streaming")

    def choose(self):
        self.cluster.hosts.lab("shape", f"delay={self.base_us}us")
        return f"{self.base_us} us to {10 * self.base_us} us"

    def strike(self):
        self.cluster.hosts.lab("shape", f"delay={10 * self.base_us}us")

    def undo(self):
        time.sleep(self.rng.uniform(0.2, 0.8))
        self.cluster.hosts.lab("shape", f"delay={self.base_us}us")

    def finish(self):
        self.cluster.hosts.lab("shape", "off")


ALL = {f.name: f for f in (Kill, Stop, Blink, OutOfMemory, WrongKey, Duplicate, SlowClient, Flood, CoordinatorKill, TornJournal, FullDisk, Roll, Cut, Flap, Delay)}
