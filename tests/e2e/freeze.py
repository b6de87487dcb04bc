"""Stops one thread of a process, by its name, until standard input ends; the others run on. As a debugger does it (Linux, ptrace).

    python3 freeze.py PID NAME

Prints "frozen" once it stands, or says why it cannot."""

import ctypes
import os
import pathlib
import sys

PTRACE_SEIZE, PTRACE_INTERRUPT = 0x4206, 0x4207
WALL = 0x40000000


def main():
    pid, name = int(sys.argv[1]), sys.argv[2]
    libc = ctypes.CDLL(None, use_errno=True)
    libc.ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]
    tasks = pathlib.Path(f"/proc/{pid}/task").iterdir()
    found = [int(t.name) for t in tasks if (t / "comm").read_text().strip() == name]
    if len(found) != 1:
        sys.exit(f"process {pid} has {len(found)} threads named '{name}', expected one")
    for request in (PTRACE_SEIZE, PTRACE_INTERRUPT):
        if libc.ptrace(request, found[0], None, None) != 0:
            sys.exit(f"ptrace: {os.strerror(ctypes.get_errno())}")
    os.waitpid(found[0], WALL)
    print("frozen", flush=True)
    sys.stdin.read()


main()
