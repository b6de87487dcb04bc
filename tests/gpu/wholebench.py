"""The program's speed on a GPU with an 8B Llama of random weights, beside how fast the GPU copies.

    python3 tests/gpu/wholebench.py TENSORD PLUGIN FOLDER COPY_GBS [TYPES [LAYERS]]

FOLDER takes one model at a time, up to 16 GB. Prints Markdown."""

import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys

HERE = pathlib.Path(__file__).resolve().parent
# What a token's way through the matrices and the head multiplies; its 8,192-token prompt's attention, half of the square, comes on top.
OPS = 2.0 * (4096 * (2 * 4096 + 2 * 1024 + 3 * 14336)), 4.0 * 4096 * 8192 / 2


def remove(model):
    if model.is_dir():
        shutil.rmtree(model)
    else:
        model.unlink(missing_ok=True)


def main():
    tensord, plugin, folder, copy = *sys.argv[1:4], float(sys.argv[4])
    types = sys.argv[5].split(",") if len(sys.argv) > 5 else ["bf16", "f8_rows", "q8_0", "q4_k", "q4_0", "f8_blocks"]
    layers = int(sys.argv[6]) if len(sys.argv) > 6 else 32
    libraries = pathlib.Path(tensord).resolve().parent / "lib"
    env = os.environ | ({"LD_LIBRARY_PATH": f"{libraries}:{os.environ.get('LD_LIBRARY_PATH', '')}"} if libraries.is_dir() else {})
    model = pathlib.Path(folder) / "random"
    others = {}  # ways to decode the first type

    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # past its time: what there is is told

    def bench(*args, more={}):
        p = subprocess.run([tensord, "bench", model, "--device", "cuda", "--cuda-plugin", plugin, "--json", "--repetitions", "3",
                            *map(str, args)], capture_output=True, text=True, timeout=240, env=env | more, stdin=subprocess.DEVNULL)
        if p.returncode != 0:
            raise RuntimeError((p.stderr.strip().splitlines() or [f"status {p.returncode}"])[-1])
        return json.loads(p.stdout)["cases"]

    def decode(*args, **more):
        return f"{bench('--cases', 'decode', '--prompt-tokens', 512, '--gen-tokens', 64, *args, more=more)['decode']['best']:.1f} tokens/s"

    def rate(case):
        """GB/s that a case reads of weights, keys and values, and its share of copying."""
        gbs = case["bytes_per_step"]["total"] * case["best"] * case["steps"] / case["tokens"] * 1e-9
        return f"{case['best']:.1f} tokens/s, {gbs:.0f} GB/s ({100 * gbs / copy:.0f} %)"

    print(f"Copying reads and writes {copy:.0f} GB/s. {layers} layers; a prompt of 8,192 tokens in one step; a batch "
          "of 64 sequences behind 2,048 tokens each.\n")
    print("| weights | decode | 64 sequences | prompt, exact | prompt, --exact off | J per token of decode |")
    print("|---|---:|---:|---:|---:|---:|", flush=True)
    try:
        for kind in types:
            remove(model)
            subprocess.run([sys.executable, HERE / "randmodel.py", model, kind, str(layers)], check=True)
            ask = ("--prompt-tokens", 512, "--gen-tokens", 64, "--batch", 64, "--batch-depth", 2048, "--max-num-seqs", 66, "--max-model-len", 4096,
                   "--max-num-batched-tokens", 2048)
            cases = bench("--cases", "decode,batch", *ask)
            cells = [rate(cases["decode"]), rate(cases["batch"])]
            for word in ("on", "off"):
                try:
                    prompt = bench("--cases", "prefill", "--prompt-tokens", 8192, "--max-num-batched-tokens", 8192, "--exact", word)["prefill"]
                    tflops = prompt["best"] * layers * (OPS[0] + OPS[1]) * 1e-12
                    cells.append(f"{prompt['best']:.0f} tokens/s, {tflops:.0f} TFLOP/s")
                except RuntimeError as e:
                    cells.append(str(e))
            joules = cases["decode"]["joules_per_token"]
            print(f"| {kind} | " + " | ".join([*cells, "" if joules is None else f"{joules:.3g}"]) + " |", flush=True)
            if kind == types[0]:  # every run loads the model: what is told of one type is not asked of all
                others["steps not recorded"] = decode("--cuda-graphs", "off")
                others["kernels one after the other"] = decode(TD_CUDA_NO_OVERLAP="1")
                for n in (0, 8192, 16384):
                    others[f"{n} bytes of weights asked ahead by a warp, not 4096"] = decode(TD_CUDA_AHEAD=str(n))
    finally:
        print(f"\nDecode with {types[0]}: {'; '.join(f'{what}: {speed}' for what, speed in others.items())}.", flush=True)
        remove(model)


main()
