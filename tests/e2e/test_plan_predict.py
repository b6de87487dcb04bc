"""`tensord plan --predict`: measured here or of a cluster's file, as text and as JSON, and what is refused."""
import re

import pytest

from conftest import ROOT

CLUSTERS = ROOT / "deploy" / "clusters"
H200, BOARDS = CLUSTERS / "8x8-h200.yaml", CLUSTERS / "4-arm-boards.yaml"
PARTS = ["memory", "arithmetic", "exchange_latency", "exchange_bandwidth", "host"]


def layouts_of(out):
    return [(r["ranks"], r["tensor_parallel"], r["pipeline_parallel"]) for r in out["layouts"]]


def check(out):
    """What holds for every prediction."""
    for row in out["layouts"]:
        assert row["ranks"] == row["tensor_parallel"] * row["pipeline_parallel"]
        for name in ("decode", "batch", "prefill"):
            phase = row[name]
            parts = phase["seconds_per_token_by_part"]
            assert list(parts) == PARTS
            assert sum(parts.values()) == pytest.approx(phase["seconds_per_token"])
            assert phase["tokens_per_second"] == pytest.approx(1 / phase["seconds_per_token"])
            assert parts[phase["bottleneck"]] == max(parts.values())
        if row["ranks"] == 1:
            assert row["decode"]["exchanges"] == 0
    best = out["fastest"]["decode"]
    row = next(r for r in out["layouts"] if all(r[k] == v for k, v in best.items()))
    for other in out["layouts"]:
        more = 1.03 if other["ranks"] > row["ranks"] else 1
        assert other["decode"]["tokens_per_second"] <= row["decode"]["tokens_per_second"] * more
    return row


def test_predict_measures_this_machine(tensord, tiny):
    out = tensord.json("plan", tiny, "--predict", "-n", 4)
    check(out)
    # Four layers, so up to four stages.
    assert layouts_of(out) == [(1, 1, 1), (2, 2, 1), (2, 1, 2), (3, 3, 1), (3, 1, 3), (4, 4, 1), (4, 2, 2), (4, 1, 4)]
    machine = out["machine"]
    assert machine["source"].startswith("measured here: cpu ") and "not measured" in machine["links_source"]
    assert len(machine["ranks"]) == 4
    for rank in machine["ranks"]:
        assert rank["host"] == 0 and rank["memory_bytes"] > 1 << 20
        assert 1e8 < rank["memory_bytes_per_second"] <= rank["host_memory_bytes_per_second"] < 1e13
        assert rank["ops_per_second"]["f32"] is None or rank["ops_per_second"]["f32"] > 1e8
    # The model has 2048 positions: the default depth gives way.
    assert out["asked"] == {"batch": 16, "depth": 2047, "prompt_tokens": 512}


def test_predict_as_a_job_measures_its_links(tensord, tiny):
    out = tensord.json("plan", tiny, "--predict", ranks=2)
    check(out)
    assert layouts_of(out) == [(1, 1, 1), (2, 2, 1), (2, 1, 2)]
    machine = out["machine"]
    assert "a job of 2 ranks on 1 host" in machine["source"]
    assert machine["links_source"].startswith("measured here with sums of 1024 and 524288 bytes")
    assert machine["intra_host"]["latency_seconds"] >= 0 and machine["intra_host"]["bytes_per_second"] > 1e6
    assert "inter_host" not in machine
    # A sum per half layer, the embedding, the logits and the step.
    assert out["layouts"][1]["decode"]["exchanges"] == 2 * 4 + 3


@pytest.mark.parametrize("ranks", [0, 2])
def test_predict_prints_figures_rows_and_advice(tensord, tiny, ranks):
    p = tensord.run("plan", tiny, "--predict", *([] if ranks else ["-n", 2]), "--depth", 100, "--batch", 4, ranks=ranks)
    assert p.returncode == 0, p.stderr
    for line in (r"model     .* \(Qwen3ForCausalLM, 4 layers\), most weights bf16",
                 r"machine   measured here: cpu ", r"ranks +0-1 on 1 host: each reads [0-9.]+ GB/s",
                 r"links     (not )?measured", r"asked     one sequence and 4 at a depth of 100, a prompt of 512 tokens",
                 r"ranks  tp  pp +decode +batch 4 +prompt +exchange/token", r" +1 +1 +1 +[0-9.]+ +[0-9.]+ +[0-9.]+ +0 ",
                 r" +2 +2 +1 ", r" +2 +1 +2 ", r"take [12] ranks? \(tensor parallel"):
        assert len(re.findall("^" + line, p.stdout, re.M)) == 1, (line, p.stdout)


def test_predict_of_gpus(tensord, tiny):
    out = tensord.json("plan", tiny, "--predict", "--cluster", H200)
    row = check(out)
    assert row["ranks"] == 1  # a model of 7 MiB gains nothing from a second GPU
    assert out["machine"]["source"] == str(H200)
    assert len(out["machine"]["ranks"]) == 64
    assert {r["host"] for r in out["machine"]["ranks"]} == set(range(8))
    assert max(r["ranks"] for r in out["layouts"]) == 64
    # At most four stages for four layers.
    assert max(r["pipeline_parallel"] for r in out["layouts"]) == 4


def test_predict_of_boards_says_why_more_are_slower(tensord, tiny):
    p = tensord.run("plan", tiny, "--predict", "--cluster", BOARDS, "--depth", 10)
    assert p.returncode == 0, p.stderr
    assert re.search(r"^take 1 rank \(tensor parallel 1 x pipeline parallel 1\)", p.stdout, re.M), p.stdout
    assert re.search(r"^more ranks would be slower: .* because exchange latency takes \d+ us more of a token", p.stdout,
                     re.M), p.stdout
    assert "inside a host" not in p.stdout  # no two ranks share one
    out = tensord.json("plan", tiny, "--predict", "--cluster", BOARDS, "-n", 2)
    check(out)
    assert layouts_of(out) == [(1, 1, 1), (2, 2, 1), (2, 1, 2)]
    # 11 exchanges over 100 us, and their bytes.
    assert out["layouts"][1]["decode"]["seconds_per_token_by_part"]["exchange_latency"] == pytest.approx(1100e-6)


def test_predict_says_what_does_not_fit(tensord, tiny):
    out = tensord.json("plan", tiny, "--predict", "--cluster", BOARDS, "--memory-bytes", 2 << 20)
    assert [r["fits"] for r in out["layouts"]] == [False] * len(out["layouts"])
    assert "has 2097152 of memory" in out["layouts"][0]["obstacle"]
    assert out["fastest"] == {"decode": None, "batch": None, "prefill": None}
    assert out["advice"].startswith("no layout fits: rank 0 needs ")


@pytest.mark.parametrize("change, says", [
    (("count: 4", "count: -4"), "line 9: hosts[0].count: got '-4', expected a whole number from 1 to 256"),
    (("memory_gib: 6", "memory: 6"), "line 11: hosts[0]: unknown key 'memory', expected name, count,"),
    (("host_time_us: 100", ""), "cluster.host_time_us: missing, expected a number from 0"),
    (("gbit_per_s: 1}", "gbit_per_s: fast}"), "links.inter_host.gbit_per_s: got 'fast', expected a number above 0"),
    (("links:", "links: ["), "no valid YAML"),
])
def test_predict_refuses_a_bad_file(tensord, tiny, tmp_path, change, says):
    bad = tmp_path / "bad.yaml"
    text = BOARDS.read_text()
    assert change[0] in text
    bad.write_text(text.replace(*change, 1))
    p = tensord.run("plan", tiny, "--predict", "--cluster", bad)
    assert p.returncode == 1 and p.stdout == ""
    assert len(p.stderr.splitlines()) == 1 and f"'{bad}'" in p.stderr and says in p.stderr, p.stderr


@pytest.mark.parametrize("args, says", [
    (("--cluster", BOARDS), "expected --predict with it"),
    (("--predict", "--cluster", "/no/such.yaml"), "--cluster: cannot open '/no/such.yaml'"),
    (("--predict", "--cluster", BOARDS, "-n", 5), "5 ranks: "),
    (("--predict", "--cluster", BOARDS, "--depth", 2048), "--depth 2048"),
    (("--predict", "--cluster", BOARDS, "--prompt-tokens", 3000), "--prompt-tokens 3000"),
    (("--predict", "--cluster", BOARDS, "-pp", 5), "pipeline parallel 5"),
    (("--predict", "-n", 3, "--shares", "1:2"), "--shares has 2 numbers, the group has 3 ranks"),
])
def test_predict_refuses(tensord, tiny, args, says):
    p = tensord.run("plan", tiny, *args)
    assert p.returncode in (1, 2) and p.stdout == ""
    assert says in p.stderr, p.stderr


def test_predict_as_a_job_refuses_once(tensord, tiny):
    p = tensord.run("plan", tiny, "--predict", "-n", 3, ranks=2)
    assert p.returncode != 0 and p.stdout == ""
    assert p.stderr.count("3 ranks: the job has 2") == 1, p.stderr
