"""Models of GPTQ and AWQ: every weight is what its integer, scale and zero say, and every layout gives the same bits."""
import concurrent.futures
import json
import math
import pathlib
import shutil
import subprocess
import sys

import pytest

import int4file
from float64 import Model, numpy
from gguffile import Gguf
from test_cuda import CUDA

FORMS = {"gptq-128": ("gptq", 128), "gptq-32": ("gptq", 32), "gptq_v2-64": ("gptq_v2", 64), "awq-128": ("awq", 128),
         "awq-whole-rows": ("awq", 0)}
RANKS = [1, 2, 3, 4, 8]
CONTEXT = 128


@pytest.fixture(scope="module")
def made(tiny, tmp_path_factory):
    """name of a form -> (the model, the same in F32), made once."""
    known = {}

    def make(name):
        if name not in known:
            out = tmp_path_factory.mktemp("int4") / name
            known[name] = int4file.make(tiny, out, *FORMS[name]) if name in FORMS else \
                int4file.make(tiny, out, "gptq", 128, act_order=True, biases=True)
        return known[name]

    return make


@pytest.mark.parametrize("name", [*FORMS, "act-order"])
def test_weights_are_what_integers_scales_and_zeros_say(tensord, made, tmp_path, name):
    files = [tensord.json("quantize", folder, tmp_path / f"{i}.gguf", "--type", "f32")["output"]
             for i, folder in enumerate(made(name))]
    mine, want = (Gguf(pathlib.Path(path)).tensors for path in files)
    assert mine.keys() == want.keys()
    for tensor in want:
        assert mine[tensor] == want[tensor], tensor


@pytest.mark.parametrize("name", ["gptq-128", "awq-128", "act-order"])
def test_every_number_of_ranks_gives_the_same_bits(tensord, made, name):
    def generate(ranks):
        return tensord.json("generate", "--model", made(name)[0], "--prompt", "Once upon a time", "--max-tokens", "8",
                            "--ignore-eos", ranks=ranks)

    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        alone, *split = pool.map(generate, [0, *RANKS])
    for ranks, out in zip(RANKS, split, strict=True):
        assert len(out["ranks"]) == ranks
        assert (out["ids"], out["logits_hash"]) == (alone["ids"], alone["logits_hash"]), ranks


@pytest.fixture(scope="module")
def stories(tiny, tmp_path_factory):
    """Stories as the model was trained on, from another seed: many, and a few for the simulated device."""
    text = subprocess.run([sys.executable, tiny.parent / "make_text.py", "--seed", "11", "--bytes", "60000"],
                          capture_output=True, text=True, check=True, timeout=60).stdout
    stories = "\n".join(d for d in text.split("<|endoftext|>") if "<|" not in d)
    paths = [tmp_path_factory.mktemp("stories") / name for name in ("many", "few")]
    for path, n in zip(paths, (len(stories), 2000), strict=True):
        path.write_text(stories[:n])
    return paths


@pytest.mark.parametrize("device", [(), CUDA], ids=["cpu", "cuda"])
@pytest.mark.parametrize("name", ["gptq-32", "awq-128", "act-order"])
def test_perplexity_is_that_of_float64_over_the_stored_weights(tensord, made, stories, tmp_path, name, device):
    path, plain = made(name)
    text = stories[device == CUDA]
    out = tensord.json("perplexity", "--model", path, "--file", text, "--context", CONTEXT, "--rule", "all", "--verbose",
                       "--kv-cache-dtype", "f32", *device)
    tensord.json("quantize", plain, tmp_path / "f32.gguf", "--type", "f32")
    ids = tensord.json("tokenize", "--model", path, "--file", text)["ids"]
    model = Model(tmp_path / "f32.gguf")
    want = numpy.concatenate([model.nll(ids[i:i + CONTEXT]) for i in range(0, out["windows"] * CONTEXT, CONTEXT)])
    assert len(out["nll"]) == len(want) == out["scored_tokens"] > 100
    # A CPU multiplies with activations of eight bits: of so few tokens their mean is off by 6e-4 itself (standard error).
    assert out["perplexity"] == pytest.approx(math.exp(want.mean()), rel=3e-3 if device == () else 1e-3)


def test_a_plan_counts_what_is_held(tensord, made):
    """32 weights take 19 bytes, or 64 where runs of columns are not in order."""
    packed, halves = (tensord.json("plan", "--model", made(name)[0])["model_bytes"] for name in ("awq-128", "act-order"))
    config = json.loads((made("awq-128")[0] / "config.json").read_text())
    d, ff, head = config["hidden_size"], config["intermediate_size"], config["head_dim"]
    heads = 2 * config["num_attention_heads"] + 2 * config["num_key_value_heads"]
    assert halves - packed == config["num_hidden_layers"] * (heads * head * d + 3 * d * ff) // 32 * (64 - 19)


def test_what_does_not_fit_is_refused_by_name(tensord, made, tmp_path):
    base, tensors = "model.layers.1.mlp.up_proj", int4file.read(made("gptq-128")[0] / int4file.FILE)

    def said_of(changed, config=None):
        folder = tmp_path / "broken"
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(made("gptq-128")[0], folder)
        int4file.write(folder / int4file.FILE, {name: x for name, x in (tensors | changed).items() if x is not None})
        if config:
            text = json.loads((folder / "config.json").read_text())
            config(text)
            (folder / "config.json").write_text(json.dumps(text))
        out = tensord.run("generate", "--model", folder, "--prompt", "Once", "--max-tokens", "1")
        assert out.returncode != 0 and not out.stdout
        return out.stderr

    words, scales, runs = (tensors[f"{base}.{part}"] for part in ("qweight", "scales", "g_idx"))
    assert f"'{base}.qweight' is 2-dimensional, 32 x 760; expected 32 x 768" in said_of({f"{base}.qweight": words[:, :-8]})
    assert f"has not both '{base}.qzeros' and" in said_of({f"{base}.qzeros": None})
    assert "into run 9; expected 0 to 1" in said_of({f"{base}.g_idx": numpy.where(runs == 1, 9, runs).astype("i4")})
    assert f"'{base}.scales' has type F32; expected F16" in said_of({f"{base}.scales": scales.astype("f4")})
    broken = scales.copy()
    broken[1, 5] = numpy.inf
    said = said_of({f"{base}.scales": broken})
    assert f"'{base}.weight'" in said and "scale 1, 5 of 4-bit integers is inf" in said
    assert "is a bias" in said_of({f"{base}.bias": numpy.ones(768, "f2")})
    assert "no 'quantization_config' of the method gptq or awq" in said_of({}, lambda c: c.pop("quantization_config"))
    assert "'bits' 3, which is not built; expected 4" in said_of({}, lambda c: c["quantization_config"].update(bits=3))
