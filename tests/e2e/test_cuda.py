"""The whole path with --device cuda, on the simulated device (tests/gpusim): ids of other programs, the same bits from every layout,
what is said where something is missing. What a GPU does is checked by tests/gpu.sh."""

import concurrent.futures
import contextlib
import copy
import json
import os
import pathlib
import re
import signal

import pytest
from conftest import program
from serving import MODEL, Server, needs_model, wait_until

pytest_plugins = ["serving"]
ROOT = pathlib.Path(__file__).resolve().parents[2]
CUDA = ("--device", "cuda", "--cuda-plugin", str(program().parent / "tensord_gpusim.so"))
# The simulated NCCL, between as many GPUs as there are ranks.
NCCL = ("--gpu-exchange", "nccl", "--nccl-plugin", str(program().parent / "tensord_nccl_gpusim.so"))
NCCL_ENV = {"LD_LIBRARY_PATH": str(program().parent / "simnccl"), "GPUSIM_DEVICES": "4"}
PROMPT = "Once upon a time"
BF16_260K, F16_260K, F32_260K = (f"stories260K/gguf/stories260K-{t}.gguf" for t in ("BF16", "F16", "F32"))
Q8_3M, Q4_3M = (f"stories3M/gguf/stories3M-{t}.gguf" for t in ("Q8_0", "Q4_0"))
LAYOUTS = {
    "tp2": (2, ("-tp", "2")),
    "shares-3-1-1": (3, ("--shares", "3:1:1")),
    "pp2": (2, ("-pp", "2")),
    "tp2-pp2": (4, ("-tp", "2", "-pp", "2")),
}


def generate(tensord, model, *args, ranks=0, prompt=PROMPT, n=4):
    return tensord.json_once("generate", "--model", model, "--prompt", prompt, "--max-tokens", n, "--ignore-eos", *CUDA, *args, ranks=ranks)


@pytest.fixture
def gpus(tensord):
    """The program where every rank has a GPU of its own, and NCCL is there."""
    there = copy.copy(tensord)
    there.env = tensord.env | NCCL_ENV
    return there


@pytest.mark.parametrize("model", [F32_260K, F16_260K, BF16_260K])
def test_greedy_ids_equal_the_float64_reference(tensord, shared, model):
    prompts = json.loads((shared / "models/stories260K/reference.json").read_text())["prompts"]
    for p in prompts[: 3 if model == F32_260K else 1]:
        n = 16 if model == F32_260K else 8
        out = tensord.json("generate", "--model", shared / "models" / model, "--prompt", p["prompt"], "--max-tokens", n, "--ignore-eos",
                           "--logprobs", "5", *CUDA)
        assert out["prompt_ids"] == p["prompt_ids"] and out["ids"] == [g["id"] for g in p["greedy"][:n]]
        for mine, theirs in zip(out["logprobs"], p["greedy"]):
            assert mine["logprob"] == pytest.approx(theirs["logprob"], abs=0.02)


def test_greedy_ids_of_the_shipped_model_equal_transformers(tensord, tiny, in_f32):
    golden = json.loads((ROOT / "tests/golden/tensord-tiny.json").read_text())
    for p in golden["prompts"][:2]:
        out = tensord.json("generate", "--model", in_f32(tiny), "--prompt-ids", ",".join(map(str, p["prompt_ids"])), "--max-tokens", 12,
                           "--ignore-eos", "--kv-cache-dtype", "f32", *CUDA)
        assert out["ids"] == p["greedy_ids"][:12]


@pytest.mark.parametrize("model,layout", [(BF16_260K, x) for x in LAYOUTS] + [(Q8_3M, "tp2-pp2"), (Q4_3M, "shares-3-1-1")])
def test_every_layout_gives_the_same_bits(tensord, find_model, model, layout):
    ranks, args = LAYOUTS[layout]
    alone = generate(tensord, find_model(model))
    out = generate(tensord, find_model(model), *args, ranks=ranks)
    assert (out["ids"], out["logits_hash"]) == (alone["ids"], alone["logits_hash"])


def test_prompt_chunks_and_pages_do_not_matter(tensord, find_model):
    model = find_model(BF16_260K)
    prompt = "Once upon a time there was a little fox who lived near a river."
    alone = generate(tensord, model, prompt=prompt)
    for args in (("--prefill-chunk", "1"), ("--prefill-chunk", "7", "--block-size", "4"), ("--threads", "2")):
        out = generate(tensord, model, *args, prompt=prompt)
        assert (out["ids"], out["logits_hash"]) == (alone["ids"], alone["logits_hash"]), args


def test_recorded_steps_give_the_bits_of_those_that_are_not(tensord, find_model):
    """Past 64 keys, where attention is told of twice as many."""
    prompt = "Once upon a time there was a little fox who lived near a big river and liked to play in the snow. He was happy and he ran to his mom."
    on, off = (generate(tensord, find_model(BF16_260K), "--cuda-graphs", word, prompt=prompt, n=20) for word in ("on", "off"))
    assert (on["ids"], on["logits_hash"]) == (off["ids"], off["logits_hash"])


@pytest.mark.parametrize("model,layout", [(BF16_260K, x) for x in LAYOUTS] + [(Q8_3M, "tp2")])
def test_exchanges_from_gpu_to_gpu_give_the_same_bits(tensord, gpus, find_model, model, layout):
    """By NCCL, and sums between GPUs that read each other's memory, in recorded steps and in others; ranks of uneven slices record none."""
    ranks, args = LAYOUTS[layout]
    ask = {"prompt": "Once upon a time there was a little fox who lived near a big river.", "n": 12}
    alone = generate(tensord, find_model(model), **ask)
    for graphs, sums in (("on", "nccl"), ("off", "nccl"), ("on", "peer"), ("off", "peer")):
        out = generate(gpus, find_model(model), *args, *NCCL, "--cuda-graphs", graphs, "--gpu-sums", sums, ranks=ranks, **ask)
        assert (out["ids"], out["logits_hash"]) == (alone["ids"], alone["logits_hash"]), (graphs, sums)


def test_sums_between_gpus_go_as_was_faster_or_is_asked(gpus, find_model):
    ask = ("generate", "--model", find_model(BF16_260K), "--prompt", PROMPT, "--max-tokens", 2, "--verbose", *CUDA, *NCCL, "--max-num-batched-tokens", 16)
    apart = copy.copy(gpus)
    apart.env = gpus.env | {"GPUSIM_NO_PEERS": "1"}
    why = "cudaIpcOpenMemHandle: CUDA error 1, invalid argument"
    for there, how, words in (
        (gpus, "auto", r'gpu sums="(by NCCL|between peers up to [0-9]+ rows of 64); rows 1: [0-9.]+ us, NCCL [0-9.]+, 2: .*, 16: [0-9.]+ us, NCCL [0-9.]+"'),
        (gpus, "peer", 'gpu sums="between peers up to 16 rows of 64"'),
        (gpus, "nccl", 'gpu sums="by NCCL"'),
        (apart, "auto", f'gpu sums="by NCCL: rank [01]: {why}"'),
    ):
        p = there.run(*ask, "--gpu-sums", how, ranks=2)
        assert p.returncode == 0 and re.search(words, p.stderr), p.stderr
    p = apart.run(*ask, "--gpu-sums", "peer", ranks=2)
    assert p.returncode == 1 and why in p.stderr, p.stderr


@pytest.mark.parametrize("sums", ["nccl", "peer"])
def test_a_rank_that_dies_in_an_exchange_by_nccl_is_replaced(gpus, find_model, sums):
    model = find_model(BF16_260K)
    alone = gpus.json("generate", "--model", model, "--prompt", PROMPT, "--max-tokens", 30, "--ignore-eos", *CUDA)["text"]
    ask = {"prompt": PROMPT, "max_tokens": 30, "temperature": 0, "ignore_eos": True}
    with Server("-n", 2, "--threads", 1, *CUDA, *NCCL, "--gpu-sums", sums, model=model, env=NCCL_ENV) as s:
        s.wait_ready()
        before = s.group()
        assert before["transport"] == "nccl" and before["layout"]["tp"] == 2, before
        stream = s.stream("/v1/completions", ask | {"stream": True})
        text, events = "", iter(stream)
        for _ in range(5):
            text += json.loads(next(events))["choices"][0]["text"]
        os.kill(before["ranks"][1]["pid"], signal.SIGKILL)
        for event in events:
            text += "" if event == "[DONE]" else json.loads(event)["choices"][0]["text"]
        assert text == alone
        s.wait_ready()
        wait_until("the old ranks are gone", lambda: set(s.ranks()) == {r["pid"] for r in s.group()["ranks"]}, 5)
        s.stop()


def values_of(text, name):
    """{labels: value} of a metric."""
    return {labels: float(value) for labels, value in re.findall(rf"^{name}(\S*) (\S+)$", text, re.M)}


def test_how_the_gpus_are_is_told(tensord, find_model):
    """By the simulated NVML: 250 W, whatever it does."""
    env = {"LD_LIBRARY_PATH": str(program().parent / "simnvml"), "GPUSIM_DEVICES": "2"}
    model = find_model(BF16_260K)
    with Server("-n", 2, "--threads", 1, *CUDA, model=model, env=env) as s:
        s.wait_ready()
        s.complete(PROMPT, model=model.stem, max_tokens=30, ignore_eos=True)
        wait_until("both have told, and again", lambda: len(values_of(s.get("/metrics").body.decode(), "tensord_gpu_power_watts")) == 2
                   and values_of(s.get("/metrics").body.decode(), "tensord_gpu_joules_per_token")[""] > 0, 10)
        text = s.get("/metrics").body.decode()
        for name, expected in (("power_watts", {'{rank="0"}': 250, '{rank="1"}': 250}), ("temperature_celsius", {'{rank="0"}': 61, '{rank="1"}': 61}),
                               ("nvlinks_up", {'{rank="0"}': 1, '{rank="1"}': 1}), ("nvlink_errors_total", {'{rank="0"}': 3, '{rank="1"}': 3}),
                               ("ecc_errors_total", {f'{{rank="{r}",kind="corrected"}}': 7 for r in (0, 1)})):
            assert values_of(text, f"tensord_gpu_{name}") == expected, text
        assert values_of(text, "tensord_gpu_clock_hertz")['{rank="1",domain="sm"}'] == 1980e6
        gpus = [r["gpu"] for r in s.group()["ranks"]]
        assert [g["bus_id"] for g in gpus] == ["0000:01:00.0", "0000:02:00.0"] and gpus[0]["power_watts"] == 250
        assert "ecc_errors_uncorrected" not in gpus[0] and gpus[0]["energy_joules"] > 0
        s.stop()
    ask = ("bench", model, "--cases", "decode", "--gen-tokens", 16, "--prompt-tokens", 8, "--repetitions", 1, "--json", *CUDA)
    told = copy.copy(tensord)
    told.env = tensord.env | env
    decode = told.json(*ask, ranks=2)["cases"]["decode"]
    assert decode["joules_per_token"] * decode["best"] == pytest.approx(500, rel=0.2), decode
    assert tensord.json(*ask)["cases"]["decode"]["joules_per_token"] is None


def test_a_gpu_that_fails_ends_its_rank_and_the_group_is_replaced(tensord, find_model, tmp_path):
    model, fault = find_model(BF16_260K), tmp_path / "fault"
    alone = tensord.json("generate", "--model", model, "--prompt", PROMPT, "--max-tokens", 30, "--ignore-eos", *CUDA)["text"]
    with Server("-n", 1, "--threads", 1, *CUDA, model=model, env={"GPUSIM_FAULT": str(fault)}) as s:
        s.wait_ready()
        stream = s.stream("/v1/completions", {"prompt": PROMPT, "max_tokens": 30, "temperature": 0, "ignore_eos": True, "stream": True})
        text, events = "", iter(stream)
        for _ in range(5):
            text += json.loads(next(events))["choices"][0]["text"]
        fault.touch()
        wait_until("the kernel has failed", lambda: not fault.exists(), 5)
        for event in events:
            text += "" if event == "[DONE]" else json.loads(event)["choices"][0]["text"]
        assert text == alone
        s.wait_ready()
        assert s.group()["n_restarts"] == 1 and "cuda 0 simulated: unspecified launch failure" in s.group()["last_error"], s.group()
        s.stop()


def test_where_there_is_no_nccl_the_hosts_memory_is_used_or_it_is_said(gpus, find_model):
    ask = ("generate", "--model", find_model(BF16_260K), "--prompt", PROMPT, "--max-tokens", 2, *CUDA, *NCCL)
    for args, words in (
        (("--nccl-plugin", "/nowhere.so"), "the plug-in /nowhere.so does not open"),
        (("--device", "cuda:0"), "NCCL error 5"),  # two ranks on one GPU
    ):
        p = gpus.run(*ask, *args, ranks=2)
        assert p.returncode == 1 and words in p.stderr, p.stderr
        p = gpus.run(*ask, *args, "--gpu-exchange", "auto", ranks=2)
        assert p.returncode == 0 and 'gpu exchange="host memory" because=' in p.stderr and words in p.stderr, p.stderr


def test_perplexity_is_the_cpus(tensord, shared, tmp_path):
    text = tmp_path / "text"
    text.write_bytes((shared / "text/tinystories-dev.txt").read_bytes()[:500])
    ask = ("perplexity", "--model", shared / "models" / BF16_260K, "--file", text, "--context", 64, "--kv-cache-dtype", "auto,fp8")
    cpu, cuda = tensord.json(*ask)["kv_cache"], tensord.json(*ask, *CUDA)["kv_cache"]
    assert [r["kv_dtype"] for r in cuda] == ["f16", "f8_e4m3"]
    for ours, theirs, near in zip(cuda, cpu, (1e-3, 1e-2), strict=True):  # a number between two of E4M3 may fall to either side
        assert ours["perplexity"] == pytest.approx(theirs["perplexity"], rel=near), theirs["kv_dtype"]


def test_a_prompt_by_nvidias_library_gives_nearly_the_same(tensord, find_model, shared):
    """The simulated one, for prompts of 256 rows and more; beside the CPU."""
    text = (shared / "text/tinystories-dev.txt").read_text()[:1060]
    ask = ("generate", "--model", find_model(Q8_3M), "--prompt", text, "--max-tokens", 2, "--ignore-eos", "--logprobs", 5,
           "--max-model-len", 512)
    there = copy.copy(tensord)
    there.env = tensord.env | {"LD_LIBRARY_PATH": str(program().parent / "simcublaslt")}
    cpu, library = tensord.json(*ask), there.json(*ask, *CUDA, "--exact", "off")
    assert len(cpu["prompt_ids"]) >= 256
    for ours, theirs in zip(cpu["logprobs"], library["logprobs"]):
        assert theirs["id"] == ours["id"] and theirs["logprob"] == pytest.approx(ours["logprob"], abs=0.05)


@needs_model
def test_a_prompt_of_fp8_by_nvidias_library_gives_nearly_the_same(tensord, tmp_path):
    """Weights with a scale per block of 128 x 128, as quantize makes them, activations in eight bits."""
    tensord.run("quantize", MODEL, tmp_path / "f8", "--type", "f8_e4m3", check=True)
    ids = ",".join(str(5 + i * 37 % 900) for i in range(300))
    ask = ("generate", "--model", tmp_path / "f8", "--prompt-ids", ids, "--max-tokens", 2, "--ignore-eos", "--logprobs", 5)
    there = copy.copy(tensord)
    there.env = tensord.env | {"LD_LIBRARY_PATH": str(program().parent / "simcublaslt")}
    cpu, exact, library = tensord.json(*ask), tensord.json(*ask, *CUDA), there.json(*ask, *CUDA, "--exact", "off")
    assert library["logits_hash"] != exact["logits_hash"], "the library has multiplied nothing"
    for ours, theirs in zip(cpu["logprobs"], library["logprobs"]):
        assert theirs["id"] == ours["id"] and theirs["logprob"] == pytest.approx(ours["logprob"], abs=0.3)


@needs_model
def test_a_server_serves_from_it(tensord):
    alone = generate(tensord, MODEL, n=6)["text"]
    with Server("-n", 2, "--threads", 1, *CUDA) as s:
        s.wait_ready()
        assert {r["device"] for r in s.group()["ranks"]} == {"cuda 0 simulated"}
        assert s.group()["numerics_class"] == "cuda-1-sm90"
        # Greedy, and drawn with a seed twice: alone and among others.
        assert s.complete(PROMPT, max_tokens=6, temperature=0, ignore_eos=True)["text"] == alone
        drawn = {"max_tokens": 6, "temperature": 1.0, "seed": 7, "ignore_eos": True}
        one = s.complete(PROMPT, **drawn)
        with contextlib.closing(s.stream("/v1/completions", {"prompt": "The", "max_tokens": 200, "stream": True, "ignore_eos": True})) as other:
            next(iter(other))
            assert s.complete(PROMPT, **drawn) == one
        s.stop()


def test_draws_on_the_device_are_those_of_the_host(find_model):
    """The device draws, and measures log probabilities, where nothing but temperature, top_p, min_p and some top_k is asked for and one
    GPU has all logits, or gets them from the others by NCCL; else the host does."""
    asked = [{"temperature": 0}, {"temperature": 1, "top_k": 3}, {"temperature": 1}, {"temperature": 0.7, "top_p": 0.9}, {"temperature": 1.5, "min_p": 0.05}, {"temperature": 2, "top_p": 0.99, "n": 2},
             {"temperature": 0.8, "echo": True}, {"temperature": 0, "echo": True, "max_tokens": 1}]  # with log probabilities of the prompt
    texts = {}
    layouts = {"alone": (1, ()), "tp2": LAYOUTS["tp2"],
               **{f"{k}, nccl": (LAYOUTS[k][0], (*LAYOUTS[k][1], *NCCL)) for k in ("shares-3-1-1", "tp2-pp2")}}
    for layout, (ranks, args) in layouts.items():
        with Server("-n", ranks, "--threads", 1, *args, *CUDA, model=find_model(BF16_260K), env=NCCL_ENV) as s:
            def texts_of(i, more):
                answer = s.post("/v1/completions", {"prompt": PROMPT, "max_tokens": 12, "seed": 7 + i, **asked[i], **more})
                return [(c["text"], c["logprobs"] if "logprobs" in more else None) for c in answer.json()["choices"]]

            s.wait_ready()
            by_device, by_host = {"logprobs": 4}, {"logprobs": 4, "logit_bias": {"5": 0}}
            texts[layout, "device"] = [texts_of(i, by_device) for i in range(len(asked))]
            texts[layout, "host"] = [texts_of(i, by_host) for i in range(len(asked))]
            with concurrent.futures.ThreadPoolExecutor(12) as pool:  # rows of a step want logits, the largest of them, and draws
                greedy = [pool.submit(texts_of, 0, {"temperature": 0}) for _ in range(2)]
                mixed = [pool.submit(texts_of, i, more) for i in range(len(asked)) for more in (by_host, by_device, {})]
                texts[layout, "mixed, host"], texts[layout, "mixed"] = ([f.result() for f in mixed[k::3]] for k in (0, 1))
                assert [[t for t, _ in f.result()] for f in mixed[2::3]] == [[t for t, _ in c] for c in texts[layout, "mixed"]]
                assert greedy[0].result() == greedy[1].result()
            wait_until(lambda: f"tokens drawn: {s.group()}", lambda: (s.group()["device_draws"] > 100) == (layout != "tp2"), 5)
            s.stop()
    assert len({json.dumps(t) for t in texts.values()}) == 1, texts
    assert len({t for choices in texts["alone", "device"] for t, _ in choices}) >= 5  # they do draw


@needs_model
def test_the_plan_tells_what_a_gpu_will_hold(tensord, find_model, tmp_path):
    """Before anything is loaded, and without a GPU: bytes as they are then held, and types that no GPU takes."""
    for model in (find_model(Q4_3M), MODEL):
        with Server("-n", 2, "--threads", 1, *CUDA, model=model) as s:
            s.wait_ready()
            plan = tensord.json("plan", model, "--device", "cuda", "-n", 2)
            assert plan["device"] == "cuda"
            for rank, p in zip(s.group()["ranks"], plan["per_rank"]):
                assert p["weight_bytes"] <= rank["weight_bytes"] <= p["weight_bytes"] * 1.02 + 65536, (rank, p)
            s.stop()
    small = tensord.run("plan", find_model(Q4_3M), "--device", "cuda", "--memory-bytes", "18MiB")
    assert small.returncode == 1 and "rank 0 needs" in small.stderr and "has 18874368 of memory" in small.stderr, small.stderr
    # Blocks beside the GPU are the host's memory.
    roomy = ("plan", find_model(Q4_3M), "--memory-bytes", "400MiB", "--kv-offload-gib", 1)
    assert tensord.run(*roomy).returncode == 1 and tensord.run(*roomy, "--device", "cuda").returncode == 0
    foreign = tmp_path / "foreign.gguf"
    made = tensord.run("quantize", find_model(BF16_260K), foreign, "--type", "q5_0")
    assert made.returncode == 0, made.stderr
    for command in (("plan", foreign, "--device", "cuda"), ("generate", "--model", foreign, "--prompt", PROMPT, *CUDA)):
        p = tensord.run(*command)
        assert p.returncode == 1 and "has weights of type q5_0, which --device cuda does not hold" in p.stderr, p.stderr
    p = tensord.run("plan", find_model(Q4_3M), "--device", "cuda", "--predict")
    assert p.returncode == 1 and "--predict with --device cuda: expected cpu" in p.stderr, p.stderr


def test_what_is_missing_is_said(tensord, find_model):
    model = find_model(BF16_260K)
    ask = ("generate", "--model", model, "--prompt", PROMPT, "--max-tokens", 1)
    for args, code, words in (
        (("--device", "gpu"), 2, "--device 'gpu': expected cpu, cuda or cuda:N"),
        (("--device", "cuda:x"), 2, "--device 'cuda:x': expected cpu, cuda or cuda:N"),
        (("--device", "cuda:7", *CUDA[2:]), 1, "CUDA device 7 of 1: expected 0 to 0"),
        (("--device", "cuda", "--cuda-plugin", "/nowhere.so"), 1, "the plug-in /nowhere.so does not open"),
        (("--model", find_model(Q4_3M), *CUDA, "--kv-cache-dtype", "q4_0"), 1, "KV cache of type q4_0: --device cuda does not hold it"),
    ):
        p = tensord.run(*ask, *args)
        assert p.returncode == code and words in p.stderr, p.stderr
    p = tensord.run(*ask, "--device", "cpu", "--cuda-plugin", "/nowhere.so")
    assert p.returncode == 0, p.stderr
