"""`tensord bench scale`: its points, ratios and predictions worked out again from what each child printed; links of a lab (root);
what it leaves behind when it is stopped; what is refused."""
import contextlib
import json
import pathlib
import re
import signal
import subprocess
import time
import xml.etree.ElementTree as ElementTree

import pytest

from test_netlab import needs_lab

PARTS = ["compute", "exchange", "wait", "host"]
SHORT = ("--prompt-tokens", 48, "--gen-tokens", 8, "--repetitions", 2, "--retries", 0)


@pytest.fixture(scope="module")
def sweep(tensord, tiny, tmp_path_factory):
    """One and two ranks in every layout: text, JSON and picture of one run."""
    folder = tmp_path_factory.mktemp("scale")
    p = tensord.run("bench", "scale", tiny, "--ranks", "1,2", "--layouts", "tp,pp", *SHORT, "--json-file", folder / "s.json",
                    "--svg", folder / "s.svg")
    assert p.returncode == 0, p.stderr
    return {"stdout": p.stdout, "stderr": p.stderr, "json": json.loads((folder / "s.json").read_text()),
            "svg": folder / "s.svg"}


def test_scale_runs_every_layout_of_every_count(sweep):
    out = sweep["json"]
    assert out["tool"] == "tensord bench scale" and out["layers"] == 4 and out["cores"] >= 1
    points = out["points"]
    assert [(p["ranks"], p["tensor_parallel"], p["pipeline_parallel"]) for p in points] == [(1, 1, 1), (2, 2, 1), (2, 1, 2)]
    for p in points:
        assert (p["prompt_tokens"], p["depth"], p["tries"], p["failure"], p["link"]) == (48, 0, 1, None, None)
        ranks = p["bench"]["ranks"]
        assert len(ranks) == p["ranks"] and p["hosts"] == 1
        assert p["threads"] == sum(r["threads"] for r in ranks)
        assert list(p["bench"]["cases"]) == ["decode", "prefill"]
        for name, tokens in (("decode", 8), ("prefill", 48)):
            assert p["bench"]["cases"][name]["tokens"] == tokens
        # As many threads as cores, unless there are more ranks than these.
        assert out["cores"] // p["ranks"] * p["ranks"] <= p["threads"] <= max(out["cores"], p["ranks"])


def test_scale_takes_its_figures_from_the_fastest_run(sweep):
    for p in sweep["json"]["points"]:
        for name in ("decode", "prefill"):
            case = p["bench"]["cases"][name]
            best = max(case["runs"], key=lambda r: r["rate"])
            assert p[name]["tokens_per_second"] == pytest.approx(best["rate"])
            assert p[name]["median_tokens_per_second"] == pytest.approx(case["median"])
            parts = p[name]["seconds_per_token_by_part"]
            assert list(parts) == PARTS
            for part in PARTS:
                assert parts[part] == pytest.approx(best["split_seconds"][part] / case["tokens"], rel=1e-6)
            # The host's part is what is left of rank 0's time; ranks may differ in theirs.
            assert sum(parts.values()) >= best["seconds"] / case["tokens"] * (1 - 1e-6)
            if p["ranks"] == 1:
                assert parts["exchange"] == parts["wait"] == 0 == p[name]["sent_bytes_per_token"]
            else:
                assert p[name]["sent_bytes_per_token"] > 0


def test_scale_compares_with_one_rank(sweep):
    base = sweep["json"]["points"][0]
    for p in sweep["json"]["points"]:
        for name in ("decode", "prefill"):
            speed_up = p[name]["tokens_per_second"] / base[name]["tokens_per_second"]
            assert p[name]["speed_up"] == pytest.approx(speed_up)
            assert p[name]["efficiency"] == pytest.approx(speed_up / (p["threads"] / base["threads"]))


def memory_of(machine):
    """Of all hosts together: a host's ranks say the same of it."""
    return sum({r["host"]: r["host_memory_bytes_per_second"] for r in machine["ranks"]}.values())


def test_scale_tells_how_far_the_machine_drifted(sweep):
    for p in sweep["json"]["points"]:
        before, after = (memory_of(p["bench"]["machine"][k]) for k in ("before", "after"))
        assert before > 1e8 and after > 1e8
        drift = abs(before - after) / max(before, after)
        assert p["memory_drift"] == pytest.approx(drift)
        assert p["drifted"] == (drift > 0.05)


def cluster_of(point):
    """The better of the two takes as a file for `plan --predict --cluster`."""
    before, after = (point["bench"]["machine"][k] for k in ("before", "after"))
    a, b = before["ranks"][0], after["ranks"][0]
    lines = ["hosts:", "  - name: h", "    count: 1", f"    ranks: {point['ranks']}", "    memory_gib: 4",
             f"    memory_gb_per_s: {max(a['memory_bytes_per_second'], b['memory_bytes_per_second']) / 1e9!r}",
             "    shared_memory_gb_per_s: "
             f"{max(a['host_memory_bytes_per_second'], b['host_memory_bytes_per_second']) / 1e9!r}",
             f"    tiles: {str(a['tiles']).lower()}"]
    for kind, key in (("int8", "int8_tops"), ("bf16", "bf16_tflops"), ("f32", "f32_tflops")):
        if a["ops_per_second"][kind]:
            lines.append(f"    {key}: {max(a['ops_per_second'][kind], b['ops_per_second'][kind]) / 1e12!r}")
    latency, rate = 1e-6, 1e9
    if point["ranks"] == 1:
        assert point["exchange_link"] is None
    else:
        links = [(x["intra_host"]["latency_seconds"], x["intra_host"]["bytes_per_second"]) for x in (before, after)]
        # Through the better time of a row of 256 floats, and of the prompt's 48 rows.
        small, large = (min(alpha + n / beta for alpha, beta in links) for n in (1024, 48 * 1024))
        slope = max((large - small) / (47 * 1024), 1 / max(beta for _, beta in links))
        latency, rate = max(small - 1024 * slope, 0.0), 1 / slope
        assert point["exchange_link"] == pytest.approx({"latency_seconds": latency, "bytes_per_second": rate})
    lines += ["links:"]
    for name in ("intra_host", "inter_host"):
        lines.append(f"  {name}: {{latency_us: {latency * 1e6!r}, bandwidth_gb_per_s: {rate / 1e9!r}}}")
    lines.append(f"host_time_us: {min(a['host_seconds_per_step'], b['host_seconds_per_step']) * 1e6!r}")
    return "\n".join(lines) + "\n"


def test_scale_predicts_what_plan_does_of_the_same_machine(sweep, tensord, tiny, tmp_path):
    for p in sweep["json"]["points"]:
        machine = p["bench"]["machine"]["before"]
        assert machine["source"].startswith("measured here: ")
        if p["ranks"] > 1:
            assert re.search(r"with sums of 1024 and \d+ bytes", machine["links_source"])
        path = tmp_path / "c.yaml"
        path.write_text(cluster_of(p))
        # 8 tokens behind 48: 51.5 stand before them in the mean.
        plan = tensord.json("plan", tiny, "--predict", "--cluster", path, "-n", p["ranks"], "-tp", p["tensor_parallel"],
                            "-pp", p["pipeline_parallel"], "--depth", 52, "--prompt-tokens", 48, "--batch", 1)
        (row,) = [r for r in plan["layouts"] if r["ranks"] == p["ranks"]]
        for name in ("decode", "prefill"):
            mine = p[name]["prediction"]
            assert mine["tokens_per_second"] == pytest.approx(row[name]["tokens_per_second"], rel=1e-6)
            assert mine["bottleneck"] == row[name]["bottleneck"]
            assert mine["error"] == pytest.approx(mine["tokens_per_second"] / p[name]["tokens_per_second"] - 1)


def test_scale_prints_a_row_per_case_with_the_prediction_beside_it(sweep):
    rows = [line for line in sweep["stdout"].splitlines() if re.match(r" +\d+ +\d+ +\d+ ", line)]
    cases = [(p, name) for p in sweep["json"]["points"] for name in ("decode", "prefill")]
    assert len(rows) == len(cases)
    for row, (p, name) in zip(rows, cases):
        words = row.split()
        assert [int(w) for w in words[:4]] == [p["ranks"], p["tensor_parallel"], p["pipeline_parallel"], p["threads"]]
        assert words[4:6] == [name, "@52" if name == "decode" else "48"]
        assert float(words[6]) == pytest.approx(p[name]["tokens_per_second"], rel=0.01, abs=0.51)
        assert float(words[8]) == pytest.approx(p[name]["speed_up"], abs=0.0051)
        assert words[10] == "%" and int(words[9]) == pytest.approx(100 * p[name]["efficiency"], abs=0.51)
        assert float(words[11]) == pytest.approx(p[name]["prediction"]["tokens_per_second"], rel=0.01, abs=0.51)
        assert words[13] == "%" and int(words[12]) == pytest.approx(100 * p[name]["prediction"]["error"], abs=0.51)
        for word, part in zip(words[14:18], PARTS):
            assert float(word) == pytest.approx(1e3 * p[name]["seconds_per_token_by_part"][part], abs=0.00051)
        assert ("drift" in row) == p["drifted"]
    assert "3 of 3: 2 ranks, tp 1 x pp 2" in sweep["stderr"]


def circles(root):
    return [c for c in root.iter() if c.tag.endswith("circle")]


def test_scale_draws_every_figure(sweep):
    root = ElementTree.parse(sweep["svg"]).getroot()
    # Two panels with two kinds of layouts, measured and predicted, on one and two ranks.
    assert len(circles(root)) == 2 * 2 * 2 * 2
    words = [t.text for t in root.iter() if t.tag.endswith("text")]
    for word in ("tensor parallel", "pipeline parallel", "ranks", "decode behind 48, tokens/s"):
        assert word in words


def test_scale_goes_on_after_a_point_that_fails(tensord, tiny, tmp_path):
    hosts = tmp_path / "hosts"
    hosts.write_text("localhost slots=1\n")
    env = {k: v for k, v in tensord.env.items() if k != "OMPI_MCA_rmaps_base_oversubscribe"}
    p = subprocess.run([tensord.binary, "bench", "scale", tiny, "--ranks", "2,1", "--layouts", "tp", "--hostfile", hosts,
                        *map(str, SHORT), "--json"], env=env | {"TENSORD_DEPTH": "0,100"}, capture_output=True, text=True,
                       timeout=60)
    assert p.returncode == 1 and "2 of 4 points failed" in p.stderr
    points = json.loads(p.stdout)["points"]
    assert [(x["ranks"], x["depth"]) for x in points] == [(2, 0), (2, 100), (1, 0), (1, 100)]
    assert all("slots" in x["failure"] and "decode" not in x for x in points[:2])
    assert [x["failure"] for x in points[2:]] == [None, None]
    assert points[3]["decode"]["mean_depth"] == 104.5  # 8 tokens behind 100
    assert points[3]["decode"]["speed_up"] == 1


def jobs_of(marker):
    """Processes with these words in their command line, but for the sweeps themselves."""
    found = []
    for entry in pathlib.Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            words = (entry / "cmdline").read_bytes().decode(errors="replace").split("\0")
            if marker in words and "scale" not in words:
                found.append(words)
    return found


def wait_for(condition, seconds=20):
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(0.05)
    assert condition()


def test_scale_ends_a_job_whole_at_the_limit(tensord, tiny):
    p = tensord.run("bench", "scale", tiny, "--ranks", 2, "--layouts", "tp", "--gen-tokens", 1777, "--prompt-tokens", 16,
                    "--repetitions", 1000, "--run-timeout", 1.5)
    assert p.returncode == 1
    assert "did not end within 1.5 s" in p.stdout and "1 of 1 points failed" in p.stderr
    assert jobs_of("1777") == []


def stop(tensord, marker, signals, *args):
    """Starts a sweep, sends the signal as soon as its job runs, and returns what it said."""
    p = subprocess.Popen([tensord.binary, "bench", "scale", *map(str, args), "--gen-tokens", marker, "--prompt-tokens", "16",
                          "--repetitions", "1000"], env=tensord.env, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                         text=True)
    try:
        wait_for(lambda: any(w[0].endswith("/tensord") for w in jobs_of(marker)))  # a rank, not mpirun alone
        p.send_signal(signals)
        out, err = p.communicate(timeout=30)
    finally:
        p.kill()
        p.wait()
    assert p.returncode == 1 and jobs_of(marker) == []
    return p.pid, out, err


def test_scale_ends_its_job_when_it_is_interrupted(tensord, tiny):
    _, out, err = stop(tensord, "1778", signal.SIGINT, tiny, "--ranks", "2,1", "--layouts", "tp", "--json")
    assert "stopped by signal 2 (Interrupt)" in err
    (point,) = json.loads(out)["points"]
    assert point["failure"] == "stopped by signal 2 (Interrupt)"


def lab_traces(pid):
    name = f"s{pid % 10000000}"
    return [p for p in (pathlib.Path("/run/tensord-netlab", name), pathlib.Path("/sys/class/net", f"{name}-p0"))
            if p.exists()] + list(pathlib.Path("/tmp").glob("tensord-hosts-*"))


@needs_lab
def test_scale_takes_down_its_lab_when_it_is_ended(tensord, tiny):
    pid, _, err = stop(tensord, "1779", signal.SIGTERM, tiny, "--netlab", "delay=0", "--ranks", 2)
    assert "stopped by signal 15 (Terminated)" in err
    assert lab_traces(pid) == []


@needs_lab
def test_scale_measures_over_links(tensord, tiny, tmp_path):
    svg = tmp_path / "links.svg"
    out = tensord.json("bench", "scale", tiny, "--netlab", "delay=0,2ms", "--ranks", 2, "--prompt-tokens", 16, "--gen-tokens",
                       4, "--repetitions", 1, "--retries", 0, "--svg", svg)
    assert out["settings"]["netlab"] == {"delay": ["0", "2ms"], "rate": ["0"]}
    points = out["points"]
    assert [p["link"]["delay_seconds"] for p in points] == [0, 0.002]
    for p in points:
        assert (p["ranks"], p["tensor_parallel"], p["hosts"], p["failure"]) == (2, 2, 2, None)
        assert {r["host"] for r in p["bench"]["ranks"]} == {"h0", "h1"}
        assert p["threads"] == 2 * max(out["cores"] // 2, 1)
        assert p["decode"]["speed_up"] is None  # one rank was not asked for
    # A packet is never early: neither in a sum of one row nor in those of a token, two a layer in four layers.
    late = points[1]
    for link in [late["bench"]["machine"][k]["inter_host"] for k in ("before", "after")] + [late["exchange_link"]]:
        assert link["latency_seconds"] + 1024 / link["bytes_per_second"] >= 0.002
    assert 1 / late["decode"]["tokens_per_second"] >= 8 * 0.002
    words = [t.text for t in ElementTree.parse(svg).getroot().iter() if t.tag.endswith("text")]
    assert "prefill of 16, tokens/s" in words and any("latency" in w for w in words)
    assert list(pathlib.Path("/tmp").glob("tensord-hosts-*")) == []


@pytest.mark.parametrize("args,words", [
    (("--ranks", "1,0"), ["--ranks", "'1,0'", "integers from 1 to 256"]),
    (("--ranks", "2,2"), ["--ranks", "2 twice"]),
    (("--ranks", "2", "--layouts", "tpxpp"), ["--layouts", "4 layers"]),
    (("--layouts", "dp"), ["--layouts", "'dp'", "tpxpp"]),
    (("--prompt-tokens", "64,5000"), ["--prompt-tokens 5000", "--gen-tokens 64", "2048"]),
    (("--depth", "0,2000"), ["--depth 2000", "2048"]),
    (("--netlab", "delay=5"), ["--netlab", "delay", "'5'", "us, ms or s"]),
    (("--netlab", "delay=0", "--ranks", "17"), ["--ranks 17", "16"]),
    (("--netlab", "delay=0", "--hostfile", "/dev/null"), ["--netlab", "--hostfile '/dev/null'"]),
    (("--hostfile", "/no/hosts", "--ranks", "2"), ["--hostfile", "'/no/hosts'", "No such file"]),
    (("--hostfile", "/dev/null"), ["--hostfile", "--ranks"]),
    (("--svg", "/no/such/x.svg"), ["--svg", "'/no/such/x.svg'"]),
    (("--json-file", "/no/such/x.json"), ["--json-file", "'/no/such/x.json'"]),
    (("--run-timeout", "0"), ["--run-timeout", "'0'"]),
    (("-tp", "2"), ["-tp is no option of 'bench scale'"]),
])
def test_scale_refuses_what_cannot_be(tensord, tiny, args, words):
    p = tensord.run("bench", "scale", tiny, *args)
    assert p.returncode == 2 and p.stdout == ""
    for word in words:
        assert word in p.stderr, p.stderr


def test_scale_refuses_to_run_inside_a_job(tensord, tiny):
    p = tensord.run("bench", "scale", tiny, ranks=1)
    assert p.returncode != 0 and "starts mpirun itself" in p.stderr


def test_scale_says_when_netlab_is_missing(tensord, tiny):
    p = subprocess.run([tensord.binary, "bench", "scale", tiny, "--netlab", "delay=0"],
                       env=tensord.env | {"NETLAB_COMMAND": "/no/netlab"}, capture_output=True, text=True, timeout=30)
    assert p.returncode == 1
    assert "NETLAB_COMMAND" in p.stderr and "'/no/netlab'" in p.stderr
