"""The end of a server, and a drain that is no end: who is told, who finishes, what is said to operators and to a service manager."""

import configparser
import contextlib
import http.client
import json
import os
import queue
import re
import shutil
import signal
import socket
import subprocess
import threading

import grpc
import openai
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from serving import (
    MODEL, NAME, ROOT, TENSORD, DialIn, Server, channel_to, chunks_of, free_port, needs_model, read_proc, tagged, tensord, wait_until,
)

pytest_plugins = ["serving"]
pytestmark = needs_model
PROMPT = "Once upon a time"
COMPLETIONS = "/v1/completions"
LONG = {"prompt": PROMPT, "max_tokens": 480, "ignore_eos": True, "temperature": 0, "stream": True}
# Plain kernels and one request at a time, so that what is open stays open while a test looks around.
SLOW = ("--cpu-isa", "ref", "--threads", 1, "--max-num-seqs", 1, "--no-prefix-cache")
SERVING, NOT_SERVING = health_pb2.HealthCheckResponse.SERVING, health_pb2.HealthCheckResponse.NOT_SERVING


@contextlib.contextmanager
def many(server, n=12, **fields):
    """Streams, of which the first has begun; those that are left go when the test is through with them."""
    streams = [server.stream(COMPLETIONS, {**LONG, **fields}) for _ in range(n)]
    next(iter(streams[0]))
    try:
        yield streams
    finally:
        for s in streams:
            with contextlib.suppress(OSError):
                s.close()


def ends_in_order(server, timeout=30):
    """It ends with 0 and leaves no process."""
    assert server.wait_exit(timeout) == 0, server.log()
    wait_until(lambda: f"left: {server.processes()}", lambda: not server.processes(), 5)


def error_of(stream):
    """The message of the error event that ends a stream."""
    events = [json.loads(e) for e in stream if e != "[DONE]"]
    assert "error" in events[-1], events[-1:]
    return events[-1]["error"]["message"]


def drain_of(server):
    return server.status()["drain"]


# ---- signals ----


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stream_of_the_official_client_ends_whole_while_the_server_stops(number, rpc):
    with Server("-n", 2, *SLOW, "--drain-timeout", 600) as s, channel_to(s) as channel:
        s.wait_ready()
        expected = s.complete(PROMPT, max_tokens=300, ignore_eos=True, temperature=0)["text"]
        with openai.OpenAI(base_url=s.url + "/v1", api_key="none", max_retries=0, timeout=120) as client:
            ask = {"model": NAME, "prompt": PROMPT, "max_tokens": 300, "temperature": 0, "stream": True, "extra_body": {"ignore_eos": True}}
            stream = client.completions.create(**ask)
            text = next(iter(stream)).choices[0].text
            second = client.completions.create(**ask)
            kept = http.client.HTTPConnection(s.address, timeout=30)
            kept.request("GET", "/healthz")
            r = kept.getresponse()
            assert (r.status, r.read()) == (200, b'{"status":"ok"}') and r.headers["Connection"] != "close"

            s.p.send_signal(number)
            wait_until("it says that it is not ready", lambda: s.get("/readyz").status == 503, 10, 0.001)
            kept.request("GET", "/readyz")
            r = kept.getresponse()
            assert r.status == 503 and r.headers["Connection"] == "close" and r.headers["Retry-After"] == "1"
            assert json.loads(r.read())["state"] == "draining"
            kept.close()
            r = s.get("/healthz")
            assert r.status == 200 and r.headers["connection"] == "close"
            r = s.post(COMPLETIONS, {"prompt": PROMPT})
            assert r.status == 503 and r.headers["retry-after"] and "draining" in r.json()["error"]["message"]
            with pytest.raises(grpc.RpcError) as e:
                list(rpc.call(channel, "Inference/Generate", rpc.message("GenerateRequest", model=NAME, text=b"x", max_tokens=4)))
            assert e.value.code() == grpc.StatusCode.UNAVAILABLE and "draining" in e.value.details()
            assert health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest()).status == NOT_SERVING
            d = drain_of(s)
            assert d["stops"] and not d["over"] and d["n_open"] in (1, 2) and 500e9 < d["left_ns"] <= 600e9

            text += "".join(c.choices[0].text for c in stream)
            assert text == expected
            assert "".join(c.choices[0].text for c in second) == expected
        ends_in_order(s)
        assert "drained finished=2 ended=0" in s.log()


def test_what_does_not_end_in_time_is_ended_with_the_reason():
    with Server("-n", 2, *SLOW, "--drain-timeout", 0.5) as s:
        s.wait_ready()
        with many(s) as streams:
            s.p.send_signal(signal.SIGTERM)
            message = error_of(streams[-1])
            assert "0.5 s" in message and "--drain-timeout" in message, message
        ends_in_order(s)
        assert re.search(r"drained finished=\d+ ended=[1-9]", s.log()), s.log()


def test_a_second_signal_stops_at_once():
    with Server("-n", 2, *SLOW, "--drain-timeout", 86400) as s:
        s.wait_ready()
        with many(s) as streams:
            s.p.send_signal(signal.SIGTERM)
            s.wait_log("draining signal=15 open=12")
            s.p.send_signal(signal.SIGTERM)
            assert "stopping" in error_of(streams[-1])
        ends_in_order(s)


def test_no_time_for_a_drain_is_none():
    with Server("-n", 1, *SLOW, "--drain-timeout", 0) as s:
        s.wait_ready()
        with many(s) as streams:
            s.p.send_signal(signal.SIGTERM)
            assert "stopping" in error_of(streams[-1])
            ends_in_order(s)  # though eleven clients read nothing and close nothing
            assert "draining" not in s.log()


def test_an_idle_server_stops_without_a_drain():
    with Server("-n", 2, "--threads", 1) as s, channel_to(s) as channel:
        s.wait_ready()
        watch = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest(), timeout=60)
        assert next(watch).status == SERVING
        s.p.send_signal(signal.SIGTERM)
        assert next(watch).status == NOT_SERVING
        with pytest.raises(grpc.RpcError) as e:
            next(watch)
        assert e.value.code() == grpc.StatusCode.UNAVAILABLE and "stopping" in e.value.details()
        ends_in_order(s)
        assert "stopping signal=15" in s.log() and "draining" not in s.log()


# ---- tensord drain ----


@pytest.fixture(scope="module")
def one(tmp_path_factory):
    """Takes requests before and after every test."""
    operators = tmp_path_factory.mktemp("drain") / "operators"
    operators.write_text("drain-key\n")
    with Server("-n", 1, *SLOW, "--api-key", "client-key", "--admin-key-file", operators, key="drain-key") as s:
        s.wait_ready()
        yield s
        s.stop()


def drain(server, *args, key="drain-key"):
    return tensord("drain", "--url", server.url, *(["--api-key", key] if key else []), *args)


def test_drain_asks_shows_and_takes_back(one):
    with many(one, 3):
        p = drain(one, "--timeout", 900)
        assert p.returncode == 0 and re.fullmatch(rb"draining: 3 requests open, (900|899) s left\n", p.stdout), p
        assert one.get("/readyz").status == 503 and one.post(COMPLETIONS, {"prompt": "x"}).status == 503
        d = drain_of(one)
        assert d["n_open"] == 3 and not d["stops"] and not d["over"] and d["n_cancelled"] == 0 and 800e9 < d["left_ns"] <= 900e9
        shown = tensord("status", "--url", one.url, "--api-key", "drain-key").stdout.decode()
        assert re.search(r"^draining    3 open, 1[45] min \d+ s left", shown, re.M) and "state       draining" in shown, shown
        assert drain(one).returncode == 0 and drain_of(one)["left_ns"] is None
        p = drain(one, "--cancel")
        assert p.returncode == 0 and b"takes requests" in p.stdout
        assert one.is_ready() and drain_of(one) is None
    assert one.complete(PROMPT, max_tokens=4)["text"]


def test_drain_waits_until_all_have_ended(one):
    with many(one, 2, max_tokens=100) as streams:
        waiting = subprocess.Popen([TENSORD, "drain", "--url", one.url, "--api-key", "drain-key", "--wait"], stdout=subprocess.PIPE)
        wait_until("it drains", lambda: not one.is_ready(), 10)
        assert waiting.poll() is None
        for s in streams:
            assert json.loads(list(s)[-2])["choices"][0]["finish_reason"] == "length"
        assert b"drained: nothing is open, 2 requests" in waiting.communicate(timeout=30)[0] and waiting.returncode == 0
    assert drain_of(one) == {"stops": False, "over": True, "n_open": 0, "n_finished": 2, "n_cancelled": 0, "left_ns": None}
    p = drain(one, "--wait", "--json")
    assert p.returncode == 0 and json.loads(p.stdout) == {"draining": True, "over": True, "n_open": 0, "n_finished": 0, "n_cancelled": 0}
    assert drain(one, "--cancel", "--json").returncode == 0 and one.is_ready()


def test_drain_says_by_its_exit_status_that_requests_were_ended(one):
    with many(one) as streams:
        p = drain(one, "--wait", "--timeout", 0.3)
        assert p.returncode == 3 and b"ended by the server" in p.stdout, p
        assert "0.3 s" in error_of(streams[-1])
    assert drain(one, "--cancel").returncode == 0


def test_drain_that_waits_is_told_when_it_is_taken_back(one):
    with many(one, 3):
        waiting = subprocess.Popen([TENSORD, "drain", "--url", one.url, "--api-key", "drain-key", "--wait"], stderr=subprocess.PIPE)
        wait_until("it drains", lambda: not one.is_ready(), 10)
        assert drain(one, "--cancel").returncode == 0
        assert b"took the drain back" in waiting.communicate(timeout=30)[1] and waiting.returncode == 1


def test_drain_of_a_server_that_stops_ends_with_it():
    with Server("-n", 1, *SLOW, "--drain-timeout", 600) as s:
        s.wait_ready()
        with many(s, 2, max_tokens=200) as streams:
            s.p.send_signal(signal.SIGTERM)
            wait_until("it drains", lambda: not s.is_ready(), 10)
            p = tensord("drain", "--url", s.url, "--cancel")
            assert p.returncode == 1 and b"cannot be taken back" in p.stderr, p
            waiting = subprocess.Popen([TENSORD, "drain", "--url", s.url, "--wait"], stdout=subprocess.PIPE)
            assert b"the server stops then" in waiting.stdout.readline()
            for stream in streams:
                assert list(stream)[-1] == "[DONE]"
            assert re.search(b"has stopped|nothing is open", waiting.communicate(timeout=30)[0]) and waiting.returncode == 0
        ends_in_order(s)


@pytest.mark.parametrize("args, status, expected", [
    (["--timeout", "-1"], 2, "--timeout"),
    (["--cancel", "--wait"], 2, "--cancel"),
    (["--cancel", "--timeout", "3"], 2, "--cancel"),
    (["--url", "ftp://x"], 1, "ftp://x"),
])  # fmt: skip
def test_drain_refuses_what_is_wrong(args, status, expected):
    p = tensord("drain", *args)
    assert p.returncode == status and expected in p.stderr.decode(), p


def test_drain_fails_without_a_server_or_its_key(one):
    p = tensord("drain", "--url", f"http://127.0.0.1:{free_port()}")
    assert p.returncode == 1 and b"no server answers" in p.stderr, p
    for key, word in ((None, b"key"), ("wrong", b"key"), ("client-key", b"--admin-key-file")):
        p = drain(one, key=key)
        assert p.returncode == 1 and word in p.stderr, p
        assert drain(one, "--cancel", key=key).returncode == 1
    assert one.is_ready()


@pytest.mark.parametrize("body, type, expected", [
    (b'{"timeout":5}', "text/plain", "Content-Type"),
    (b'{"timeout":5}', None, "Content-Type"),
    (b"{", "application/json", "line 1"),
    (b"[]", "application/json", "no object"),
    (b'{"timeout":"5"}', "application/json", "no number"),
    (b'{"timeout":-1}', "application/json", "-1"),
    (b'{"timeout":86401}', "application/json", "86401"),
    (b'{"wait":true}', "application/json", "'wait'"),
    (b" " * 5000, "application/json", "5000 bytes"),
])  # fmt: skip
def test_a_wrong_request_to_drain_does_nothing(one, body, type, expected):
    c = one.connection()
    c.request("POST", "/drain", body, {**one.headers(), **({"Content-Type": type} if type else {})})
    r = c.getresponse()
    message = json.loads(r.read())["error"]["message"]
    c.close()
    assert r.status == 400 and expected in message, message
    assert one.is_ready()


def test_grpc_drains_may_be_joined_and_taken_back(one, rpc):
    with channel_to(one) as channel, many(one, 3):
        call = lambda method, **f: rpc.call(channel, method, key="drain-key", **f)
        told = queue.Queue()

        def wait(limit_s):
            try:
                told.put(call("Cluster/Drain", timeout_ns=int(limit_s * 10**9), timeout=60))
            except grpc.RpcError as e:
                told.put((e.code(), e.details()))

        assert not call("Cluster/Status").HasField("drain")
        waiting = []
        for limit_s in (500, 1000):  # the second one joins
            waiting.append(threading.Thread(target=wait, args=[limit_s]))
            waiting[-1].start()
            wait_until("it drains", lambda: call("Cluster/Status").drain.left_ns > (limit_s - 100) * 10**9, 10)
        d = call("Cluster/Status").drain
        assert (d.stops, d.over, d.n_open, d.n_cancelled) == (False, False, 3, 0) and d.left_ns <= 1000 * 10**9
        assert told.empty()
        call("Cluster/CancelDrain")
        for w in waiting:
            w.join(30)
        assert [told.get_nowait() for _ in waiting] == [(grpc.StatusCode.CANCELLED, "the drain was taken back")] * 2
        assert one.is_ready()
        wait(0.2)  # and one to its end
        answer = told.get()
        assert answer.n_cancelled >= 1 and call("Cluster/Status").drain.over
        call("Cluster/CancelDrain")


# ---- health ----


def words(*messages):
    """Messages of proto/worker.proto as bytes, encoded by protoc."""
    encode = ["protoc", "--encode=tensord.worker.v1.WorkerMessage", "proto/worker.proto"]
    return [subprocess.run(encode, input=m.encode(), capture_output=True, check=True, cwd=ROOT).stdout for m in messages]


class Rank(threading.Thread):
    """A rank by hand, which registers, says that it is alive and never gets further, until it leaves."""

    def __init__(self, server, key, rank, of):
        super().__init__(daemon=True)
        version = re.match(r"tensord ([\w.-]+)", tensord("--version").stdout.decode())[1]
        register, self.beat = words(
            f'cookie: 5 register {{ version: "{version}" world_rank: {rank} world_size: {of} host: "h" pid: 1 memory_free_bytes: 1000000000 '
            'numerics_classes: "cpu-2" }', "cookie: 5 heartbeat { }")  # fmt: skip
        self.left = threading.Event()
        self.channel = channel_to(server)
        call = self.channel.stream_stream("/tensord.worker.v1.Worker/Attach", lambda b: b, lambda b: b)
        self.answers = call(self.say(register), metadata=[("authorization", f"Bearer {key}")])
        self.start()

    def say(self, register):
        yield register
        while not self.left.wait(0.1):
            yield self.beat

    def run(self):
        with contextlib.suppress(grpc.RpcError):
            for _ in self.answers:
                pass

    def leave(self):
        self.left.set()
        self.answers.cancel()
        self.join(10)
        self.channel.close()


def health_of(server, channel):
    """What every probe says: /healthz, /readyz, its state, gRPC's."""
    ready = server.get("/readyz")
    assert (ready.status == 200) == ready.json()["ready"] and ("retry-after" in ready.headers) == (ready.status == 503)
    grpc_status = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest()).status
    return server.get("/healthz").status, ready.status, ready.json()["state"], grpc_status


def test_every_state_is_told_by_the_probes(key_file):
    key = key_file.read_text().strip()
    with DialIn(key_file) as s, channel_to(s) as channel:
        state = lambda word: lambda: s.get("/readyz").json()["state"] == word
        assert health_of(s, channel) == (200, 503, "no group", NOT_SERVING)
        first = Rank(s, key, 0, 2)
        wait_until("launching", state("launching"), 10)
        assert health_of(s, channel) == (200, 503, "launching", NOT_SERVING)
        refused = s.post(COMPLETIONS, {"prompt": "x"})
        assert refused.status == 503 and "launching" in refused.json()["error"]["message"]
        second = Rank(s, key, 1, 2)
        wait_until("loading", state("loading"), 10)
        assert health_of(s, channel) == (200, 503, "loading", NOT_SERVING)
        first.leave()
        wait_until("lost", state("lost"), 10)
        assert health_of(s, channel) == (200, 503, "lost", NOT_SERVING)
        second.leave()
        s.dial()
        s.wait_ready()
        assert health_of(s, channel) == (200, 200, "ready", SERVING)
        assert tensord("drain", "--url", s.url).returncode == 0
        assert health_of(s, channel) == (200, 503, "draining", NOT_SERVING)
        assert tensord("drain", "--url", s.url, "--cancel").returncode == 0
        assert health_of(s, channel) == (200, 200, "ready", SERVING)
        s.stop()


def test_a_group_that_failed_for_good_ends_the_server(tmp_path):
    """No state to be probed: who restarts it sees a status and a reason."""
    with Server("-n", 2, "--threads", 1, "--max-model-len", 10**8) as s:
        assert s.wait_exit(60) == 1
        assert "100000000" in s.log(), s.log()


# ---- the service manager ----


class Manager:
    """A socket in the place of systemd's, at a path or an abstract name."""

    def __init__(self, name):
        self.name = name
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind("\0" + name[1:] if name[0] == "@" else name)
        self.socket.settimeout(0.1)
        self.lines = []

    def read(self):
        with contextlib.suppress(TimeoutError):
            while True:
                self.lines += self.socket.recv(4096).decode().split("\n")
        return self.lines

    def wait(self, pattern, timeout=60):
        return wait_until(lambda: f"'{pattern}' in {self.lines}", lambda: [x for x in self.read() if re.fullmatch(pattern, x)], timeout)

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        self.socket.close()


@pytest.mark.parametrize("abstract", [False, True], ids=["path", "abstract"])
def test_a_service_manager_is_told_all_of_a_life(abstract, tmp_path):
    name = f"@tensord-test-{os.getpid()}" if abstract else str(tmp_path / "notify")
    with Manager(name) as m, Server("-n", 2, *SLOW, "--drain-timeout", 60, env={"NOTIFY_SOCKET": name, "WATCHDOG_USEC": "400000"}) as s:
        m.wait("READY=1")
        assert s.is_ready(), "it said so too early"
        assert "EXTEND_TIMEOUT_USEC=120000000" in m.lines[: m.lines.index("READY=1")]
        m.wait(f"STATUS=serving {NAME}: 0 requests are open")
        before = len([x for x in m.read() if x == "WATCHDOG=1"])
        wait_until("it is alive", lambda: len([x for x in m.read() if x == "WATCHDOG=1"]) > before + 2, 30)
        environments = [read_proc(p, "environ") for p in s.ranks()]
        assert len(environments) == 2 and not [e for e in environments if b"NOTIFY_SOCKET=" in e or b"WATCHDOG_USEC=" in e]
        with many(s, 3) as streams:
            m.wait("STATUS=serving .*: 3 requests are open")
            assert "STOPPING=1" not in m.lines
            s.p.send_signal(signal.SIGTERM)
            m.wait("STOPPING=1")
            assert "EXTEND_TIMEOUT_USEC=75000000" in m.lines  # 60 s to drain, 5 s to stop, 10 s to spare
            m.wait(r"STATUS=draining: \d requests are open, \d+ s left")
            before = len([x for x in m.read() if x == "WATCHDOG=1"])
            wait_until("it is alive", lambda: len([x for x in m.read() if x == "WATCHDOG=1"]) > before, 30)
            for stream in streams:
                stream.close()
            ends_in_order(s)
        assert m.read().count("READY=1") == 1


def test_a_loop_that_stands_is_silent():
    with Manager(f"@tensord-test-silent-{os.getpid()}") as m:
        with Server("-n", 1, "--threads", 1, env={"NOTIFY_SOCKET": m.name, "WATCHDOG_USEC": "200000"}) as s:
            m.wait("WATCHDOG=1")
            m.wait("READY=1")
            s.p.send_signal(signal.SIGSTOP)
            wait_until("it stands", lambda: b"\nState:\tT" in read_proc(s.p.pid, "status"), 5)
            m.read()
            m.lines.clear()
            assert m.read() + m.read() + m.read() == []
            s.p.send_signal(signal.SIGCONT)
            m.wait("WATCHDOG=1")
            s.stop()


def test_a_group_that_dials_in_is_not_waited_for(key_file):
    """The coordinator is ready when workers can reach it: their launch may depend on that."""
    with Manager(f"@tensord-test-dial-{os.getpid()}") as m:
        os.environ["NOTIFY_SOCKET"] = m.name
        try:
            s = DialIn(key_file)
        finally:
            del os.environ["NOTIFY_SOCKET"]
        with s:
            m.wait("READY=1")
            m.wait("STATUS=no group")
            s.stop()
            assert "STOPPING=1" in m.read()


def test_a_wrong_address_of_a_manager_is_told_and_passed_over():
    with Server("-n", 1, "--threads", 1, env={"NOTIFY_SOCKET": "vsock:2:1"}) as s:
        s.wait_ready()
        assert "vsock:2:1" in s.log()
        s.stop()


def test_the_unit_file_fits_the_program(tmp_path):
    path = ROOT / "deploy" / "systemd" / "tensord.service"
    unit = configparser.ConfigParser(strict=False, interpolation=None)
    unit.optionxform = str
    unit.read(path)
    service = unit["Service"]
    assert service["Type"] == "notify" and service["KillMode"] == "mixed" and service["Restart"] == "always"
    help = tensord("serve", "--help").stdout.decode()
    drain_s = int(re.search(r"--drain-timeout SECONDS\n.*\n.*\n\s+default: (\d+)", help)[1])
    assert int(service["TimeoutStopSec"]) >= drain_s + 5 + 10  # the drain, the end of the ranks, something to spare
    words = service["ExecStart"].split()
    assert words[1] == "serve"
    (tmp_path / "serve.yaml").write_text(f"model: {MODEL}\nranks: 2\nport: 0\nthreads: 1\n")
    with Manager(str(tmp_path / "notify")) as m:
        from serving import Process

        argv = [TENSORD, *(str(tmp_path / "serve.yaml") if w == "/etc/tensord/serve.yaml" else w for w in words[1:])]
        with Process(argv, {"NOTIFY_SOCKET": m.name}) as p:
            m.wait("READY=1")
            p.stop()
    if shutil.which("systemd-analyze"):
        (tmp_path / "tensord.service").write_text(path.read_text().replace(words[0], TENSORD))
        p = subprocess.run(["systemd-analyze", "verify", tmp_path / "tensord.service"], capture_output=True, text=True)
        assert p.returncode == 0 and not p.stderr, p


# ---- the other forms ----


def rank_zero(server):
    return next(p for p in server.processes() if b"OMPI_COMM_WORLD_RANK=0" in read_proc(p, "environ").split(b"\0"))


def test_one_job_is_drained_by_a_signal_that_mpirun_only_hands_on():
    with Server(*SLOW, "--drain-timeout", 600, prefix=["mpirun", "-n", 2]) as s:
        s.wait_ready()
        with many(s, 2, max_tokens=200) as streams:
            s.p.send_signal(signal.SIGUSR1)
            s.wait_log("draining signal=10 open=2 timeout_s=600")
            assert s.get("/readyz").json()["state"] == "draining"
            for stream in streams:
                assert list(stream)[-1] == "[DONE]"
        ends_in_order(s)


@pytest.mark.parametrize("args, limit", [((), "0.5"), (("--mca", "odls_base_sigkill_timeout", "3"), "1.5")], ids=["default", "longer"])
def test_one_job_has_half_of_the_time_that_mpirun_leaves(args, limit):
    with Server(*SLOW, prefix=["mpirun", *args, "-n", 2]) as s:
        s.wait_ready()
        with many(s) as streams:
            os.kill(rank_zero(s), signal.SIGTERM)
            message = error_of(streams[-1])
            assert f"{limit} s" in message, message
        ends_in_order(s)


def test_one_job_tells_its_clients_before_mpirun_kills_it():
    with Server(*SLOW, prefix=["mpirun", "-n", 2]) as s:
        s.wait_ready()
        with many(s) as streams:
            s.p.send_signal(signal.SIGTERM)
            assert "stopping" in error_of(streams[-1])
        s.wait_exit(30)
        wait_until(lambda: f"left: {s.processes()}", lambda: not s.processes(), 5)


def test_streams_outlive_a_group_that_is_told_to_end(key_file):
    text = lambda chunks: "".join(c["choices"][0]["text"] for c in chunks)
    with DialIn(key_file, 2, *SLOW) as s:
        group = s.dial()
        s.wait_ready()
        golden = text(chunks_of(s.stream(COMPLETIONS, LONG)))
        with many(s, 8) as streams:
            group.p.send_signal(signal.SIGTERM)

            def is_gone():
                more = [s.stream(COMPLETIONS, LONG) for _ in range(8 - s.group()["n_open"])]  # as much work, on a machine however fast
                streams.extend(m for m in more if m.status == 200)
                return not tagged(group.tag)

            wait_until(lambda: f"left: {group.processes()}", is_gone, 15)
            s.groups.remove(group)
            assert "told to end by signal 15" in s.log() and "tensord worker: rank" in group.log()
            assert s.group()["n_open"] > 0 and not s.is_ready()
            group.kill()
            s.dial()  # its launcher supplies a new group
            for stream in streams[1:]:
                assert text(chunks_of(stream)) == golden
        s.stop()
