"""tests/gpu/test_nccl on the simulated NCCL (tests/gpusim): what comm/nccl makes of NCCL's answers. What NCCL does is checked by
tests/gpu.sh."""

import os
import pathlib
import subprocess

import pytest
from conftest import program

BUILD = program().parent
ROOT = pathlib.Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("args", [("1",), ("2",), ("3",), ("2", "same-host"), ("2", "group-abort")], ids="-".join)
def test_operations_between_devices(args):
    env = os.environ | {"LD_LIBRARY_PATH": str(BUILD / "simnccl"), "TD_NEED_GPU": "1"}
    p = subprocess.run([BUILD / "tests/test_nccl_gpusim", *args], env=env, text=True, capture_output=True, timeout=120)
    assert p.returncode == 0 and "ok: " in p.stdout and "FAILED" not in p.stdout, p.stdout + p.stderr


def test_the_op_matrix_compiles_where_there_is_no_cmocka():
    """As tests/gpu.sh builds it on a machine with a GPU and nothing else."""
    for source in ("tests/ops/test_ops_cuda.c", "tests/ops/ops.c"):
        p = subprocess.run(["cc", "-std=c11", "-D_GNU_SOURCE", "-fsyntax-only", "-Wall", "-Wextra", "-Werror", "-I.", "-Itests/gpu/cmocka",
                            '-DCUDA_PLUGIN="x"', source], cwd=ROOT, text=True, capture_output=True, timeout=60)
        assert p.returncode == 0, p.stderr
