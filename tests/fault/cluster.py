"""The server that is disturbed: its log with times, its processes, and how one waits until it is whole again."""

import datetime
import http.client
import os
import re
import threading
import time

from serving import Rpc, Server, channel_to, read_proc, wait_until

LINE = re.compile(r"^(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3})Z (\w+) (.*)$")
SETTLE_S = 40


def seconds_of(stamp):
    """Seconds since the epoch of a log line's time, which is in UTC."""
    return datetime.datetime.fromisoformat(stamp + "+00:00").timestamp()


class Log:
    """The lines of a log as (seconds, level, text), read on as the file grows. Lines have whole milliseconds, cut off."""

    def __init__(self, path):
        self.path, self.offset, self.lines = path, 0, []
        self.lock = threading.Lock()

    def read(self):
        with self.lock, open(self.path, "rb") as f:
            f.seek(self.offset)
            data = f.read()
            data = data[: data.rfind(b"\n") + 1]
            self.offset += len(data)
            for line in data.decode(errors="replace").splitlines():
                m = LINE.match(line)
                if m:
                    self.lines.append((seconds_of(m[1]), m[2], m[3]))
            return self.lines

    def first(self, pattern, since):
        """(seconds, match) of the first line at or after the time that has the pattern; None."""
        for at, _, text in self.read():
            m = re.search(pattern, text)
            if at >= since - 0.001 and m:
                return at, m
        return None

    def tail(self, n=12):
        return "\n".join(f"{at:.3f} {level} {text}" for at, level, text in self.read()[-n:])


class Watch(threading.Thread):
    """Asks /readyz every few milliseconds until it is red; `red_at` is when that was."""

    def __init__(self, server, limit_s):
        super().__init__(daemon=True)
        self.server, self.end = server, time.monotonic() + limit_s
        self.red_at = None
        self.is_over = False

    def run(self):
        c = self.server.connection(5)
        while not self.is_over and time.monotonic() < self.end:
            try:
                c.request("GET", "/readyz")
                r = c.getresponse()
                r.read()
                status = r.status
            except (OSError, http.client.HTTPException):
                status = 0
            if status != 200:
                self.red_at = time.time()
                break
            time.sleep(0.003)
        c.close()


def children_of(pid):
    return [int(p) for p in read_proc(pid, f"task/{pid}/children").split()]


def argv_of(pid):
    return [w.decode(errors="replace") for w in read_proc(pid, "cmdline").split(b"\0") if w]


class Cluster:
    """A server of `ranks` ranks with the arguments; `start` it again after its end. hosts: a Hosts of lab.py, or None."""

    def __init__(self, name, ranks, *args, hosts=None, key_file=None, disk=None):
        self.name, self.ranks, self.args, self.hosts = name, ranks, args, hosts
        self.key_file, self.disk = key_file, disk
        self.rpc = Rpc()
        self.server = self.channel = self.log = None
        self.n_starts = 0

    def start(self, port=None):
        extra = ["--cluster-key-file", self.key_file] if self.key_file else []
        extra += ["--journal", self.disk.journal, "--journal-retention", 5] if self.disk else []
        self.server = Server("-n", self.ranks, *self.args, *extra, port=port)
        self.attach()

    def attach(self):
        self.log = Log(self.server.dir / "err")
        self.server.wait_ready(SETTLE_S)
        self.channel = channel_to(self.server)
        self.n_starts += 1

    def is_up(self):
        return self.server is not None and self.server.p.poll() is None

    def stop(self):
        """In order; raises when it does not end with 0 or leaves anything."""
        if self.server is not None:
            self.channel.close()
            server, self.server = self.server, None
            server.stop()

    def kill(self):
        if self.server is not None:
            self.channel.close()
            self.server.kill()
            self.server = None

    def restart(self, port=None):
        self.kill()
        self.start(port)

    # ---- what is there ----

    def group(self):
        return self.server.group()

    def pid_of(self, rank):
        """Of a rank that is there, as this process sees it."""
        r = self.group()["ranks"][rank]
        return self.hosts.outside(r["host"], r["pid"]) if self.hosts else r["pid"]

    def n_ranks(self):
        """Now: on hosts there may be fewer than were asked for, while some of them stand aside."""
        return len(self.group()["ranks"])

    def mpirun(self):
        find = lambda: [p for p, a in self.server.processes().items() if os.path.basename(a[0]) == "mpirun"]
        return wait_until(lambda: f"mpirun is there: {self.server.processes()}", find, 5)[0]

    def launched(self, since, limit_s=5):
        """Pids of the ranks that mpirun starts after the time, as soon as there are any; [] when none come."""
        end = time.monotonic() + limit_s
        while time.monotonic() < end:
            if self.hosts:
                pids = [p for p in self.hosts.workers() if p not in self.hosts.before]
                if pids and self.log.first("^group launched", since):
                    return pids
                continue
            line = self.log.first(r"group launched .*mpirun_pid=(\d+)", since)
            if line:
                pids = [p for p in children_of(int(line[1][1])) if argv_of(p)[1:2] == ["worker"]]
                if pids:
                    return pids
            time.sleep(0.001)
        return []

    def ready_again(self, since):
        """When the last group launched after the time was ready, and how long it loaded, both in seconds; (None, 0)."""
        lines = [(at, re.search(r"load_ms=(\d+)", text)) for at, _, text in self.log.read() if at >= since - 0.001 and text.startswith("group ready")]
        return (lines[-1][0], int(lines[-1][1][1]) / 1000) if lines else (None, 0)

    def settle(self):
        """Waits until the group is whole and idle and nothing of an earlier one is left; raises with what is."""

        def is_settled():
            try:
                g = self.group()
            except (OSError, ValueError, http.client.HTTPException):
                return False
            n = len(g["ranks"])
            return (g["state"] == "ready" and self.server.is_ready() and (n == self.ranks or n and self.hosts)
                    and not any(g[k] for k in ("n_open", "n_running", "n_waiting")))

        wait_until(lambda: f"settled:\n{self.log.tail()}", is_settled, SETTLE_S, 0.01)
        if self.hosts:
            wait_until(lambda: f"ranks of lost groups are gone: {self.hosts.workers()}", lambda: len(self.hosts.workers()) == self.n_ranks(), 8)
            return
        pids = {r["pid"] for r in self.group()["ranks"]}
        wait_until(lambda: f"ranks of lost groups are gone: {set(self.server.ranks()) - pids}",
                   lambda: set(self.server.ranks()) == pids, 8)

    # ---- what operators do ----

    def drain(self, limit_s=30):
        """What Cluster/Drain answers; from a thread, since it waits."""
        return self.rpc.call(self.channel, "Cluster/Drain", timeout=limit_s + 10, timeout_ns=limit_s * 10**9)

    def take_back(self):
        """Ends a drain: the model is unloaded and loaded again, once the group that holds it is there."""
        path = self.group()["model_path"]
        wait_until(lambda: f"the group is whole:\n{self.log.tail()}",
                   lambda: self.group()["state"] in ("ready", "draining") and self.n_ranks() > 0, SETTLE_S)
        self.rpc.call(self.channel, "Cluster/UnloadModel")
        self.rpc.call(self.channel, "Cluster/LoadModel", model_path=path, timeout=60)
        self.settle()


def signal_of(pid, number):
    """Signals a process that may have gone already."""
    try:
        os.kill(pid, number)
        return True
    except ProcessLookupError:
        return False


def is_stopped(pid):
    fields = read_proc(pid, "stat").rpartition(b")")[2].split()
    return fields[:1] == [b"T"]
