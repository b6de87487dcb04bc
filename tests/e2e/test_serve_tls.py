"""TLS of clients and of workers: versions, reload, and certificates on both sides of the control stream."""

import http.client
import re
import signal
import socket
import ssl
import subprocess

import pytest
from serving import MODEL, DialIn, Process, Server, TENSORD, free_port, make_certificate, needs_model, tensord, wait_until

pytest_plugins = ["serving"]
pytestmark = needs_model
PROMPT = "Once upon a time"


def openssl(*args):
    subprocess.run(["openssl", *map(str, args)], check=True, capture_output=True)


def make_authority(folder, name):
    openssl("req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2", "-subj", f"/CN={name}",
            "-keyout", folder / f"{name}.key", "-out", folder / f"{name}.pem")


def make_signed(folder, name, authority, usage=None, days=2):
    openssl("req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-subj", f"/CN={name}", "-keyout",
            folder / f"{name}.key", "-out", folder / f"{name}.csr")
    (folder / f"{name}.ext").write_text(f"extendedKeyUsage={usage}\n" if usage else "basicConstraints=CA:FALSE\n")
    openssl("x509", "-req", "-in", folder / f"{name}.csr", "-CA", folder / f"{authority}.pem", "-CAkey", folder / f"{authority}.key",
            "-CAcreateserial", "-days", days, "-extfile", folder / f"{name}.ext", "-out", folder / f"{name}.pem")


@pytest.fixture(scope="module")
def pki(tmp_path_factory):
    """Two authorities and what they signed."""
    folder = tmp_path_factory.mktemp("pki")
    for name in ("cluster", "other"):
        make_authority(folder, name)
    make_signed(folder, "node", "cluster")
    make_signed(folder, "foreign", "other")
    make_signed(folder, "server-only", "cluster", "serverAuth")
    make_signed(folder, "expired", "cluster", days=-1)
    return folder


def mutual(pki, name, authority="cluster"):
    return ["--cluster-ssl-ca", pki / f"{authority}.pem", "--cluster-ssl-certfile", pki / f"{name}.pem", "--cluster-ssl-keyfile",
            pki / f"{name}.key"]


# ---- clients ----


def handshake(server, *args):
    p = subprocess.run(["openssl", "s_client", "-connect", server.address, *args], stdin=subprocess.DEVNULL, capture_output=True, timeout=30)
    return p.returncode, (p.stdout + p.stderr).decode(errors="replace")


def test_tls_1_2_is_refused_in_the_handshake(secure):
    for version in ("-tls1_2", "-tls1_1"):
        status, said = handshake(secure, version, "-cipher", "ALL:@SECLEVEL=0")
        assert status != 0 and "alert protocol version" in said, said
    status, said = handshake(secure, "-tls1_3")
    assert status == 0 and "TLSv1.3" in said, said
    context = ssl.create_default_context(cafile=str(secure.tls))
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    c = http.client.HTTPSConnection(secure.address, timeout=30, context=context)
    with pytest.raises(ssl.SSLError, match="PROTOCOL_VERSION"):
        c.request("GET", "/healthz")


def serial_of(server):
    said = handshake(server, "-showcerts")[1]
    pem = re.search(r"-----BEGIN CERTIFICATE-----.*?-----END CERTIFICATE-----", said, re.S)[0]
    return subprocess.run(["openssl", "x509", "-noout", "-serial"], input=pem.encode(), capture_output=True, check=True).stdout


def test_certificates_are_read_again_on_sighup(tmp_path):
    """New connections get the new one, open ones go on; a file that is wrong changes nothing."""
    for name in ("old", "new"):
        (tmp_path / name).mkdir()
        make_certificate(tmp_path / name)
    cert, key = tmp_path / "cert.pem", tmp_path / "key.pem"

    def use(name):
        cert.write_bytes((tmp_path / name / "cert.pem").read_bytes())
        key.write_bytes((tmp_path / name / "key.pem").read_bytes())

    def reload(words):
        n = len(s.log())
        s.p.send_signal(signal.SIGHUP)
        wait_until(lambda: s.log()[n:], lambda: words in s.log()[n:], 15)
        return s.log()[n:]

    use("old")
    args = ["-n", 1, "--cpu-isa", "ref", "--threads", 1, "--ssl-certfile", cert, "--ssl-keyfile", key, "--log-level", "debug"]
    with Server(*args, tls=tmp_path / "old" / "cert.pem") as s:
        s.wait_ready()
        first = serial_of(s)
        stream = s.stream("/v1/completions", {"prompt": PROMPT, "max_tokens": 250, "ignore_eos": True, "stream": True})
        events = iter(stream)
        next(events)
        use("new")
        reload("certificate reloaded of=clients")
        s.tls = tmp_path / "new" / "cert.pem"
        second = serial_of(s)
        assert first != second and s.get("/readyz").status == 200
        assert list(events)[-1] == "[DONE]", "the open stream was cut"
        key.write_bytes((tmp_path / "old" / "key.pem").read_bytes())
        assert "mismatch" in reload("certificate not reloaded")
        cert.write_text("no certificate\n")
        assert str(cert) in reload("certificate not reloaded")
        assert serial_of(s) == second and s.get("/readyz").status == 200
        s.stop()


def test_without_files_to_read_again_sighup_ends_a_server_as_any_program():
    with Server("-n", 1, "--threads", 1) as s:
        s.wait_ready()
        s.p.send_signal(signal.SIGHUP)
        assert s.wait_exit(10) == -signal.SIGHUP
        wait_until(lambda: f"left: {s.processes()}", lambda: not s.processes(), 10)


def test_a_handshake_that_never_comes(certificate):
    cert, key = certificate
    with Server("-n", 1, "--threads", 1, "--ssl-certfile", cert, "--ssl-keyfile", key, "--header-timeout", 1, tls=cert) as s:
        s.wait_ready()
        for sent in (b"", b"\x16\x03\x01\x02\x00\x01"):
            with socket.create_connection(("127.0.0.1", s.port), 30) as c:
                c.sendall(sent)
                assert c.recv(100) == b""
        s.stop()


# ---- workers ----


def test_a_launched_group_shows_certificates(pki):
    """No secret on a command line or in an environment: the files' paths and nothing else."""
    with Server("-n", 2, "--threads", 1, "--log-level", "debug", *mutual(pki, "node")) as s:
        s.wait_ready()
        assert s.complete(PROMPT, max_tokens=4)["text"] and len(s.ranks()) == 2
        port = int(re.search(r"control stream at 127\.0\.0\.1:(\d+)", s.log())[1])
        assert port != s.port
        key = (pki / "node.key").read_bytes().splitlines()[1]
        for pid, argv in s.processes().items():
            assert key.decode() not in " ".join(argv) and key not in open(f"/proc/{pid}/environ", "rb").read()
        n = len(s.log())
        s.p.send_signal(signal.SIGHUP)
        wait_until(lambda: s.log()[n:], lambda: "certificate reloaded of=workers" in s.log()[n:], 15)
        assert s.is_ready()
        s.stop()


class Standing(DialIn):
    """A coordinator that wants certificates, with or without a key."""

    def __init__(self, pki, key_file=None):
        self.key_file, self.groups = key_file, []
        key = ["--cluster-key-file", key_file] if key_file else []
        Server.__init__(self, "--no-launch", "--ranks", 2, *key, *mutual(pki, "node"))
        found = wait_until(lambda: f"the port is open:\n{self.log()}", lambda: re.search(r"control stream at (\S+)", self.log()), 15)
        self.control = found[1]

    def dial_with(self, *args, ranks=2):
        argv = ["mpirun", "-n", ranks, TENSORD, "worker", "--coordinator", self.control, "--threads", 1, *args]
        self.groups.append(Process(argv))
        return self.groups[-1]

    def refuses(self, *args):
        """The log of a group that must end without having been let in, and what the coordinator said."""
        n = len(self.log())
        group = self.dial_with(*args)
        try:
            assert group.wait_exit(45) != 0
            return group.log(), self.log()[n:]
        finally:
            self.groups.remove(group)
            group.kill()


@pytest.fixture(scope="module")
def standing(pki):
    with Standing(pki) as s:
        yield s
        s.dial_with(*mutual(pki, "node"))
        s.wait_ready()
        assert s.complete(PROMPT, max_tokens=4)["text"]
        s.stop()


def test_a_worker_without_a_certificate_is_refused(standing, key_file):
    for args in ((), ("--cluster-key-file", key_file)):
        group, log = standing.refuses(*args)
        assert "coordinator" in group, group
        assert standing.get("/readyz").json()["ranks_ready"] == 0 and "worker registered" not in log
    # A client of TLS that shows none.
    status, said = handshake_at(standing.control)
    assert "certificate required" in said, said
    assert "showed no certificate" in wait_until("the log", lambda: standing.log() if "showed no" in standing.log() else "", 10)


def handshake_at(address, *args):
    p = subprocess.run(["openssl", "s_client", "-connect", address, "-tls1_3", "-alpn", "h2", "-ign_eof", *map(str, args)], input=b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
                       capture_output=True, timeout=30)
    return p.returncode, (p.stdout + p.stderr).decode(errors="replace")


@pytest.mark.parametrize("name, words", [("foreign", "not of the cluster's authority"), ("server-only", "not of the cluster's authority"),
                                         ("expired", "expired")])
def test_a_worker_with_a_certificate_that_does_not_fit_is_refused(standing, pki, name, words):
    group, log = standing.refuses(*mutual(pki, name))
    assert words in log and "alert" in group, (group, log)


def test_a_coordinator_with_a_foreign_certificate_is_refused_by_the_worker(standing, pki):
    group, _ = standing.refuses(*mutual(pki, "node", "other"))
    assert "not of the cluster's authority" in group, group


def test_certificate_and_key_together(pki, key_file, tmp_path):
    (tmp_path / "wrong").write_text("some-other-key\n")
    with Standing(pki, key_file) as s:
        for key in ((), ("--cluster-key-file", tmp_path / "wrong")):
            group, log = s.refuses(*mutual(pki, "node"), *key)
            assert "key" in group and "/tensord.worker.v1.Worker/Attach" in log, (group, log)
        s.dial_with(*mutual(pki, "node"), "--cluster-key-file", key_file)
        s.wait_ready()
        assert s.complete(PROMPT, max_tokens=4)["text"]
        s.stop()


def test_one_job_with_certificates(pki):
    with Server("--threads", 1, *mutual(pki, "node"), prefix=["mpirun", "-n", 2]) as s:
        s.wait_ready()
        assert s.complete(PROMPT, max_tokens=4)["text"]
        s.stop(expected=None)


def test_files_that_are_missing_or_wrong_are_named(pki, tmp_path):
    base = ["serve", "--model", MODEL, "--port", free_port()]
    p = tensord(*base, "--cluster-ssl-ca", pki / "cluster.pem")
    assert p.returncode == 2 and b"--cluster-ssl-certfile" in p.stderr, p.stderr
    p = tensord(*base, "--cluster-ssl-ca", pki / "node.key", "--cluster-ssl-certfile", pki / "node.pem", "--cluster-ssl-keyfile", pki / "node.key")
    assert p.returncode == 1 and b"node.key" in p.stderr and b"authority" in p.stderr, p.stderr
    p = tensord("worker", "--coordinator", "127.0.0.1:1", *mutual(pki, "nobody"))
    assert p.returncode == 1 and b"nobody.pem" in p.stderr, p.stderr
    encrypted = tmp_path / "encrypted.key"
    openssl("ec", "-in", pki / "node.key", "-aes256", "-passout", "pass:secret", "-out", encrypted)
    p = tensord(*base, "--ssl-certfile", pki / "node.pem", "--ssl-keyfile", encrypted)
    assert p.returncode == 1 and str(encrypted).encode() in p.stderr, p.stderr
