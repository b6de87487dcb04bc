"""Which failures are noticed, by whom, how soon, and what is left: ranks and coordinators that stop, hang or die."""

import concurrent.futures
import contextlib
import os
import re
import signal
import subprocess
import sys
import threading
import time

import grpc
import leftovers
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from serving import DialIn, Server, channel_to, needs_model, tagged, wait_until
from test_serve_faults import LONG, PROMPT, SLOW, FakeWorker, read_events, version

pytest_plugins = ["serving"]
pytestmark = needs_model


@pytest.fixture(scope="module")
def group():
    """Two ranks whose group may be broken; every test leaves it ready."""
    with Server("-n", 2, *SLOW) as s:
        s.wait_ready()
        s.expected = s.complete(PROMPT, max_tokens=32, temperature=0)
        yield s
        s.stop()


def pid_of(s, rank):
    return next(r["pid"] for r in s.group()["ranks"] if r["rank"] == rank)


def reports(s):
    return sorted((s.dir / "state" / "tensord").glob("flight-*.txt"))


def break_and_read(s, how, timeout=20):
    """Breaks the group; its report, once it is written and the next group is ready."""
    before = s.group()["generation"]
    how()
    file = wait_until(lambda: f"a report:\n{s.log()[-3000:]}", lambda: [f for f in reports(s) if f.name.endswith(f"-g{before}.txt")], timeout)[0]
    wait_until(lambda: f"the next group:\n{s.log()[-3000:]}", lambda: s.group()["generation"] > before and s.is_ready(), timeout)
    text = file.read_text()
    assert f"file={file}" in s.log() and "flight report" in s.log()
    assert s.complete(PROMPT, max_tokens=32, temperature=0) == s.expected
    return text


def verdict(report):
    return re.search(r"^verdict +(.*)$", report, re.M)[1]


@contextlib.contextmanager
def streaming(s, n=4):
    """While n answers stream."""
    with concurrent.futures.ThreadPoolExecutor(n) as pool:
        streams = [s.stream("/v1/completions", LONG) for _ in range(n)]
        its = [iter(x) for x in streams]
        for it in its:
            next(it)
        rest = [pool.submit(read_events, it) for it in its]
        try:
            yield
        finally:
            for x in streams:
                with contextlib.suppress(OSError):
                    x.c.sock and x.c.sock.shutdown(2)
            for r in rest:
                r.result(30)


@contextlib.contextmanager
def frozen(pid):
    """The compute thread of a rank stands, its loop thread goes on."""
    p = subprocess.Popen([sys.executable, os.path.join(os.path.dirname(__file__), "freeze.py"), str(pid), "compute"],
                         stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    try:
        if p.stdout.readline().strip() != b"frozen":
            why = p.stderr.read().decode()
            if "ptrace" in why:
                pytest.skip(f"root: a thread cannot be stopped here: {why}")
            pytest.fail(why)
        yield
    finally:
        p.stdin.close()
        p.wait(10)


# ---- silence ----


@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize("busy", [False, True])
def test_a_stopped_rank_is_suspected_then_lost_and_named(group, rank, busy):
    pid = pid_of(group, rank)
    if not busy:  # a heartbeat says so, and the ranks rest right after
        wait_until("nothing runs", lambda: group.group()["n_running"] == 0, 10)
        time.sleep(0.5)
    seen = len(group.log())
    with streaming(group) if busy else contextlib.nullcontext():
        report = break_and_read(group, lambda: os.kill(pid, signal.SIGSTOP))
    log = group.log()[seen:]
    assert int(re.search(rf"rank suspected rank={rank} .*silent_ms=(\d+)", log)[1]) >= 300
    assert 1000 <= int(re.search(rf"group lost .*rank {rank} on \S+ has been silent for (\d+) ms", log)[1]) < 1500
    assert verdict(report).startswith(f"rank {rank} on ") and f"(process {pid}) fell silent" in verdict(report), report
    assert f"rank {rank} on" in report and "its last heartbeat, all that is known of it" in report
    other = re.search(rf"^rank {1 - rank} on .*$\n(.*)$", report, re.M)
    # a rank that waits is inside a step, or between two where the stop fell there
    assert "told its record" in other[0] and re.search(r": (in|before) step \d" if busy else ": at rest before step", other[1]), report


def test_a_rank_that_comes_back_in_time_loses_nothing():
    """Suspicion turns readiness red, for HTTP and gRPC, while requests are still accepted; its end turns it green again."""
    with Server("-n", 2, "--threads", 1, "--heartbeat-timeout", 30) as s, channel_to(s) as channel:
        s.wait_ready()
        expected = s.complete(PROMPT, max_tokens=32, temperature=0)
        health = health_pb2_grpc.HealthStub(channel)
        check = lambda: health.Check(health_pb2.HealthCheckRequest(service=""), timeout=5).status
        assert check() == health_pb2.HealthCheckResponse.SERVING
        changes = []
        watch = health.Watch(health_pb2.HealthCheckRequest(service=""))
        watcher = threading.Thread(target=lambda: changes.extend(m.status for m in ended(watch)))
        watcher.start()
        pid = pid_of(s, 1)
        os.kill(pid, signal.SIGSTOP)
        try:
            wait_until("readiness is red", lambda: s.get("/readyz").status == 503, 10)
            assert check() == health_pb2.HealthCheckResponse.NOT_SERVING
            with concurrent.futures.ThreadPoolExecutor(1) as pool:
                answer = pool.submit(s.complete, PROMPT, max_tokens=32, temperature=0)
                wait_until("it is accepted", lambda: s.group()["n_open"] == 1, 5)
                os.kill(pid, signal.SIGCONT)
                assert answer.result(30) == expected
        finally:
            os.kill(pid, signal.SIGCONT)
        s.wait_ready()
        assert check() == health_pb2.HealthCheckResponse.SERVING
        assert s.group()["generation"] == 1 and "heard of again" in s.log()
        watch.cancel()
        watcher.join(10)
        serving, not_serving = health_pb2.HealthCheckResponse.SERVING, health_pb2.HealthCheckResponse.NOT_SERVING
        assert changes[:3] == [serving, not_serving, serving], changes
        s.stop()


def ended(call):
    try:
        yield from call
    except grpc.RpcError:
        pass


def test_a_coordinator_that_was_away_for_a_second_finds_its_ranks(group):
    before = group.group()
    with streaming(group, 2):
        os.kill(group.p.pid, signal.SIGSTOP)
        time.sleep(1.2)  # within the lease of 2 s
        os.kill(group.p.pid, signal.SIGCONT)
        assert group.complete(PROMPT, max_tokens=32, temperature=0) == group.expected
    group.wait_ready()
    after = group.group()
    assert after["generation"] == before["generation"] and {r["pid"] for r in after["ranks"]} == {r["pid"] for r in before["ranks"]}


def test_ranks_end_themselves_when_their_lease_runs_out(group):
    """Their coordinator hangs: its connections stay open, but nothing comes any more."""
    before = group.group()["generation"]
    old = set(group.ranks())
    wait_until("a beat was answered", lambda: max(r["heartbeat_age_ns"] for r in group.group()["ranks"]) < 10**9, 5)
    time.sleep(0.3)  # and a ping was sent: it brings the lease
    os.kill(group.p.pid, signal.SIGSTOP)
    try:
        wait_until(lambda: f"the ranks end: {group.ranks()}", lambda: not old & set(group.ranks()), 10)
    finally:
        os.kill(group.p.pid, signal.SIGCONT)
    wait_until("the next group", lambda: group.group()["generation"] > before and group.is_ready(), 20)
    assert re.search(r"the coordinator at \S+ has been silent for 2\d\d\d ms", group.log())
    assert group.complete(PROMPT, max_tokens=32, temperature=0) == group.expected


# ---- death ----


@pytest.mark.parametrize("rank", [0, 1])
def test_the_report_names_the_rank_that_was_killed(group, rank):
    pid = pid_of(group, rank)
    with streaming(group):
        report = break_and_read(group, lambda: os.kill(pid, signal.SIGKILL))
    assert re.match(rf"rank {rank} on \S+ \(process {pid}\) ended without a word; it was last heard of (in|before|at rest before) step \d+ ", verdict(report)), report
    assert re.search(rf"^rank {rank} on \S+, process {pid}: ended without a word$", report, re.M), report


def test_the_report_tells_that_mpirun_was_killed(group):
    launcher = next(p for p, a in group.processes().items() if a[0].endswith("mpirun"))
    report = break_and_read(group, lambda: os.kill(launcher, signal.SIGKILL))
    assert verdict(report) == "mpirun ended first, and the ranks with it: mpirun was killed by signal 9 (Killed)", report


@pytest.mark.parametrize("stopped", [(), (1,), (0, 1)])
@pytest.mark.parametrize("busy", [False, True])
def test_nothing_is_left_of_a_killed_coordinator(stopped, busy):
    """Nor when ranks stand still, which end nothing themselves."""
    with Server("-n", 2, *SLOW) as s:
        s.wait_ready()
        s.note_shm()
        folders = re.findall(r" dir=(\S+)", s.log())
        assert folders and os.path.isdir(folders[-1])
        with streaming(s) if busy else contextlib.nullcontext():
            for rank in stopped:
                os.kill(pid_of(s, rank), signal.SIGSTOP)
            s.p.kill()
            s.p.wait()
            wait_until(lambda: f"left: {tagged(s.tag)}", lambda: not tagged(s.tag), 10)
        left = [f for f in s.seen_shm | set(folders) if os.path.exists(f)]
        assert not left, left


def test_nothing_is_left_when_all_are_killed_at_once_but_the_keeper():
    with Server("-n", 2, "--threads", 1) as s:
        s.wait_ready()
        s.note_shm()
        folder = re.findall(r" dir=(\S+)", s.log())[-1]
        for pid in [p for p, a in s.processes().items() if a[1:2] != ["keep-launch"]]:
            os.kill(pid, signal.SIGKILL)
        s.p.wait()
        wait_until(lambda: f"left: {tagged(s.tag)}", lambda: not tagged(s.tag), 10)
        assert not os.path.exists(folder) and not [f for f in s.seen_shm if os.path.exists(f)]


def test_what_there_is_does_not_grow_with_relaunches():
    with Server("-n", 2, "--threads", 1) as s:
        s.wait_ready()
        before, after = leftovers.run(s, 10)
        assert before["folders of launches"] == 1 and before["processes"] == ["keep-launch", "mpirun", "serve", "worker", "worker"], before
        assert after == before
        assert len(reports(s)) == 11
        s.stop()


def test_sixteen_reports_are_kept(group):
    """Those of before are made up; the next real one displaces the oldest."""
    folder = group.dir / "state" / "tensord"
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(20):
        (folder / f"flight-20200101T0000{i:02}.000Z-g0.txt").write_text("old\n")
    break_and_read(group, lambda: os.kill(pid_of(group, 1), signal.SIGKILL))
    kept = [f.name for f in reports(group)]
    assert len(kept) == 16 and kept[0] > "flight-20200101T000003", kept


# ---- steps that do not end ----


@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize("busy", [False, True])
def test_a_rank_whose_compute_thread_hangs_is_named(rank, busy):
    """Its loop thread goes on, so that heartbeats come; the others wait for it inside an exchange."""
    with Server("-n", 2, *(SLOW if busy else ("--threads", 1))) as s:
        s.wait_ready()
        ask = {"max_tokens": 40, "temperature": 0, "ignore_eos": True}
        for _ in range(5):  # so that the shapes of its steps are known
            s.expected = s.complete(PROMPT, **{**ask, "max_tokens": 32, "ignore_eos": False})
            s.complete(PROMPT, **ask)
        s.complete(PROMPT, **{**ask, "max_tokens": 120})  # with more KV blocks too: the first three steps of a shape have a minute
        with concurrent.futures.ThreadPoolExecutor(1) as pool:
            if busy:
                stream = s.stream("/v1/completions", {**LONG, "max_tokens": 1900})
                it = iter(stream)
                for _ in range(40):
                    next(it)
                rest = pool.submit(read_events, it)
            with frozen(pid_of(s, rank)):
                if not busy:
                    pool.submit(s.post, "/v1/completions", {"prompt": PROMPT, **ask})
                report = break_and_read(s, lambda: None, 60)
            if busy:  # 1900 tokens were asked for so that it was still running
                assert not rest.done(), "the answer had ended: nothing ran when the thread was frozen"
                stream.c.sock.shutdown(2)
        assert re.match(rf"rank {rank} on \S+ \(process \d+\) is at fault: step \d+ did not end within \S+ s: rank {rank} on \S+ stands still", verdict(report)), report
        assert re.search(rf"^rank {rank} on .*: is blamed$\n  its recorder, when it was asked: ", report, re.M), report
        other = re.search(rf"^rank {1 - rank} on .*: told its record$\n(.*)$", report, re.M)
        assert other and re.search(r"tree_sum|bcast|gather", other[1]), report
        assert len(re.findall(r"^ +\d+ run ", report, re.M)) > 20
        s.stop()


class FakeRanks:
    """Two workers by hand that say all is well; what a test adds goes out with their next heartbeats."""

    def __init__(self, server, key):
        self.workers = [FakeWorker(server, key) for _ in range(2)]
        self.extra = ["", ""]
        self.stop = threading.Event()
        self.calls = []

    def messages(self, rank):
        head = f"cookie: {rank + 5} "
        yield encode(head + f'register {{ version: "{version()}" world_rank: {rank} world_size: 2 host: "h{rank}" pid: {rank + 1} device_kind: DEVICE_KIND_CPU '
                     'memory_free_bytes: 8000000000 numerics_classes: "cpu-2" }')
        while not self.stop.wait(0.1):
            if self.extra[rank] is not None:
                yield encode(head + (self.extra[rank] or "heartbeat { }"))

    def attach(self):
        for rank, w in enumerate(self.workers):
            call = w.channel.stream_stream("/tensord.worker.v1.Worker/Attach", lambda b: b, lambda b: b)
            self.calls.append(call(self.messages(rank), metadata=[("authorization", f"Bearer {w.key}")], timeout=60))

    def close(self):
        self.stop.set()
        for c in self.calls:
            c.cancel()
        for w in self.workers:
            w.channel.close()


ENCODED = {}


def encode(text):
    if text not in ENCODED:
        root = os.path.join(os.path.dirname(__file__), "..", "..")
        ENCODED[text] = subprocess.run(["protoc", "--encode=tensord.worker.v1.WorkerMessage", "proto/worker.proto"],
                                       input=text.encode(), capture_output=True, check=True, cwd=root).stdout
    return ENCODED[text]


@pytest.fixture
def fake(key_file):
    with DialIn(key_file) as s:
        ranks = FakeRanks(s, key_file.read_text().strip())
        ranks.attach()
        s.wait_log("", 1)
        wait_until(lambda: f"loading:\n{s.log()}", lambda: s.group()["state"] == "loading", 15)
        ranks.extra = ["ready { weight_bytes: 1 }"] * 2
        s.wait_ready()
        ranks.extra = ["", ""]
        yield s, ranks
        ranks.close()


def test_ranks_that_ran_different_steps_end_their_group(fake):
    s, ranks = fake
    same = "heartbeat { n_steps: %d marks { number: 7 hash: 11 } }"
    ranks.extra = [same % 8, same % 8]
    time.sleep(0.5)
    assert s.is_ready() and s.group()["state"] == "ready"
    ranks.extra = ["heartbeat { marks { number: 15 hash: 12 } }", "heartbeat { marks { number: 15 hash: 13 } }"]
    s.wait_log(r"ranks ran different steps up to step 15: rank 1 has hash 000000000000000d, rank 0 000000000000000c; "
               r"against most: rank 0 on h0, rank 1 on h1")


def test_heartbeats_that_make_no_sense_do_no_harm(fake):
    s, ranks = fake
    huge = 2**64 - 1
    ranks.extra = [
        f'heartbeat {{ at {{ stage: 99 step_number: {huge} elapsed_ns: {huge} operation: "\\"x\\n" n_operations: {huge} }} }}',
        "heartbeat { " + " ".join(f"marks {{ number: {i} hash: {i} }}" for i in range(200)) + " }",
    ]
    time.sleep(0.5)
    assert s.is_ready() and "group lost" not in s.log()
    ranks.extra[0] = f"heartbeat {{ at {{ stage: STAGE_STEP step_number: {huge} elapsed_ns: {huge} limit_ns: 1 }} }}"
    s.wait_log("group lost .*did not end within")


def test_a_rank_that_is_silent_is_lost_however_alive_the_other_is(fake):
    s, ranks = fake
    ranks.extra[1] = None
    s.wait_log(r"rank 1 on h1 has been silent for 1\d\d\d ms")
