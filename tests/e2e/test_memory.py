"""What a rank takes of the host's memory, on a file of random weights that is far larger than everything else.

The file is made by the tool in ../shared; its vocabulary is GPT-2's.
"""
import shutil
import subprocess

import pytest

LEAST_BYTES = 600_000_000


@pytest.fixture(scope="module")
def big_model(shared, tmp_path_factory):
    source = shared.parent / "tools" / "make_random_gguf.c"
    if not source.is_file():
        pytest.skip("shared: tools/make_random_gguf.c is absent")
    folder = tmp_path_factory.mktemp("memory")
    tool, model = folder / "make_random_gguf", folder / "random.gguf"
    vocabulary = shared / "tokenizers/gpt-2/ggml-vocab-gpt-2.gguf"
    try:
        subprocess.run(["gcc", "-O2", "-w", "-o", tool, source, "-lm"], check=True, timeout=60)
        subprocess.run([tool, "--shape", "llama-3.2-1b", "--vocab", vocabulary, "--n-vocab", "50304", "--layers", "4",
                        "--type", "f16", "--ctx", "512", "-o", model], check=True, timeout=120, capture_output=True)
        assert model.stat().st_size >= LEAST_BYTES
        yield model
    finally:
        shutil.rmtree(folder)


@pytest.mark.parametrize("ranks", [0, 1, 2])
def test_a_ready_rank_holds_its_slice_and_little_else(tensord, big_model, ranks):
    out = tensord.json("generate", "--model", big_model, "--prompt-ids", "1,2,3", "--max-tokens", 2, "--ignore-eos",
                       ranks=ranks)
    plan = tensord.json("plan", "--model", big_model, "-n", ranks or 1)
    assert len(out["ranks"]) == (ranks or 1)
    for r, planned in zip(out["ranks"], plan["per_rank"], strict=True):
        # The first number is from before MPI, so MPI's own memory counts as ours. KV is not subtracted either: its pages
        # come with their first use, and there was none when the rank was ready.
        taken = r["rss_ready_bytes"] - r["rss_before_bytes"]
        print(f"rank {r['rank']} of {ranks or 1}: {taken} bytes resident, slice {r['weight_bytes']}, "
              f"ratio {taken / r['weight_bytes']:.4f}")
        assert r["weight_bytes"] == planned["weight_bytes"]
        assert r["weight_bytes"] <= taken <= 1.10 * r["weight_bytes"]
