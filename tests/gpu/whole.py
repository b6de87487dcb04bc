"""The whole path on a GPU: `tensord generate` and `perplexity` with --device cuda, held against other programs' ids and the CPU.

    python3 tests/gpu/whole.py TENSORD PLUGIN

Needs Python alone. A line per case: "ok: NAME" or "FAILED: 1 ranks: NAME: why"; then figures as Markdown, in lines that begin with "|"."""

import json
import os
import pathlib
import subprocess
import sys
import tempfile

ROOT = pathlib.Path(__file__).resolve().parents[2]
TINY = ROOT / "tests" / "models" / "tensord-tiny"
GOLDEN = ROOT / "tests" / "golden" / "tensord-tiny.json"


def main():
    tensord, plugin = sys.argv[1:3]
    libraries = pathlib.Path(tensord).resolve().parent / "lib"
    env = os.environ | ({"LD_LIBRARY_PATH": f"{libraries}:{os.environ.get('LD_LIBRARY_PATH', '')}"} if libraries.is_dir() else {})
    cuda = ["--device", "cuda", "--cuda-plugin", plugin]
    failed = 0

    def run(*args, cpu=False):
        p = subprocess.run([tensord, *map(str, args), *([] if cpu else cuda), "--json"], capture_output=True, text=True, timeout=300, env=env,
                           stdin=subprocess.DEVNULL)
        if p.returncode != 0:
            raise AssertionError(p.stderr.strip().splitlines()[-1:] or [f"status {p.returncode}"])
        return json.loads(p.stdout)

    def case(name, test):
        nonlocal failed
        try:
            test()
            print(f"ok: {name}", flush=True)
        except (AssertionError, OSError, subprocess.SubprocessError, ValueError) as e:
            failed += 1
            print(f"FAILED: 1 ranks: {name}: {str(e)[:400]}", flush=True)

    prompts = json.loads(GOLDEN.read_text())["prompts"]
    with tempfile.TemporaryDirectory() as folder:
        def made(kind):
            path = pathlib.Path(folder) / (kind if kind == "f8_e4m3" else f"{kind}.gguf")
            if not path.exists():
                subprocess.run([tensord, "quantize", str(TINY), str(path), "--type", kind], check=True, capture_output=True, env=env)
            return path

        def reference():
            for p in prompts:
                out = run("generate", "--model", made("f32"), "--prompt-ids", ",".join(map(str, p["prompt_ids"])), "--max-tokens",
                          len(p["greedy_ids"]), "--ignore-eos", "--kv-cache-dtype", "f32")
                assert out["ids"] == p["greedy_ids"], f"ids {out['ids']}, expected {p['greedy_ids']}"

        def chunks():
            ids = ",".join(str(i) for p in prompts for i in p["prompt_ids"])
            ask = ("generate", "--model", TINY, "--prompt-ids", ids, "--max-tokens", 16, "--ignore-eos")
            whole = run(*ask)
            for args in (("--prefill-chunk", "1"), ("--prefill-chunk", "7"), ("--block-size", "4")):
                out = run(*ask, *args)
                assert out["logits_hash"] == whole["logits_hash"], f"{args} give other bits"

        def score(kind):
            def test():
                text = ROOT / "README.md"
                ask = ("perplexity", "--model", made(kind), "--file", text, "--context", 256)
                cpu, gpu = (run(*ask, cpu=c)["perplexity"] for c in (True, False))
                print(f"| perplexity, {kind} | {cpu:.4f} on the CPU | {gpu:.4f} on the GPU |")
                assert abs(gpu / cpu - 1) <= 1e-3, f"{gpu}, on the CPU {cpu}"

            return test

        def inexact():
            ids = ",".join(str(i) for p in prompts for i in p["prompt_ids"] * 100).split(",")[:400]
            for model, within in ((TINY, 0.02), (made("f8_e4m3"), 0.1)):
                ask = ("generate", "--model", model, "--prompt-ids", ",".join(ids), "--max-tokens", 4, "--ignore-eos", "--logprobs", 5)
                on, off = (run(*ask, "--exact", word) for word in ("on", "off"))
                assert on["logits_hash"] != off["logits_hash"], f"the library has multiplied nothing of {model}"
                for ours, theirs in zip(on["logprobs"], off["logprobs"]):
                    assert abs(ours["logprob"] - theirs["logprob"]) < within, f"{model}: {theirs}, exact {ours}"
            rates = [run("bench", TINY, "--cases", "prefill", "--prompt-tokens", 512, "--exact", word)["cases"]["prefill"]["best"] for word in
                     ("on", "off")]
            print(f"| prompt of the shipped model, exact or not | {rates[0]:.0f} tokens/s | {rates[1]:.0f} tokens/s |")

        def recorded():
            ask = ("generate", "--model", TINY, "--prompt-ids", "1,2,3", "--max-tokens", 100, "--ignore-eos")
            on, off = (run(*ask, "--cuda-graphs", word) for word in ("on", "off"))
            assert (on["ids"], on["logits_hash"]) == (off["ids"], off["logits_hash"]), "recorded steps give other bits"
            rates = [run("bench", TINY, "--cases", "decode", "--gen-tokens", 128, "--cuda-graphs", word)["cases"]["decode"]["best"] for word in
                     ("on", "off")]
            print(f"| decode of the shipped model, steps recorded or not | {rates[0]:.0f} tokens/s | {rates[1]:.0f} tokens/s |")

        case("greedy ids of the shipped model are the reference's", reference)
        case("the same bits whatever the chunks and pages", chunks)
        case("the same bits from recorded steps", recorded)
        case("without exactness nearly the same", inexact)
        for kind in ("bf16", "f16", "f8_e4m3", "q8_0", "q4_0"):
            case(f"perplexity of {kind} is the CPU's", score(kind))
    sys.exit(failed > 0)


main()
