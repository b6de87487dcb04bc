"""Servers that the tests start, and what asks them: curl, grpcio, OpenAI's schemas.

A module that wants the fixtures says `pytest_plugins = ["serving"]`; the server of `server` is one for the whole run. Every
server carries a tag in its environment, which its ranks inherit, so that what it leaves behind is found by that.
"""

import http.client
import json
import os
import pathlib
import re
import shutil
import signal
import socket
import ssl
import subprocess
import tempfile
import time
import uuid

import grpc
import pytest
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

ROOT = pathlib.Path(__file__).resolve().parents[2]
BUILD = pathlib.Path(os.environ.get("TD_BUILD", ROOT / "build"))
TENSORD = os.environ.get("TENSORD_BIN", str(BUILD / "tensord"))
SHARED = ROOT.parent / "shared"
TINY = ROOT / "tests" / "models" / "tensord-tiny"
STORIES = SHARED / "data" / "models" / "stories260K" / "hf"


def chosen_model():
    """The model that ships; while it has no weights, a small one without a chat template; None without either."""
    if "TD_TEST_MODEL" in os.environ:
        return pathlib.Path(os.environ["TD_TEST_MODEL"])
    if (TINY / "model.safetensors").exists():
        return TINY
    return STORIES if STORIES.exists() else None


MODEL = chosen_model()
HAS_CHAT = MODEL is not None and MODEL != STORIES
NAME = MODEL.name if MODEL else ""

needs_model = pytest.mark.skipif(MODEL is None, reason="shared: no model: tests/models has no weights and ../shared is absent")
needs_chat = pytest.mark.skipif(not HAS_CHAT, reason="shared: the model at hand has no chat template")
needs_shared = pytest.mark.skipif(not SHARED.exists(), reason="shared: ../shared is absent")

ENV = {
    "OMPI_ALLOW_RUN_AS_ROOT": "1",
    "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
    "OMPI_MCA_rmaps_base_oversubscribe": "1",
}


# ---- waiting and processes ----


def wait_until(what, check, timeout=15.0, every=0.02):
    """The first true value of check(); fails when there is none in time."""
    end = time.monotonic() + timeout
    while True:
        value = check()
        if value:
            return value
        if time.monotonic() > end:
            pytest.fail(f"waited {timeout} s in vain: {what() if callable(what) else what}")
        time.sleep(every)


def free_port():
    with socket.socket() as s:
        s.bind(("", 0))  # free at every address
        return s.getsockname()[1]


def read_proc(pid, name):
    try:
        return pathlib.Path(f"/proc/{pid}/{name}").read_bytes()
    except OSError:
        return b""


def tagged(tag):
    """{pid: command line} of the living processes that carry the tag."""
    found = {}
    for entry in os.listdir("/proc"):
        if entry.isdigit() and f"TD_TEST_TAG={tag}".encode() in read_proc(entry, "environ").split(b"\0"):
            words = read_proc(entry, "cmdline").split(b"\0")
            if words != [b""]:
                found[int(entry)] = [w.decode(errors="replace") for w in words if w]
    return found


def cpu_ns(pid):
    """Processor time of all threads of a process."""
    total = 0
    for task in pathlib.Path(f"/proc/{pid}/task").glob("*"):
        fields = read_proc(f"{pid}/task/{task.name}", "schedstat").split()
        total += int(fields[0]) if fields else 0
    return total


def shm_files(pids):
    """Files of /dev/shm that the processes have mapped."""
    maps = b"".join(read_proc(pid, "maps") for pid in pids).decode(errors="replace")
    return set(re.findall(r"/dev/shm/[^\s]+", maps))


class Process:
    """One started program with its output in files, and everything that it starts."""

    def __init__(self, argv, env=None):
        self.tag = uuid.uuid4().hex
        self.dir = pathlib.Path(tempfile.mkdtemp(prefix="tensord-test-"))
        self.seen_shm = set()
        environment = {k: v for k, v in os.environ.items() if not k.startswith("TENSORD_")}
        environment.update(ENV, TD_TEST_TAG=self.tag, XDG_STATE_HOME=str(self.dir / "state"), **(env or {}))
        with open(self.dir / "out", "wb") as out, open(self.dir / "err", "wb") as err:
            self.p = subprocess.Popen(
                [str(a) for a in argv], stdin=subprocess.DEVNULL, stdout=out, stderr=err, env=environment
            )

    def out(self):
        return (self.dir / "out").read_text(errors="replace")

    def log(self):
        return (self.dir / "err").read_text(errors="replace")

    def processes(self):
        return tagged(self.tag)

    def ranks(self):
        """{pid: argv} of the processes that run `tensord worker`."""
        return {p: a for p, a in self.processes().items() if a[0].endswith("tensord") and a[1:2] == ["worker"]}

    def wait_log(self, pattern, timeout=15.0):
        return wait_until(lambda: f"'{pattern}' in:\n{self.log()}", lambda: re.search(pattern, self.log()), timeout)

    def wait_exit(self, timeout=15.0):
        try:
            return self.p.wait(timeout)
        except subprocess.TimeoutExpired:
            pytest.fail(f"still running after {timeout} s:\n{self.log()[-3000:]}")

    def note_shm(self):
        self.seen_shm |= shm_files(self.processes())

    def stop(self, expected=0, timeout=15.0, pid=None):
        """Ends it in order (SIGTERM to it or to `pid`) and asserts that nothing is left: no process, no shared memory, no folder."""
        try:
            self.note_shm()
            os.kill(pid or self.p.pid, signal.SIGTERM)
            status = self.wait_exit(timeout)
            assert expected is None or status == expected, f"ended with {status}:\n{self.log()[-3000:]}"
            wait_until(lambda: f"processes are left: {self.processes()}", lambda: not self.processes(), 5)
            left = [f for f in self.seen_shm | set(re.findall(r" dir=(\S+)", self.log())) if os.path.exists(f)]
            assert not left, f"files are left: {left}"
        finally:
            self.kill()

    def kill(self):
        """Whatever happened: ends all that is left."""
        for pid in list(self.processes()):
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
        if self.p.poll() is None:
            self.p.kill()
        self.p.wait(10)
        shutil.rmtree(self.dir, ignore_errors=True)

    def __enter__(self):
        return self

    def __exit__(self, kind, value, trace):
        self.kill()


# ---- servers ----


class Answer:
    def __init__(self, status, headers, body):
        self.status = status
        self.headers = {k.lower(): v for k, v in headers}
        self.body = body

    def json(self):
        return json.loads(self.body)


class Server(Process):
    """`tensord serve` on a free port. prefix: what stands before it (mpirun); key, tls: as the clients need them."""

    def __init__(self, *args, model=MODEL, prefix=(), key=None, tls=None, env=None, port=None):
        self.port = port or free_port()
        self.address = f"127.0.0.1:{self.port}"
        self.key = key
        self.tls = tls
        self.url = f"{'https' if tls else 'http'}://{self.address}"
        super().__init__([*prefix, TENSORD, "serve", "--model", model, "--port", self.port, *args], env)

    def headers(self):
        return {"Authorization": f"Bearer {self.key}"} if self.key else {}

    def connection(self, timeout=30):
        if self.tls:
            context = ssl.create_default_context(cafile=str(self.tls))
            return http.client.HTTPSConnection(self.address, timeout=timeout, context=context)
        return http.client.HTTPConnection(self.address, timeout=timeout)

    def request(self, method, path, body=None, timeout=30):
        c = self.connection(timeout)
        try:
            data = body if isinstance(body, (bytes, type(None))) else json.dumps(body).encode()
            c.request(method, path, data, {"Content-Type": "application/json", **self.headers()})
            r = c.getresponse()
            return Answer(r.status, r.getheaders(), r.read())
        finally:
            c.close()

    def get(self, path, timeout=30):
        return self.request("GET", path, None, timeout)

    def post(self, path, body, timeout=60):
        return self.request("POST", path, body, timeout)

    def is_ready(self):
        try:
            return self.get("/readyz", 5).status == 200
        except OSError:
            return False

    def wait_ready(self, timeout=60.0):
        def check():
            if self.p.poll() is not None:
                pytest.fail(f"the server ended with {self.p.returncode}:\n{self.log()[-3000:]}")
            return self.is_ready()

        wait_until(lambda: f"ready; its log:\n{self.log()[-3000:]}", check, timeout, 0.05)
        return self

    def status(self):
        return self.get("/status").json()

    def group(self):
        return self.status()["groups"][0]

    def complete(self, prompt, **fields):
        """One completion that must succeed; the choice."""
        r = self.post("/v1/completions", {"model": NAME, "prompt": prompt, **fields})
        assert r.status == 200, r.body
        return r.json()["choices"][0]

    def stream(self, path, body, timeout=60):
        return Stream(self, path, body, timeout)


class DialIn(Server):
    """A coordinator that launches nothing, and the group of `mpirun` that dials in to it."""

    def __init__(self, key_file, ranks=2, *args, model=MODEL):
        self.key_file = key_file
        self.groups = []
        super().__init__("--no-launch", "--ranks", ranks, "--cluster-key-file", key_file, *args, model=model)
        wait_until(lambda: f"the port is open:\n{self.log()}", self.is_listening, 10)

    def is_listening(self):
        try:
            return self.get("/healthz").status == 200
        except OSError:
            return False

    def dial(self, ranks=2, key_file=None):
        argv = ["mpirun", "-n", ranks, TENSORD, "worker", "--coordinator", self.address, "--threads", 1,
                "--cluster-key-file", key_file or self.key_file]
        self.groups.append(Process(argv))
        return self.groups[-1]

    def ranks(self):
        return {p: a for g in self.groups for p, a in g.ranks().items()}

    def stop(self, expected=0, timeout=15.0, pid=None):
        for g in self.groups:
            g.note_shm()
        super().stop(expected, timeout, pid)
        for g in self.groups:
            if g.p.poll() is None or g.processes():
                status = g.wait_exit(10)
                assert status == 0, g.log()
            wait_until(lambda: f"left: {g.processes()}", lambda: not g.processes(), 5)
            assert not [f for f in g.seen_shm if os.path.exists(f)]

    def kill(self):
        for g in self.groups:
            g.kill()
        super().kill()


class Stream:
    """A request whose answer is a stream of events; iterating yields their data as text."""

    def __init__(self, server, path, body, timeout=60):
        self.c = server.connection(timeout)
        self.c.request("POST", path, json.dumps(body), {"Content-Type": "application/json", **server.headers()})
        self.response = self.c.getresponse()
        self.status = self.response.status

    def __iter__(self):
        data = []
        for line in self.response:
            line = line.decode().rstrip("\n")
            if line.startswith("data: "):
                data.append(line[6:])
            elif line == "" and data:
                yield "\n".join(data)
                data = []

    def close(self):
        """Closes the connection itself, wherever the stream is."""
        if self.c.sock:
            self.c.sock.shutdown(socket.SHUT_RDWR)
        self.response.close()
        self.c.close()


def chunks_of(stream):
    """The chunks as objects; the last event must be [DONE]."""
    events = list(stream)
    assert events[-1] == "[DONE]", events[-3:]
    return [json.loads(e) for e in events[:-1]]


def curl(*args, timeout=60):
    """(HTTP status, headers as text, body) of one curl call."""
    with tempfile.TemporaryDirectory() as d:
        p = subprocess.run(
            ["curl", "-sS", "-m", str(timeout), "-D", f"{d}/head", "-o", f"{d}/body", "-w", "%{http_code}", *map(str, args)],
            capture_output=True, timeout=timeout + 10,
        )
        read = lambda name: pathlib.Path(d, name).read_bytes() if pathlib.Path(d, name).exists() else b""
        assert p.returncode == 0, (p.returncode, p.stderr)
        return int(p.stdout[-3:]), read("head").decode(errors="replace"), read("body")


def tensord(*args, timeout=60, env=None, input=None):
    """A finished run of one command."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("TENSORD_")}
    environment.update(ENV, **(env or {}))
    return subprocess.run([TENSORD, *map(str, args)], capture_output=True, timeout=timeout, env=environment, input=input)


def make_certificate(folder):
    """A self-signed certificate of 127.0.0.1 and localhost: (certificate, key)."""
    cert, key = folder / "cert.pem", folder / "key.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2",
         "-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1", "-keyout", key, "-out", cert],
        check=True, capture_output=True,
    )
    return cert, key


# ---- OpenAI's description of its API ----


class Schemas:
    """Checks bodies against components/schemas of OpenAI's own description; checks nothing where ../shared is absent."""

    def __init__(self):
        path = SHARED / "data" / "api" / "openai-openapi.json"
        self.validators = {}
        self.registry = None
        if not path.exists():
            return
        from referencing import Registry, Resource
        from referencing.jsonschema import DRAFT202012

        document = self.allow_null({"components": {"schemas": json.loads(path.read_text())["components"]["schemas"]}})
        self.registry = Registry().with_resource("urn:openai", Resource(document, DRAFT202012))

    def allow_null(self, node):
        """The description still writes OpenAPI 3.0's `nullable: true`, which JSON Schema does not know."""
        if isinstance(node, list):
            return [self.allow_null(n) for n in node]
        if not isinstance(node, dict):
            return node
        node = {k: self.allow_null(v) for k, v in node.items()}
        return {"anyOf": [node, {"type": "null"}]} if node.get("nullable") is True else node

    def check(self, name, body):
        if self.registry is None:
            return
        from jsonschema import Draft202012Validator

        if name not in self.validators:
            reference = {"$ref": f"urn:openai#/components/schemas/{name}"}
            self.validators[name] = Draft202012Validator(reference, registry=self.registry)
        errors = [f"{e.json_path}: {e.message}" for e in self.validators[name].iter_errors(body)]
        assert not errors, (name, errors, body)

    def check_completion_chunk(self, body):
        """A completion's chunk has the response's shape, but finish_reason and usage are null until they are known."""
        choices = [{**c, "finish_reason": c["finish_reason"] or "stop"} for c in body["choices"]]
        fields = {k: v for k, v in body.items() if k != "usage" or v is not None}
        self.check("CreateCompletionResponse", {**fields, "choices": choices})


# ---- gRPC ----


class Rpc:
    """The messages of proto/*.proto and calls by name, without generated code."""

    def __init__(self):
        with tempfile.TemporaryDirectory() as d:
            names = ["proto/inference.proto", "proto/cluster.proto"]
            subprocess.run(["protoc", f"-I{ROOT}", f"--descriptor_set_out={d}/set", "--include_imports", *names], check=True, cwd=ROOT)
            self.files = descriptor_pb2.FileDescriptorSet.FromString(pathlib.Path(d, "set").read_bytes())
        self.pool = descriptor_pool.DescriptorPool()
        for file in self.files.file:
            self.pool.Add(file)

    def message(self, name, **fields):
        return message_factory.GetMessageClass(self.pool.FindMessageTypeByName(f"tensord.v1.{name}"))(**fields)

    def call(self, channel, method, request=None, timeout=30, key=None, **fields):
        """tensord.v1 `Service/Method`: the answer, or for a stream its iterator."""
        service, name = method.split("/")
        m = self.pool.FindServiceByName(f"tensord.v1.{service}").methods_by_name[name]
        kinds = [message_factory.GetMessageClass(t) for t in (m.input_type, m.output_type)]
        make = channel.unary_stream if name in ("Generate", "Resume") else channel.unary_unary
        run = make(f"/tensord.v1.{method}", kinds[0].SerializeToString, kinds[1].FromString)
        metadata = [("authorization", f"Bearer {key}")] if key else None
        return run(request if request is not None else kinds[0](**fields), timeout=timeout, metadata=metadata)


def channel_to(server):
    if server.tls:
        return grpc.secure_channel(server.address, grpc.ssl_channel_credentials(pathlib.Path(server.tls).read_bytes()))
    return grpc.insecure_channel(server.address)


# ---- fixtures ----


@pytest.fixture(scope="session")
def schemas():
    return Schemas()


@pytest.fixture(scope="session")
def rpc():
    return Rpc()


@pytest.fixture(scope="session")
def server():
    """Two ranks that the server launches itself; shared, so a test leaves it as it was."""
    if MODEL is None:
        pytest.skip("shared: no model: tests/models has no weights and ../shared is absent")
    with Server("-n", 2, "--threads", 1) as s:
        s.wait_ready()
        yield s
        assert s.is_ready(), f"the shared server is not ready any more:\n{s.log()[-3000:]}"
        s.stop()


@pytest.fixture
def channel(server):
    with channel_to(server) as c:
        yield c


@pytest.fixture(scope="session")
def certificate(tmp_path_factory):
    return make_certificate(tmp_path_factory.mktemp("tls"))


@pytest.fixture(scope="session")
def secure(certificate):
    """One rank behind TLS and an API key."""
    if MODEL is None:
        pytest.skip("shared: no model: tests/models has no weights and ../shared is absent")
    keys = tempfile.NamedTemporaryFile("w", suffix=".key")
    with keys as f:
        f.write("key-of-the-tests\n")
        f.flush()
        cert, key = certificate
        args = ["-n", 1, "--threads", 1, "--api-key-file", f.name, "--ssl-certfile", cert, "--ssl-keyfile", key]
        with Server(*args, key="key-of-the-tests", tls=cert) as s:
            s.wait_ready()
            yield s
            s.stop()


@pytest.fixture(scope="session")
def key_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("keys") / "cluster.key"
    path.write_text("a-cluster-key-of-the-tests\n")
    return path
