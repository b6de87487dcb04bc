"""`tensord bench`: what a case counts, what a share is, and the probes alone (`tensord bench machine`)."""
import re
import statistics

import pytest

CASES = ["decode", "prefill", "batch", "depth", "load", "first"]
STEPS = CASES[:4]
F32_260K = "stories260K/gguf/stories260K-F32.gguf"


@pytest.fixture(scope="module")
def two_ranks(tensord, tiny):
    """Every case of the model that ships, as an MPI job of two."""
    return tensord.json("bench", "--model", tiny, "--prompt-tokens", 48, "--gen-tokens", 8, "--batch", 4,
                        "--depth", 200, "--repetitions", 3, ranks=2)


def test_bench_gives_every_case(two_ranks):
    assert list(two_ranks["cases"]) == CASES
    for name, case in two_ranks["cases"].items():
        runs = case["runs"]
        assert len(runs) == 3 and min(r["seconds"] for r in runs) > 0, name
        rates = [r["rate"] for r in runs]
        assert case["best"] == (min if name == "first" else max)(rates), name
        assert case["median"] == pytest.approx(statistics.median(rates)), name
        assert 0 <= case["repeated"] <= 3, name
    assert [two_ranks["cases"][c]["tokens"] for c in STEPS] == [8, 48, 32, 8]
    assert [two_ranks["cases"][c]["steps"] for c in STEPS] == [8, 1, 8, 8]
    assert [two_ranks["cases"][c]["depth"] for c in STEPS] == [52.5, 24.5, 36.5, 204.5]
    for c in CASES[:5]:
        limit = two_ranks["cases"][c].get("limit", "memory")
        assert (limit != "memory") == (c in ("prefill", "batch")), c
    for r in two_ranks["cases"]["first"]["runs"]:
        assert r["rate"] == r["seconds"]


def test_bench_counts_what_a_step_reads(tensord, tiny, shared, two_ranks):
    plan = tensord.json("plan", "--model", tiny, "-n", 2)
    weights = sum(r["weight_bytes"] for r in plan["per_rank"])  # the head is the embedding: read whole
    kv = sum(r["kv_bytes_per_token"] for r in plan["per_rank"])
    for name, tokens in (("decode", 52.5), ("depth", 204.5), ("batch", 4 * 36.5), ("prefill", 48)):
        read = two_ranks["cases"][name]["bytes_per_step"]
        assert read["weights"] == weights, name
        assert read["kv"] == kv * tokens, name
        assert read["total"] == read["weights"] + read["kv"], name
    load = two_ranks["cases"]["load"]
    assert load["bytes"] == weights
    assert load["best"] == pytest.approx(weights / min(r["seconds"] for r in load["runs"]))
    assert two_ranks["exchanged_bytes_per_token"] == plan["exchanged_bytes_per_token"]
    # Where the head is a matrix of its own, the embedding (512 x 64 in F32) is not read but for one row.
    path = shared / "models" / F32_260K
    out = tensord.json("bench", "--model", path, "--cases", "decode", "--gen-tokens", 4, "--repetitions", 1)
    whole = tensord.json("plan", "--model", path, "-n", 1)["per_rank"][0]["weight_bytes"]
    assert list(out["cases"]) == ["decode"]
    assert out["cases"]["decode"]["bytes_per_step"]["weights"] == whole - 512 * 64 * 4
    assert out["dtype"] == "f32" and out["probes"]["peak"] == "f32"


def test_bench_counts_the_multiplications(two_ranks):
    # 4 layers of 256 with 8 heads and 4 KV heads of 32, feed-forward 768; 2048 tokens.
    layers = 4 * (2 * 256 * 256 + 2 * 256 * 128 + 3 * 256 * 768)
    head = 2048 * 256
    for name, heads in (("decode", 1), ("batch", 1), ("depth", 1), ("prefill", 1 / 48)):
        case = two_ranks["cases"][name]
        ops = case["ops_per_token"]
        assert ops["matrices"] == pytest.approx(2 * (layers + head * heads)), name
        assert ops["attention"] == pytest.approx(4 * 4 * 8 * 32 * case["depth"]), name


def test_a_share_is_of_the_better_probe_beside_the_run(two_ranks):
    for name in STEPS:
        case = two_ranks["cases"][name]
        moved = case["steps"] * case["bytes_per_step"]["total"]
        shares = [moved / r["seconds"] / r["memory_bytes_per_second"] for r in case["runs"]]
        fastest = min(case["runs"], key=lambda r: r["seconds"])
        assert case["memory_share"]["median"] == pytest.approx(statistics.median(shares)), name
        assert case["memory_share"]["best"] == pytest.approx(
            moved / fastest["seconds"] / fastest["memory_bytes_per_second"]), name
        if case["peak_share"] is None:
            continue
        ops = case["tokens"] * case["ops_per_token"]["matrices"]
        shares = [ops / r["seconds"] / r["peak_ops_per_second"] for r in case["runs"]]
        assert case["peak_share"]["median"] == pytest.approx(statistics.median(shares)), name
    probes = two_ranks["probes"]
    most = max(r["memory_bytes_per_second"] for c in CASES for r in two_ranks["cases"][c]["runs"])
    assert probes["memory_bytes_per_second"] >= most > 1e8
    # One before the loads, one before the steps, one after every run; first has its runs from load.
    runs = sum(3 + two_ranks["cases"][c]["repeated"] for c in CASES if c != "first")
    assert probes["taken"] == 2 + runs


def test_bench_prints_one_line_per_case(tensord, shared):
    p = tensord.run("bench", "--model", shared / "models" / F32_260K, "--gen-tokens", 8, "--repetitions", 2)
    assert p.returncode == 0, p.stderr
    # The file has 128 positions: the default lengths give way.
    for line in (r"probes +memory [0-9.]+ GB/s, f32 [0-9.]+ Gop/s \(vfmadd231ps [yz]mm\): best of [0-9]+",
                 r"reads +[0-9.]+ [KM]iB per token: [0-9.]+ [KM]iB of weights, ",
                 r"decode +8 tokens at 124 +[0-9.]+ +[0-9.]+ tok/s +\* [0-9]+ / [0-9]+ % +[0-9]+ / [0-9]+ %",
                 r"prefill +120 tokens +[0-9.]+ +[0-9.]+ tok/s +[0-9]+ / [0-9]+ % +\* [0-9]+ / [0-9]+ %",
                 r"batch +16 x 8 tokens at 36 ", r"depth +8 tokens at 124 ",
                 r"load +[0-9.]+ [KM]iB, read before +[0-9.]+ +[0-9.]+ GB/s +\* ",
                 r"first +load and 1 token +[0-9.]+ +[0-9.]+ s"):
        assert re.search("^" + line, p.stdout, re.M), line
    assert "\r" not in p.stderr and "measuring  100 %" in p.stderr


@pytest.mark.parametrize("ranks", [0, 2])
def test_bench_machine_says_what_the_machine_can_do(tensord, ranks):
    out = tensord.json("bench", "machine", ranks=ranks)
    kinds = ["int8", "bf16", "f32", "amx-int8", "amx-bf16"]
    assert out["cpu"] and out["cores"] >= 1 and out["device"].startswith("cpu ") and out["numerics"]
    assert out["ranks"] == max(ranks, 1)
    assert out["huge_pages"] and out["numa_nodes"]
    assert list(out["instructions"]) == kinds
    assert out["probes"][0]["threads"] == 1
    for column in out["probes"]:
        assert column["memory_bytes_per_second"] > 1e8
        assert list(column["ops_per_second"]) == kinds
        for kind, rate in column["ops_per_second"].items():
            assert (rate is None) == (out["instructions"][kind] is None), kind
            assert rate is None or rate > 1e8, kind


def test_bench_machine_prints_a_table(tensord):
    p = tensord.run("bench", "machine", "--threads", 1)
    assert p.returncode == 0, p.stderr
    for line in (r"cpu +\S", r"kernels +cpu ", r" +1 thread *$", r"memory +[0-9.]+ GB/s", r"int8 ", r"amx-bf16 "):
        assert re.search("^" + line, p.stdout, re.M), line


@pytest.mark.parametrize("args,words", [
    (("--cases", "decode,bacth"), ["--cases", "'bacth'", "expected", "batch"]),
    (("--depth", 2040), ["--depth 2040", "--gen-tokens 64", "2048"]),
    (("--batch", 600), ["--batch 600", "--max-num-batched-tokens 512"]),
    (("--batch", 8, "--max-num-seqs", 4), ["--batch 8", "--max-num-seqs 4"]),
    (("--max-num-seqs", 1, "--cases", "decode,depth"), ["blocks", "--max-num-seqs"]),
])
def test_bench_refuses_what_cannot_be(tensord, tiny, args, words):
    p = tensord.run("bench", "--model", tiny, *args)
    assert p.returncode in (1, 2)
    for word in words:
        assert word in p.stderr, p.stderr
