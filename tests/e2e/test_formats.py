"""The shipped model in every type that `tensord quantize` writes: the same bits on any number of ranks, and the scores of a
float64 forward over the weights that are stored."""
import concurrent.futures
import math
import subprocess
import sys

import pytest

from float64 import Model, numpy

TYPES = ["f32", "f16", "bf16", "q8_0", "q4_0", "q4_1", "q5_0", "q5_1", "q2_k", "q3_k", "q4_k", "q5_k", "q6_k", "iq4_nl",
         "iq4_xs", "mxfp4"]
FORMS = [(t, ()) for t in TYPES] + [("f8_e4m3", ("--fp8-scales", s)) for s in ("block", "channel", "tensor")]
RANKS = [1, 2, 3, 4, 8]
CONTEXT = 256

forms = pytest.mark.parametrize("kind,options", FORMS, ids=[k + "".join("-" + o for o in opts[1:]) for k, opts in FORMS])


@pytest.fixture(scope="module")
def quantized(tensord, tiny, tmp_path_factory):
    """(type, options) -> path of the model, made once."""
    known = {}

    def make(kind, options):
        if (kind, options) not in known:
            out = tmp_path_factory.mktemp("formats") / ("model" if kind == "f8_e4m3" else "model.gguf")
            tensord.json("quantize", tiny, out, "--type", kind, *options)
            known[kind, options] = out
        return known[kind, options]

    return make


@pytest.fixture(scope="module")
def stories(tensord, tiny, tmp_path_factory):
    """(path, ids) of stories as the model was trained on, from another seed."""
    text = subprocess.run([sys.executable, tiny.parent / "make_text.py", "--seed", "11", "--bytes", "120000"],
                          capture_output=True, text=True, check=True, timeout=60).stdout
    path = tmp_path_factory.mktemp("stories") / "stories.txt"
    path.write_text("\n".join(d for d in text.split("<|endoftext|>") if "<|" not in d))
    ids = tensord.json("tokenize", "--model", tiny, "--file", path)["ids"]
    return path, ids


@forms
def test_every_number_of_ranks_gives_the_same_bits(tensord, quantized, kind, options):
    path = quantized(kind, options)

    def generate(ranks):
        return tensord.json("generate", "--model", path, "--prompt", "Once upon a time", "--max-tokens", "8",
                            "--ignore-eos", ranks=ranks)

    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        alone, *split = pool.map(generate, [0, *RANKS])
    for ranks, out in zip(RANKS, split, strict=True):
        assert len(out["ranks"]) == ranks
        assert out["ids"] == alone["ids"], ranks
        assert out["logits_hash"] == alone["logits_hash"], ranks


@forms
def test_perplexity_is_that_of_float64_over_the_stored_weights(tensord, quantized, stories, tmp_path, kind, options):
    path = quantized(kind, options)
    text, ids = stories
    out = tensord.json("perplexity", "--model", path, "--file", text, "--context", CONTEXT, "--rule", "all", "--verbose",
                       "--kv-cache-dtype", "f32")
    if kind != "f32":
        tensord.json("quantize", path, tmp_path / "f32.gguf", "--type", "f32")
        path = tmp_path / "f32.gguf"
    model = Model(path)
    want = numpy.concatenate([model.nll(ids[i:i + CONTEXT]) for i in range(0, out["windows"] * CONTEXT, CONTEXT)])
    assert len(out["nll"]) == len(want) == out["scored_tokens"]
    assert out["perplexity"] == pytest.approx(math.exp(want.mean()), rel=1e-3)
