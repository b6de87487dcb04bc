"""tests/gpu/test_nccl on the simulated NCCL (tests/gpusim): what comm/nccl makes of NCCL's answers. What NCCL does is checked by
tests/gpu.sh."""

import os
import subprocess

import pytest
from conftest import program

BUILD = program().parent


@pytest.mark.parametrize("args", [("1",), ("2",), ("3",), ("2", "same-host"), ("2", "group-abort")], ids="-".join)
def test_operations_between_devices(args):
    env = os.environ | {"LD_LIBRARY_PATH": str(BUILD / "simnccl"), "TD_NEED_GPU": "1"}
    p = subprocess.run([BUILD / "tests/test_nccl_gpusim", *args], env=env, text=True, capture_output=True, timeout=120)
    assert p.returncode == 0 and "ok: " in p.stdout and "FAILED" not in p.stdout, p.stdout + p.stderr
