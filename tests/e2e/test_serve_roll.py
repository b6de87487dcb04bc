"""A new group takes the place of the one that serves, while answers of all kinds stream: all bytes equal, nothing lost, whatever dies."""

import concurrent.futures
import json
import os
import re
import shutil
import signal
import subprocess
import threading

import grpc
import pytest
from serving import MODEL, NAME, TENSORD, DialIn, Server, channel_to, needs_model, tensord, wait_until
from test_serve_faults import MIXED, PROMPT, SLOW, read_events, told

pytest_plugins = ["serving"]
pytestmark = needs_model
COMPLETIONS = "/v1/completions"
# Longer than a launch takes, and more than run at a time: some have told nothing yet when a new group takes over.
ASKED = [{**r, "max_tokens": 200} for r in MIXED]
FEW = (*SLOW, "--max-num-seqs", 6)

# Stands before the real mpirun: while the file is there, no launch begins.
HOLD = """#!/bin/sh
n=0
while [ -e {hold} ] && [ $n -lt 3000 ]; do n=$((n + 1)); sleep 0.02; done
exec {mpirun} "$@"
"""


class Rolled(Server):
    """Two ranks whose launches can be held."""

    def __init__(self, folder, *args, **kwargs):
        self.hold_file = folder / "hold"
        (folder / "bin").mkdir()
        shim = folder / "bin" / "mpirun"
        shim.write_text(HOLD.format(hold=self.hold_file, mpirun=shutil.which("mpirun")))
        shim.chmod(0o755)
        super().__init__("-n", 2, *args, env={"PATH": f"{folder / 'bin'}:{os.environ['PATH']}"}, **kwargs)

    def hold(self):
        self.hold_file.touch()

    def release(self):
        self.hold_file.unlink(missing_ok=True)

    def held(self):
        """The launches that wait."""
        return [p for p, a in self.processes().items() if a[0] == "/bin/sh" and a[1].endswith("/bin/mpirun")]

    def roll_status(self):
        return self.status()["roll"]

    def standing(self):
        """The group that serves, and as "last" the number of the last launch, whatever became of it."""
        rolled = self.roll_status()
        group = self.group()
        return {**group, "last": max(group["generation"], rolled["young"] if rolled else 0)}

    def other(self):
        """The second group; None where there is but one."""
        groups = self.status()["groups"]
        assert len(groups) <= 2 and groups[0]["role"] == "current"
        return groups[1] if len(groups) > 1 else None


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    with Rolled(tmp_path_factory.mktemp("roll"), *FEW) as s:
        s.wait_ready()
        s.golden = [told(read_events(s.stream(COMPLETIONS, r))) for r in ASKED]
        yield s
        s.stop()


@pytest.fixture
def held(two):
    two.hold()
    yield two
    two.release()


class Roll(subprocess.Popen):
    """`tensord roll`, under way."""

    def __init__(self, s, *args):
        key = ["--api-key", s.key] if s.key else []
        super().__init__([TENSORD, "roll", "--url", s.url, *key, *map(str, args)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    def end(self, status=0):
        out, err = self.communicate(timeout=60)
        assert self.returncode == status, (self.returncode, out, err)
        return out if status == 0 else err


def roll(s, *args, status=0):
    return Roll(s, *args).end(status)


def wait_held(s):
    wait_until("the new launch waits", s.held, 15)
    assert s.roll_status()["phase"] == "coming"


def while_asked(s, what):
    """Does `what` while all stream, and checks every byte of every answer. What is answered before `what` is done is asked again, on a
    machine however fast. Returns what `what` returned."""
    begun, done = threading.Semaphore(0), threading.Event()

    def ask(request):
        answers = []
        while not done.is_set():
            stream = s.stream(COMPLETIONS, request)
            it = iter(stream)
            first = next(it)
            begun.release()
            answers.append(told([first, *read_events(it)]))
            stream.close()
        return answers

    with concurrent.futures.ThreadPoolExecutor(len(ASKED)) as pool:
        asked = [pool.submit(ask, r) for r in ASKED]
        try:
            assert begun.acquire(timeout=60) and begun.acquire(timeout=60)
            result = what()
        finally:
            done.set()
        answers = [a.result(120) for a in asked]
    for request, golden, got in zip(ASKED, s.golden, answers):
        for answer in got:
            assert answer == golden, request
    return result


def check_settled(s, before, launches=1, restarts=0):
    """The group of so many launches later (0: the same) serves alone, and of all others nothing is left."""
    wait_until(lambda: f"the roll is over: {s.roll_status()}", lambda: s.roll_status()["phase"] in ("done", "failed"), 20)
    s.wait_ready(20)
    after = s.group()
    assert s.other() is None
    assert after["generation"] == (before["last"] + launches if launches else before["generation"])
    assert after["n_restarts"] == before["n_restarts"] + restarts
    assert s.status()["n_requests_failed"] == 0
    wait_until(lambda: f"the old ranks are gone: {s.ranks()}", lambda: set(s.ranks()) == {r["pid"] for r in after["ranks"]}, 10)
    launchers = [p for p, a in s.processes().items() if a[0].endswith("mpirun")]
    assert len(launchers) == 1, launchers
    folders = [f for f in re.findall(r" dir=(\S+)", s.log()) if os.path.exists(f)]
    assert len(folders) == 1, folders
    return after


# ---- as it should be ----


def test_all_are_cut_and_go_on_with_the_new_group(two):
    before = two.standing()
    out = while_asked(two, lambda: roll(two, "--timeout", 0, "--wait"))
    after = check_settled(two, before)
    assert {r["pid"] for r in after["ranks"]}.isdisjoint({r["pid"] for r in before["ranks"]})
    r = two.roll_status()
    assert (r["phase"], r["old"], r["young"]) == ("done", before["generation"], after["generation"])
    assert r["n_replayed"] > 0 and r["n_moved"] > 0, r
    old, new = r["old"], r["young"]
    assert f"rolling: launch {new} is on its way, launch {old} serves on" in out and f"launch {new} serves, after" in out
    assert f"launch {old} has gone: " in out and f"{r['n_replayed']} went on with launch {new}" in out


def test_all_that_run_end_on_the_old_group(two):
    before = two.standing()

    def what():
        out = roll(two, "--timeout", 600)
        leaving, now = two.other(), two.group()
        assert (leaving["role"], leaving["state"], leaving["generation"]) == ("leaving", "draining", before["generation"])
        assert (now["state"], now["generation"]) == ("ready", before["last"] + 1)
        assert leaving["n_open"] > 0 and f"still run on launch {before['generation']}" in out, out
        assert two.is_ready()
        shown = tensord("status", "--url", two.url).stdout.decode()
        assert "has taken the place of launch" in shown and "leaving group" in shown and "current group" in shown, shown
        assert two.complete(PROMPT, max_tokens=4)["text"]  # a new one, on the new group

    while_asked(two, what)
    check_settled(two, before)
    r = two.roll_status()
    assert r["phase"] == "done" and r["n_replayed"] == 0 and r["n_finished"] > 0 and r["n_moved"] > 0, r


def test_two_rolls_in_a_row(two):
    before = two.standing()

    # The second may come between two answers.
    told_of = while_asked(two, lambda: [json.loads(roll(two, "--timeout", 0, "--wait", "--json")) for _ in range(2)])
    assert [r["phase"] for r in told_of] == ["done", "done"] and told_of[0]["n_replayed"] > 0, told_of
    check_settled(two, before, launches=2)


def test_stages_with_drafts_and_offloaded_blocks_are_replaced(tmp_path):
    args = ("--pipeline-parallel-size", 2, "--threads", 1, "--max-num-seqs", 6, "--max-model-len", 512, "--kv-offload-gib", 0.001, "--speculative-model", MODEL)
    with Rolled(tmp_path, *args) as s:
        s.wait_ready()
        s.golden = [told(read_events(s.stream(COMPLETIONS, r))) for r in ASKED]
        before = s.standing()

        def what():
            told_of = [json.loads(roll(s, "--timeout", 0.5, "--wait", "--json"))]
            while len(told_of) < 20:  # these answers are quick: a roll may come when all are being read
                told_of.append(json.loads(roll(s, "--timeout", 0, "--wait", "--json")))
                if told_of[-1]["n_moved"] + told_of[-1]["n_replayed"] > 0:
                    return len(told_of)
            pytest.fail(f"nothing ran at any roll: {told_of}")

        check_settled(s, before, launches=while_asked(s, what))
        s.stop()


def test_grpc_answers_when_the_new_group_has_taken_over(two, rpc):
    before = two.standing()
    with channel_to(two) as channel:
        r = rpc.call(channel, "Cluster/Replace", timeout_ns=600 * 10**9, wait=True, timeout=60).roll
        assert (r.old, r.young, r.has_taken_over, r.error) == (before["generation"], before["last"] + 1, True, "")
        assert r.load_ns > 0 and r.phase == 3  # DONE
        status = rpc.call(channel, "Cluster/Status")
        assert status.roll == r and [g.generation for g in status.groups] == [r.young]
    check_settled(two, before)


# ---- what dies ----


def test_the_new_launch_is_killed(held):
    before = held.standing()

    def what():
        rolling = Roll(held, "--timeout", 0)
        wait_held(held)
        for p in held.held():
            os.kill(p, signal.SIGKILL)
        return rolling.end(1)

    err = while_asked(held, what)
    assert f"launch {before['generation'] + 1} did not take over" in err and "killed by signal 9" in err, err
    after = check_settled(held, before, launches=0)
    assert [r["pid"] for r in after["ranks"]] == [r["pid"] for r in before["ranks"]] and after["last_error"] == before["last_error"]
    assert "did not take over" in tensord("status", "--url", held.url).stdout.decode()
    held.release()
    assert json.loads(roll(held, "--wait", "--json"))["young"] == before["last"] + 2


def test_a_rank_of_the_new_group_is_killed(held):
    before = held.standing()

    def what():
        young = str(before["last"] + 1)
        rolling = Roll(held, "--timeout", 0)
        wait_held(held)
        held.release()
        victim = wait_until("a rank", lambda: [p for p, a in held.ranks().items() if a[a.index("--generation") + 1] == young], 15, 0.001)[0]
        os.kill(victim, signal.SIGKILL)
        return rolling.end(1)

    err = while_asked(held, what)
    assert "did not take over" in err, err
    check_settled(held, before, launches=0)


def test_the_present_group_is_killed_while_the_new_one_loads(held):
    before = held.standing()

    def what():
        rolling = Roll(held)
        wait_held(held)
        os.kill(before["ranks"][0]["pid"], signal.SIGKILL)
        wait_until("readiness is red", lambda: not held.is_ready(), 5, 0.005)
        wait_until("its launch has ended", lambda: not set(held.ranks()) & {r["pid"] for r in before["ranks"]}, 10)
        assert held.group()["state"] == "lost" and held.other()["state"] == "launching"
        held.release()
        return rolling.end()

    out = while_asked(held, what)
    assert "serves, after" in out
    check_settled(held, before)  # no other launch, no restart


def test_the_present_group_is_killed_and_then_the_new_one(held):
    before = held.standing()

    def what():
        rolling = Roll(held)
        wait_held(held)
        os.kill(before["ranks"][1]["pid"], signal.SIGKILL)
        wait_until("readiness is red", lambda: not held.is_ready(), 5, 0.005)
        new = held.held()
        held.release()
        for p in new:
            os.kill(p, signal.SIGKILL)
        return rolling.end(1)

    err = while_asked(held, what)
    assert "did not take over" in err, err
    check_settled(held, before, launches=2, restarts=1)


def test_the_old_group_is_killed_while_it_leaves(two):
    before = two.standing()

    def what():
        roll(two, "--timeout", 600)
        assert two.other()["role"] == "leaving"
        os.kill(before["ranks"][1]["pid"], signal.SIGKILL)
        wait_until("it is lost", lambda: two.roll_status()["n_left"] == 0, 5, 0.005)
        assert two.is_ready()

    while_asked(two, what)
    check_settled(two, before)
    r = two.roll_status()
    assert r["phase"] == "done" and r["n_replayed"] > 0, r


def test_the_old_group_hangs_while_it_leaves(two):
    before = two.standing()

    def what():
        roll(two, "--timeout", 600)
        os.kill(before["ranks"][1]["pid"], signal.SIGSTOP)

    while_asked(two, what)
    check_settled(two, before)


# ---- what goes on beside it ----


def test_a_second_roll_and_an_unload_are_refused(held, rpc):
    before = held.standing()
    rolling = Roll(held)
    wait_held(held)
    assert f"a roll is under way: launch {before['generation'] + 1} is to take the place of launch {before['generation']}" in roll(held, status=1)
    assert held.post("/roll", {}).status == 429
    assert [r["pid"] for r in held.other()["ranks"]] == [None, None]  # not 0, to which nobody may send a signal
    assert re.search(r"(?m)^ +1  - +-  ", tensord("status", "--url", held.url).stdout.decode())
    with channel_to(held) as channel:
        for method in ("Cluster/Replace", "Cluster/UnloadModel"):
            with pytest.raises(grpc.RpcError) as e:
                rpc.call(channel, method)
            assert e.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED and "a roll is under way" in e.value.details()
        groups = rpc.call(channel, "Cluster/Status").groups
        assert [(g.role, g.state, g.generation) for g in groups] == [(0, 3, before["generation"]), (1, 1, before["last"] + 1)]
    metrics = held.get("/metrics").body.decode()
    assert f'tensord_group_launch{{role="next"}} {before["last"] + 1}\n' in metrics
    assert 'tensord_group_state{role="next"} 1\n' in metrics and 'tensord_group_state{role="current"} 3\n' in metrics
    held.release()
    rolling.end()
    check_settled(held, before)


def test_a_drain_goes_on_beside_a_roll(held):
    before = held.standing()
    rolling = Roll(held)
    wait_held(held)
    assert tensord("drain", "--url", held.url).returncode == 0
    held.release()
    rolling.end()
    assert held.get("/readyz").json()["state"] == "draining" and held.post(COMPLETIONS, {"prompt": PROMPT}).status == 503
    assert tensord("drain", "--url", held.url, "--cancel").returncode == 0
    check_settled(held, before)


def test_the_server_is_ended_while_a_group_comes(tmp_path):
    with Rolled(tmp_path, *FEW) as s:
        s.wait_ready()
        s.hold()
        rolling = Roll(s)
        wait_held(s)
        s.stop()
        assert rolling.wait(30) == 1


def test_the_server_is_ended_while_a_group_leaves(tmp_path):
    with Rolled(tmp_path, *FEW) as s, concurrent.futures.ThreadPoolExecutor(1) as pool:
        s.wait_ready()
        stream = s.stream(COMPLETIONS, {**ASKED[0], "max_tokens": 1000})
        it = iter(stream)
        next(it)
        rest = pool.submit(read_events, it)
        roll(s, "--timeout", 600)
        assert s.other()["n_open"] == 1
        s.note_shm()
        s.p.send_signal(signal.SIGTERM)
        s.wait_log("draining signal=15 open=1")
        s.stop()  # the second signal
        assert any("stopping" in e for e in rest.result(30))


# ---- what is refused ----


def test_a_model_that_has_changed_is_not_taken_over(tmp_path):
    model = tmp_path / NAME
    shutil.copytree(MODEL, model)
    config = (model / "config.json").read_text()
    with Rolled(tmp_path, *SLOW, model=model) as s:
        s.wait_ready()
        before = s.standing()
        expected = s.complete(PROMPT, max_tokens=16, temperature=0)
        (model / "config.json").write_text(config + "\n")
        err = roll(s, status=1)
        assert "did not take over" in err and "hash" in err, err
        assert s.is_ready() and s.complete(PROMPT, max_tokens=16, temperature=0) == expected
        check_settled(s, before, launches=0)
        (model / "config.json").write_text(config)
        roll(s, "--wait")
        check_settled(s, before, launches=2)
        assert s.complete(PROMPT, max_tokens=16, temperature=0) == expected
        s.stop()


def test_only_operators_may_roll(tmp_path):
    operators = tmp_path / "operators"
    operators.write_text("roll-key\n")
    with Server("-n", 1, "--threads", 1, "--api-key", "client-key", "--admin-key-file", operators, key="client-key") as s:
        s.wait_ready()
        assert "--admin-key-file" in roll(s, status=1)
        for key in (None, "wrong", "client-key"):
            s.key = key
            assert s.post("/roll", {}).status in (401, 403)
        s.key = "roll-key"
        for body, expected in ((b"{", "line 1"), (b'{"timeout":-1}', "-1"), (b'{"timeout":"5"}', "no number"), (b'{"force":1}', "'force'")):
            r = s.post("/roll", body)
            assert r.status == 400 and expected in r.json()["error"]["message"], r.body
        assert s.status()["roll"] is None
        roll(s, "--wait")
        assert s.group()["generation"] == 2
        s.stop()


def test_a_group_that_dials_in_is_not_replaced(key_file):
    with DialIn(key_file, 1) as s:
        s.dial(1)
        s.wait_ready()
        err = roll(s, status=1)
        assert "does not launch its group" in err and "dial in" in err, err
        assert s.is_ready() and s.status()["roll"] is None
        s.stop()


def test_roll_refuses_what_is_wrong():
    for args, status, expected in ((["--timeout", "-1"], 2, "--timeout"), (["--cancel"], 2, "--cancel"), (["--url", "ftp://x"], 1, "ftp://x")):
        p = tensord("roll", *args)
        assert p.returncode == status and expected in p.stderr.decode(), p
