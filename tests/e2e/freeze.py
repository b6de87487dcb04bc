"""Stops one thread of a process, by its name, until standard input ends; the others run on. As a debugger does it (Linux, ptrace).
Where it stands inside of a lock that the others need, it goes on for a moment and is stopped again.

    python3 freeze.py PID NAME

Prints "frozen" once it stands, or says why it cannot."""

import ctypes
import os
import pathlib
import re
import sys
import time

PTRACE_CONT, PTRACE_SEIZE, PTRACE_INTERRUPT = 7, 0x4206, 0x4207
WALL = 0x40000000


def n_rests(pid, but):
    """How often the other threads have gone to sleep: a loop that sends heartbeats does every time."""
    texts = [(t / "status").read_text() for t in pathlib.Path(f"/proc/{pid}/task").iterdir() if int(t.name) != but]
    return sum(int(re.search(r"^voluntary_ctxt_switches:\s*(\d+)", text, re.M)[1]) for text in texts)


def main():
    pid, name = int(sys.argv[1]), sys.argv[2]
    libc = ctypes.CDLL(None, use_errno=True)
    libc.ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]
    tasks = pathlib.Path(f"/proc/{pid}/task").iterdir()
    found = [int(t.name) for t in tasks if (t / "comm").read_text().strip() == name]
    if len(found) != 1:
        sys.exit(f"process {pid} has {len(found)} threads named '{name}', expected one")

    def trace(request):
        if libc.ptrace(request, found[0], None, None) != 0:
            sys.exit(f"ptrace: {os.strerror(ctypes.get_errno())}")

    trace(PTRACE_SEIZE)
    for _ in range(20):
        trace(PTRACE_INTERRUPT)
        os.waitpid(found[0], WALL)
        before = n_rests(pid, found[0])
        time.sleep(0.5)
        if n_rests(pid, found[0]) >= before + 3:
            break
        trace(PTRACE_CONT)
        time.sleep(0.01)
    else:
        sys.exit("the other threads rest, whenever it is stopped")
    print("frozen", flush=True)
    sys.stdin.read()


main()
