"""What the end-to-end tests share: the program, the models, and ways to run one in the other.

The program is $TENSORD_BIN, else $TD_BUILD/tensord, else build/tensord. Every run has a time limit.
"""
import json
import os
import pathlib
import signal
import subprocess

import pytest

pytest.register_assert_rewrite("serving")
signal.signal(signal.SIGHUP, signal.SIG_DFL)  # under nohup it is ignored, by what is started here too

ROOT = pathlib.Path(__file__).resolve().parents[2]
SHARED = ROOT.parent / "shared"
TINY = ROOT / "tests" / "models" / "tensord-tiny"
MPI_ENV = {
    "OMPI_ALLOW_RUN_AS_ROOT": "1",
    "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
    "OMPI_MCA_rmaps_base_oversubscribe": "1",
}
LIMIT_S = 300  # a run takes seconds; where others hog the cores, spinning calls of MPI take a minute and more


def program():
    if "TENSORD_BIN" in os.environ:
        return pathlib.Path(os.environ["TENSORD_BIN"])
    return pathlib.Path(os.environ.get("TD_BUILD", ROOT / "build")).resolve() / "tensord"


class Tensord:
    """Runs the program; one per session, so that equal runs are done once."""

    def __init__(self, binary):
        self.binary = str(binary)
        self.env = {k: v for k, v in os.environ.items() if not k.startswith("TENSORD_")} | MPI_ENV
        self.env.setdefault("NETLAB_COMMAND", str(ROOT / "deploy/netlab/netlab"))  # wherever the build folder is
        self._known = {}

    def run(self, *args, ranks=0, limit_s=LIMIT_S, **kwargs):
        """The finished process; `ranks` > 0 starts it as an MPI job."""
        launcher = ["mpirun", "-n", str(ranks)] if ranks else []
        return subprocess.run([*launcher, self.binary, *map(str, args)], env=self.env, capture_output=True,
                              text=True, timeout=limit_s, stdin=subprocess.DEVNULL, **kwargs)

    def json(self, *args, ranks=0, **kwargs):
        """The object that a run with --json prints; a failed run fails the test."""
        p = self.run(*args, "--json", ranks=ranks, **kwargs)
        assert p.returncode == 0, f"{p.args} ended with {p.returncode}: {p.stderr[-2000:]}"
        return json.loads(p.stdout)

    def json_once(self, *args, ranks=0):
        """The same, from memory when it was run before."""
        key = (ranks, *map(str, args))
        if key not in self._known:
            self._known[key] = self.json(*args, ranks=ranks)
        return self._known[key]


@pytest.fixture(scope="session")
def tensord():
    binary = program()
    assert binary.is_file(), f"{binary} is missing: build it, or name it in TENSORD_BIN"
    return Tensord(binary)


@pytest.fixture(scope="session")
def shared():
    """The folder of test data from outside the project."""
    if not (SHARED / "data").is_dir():
        pytest.skip("shared: ../shared is absent")
    return SHARED / "data"


@pytest.fixture(scope="session")
def tiny():
    """The model that ships."""
    if not any(TINY.glob("*.safetensors")):
        pytest.skip("shared: the weights of tests/models/tensord-tiny are absent")
    return TINY


@pytest.fixture(scope="session")
def in_f32(tensord, tmp_path_factory):
    """model -> a GGUF file with the same weights in F32. Products with BF16 weights round the activations to BF16; with this
    they do not, so that references which do not round either can be held against to a tight bound."""
    done = {}

    def convert(model):
        if model not in done:
            done[model] = tmp_path_factory.mktemp("f32") / "model.gguf"
            tensord.json("quantize", model, done[model], "--type", "f32")
        return done[model]

    return convert


@pytest.fixture(scope="session")
def find_model(request):
    """name -> path of one of the models that tests name: "tensord-tiny" or a path below shared's models."""

    def find(name):
        if name == "tensord-tiny":
            return request.getfixturevalue("tiny")
        return request.getfixturevalue("shared") / "models" / name

    return find
