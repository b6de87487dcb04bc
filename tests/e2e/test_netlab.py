"""deploy/netlab: hosts on one machine, the links between them, and programs that run over them.

Needs root and a kernel that gives it namespaces. Of times only what a link must add is asserted: a packet is never early.
"""
import contextlib
import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
import time

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
NETLAB = ROOT / "deploy" / "netlab" / "netlab"
LIMIT_S = 30


def why_not():
    if os.geteuid() != 0:
        return "root: netlab needs root"
    p = subprocess.run(["unshare", "--net", "--uts", "--ipc", "--mount", "--pid", "--fork", "true"],
                       capture_output=True, text=True)
    return f"root: namespaces are not permitted here: {p.stderr.strip()}" if p.returncode else ""


needs_lab = pytest.mark.skipif(bool(why_not()), reason=why_not() or "-")


class Lab:
    def __init__(self, name):
        self.name = name
        self.env = {k: v for k, v in os.environ.items() if not k.startswith(("OMPI_", "NETLAB"))} | {"NETLAB": name}

    def __call__(self, *args, check=True, **kwargs):
        p = subprocess.run([NETLAB, *map(str, args)], env=self.env, capture_output=True, text=True, timeout=LIMIT_S,
                           stdin=subprocess.DEVNULL, **kwargs)
        assert not check or p.returncode == 0, f"netlab {args} ended with {p.returncode}: {p.stderr}"
        return p if not check else p.stdout

    def start(self, host, *command, **kwargs):
        return subprocess.Popen([NETLAB, "exec", host, *map(str, command)], env=self.env, text=True,
                                stdout=subprocess.PIPE, **kwargs)

    def python(self, host, script, *args, **kwargs):
        return self("exec", host, sys.executable, "-c", script, *args, **kwargs)

    @property
    def traces(self):
        """Processes, mounts and files that tell of the lab."""
        mark = f"NETLAB_HOLDER=/run/tensord-netlab/{self.name}\0".encode()
        pids = []
        for entry in pathlib.Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                if mark in (entry / "environ").read_bytes():
                    pids.append((entry / "cmdline").read_bytes())
        mounts = [m for m in pathlib.Path("/proc/self/mounts").read_text().splitlines() if "netlab" in m]
        links = [i for _, i in socket.if_nameindex() if i.startswith(f"{self.name}-")]
        files = list(pathlib.Path("/run/tensord-netlab").glob(f"{self.name}*"))
        return pids + mounts + links + files


@contextlib.contextmanager
def lab_of(name, hosts):
    lab = Lab(name)
    lab("up", hosts)
    try:
        yield lab
    finally:
        lab("down")
        assert lab.traces == []


@pytest.fixture(scope="module")
def lab():
    """Three hosts, shared by the tests: each leaves the links whole."""
    with lab_of(f"t{os.getpid() % 100000}", 3) as made:
        yield made


@pytest.fixture(autouse=True)
def whole_links(request):
    yield
    if "lab" not in request.fixturenames:
        return
    lab = request.getfixturevalue("lab")
    status = lab("status", check=False).stdout.splitlines()
    if status[0] != f"lab '{lab.name}': 3 hosts on the kernel's bridge":
        lab("shape", "off")
    for line in status:
        if line.startswith("h") and " crashed " in line:
            lab("boot", line.split()[0])
        elif line.startswith("h") and (" cut " in line or " blackholed " in line):
            lab("heal", line.split()[0])


ECHO = """
import socket
with socket.create_server(("", 5000)) as server:
    print("listening", flush=True)
    c, _ = server.accept()
    c.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    while data := c.recv(1 << 16):
        c.sendall(data)
"""
# Sends one byte and waits for it, N times; prints the seconds of each.
ASK = """
import json, socket, sys, time
host, n = sys.argv[1], int(sys.argv[2])
c = socket.create_connection((host, 5000), timeout=20)
c.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
times = []
for _ in range(n):
    begin = time.monotonic()
    c.sendall(b"x")
    assert c.recv(1) == b"x"
    times.append(time.monotonic() - begin)
print(json.dumps(times))
"""
# Sends N bytes, of which the other side tells when it has them all; prints the seconds.
SINK = """
import socket, sys
with socket.create_server(("", 5001)) as server:
    print("listening", flush=True)
    c, _ = server.accept()
    n = 0
    while data := c.recv(1 << 16):
        n += len(data)
    c.sendall(str(n).encode())
"""
POUR = """
import socket, sys, time
host, n = sys.argv[1], int(sys.argv[2])
c = socket.create_connection((host, 5001), timeout=20)
begin = time.monotonic()
c.sendall(bytes(n))
c.shutdown(socket.SHUT_WR)
assert int(c.recv(100)) == n
print(time.monotonic() - begin)
"""
# One datagram, and whether an answer comes within the time.
ANSWER = """
import socket
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
s.bind(("", 5002))
print("listening", flush=True)
while True:
    data, sender = s.recvfrom(100)
    s.sendto(data, sender)
"""
REACHES = """
import socket, sys
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
s.settimeout(float(sys.argv[2]))
s.connect((sys.argv[1], 5002))
s.send(b"there?")
try:
    print("yes" if s.recv(100) == b"there?" else "garbage")
except OSError as e:
    print("no")
"""


@contextlib.contextmanager
def running(lab, host, script):
    p = lab.start(host, sys.executable, "-c", script)
    try:
        assert p.stdout.readline() == "listening\n"
        yield p
    finally:
        p.kill()
        p.wait(LIMIT_S)
        p.stdout.close()


def round_trips(lab, n, server="h1", client="h0"):
    with running(lab, server, ECHO):
        return json.loads(lab.python(client, ASK, server, n))


def reaches(lab, client, server, wait_s):
    return lab.python(client, REACHES, server, wait_s).strip() == "yes"


def reaches_soon(lab, client, server):
    """A packet or two may go before the neighbours know each other again."""
    return any(reaches(lab, client, server, 1) for _ in range(10))


@needs_lab
def test_hosts_have_names_and_see_each_other(lab):
    names = [lab("exec", h, "cat", "/proc/sys/kernel/hostname").strip() for h in ("h0", "h1", "h2")]
    assert names == ["h0", "h1", "h2"]
    assert socket.gethostname() not in names
    with running(lab, "h2", ANSWER):
        assert reaches_soon(lab, "h0", "h2") and reaches_soon(lab, "h1", "h2")
    # Processes and shared memory are a host's own; from h0 all processes are seen.
    lab("exec", "h1", "touch", "/dev/shm/mine")
    assert "mine" in lab("exec", "h1", "ls", "/dev/shm")
    assert "mine" not in lab("exec", "h2", "ls", "/dev/shm")
    assert lab("exec", "h1", "sh", "-c", "echo $PPID").strip() in ("0", "1")
    assert lab("exec", "h2", "pwd", cwd=ROOT / "tests").strip() == str(ROOT / "tests")
    assert lab("hostfile") == "h0 slots=1\nh1 slots=1\nh2 slots=1\n"
    assert lab("hostfile", "h2:4,h1") == "h2 slots=4\nh1 slots=1\n"


@needs_lab
def test_exec_passes_status_words_and_signals(lab):
    assert lab("exec", "h1", "sh", "-c", "exit 7", check=False).returncode == 7
    assert lab("exec", "h1", "printf", "%s|", "a b", "$c", "") == "a b|$c||"
    assert lab("rsh", "h1", "printf", "'%s|'", "a", "b;", "exit 3", check=False).stdout == "a|b|"
    for host in ("h0", "h1"):
        p = lab.start(host, "sh", "-c", "trap 'echo told; exit 5' TERM; echo ready; while :; do sleep 0.05; done")
        assert p.stdout.readline() == "ready\n"
        p.terminate()
        assert p.stdout.read() == "told\n", host
        p.wait(LIMIT_S)
        p.stdout.close()


@needs_lab
def test_rsh_comes_through_only_where_packets_do(lab):
    """Like ssh, unlike exec, which stands for the host's console."""
    lab("blackhole", "h1")
    p = lab("rsh", "h1", "echo", "here", check=False)
    assert (p.returncode, p.stdout) == (255, "")
    assert p.stderr == "netlab: rsh: no route to host h1: h1 is a black hole\n"
    assert lab("exec", "h1", "echo", "here") == "here\n"
    lab("heal", "h1")
    assert lab("rsh", "h1", "echo", "here") == "here\n"


@needs_lab
@pytest.mark.parametrize("delay,least_s", [("50us", 100e-6), ("2ms", 4e-3), ("0.03s", 60e-3)])
def test_a_round_trip_takes_the_delay_twice(lab, delay, least_s):
    lab("shape", f"delay={delay}")
    times = round_trips(lab, 8)
    assert least_s <= min(times) < least_s + 2


@needs_lab
def test_a_pair_has_a_delay_of_its_own(lab):
    lab("shape", "h1", "h2", "delay=30ms")
    assert min(round_trips(lab, 3, client="h1", server="h2")) >= 60e-3
    assert min(round_trips(lab, 3, client="h2", server="h1")) >= 60e-3
    assert min(round_trips(lab, 20, client="h0", server="h1")) < 60e-3  # it is not everybody's
    assert "between h1 and h2: delay 30ms" in lab("status")


@needs_lab
def test_jitter_is_added_to_the_delay(lab):
    lab("shape", "delay=1ms", "jitter=4ms")
    times = round_trips(lab, 100)
    assert min(times) >= 2e-3
    # Two draws from 0 to 4 ms: that 100 such sums all stay below 4 ms has the probability 2^-100.
    assert max(times) >= 6e-3


@needs_lab
def test_a_transfer_takes_what_the_rate_allows(lab):
    n = 1 << 20
    lab("shape", "rate=40mbit")
    with running(lab, "h1", SINK):
        took_s = float(lab.python("h0", POUR, "h1", n))
    assert 8 * n / 40e6 <= took_s < 20


@needs_lab
def test_loss_takes_single_packets_and_tcp_repairs_it(lab):
    """At 5 % of 363 packets or more each way, that none is lost has the probability 0.95^363 = 10^-8."""
    n = 363 * 1448
    lab("shape", "loss=5%")
    with running(lab, "h1", SINK):
        lab.python("h0", POUR, "h1", n)
    row = next(line.split() for line in lab("status").splitlines() if line.startswith(f"{lab.name}-p1"))
    counters = dict(zip(("port", "from", "to", "lost"), row))
    assert int(counters["to"]) >= 363
    assert int(counters["lost"]) > 0


@needs_lab
@pytest.mark.parametrize("shape", ["off", "delay=100us"])
@pytest.mark.parametrize("verb", ["cut", "blackhole"])
def test_a_host_is_cut_off_and_healed(lab, verb, shape):
    lab("shape", shape)
    with running(lab, "h1", ANSWER), running(lab, "h2", ANSWER):
        assert reaches_soon(lab, "h0", "h1")
        lab(verb, "h1")
        carrier = lab("exec", "h1", "ip", "link", "show", "eth0")
        assert ("NO-CARRIER" in carrier) == (verb == "cut")
        assert not reaches(lab, "h0", "h1", 0.3) and not reaches(lab, "h1", "h2", 0.3)
        assert reaches_soon(lab, "h0", "h2")
        assert {"cut": "cut", "blackhole": "blackholed"}[verb] in lab("status")
        lab("heal", "h1")
        assert reaches_soon(lab, "h0", "h1") and reaches_soon(lab, "h1", "h2")


@needs_lab
def test_one_direction_is_blocked(lab):
    """A datagram and its answer need both ways; what arrives tells which one is blocked."""
    receive = ("import socket\ns = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)\ns.bind(('', 5003))\n"
               "print('listening', flush=True)\nwhile True: print(s.recv(100).decode(), flush=True)")
    send = ("import socket, sys\ns = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)\n"
            "s.sendto(sys.argv[2].encode(), (sys.argv[1], 5003))")
    # Neighbours are made known by hand: asking for them needs both ways.
    for host, k in (("h0", 1), ("h1", 0)):
        lab("exec", host, "ip", "neigh", "replace", f"10.77.0.{10 + k}", "lladdr", f"02:6e:6c:00:00:0{k}", "dev", "eth0")
    lab("block", "h1", "h0")
    try:
        assert "blocked: h1 to h0" in lab("status")
        with running(lab, "h1", receive) as at_1, running(lab, "h0", receive) as at_0:
            lab.python("h0", send, "h1", "there")
            assert at_1.stdout.readline() == "there\n"
            lab.python("h1", send, "h0", "lost")
            lab("unblock", "h1", "h0")
            lab.python("h1", send, "h0", "back")
            assert at_0.stdout.readline() == "back\n"
    finally:
        lab("unblock", "h1", "h0")
        lab("exec", "h0", "ip", "neigh", "flush", "dev", "eth0", "nud", "permanent")
        lab("exec", "h1", "ip", "neigh", "flush", "dev", "eth0", "nud", "permanent")


@needs_lab
def test_a_crashed_host_says_nothing_and_comes_again(lab):
    """A peer of a host without power learns nothing from it; after the boot it is told that its connection is none."""
    lab("shape", "delay=100us")
    with running(lab, "h1", ECHO) as server:
        watch = lab.start("h0", sys.executable, "-c", """
import socket
c = socket.create_connection(("h1", 5000), timeout=0.4)
c.sendall(b"x")
assert c.recv(1) == b"x"
print("connected", flush=True)
input()
try:
    print("got", c.recv(1), flush=True)
except TimeoutError:
    print("silence", flush=True)
c.settimeout(20)
input()
c.sendall(b"y")
try:
    print("got", c.recv(1), flush=True)
except ConnectionResetError:
    print("reset", flush=True)
""", stdin=subprocess.PIPE)
        assert watch.stdout.readline() == "connected\n"
        lab("crash", "h1")
        assert server.wait(LIMIT_S) != 0
        assert "h1 is crashed" in lab("exec", "h1", "true", check=False).stderr
        watch.stdin.write("\n")
        watch.stdin.flush()
        assert watch.stdout.readline() == "silence\n"
        lab("boot", "h1")
        with running(lab, "h1", ANSWER):
            assert reaches_soon(lab, "h0", "h1")
        out, _ = watch.communicate("\n", timeout=LIMIT_S)
        assert out == "reset\n"


@needs_lab
def test_mpirun_runs_over_hosts(lab):
    assert sorted(lab("mpirun", "h1:2,h2", "-n", 3, "hostname").split()) == ["h1", "h1", "h2"]
    flags = lab("mpirun-flags").strip()
    assert "\n" not in flags
    # What another program makes of the flags, and mpirun as exec prepares it.
    assert sorted(lab("exec", "h0", "sh", "-c", f"env -u OMPI_MCA_plm_rsh_agent mpirun {flags} --host h0,h1 hostname")
                  .split()) == ["h0", "h1"]
    assert sorted(lab("exec", "h0", "mpirun", "--host", "h1,h2", "hostname").split()) == ["h1", "h2"]
    # A choice of the user's wins.
    shown = ("h1", "--mca", "btl", "self,tcp", "sh", "-c", "echo $OMPI_MCA_btl $OMPI_MCA_pml")
    assert lab("mpirun", *shown) == "self,tcp ob1\n"


@needs_lab
def test_two_hosts_generate_what_one_rank_does(lab, tensord, tiny):
    words = ("generate", "--model", tiny, "--prompt", "Once upon a time", "--max-tokens", 24, "--threads", 1, "--json")
    lab("shape", "delay=200us")
    alone = tensord.json_once(*words[:-1])
    two = json.loads(lab("mpirun", "h1,h2", "-n", 2, tensord.binary, *words))
    assert two["text"] == alone["text"] and two["ids"] == alone["ids"]
    assert [r["host"] for r in two["ranks"]] == ["h1", "h2"]


@contextlib.contextmanager
def serving(lab, tensord, tiny, tmp_path, hosts, *words):
    """A server on h0 with two ranks on `hosts`, ready; yields what asks it."""
    hostfile = tmp_path / "hosts"
    hostfile.write_text(lab("hostfile", hosts))
    log = tmp_path / "log"
    with log.open("w") as f:
        server = subprocess.Popen([NETLAB, "exec", "h0", tensord.binary, "serve", "--model", tiny, "-n", "2", "--hostfile",
                                   hostfile, "--port", "8000", "--threads", "1", *words], env=lab.env, stdout=f, stderr=f)
    try:
        url = "http://127.0.0.1:8000"
        deadline = time.monotonic() + LIMIT_S
        while lab("exec", "h0", "curl", "-fs", f"{url}/readyz", check=False).returncode != 0:
            assert server.poll() is None and time.monotonic() < deadline, log.read_text()
            time.sleep(0.1)
        yield lambda path, *curl: lab("exec", "h0", "curl", "-fs", *curl, url + path)
    finally:
        server.send_signal(signal.SIGTERM)
        assert server.wait(LIMIT_S) == 0, log.read_text()


@needs_lab
def test_serve_launches_its_ranks_on_the_hosts(lab, tensord, tiny, tmp_path):
    alone = tensord.json_once("generate", "--model", tiny, "--prompt", "Once upon a time", "--max-tokens", 24,
                              "--threads", 1)
    with serving(lab, tensord, tiny, tmp_path, "h1,h2") as ask:
        body = {"prompt": "Once upon a time", "max_tokens": 24, "temperature": 0}
        assert json.loads(ask("/v1/completions", "-d", json.dumps(body)))["choices"][0]["text"] == alone["text"]
        assert [r["host"] for r in json.loads(ask("/status"))["groups"][0]["ranks"]] == ["h1", "h2"]


@needs_lab
def test_a_stream_outlives_its_hosts_on_a_spare_one_and_then_on_fewer_ranks(lab, tensord, tiny, tmp_path):
    body = {"prompt": "Once upon a time", "max_tokens": 400, "ignore_eos": True, "temperature": 0.9, "seed": 5}

    with serving(lab, tensord, tiny, tmp_path, "h1,h2,h0", "--cpu-isa", "ref") as ask:
        golden = json.loads(ask("/v1/completions", "-d", json.dumps(body)))["choices"][0]["text"]
        for victim, left in (("h1", ["h2", "h0"]), ("h2", ["h0"])):
            stream = lab.start("h0", "curl", "-Nfs", "http://127.0.0.1:8000/v1/completions", "-d",
                               json.dumps(body | {"stream": True}))
            first = next(line for line in stream.stdout if line.startswith("data: {"))
            text = json.loads(first[len("data: "):])["choices"][0]["text"]
            lab("crash", victim)
            for line in stream.stdout:
                if line.startswith("data: {"):
                    text += json.loads(line[len("data: "):])["choices"][0]["text"]
            assert stream.wait(LIMIT_S) == 0 and line.strip() in ("", "data: [DONE]")
            assert text == golden
            group = json.loads(ask("/status"))["groups"][0]
            assert sorted(r["host"] for r in group["ranks"]) == sorted(left) and group["state"] == "ready"
        assert group["n_restarts"] == 2


@contextlib.contextmanager
def sums(lab, tensord, folder, deadline_ms):
    """A rank on h1 and one on h2 that sum until they fail, or the file `stop` is there. What each leaves: test_comm_mpi_fault.c."""
    program = pathlib.Path(tensord.binary).parent / "tests" / "test_comm_mpi_fault"
    assert program.is_file(), f"{program} is missing: it is built with the unit tests"
    with (folder / "log").open("w") as log:
        job = subprocess.Popen([NETLAB, "mpirun", "h1,h2", "--enable-recovery", "-n", "2", program, "link", folder,
                                str(deadline_ms)], env=lab.env, stdout=log, stderr=log, stdin=subprocess.DEVNULL)
    try:
        until(lambda: min(n_right(folder)) >= 10, lambda: (folder / "log").read_text())
        yield
        lab("heal", "h1")
        job.wait(LIMIT_S)
    finally:
        job.terminate()
        job.wait(LIMIT_S)


def left(folder, name):
    """What the two ranks left under that name; "" of one that has not."""
    return [path.read_text() if path.is_file() else "" for path in (folder / f"{name}.{r}" for r in (0, 1))]


def n_right(folder):
    return [int(text or 0) for text in left(folder, "round")]


def until(condition, tell=lambda: "", limit_s=LIMIT_S):
    deadline = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < deadline, tell()
        time.sleep(0.02)


@needs_lab
@pytest.mark.parametrize("verb", ["cut", "blackhole"])
def test_ranks_of_two_hosts_report_that_the_link_is_lost(lab, tensord, tmp_path, verb):
    deadline_s = 3
    with sums(lab, tensord, tmp_path, 1000 * deadline_s):
        lab(verb, "h1")
        until(lambda: all(left(tmp_path, "rank")), lambda: (tmp_path / "log").read_text(), 5 * deadline_s)
        for r, text in enumerate(left(tmp_path, "rank")):
            assert text.startswith(f"peer timed out: rank {r} of 2: ")
            assert text.endswith(f": rank {1 - r} did not answer within {deadline_s}.000 s")


@needs_lab
def test_sums_go_on_when_the_link_comes_again_before_the_deadline(lab, tensord, tmp_path):
    with sums(lab, tensord, tmp_path, 1000 * LIMIT_S):
        lab("cut", "h1")
        seen = [(time.monotonic(), n_right(tmp_path))]

        def stands_still():
            seen.append((time.monotonic(), n_right(tmp_path)))
            return seen[-1][0] - next(t for t, n in seen if n == seen[-1][1]) > 0.5
        until(stands_still)
        lab("heal", "h1")
        until(lambda: min(n_right(tmp_path)) > max(seen[-1][1]) + 10, lambda: (tmp_path / "log").read_text())
        (tmp_path / "stop").touch()
        until(lambda: all(left(tmp_path, "rank")))
        assert left(tmp_path, "rank") == ["well", "well"]


@needs_lab
def test_bench_comm_marks_what_was_fastest_when_tried(lab, tensord, tmp_path):
    """Every rank has a core of its host's, so algorithms are tried, and the next start believes what was kept."""
    words = ("h0,h1,h2", "-n", 3, "-x", f"XDG_CACHE_HOME={tmp_path}", tensord.binary, "bench", "comm", "--sizes", "8,1M",
             "--operations", "tree_sum", "--repetitions", 1, "--json")

    def marked():
        out = json.loads(lab("mpirun", *words))
        assert (out["hosts"], out["shares_cores"], out["auto_by"]) == (3, False, "trial")
        return [[c["algorithm"] for c in row["contenders"] if c["auto"]] for row in out["rows"]]
    first = marked()
    kept, = tmp_path.glob("tensord/sums-*")
    group, *choices = kept.read_text().splitlines()
    assert first == [[choices[3]], [choices[20]]]  # of 2^3 and of 2^20 bytes
    kept.write_text("\n".join([group, *["doubling" for _ in choices], ""]))
    assert marked() == [["doubling"], ["doubling"]]


WRONG = [
    ((), "got no verb"),
    (("fly",), "got 'fly', expected one of up"),
    (("up",), "got 0 arguments after 'up', expected 'up N'"),
    (("up", "2", "3"), "got 2 arguments after 'up'"),
    (("up", "1"), "up: got '1', expected a number of hosts from 2 to 16"),
    (("up", "17"), "got '17'"),
    (("up", "two"), "got 'two'"),
    (("down", "now"), "got 1 argument after 'down'"),
    (("exec", "h0"), "expected 'exec HOST CMD...'"),
    (("shape",), "got 0 arguments after 'shape'"),
    (("shape", "speed=3"), "got 'speed=3', expected delay=, jitter=, loss= or rate="),
    (("shape", "delay=50"), "got delay=50, expected a number with us, ms or s"),
    (("shape", "delay=-1ms"), "got delay=-1ms"),
    (("shape", "delay=1e3us"), "got delay=1e3us"),
    (("shape", "delay=11s"), "got delay=11s, expected at most 10s"),
    (("shape", "jitter=1min"), "got jitter=1min"),
    (("shape", "loss=5"), "got loss=5, expected a number with % or ppm"),
    (("shape", "loss=101%"), "got loss=101%, expected at most 100%"),
    (("shape", "rate=1gb"), "got rate=1gb, expected a number with kbit, mbit or gbit"),
    (("shape", "rate=1001gbit"), "got rate=1001gbit, expected 1kbit to 1000gbit"),
    (("shape", "off", "delay=1ms"), "shape off: got 'delay=1ms' as well"),
    (("shape", "h1", "delay=1ms"), "shape: got 'h1 delay=1ms'"),
]
WRONG_IN_LAB = [
    (("exec", "h3", "true"), "got host 'h3', expected h0 to h2"),
    (("exec", "vm", "true"), "got host 'vm'"),
    (("rsh", "h01", "true"), "got host 'h01'"),
    (("cut", "h9"), "got host 'h9'"),
    (("block", "h1", "h1"), "got h1 twice, expected two hosts"),
    (("shape", "h0", "h1", "rate=1gbit"), "got rate for one pair"),
    (("shape", "h0", "h4", "delay=1ms"), "got host 'h4'"),
    (("mpirun", "h1:0", "true"), "got 'h1:0', expected HOST[:SLOTS]"),
    (("hostfile", "h1,,h2"), "got host ''"),
]


@pytest.mark.parametrize("args,message", WRONG)
def test_wrong_arguments_are_told(args, message):
    p = Lab("nosuch")(*args, check=False)
    assert p.returncode == 2 and p.stdout == ""
    assert p.stderr.startswith("netlab: ") and message in p.stderr and p.stderr.count("\n") == 1


@needs_lab
def test_wrong_hosts_are_told_and_nothing_is_changed(lab):
    before = lab("status")
    for args, message in WRONG_IN_LAB:
        p = lab(*args, check=False)
        assert p.returncode == 2 and message in p.stderr and p.stderr.count("\n") == 1, args
    assert lab("status") == before


def test_wrong_environment_is_told():
    for variables, message in (({"NETLAB": "Lab 1"}, "NETLAB: got 'Lab 1'"), ({"NETLAB_SHAPER": "tc"}, "NETLAB_SHAPER")):
        p = subprocess.run([NETLAB, "status"], env=os.environ | variables, capture_output=True, text=True)
        assert p.returncode == 2 and message in p.stderr


def test_who_is_not_root_is_told():
    other = []
    if os.geteuid() == 0:
        other = ["unshare", "--user"]  # where we are nobody, and may still read our files
        if subprocess.run([*other, "true"], capture_output=True).returncode:
            pytest.skip("root: user namespaces are not permitted here")
    p = subprocess.run([*other, NETLAB, "up", "2"], capture_output=True, text=True)
    assert p.returncode == 1 and "netlab: needs root, this is user" in p.stderr


def test_help_names_every_verb():
    p = Lab("nosuch")("--help")
    for verb in ("up N", "down", "exec", "rsh", "mpirun ", "mpirun-flags", "hostfile", "shape", "cut", "heal", "blackhole", "block",
                 "unblock", "crash", "boot", "status"):
        assert f"  {verb}" in p or f"; {verb}" in p, verb


@needs_lab
def test_up_twice_and_not_up_are_told(lab):
    assert "already up with 3 hosts" in lab("up", "2", check=False).stderr
    for args in (("down",), ("status",), ("exec", "h0", "true"), ("cut", "h0"), ("shape", "off")):
        p = Lab("nosuch")(*args, check=False)
        assert p.returncode == 1 and p.stderr == "netlab: lab 'nosuch' is not up: netlab up N\n"
    assert "h1 is running" in lab("boot", "h1", check=False).stderr
    assert "would end it" in lab("exec", "h0", NETLAB, "down", check=False).stderr


@needs_lab
def test_a_missing_switch_is_told_and_nothing_is_changed(lab):
    before = lab("status")
    lab.env["NETLAB_SWITCH"] = "/nosuch"
    try:
        for args in (("shape", "jitter=1ms"), ("shape", "h0", "h1", "delay=1ms"), ("block", "h0", "h1")):
            p = lab(*args, check=False)
            assert p.returncode == 1 and "'/nosuch' is no program" in p.stderr
            assert lab("status") == before
    finally:
        del lab.env["NETLAB_SWITCH"]


@needs_lab
def test_a_switch_that_was_killed_is_told_and_comes_again(lab):
    lab("shape", "delay=1ms", "jitter=1us")
    for entry in pathlib.Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if f"/{lab.name}/switch.sock".encode() in (entry / "cmdline").read_bytes():
                os.kill(int(entry.name), signal.SIGKILL)
    p = lab("status", check=False)
    assert p.returncode == 1 and "the switch is not running" in p.stderr
    lab("shape", "delay=2ms", "jitter=1us")
    assert min(round_trips(lab, 3)) >= 4e-3


@needs_lab
def test_two_labs_stand_side_by_side_and_down_ends_only_its_own(lab):
    bystander = subprocess.Popen(["sleep", "60"], env=os.environ | {"NETLAB": "other"})
    with lab_of(f"u{os.getpid() % 100000}", 2) as other:
        stray = other.start("h0", "sleep", "60")  # of h0, which shares the machine's processes
        far = other.start("h1", "setsid", "sleep", "60")
        other("shape", "delay=10ms")
        assert min(round_trips(other, 2)) >= 20e-3
        assert min(round_trips(lab, 10)) < 20e-3
    assert stray.wait(LIMIT_S) == -signal.SIGKILL and far.wait(LIMIT_S) != 0
    for p in (stray, far):
        p.stdout.close()
    assert bystander.poll() is None and "3 hosts" in lab("status")
    bystander.kill()
    bystander.wait()


@needs_lab
def test_down_removes_what_a_killed_up_left():
    lab = Lab(f"k{os.getpid() % 100000}")
    up = subprocess.Popen([NETLAB, "up", "16"], env=lab.env, start_new_session=True, stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + LIMIT_S
    while not pathlib.Path(f"/run/tensord-netlab/{lab.name}/h1.pid").exists():
        assert up.poll() is None and time.monotonic() < deadline
        time.sleep(0.001)
    up.kill()
    up.wait()
    assert lab.traces != []
    lab("down")
    assert lab.traces == []
