"""What PyTorch reaches on the same GPU, for comparison: copying, and products of BF16 as large as a prompt's. Prints Markdown lines
that begin with "|"; nothing without PyTorch or a GPU."""

import sys
import time

try:
    import torch
except ImportError:
    sys.exit("no PyTorch here")
if not torch.cuda.is_available():
    sys.exit("PyTorch sees no GPU")


def best_of(once, repeat):
    """Seconds of one of `repeat` calls, the best of five times."""
    best = float("inf")
    for i in range(6):
        torch.cuda.synchronize()
        begin = time.perf_counter()
        for _ in range(repeat):
            once()
        torch.cuda.synchronize()
        if i:
            best = min(best, (time.perf_counter() - begin) / repeat)
    return best


big = torch.empty(1 << 29, dtype=torch.bfloat16, device="cuda")
to = torch.empty_like(big)
print("| what | rate |\n|---|---:|")
print(f"| copying, read and written | {2 * big.nbytes / best_of(lambda: to.copy_(big), 8) * 1e-9:.0f} GB/s |")
del big, to
for n in (512, 2048, 8192):
    x, w = (torch.randn(rows, 4096, device="cuda", dtype=torch.bfloat16) for rows in (n, 14336))
    seconds = best_of(lambda: torch.nn.functional.linear(x, w), 10)
    print(f"| BF16 product, {n} x 4096 by 4096 x 14336 | {2 * n * 4096 * 14336 / seconds * 1e-12:.0f} TFLOP/s |")
