"""A Hugging Face model with its matrices in 4-bit integers as GPTQ and AWQ store them, and the same model in F32: what those
integers, scales and zeros mean. Layouts: AutoGPTQ's and GPTQModel's QuantLinear, AutoAWQ's WQLinear_GEMM."""
import json
import os
import shutil
import struct

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
import numpy  # noqa: E402

TYPES = {"F32": "<f4", "F16": "<f2", "I32": "<i4"}
AWQ_ORDER = [0, 2, 4, 6, 1, 3, 5, 7]  # the rows of eight from the lowest bits of a word on
FILE = "model.safetensors"


def read(path):
    """{name: array} of a file; BF16 comes as float32."""
    data = path.read_bytes()
    n, = struct.unpack_from("<Q", data)
    found = {}
    for name, t in json.loads(data[8:8 + n]).items():
        if name == "__metadata__":
            continue
        a, b = t["data_offsets"]
        raw = data[8 + n + a:8 + n + b]
        x = (numpy.frombuffer(raw, "<u2").astype("u4") << 16).view("f4") if t["dtype"] == "BF16" else \
            numpy.frombuffer(raw, TYPES[t["dtype"]])
        found[name] = x.reshape(t["shape"])
    return found


def write(path, tensors):
    """{name: array of float32, float16 or int32}."""
    kinds = {numpy.dtype(code): name for name, code in TYPES.items()}
    header, blob = {}, b""
    for name, x in tensors.items():
        raw = numpy.ascontiguousarray(x).tobytes()
        header[name] = {"dtype": kinds[x.dtype], "shape": list(x.shape), "data_offsets": [len(blob), len(blob) + len(raw)]}
        blob += raw
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + blob)


def quantise(w, runs, n_runs):
    """w [rows x columns]; the run of each column -> integers of 0 to 15, F16 scales and zeros [n_runs x rows]: round to nearest, the
    zero in the integers' range too."""
    scales, zeros = numpy.empty((n_runs, len(w)), "f2"), numpy.empty((n_runs, len(w)), "i4")
    for g in range(n_runs):
        part = w[:, runs == g]
        lo, hi = numpy.minimum(part.min(1), 0), numpy.maximum(part.max(1), 0)
        scales[g] = ((hi - lo) / 15).astype("f2")
        zeros[g] = numpy.clip(numpy.rint(-lo / scales[g].astype("f4")), 0, 15)
    scale, zero = scales[runs].T.astype("f4"), zeros[runs].T
    return numpy.clip(numpy.rint(w / scale) + zero, 0, 15).astype("i4"), scales, zeros


def words_of(fields):
    """[... x 8] integers of 0 to 15 -> [...] int32, the first in the lowest bits."""
    return (fields.astype("u4") << numpy.arange(0, 32, 4, dtype="u4")).sum(-1, dtype="u4").view("i4")


def gptq(q, zeros, less):
    """[columns / 8 x rows] and [runs x rows / 8]; v1 took 1 from every field of a word."""
    words = words_of(q.T.reshape(-1, 8, len(q)).swapaxes(1, 2))
    packed = words_of(zeros.reshape(len(zeros), -1, 8)).view("u4") - numpy.uint32(0x11111111 if less else 0)
    return words, packed.view("i4")


def awq(q, zeros):
    """[columns x rows / 8] and [runs x rows / 8]."""
    return (words_of(t.reshape(len(t), -1, 8)[..., AWQ_ORDER]) for t in (q.T, zeros))


def make(source, out, form, group, act_order=False, biases=False):
    """Writes `out` in the form "gptq", "gptq_v2" or "awq" with runs of `group` columns, and out.parent / (out.name + "-f32"), whose
    matrices are what it stands for. act_order: columns are in runs as they come in some other order, and the weights are rounded to F16."""
    plain = out.parent / (out.name + "-f32")
    config = json.loads((source / "config.json").read_text())
    packed, values = {}, {}
    shuffle = numpy.random.default_rng(1)
    for name, w in read(source / FILE).items():
        if not name.endswith("_proj.weight"):
            packed[name] = values[name] = w
            continue
        base, columns = name[:-len(".weight")], w.shape[1]
        runs = numpy.arange(columns) // (group or columns)
        if act_order:
            shuffle.shuffle(runs)
        q, scales, zeros = quantise(w, runs, runs.max() + 1)
        packed[base + ".qweight"], packed[base + ".qzeros"] = \
            awq(q, zeros) if form == "awq" else gptq(q, zeros, form == "gptq")
        packed[base + ".scales"] = scales
        if form != "awq":
            packed[base + ".g_idx"] = runs.astype("i4")
        if biases:
            packed[base + ".bias"] = numpy.zeros(len(w), "f2")
        value = (q - zeros[runs].T).astype("f4") * scales[runs].T.astype("f4")
        values[name] = value.astype("f2").astype("f4") if act_order else value
    method = {"quant_method": "awq", "version": "gemm", "zero_point": True} if form == "awq" else \
        {"quant_method": "gptq", "checkpoint_format": form, "desc_act": act_order, "sym": False}
    for folder, tensors in ((out, packed), (plain, values)):
        shutil.copytree(source, folder, ignore=shutil.ignore_patterns("*.safetensors"))
        write(folder / FILE, tensors)
    config |= {"quantization_config": {**method, "bits": 4, "group_size": group or -1}}
    (out / "config.json").write_text(json.dumps(config))
    return out, plain
