"""A reader of GGUF files of its own, with which the tests look into what `tensord quantize` wrote."""
import math
import struct

# ggml's tensor types: number -> name, elements and bytes of a block.
GGML = {0: ("F32", 1, 4), 1: ("F16", 1, 2), 2: ("Q4_0", 32, 18), 3: ("Q4_1", 32, 20), 6: ("Q5_0", 32, 22),
        7: ("Q5_1", 32, 24), 8: ("Q8_0", 32, 34), 10: ("Q2_K", 256, 84), 11: ("Q3_K", 256, 110), 12: ("Q4_K", 256, 144),
        13: ("Q5_K", 256, 176), 14: ("Q6_K", 256, 210), 20: ("IQ4_NL", 32, 18), 23: ("IQ4_XS", 256, 136),
        30: ("BF16", 1, 2), 39: ("MXFP4", 32, 17)}


class Gguf:
    """metadata {key: value}, tensors {name: (type, shape, bytes)}, type_at {name: byte of the file with its type}."""
    SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}

    def __init__(self, path):
        self.data, self.at = path.read_bytes(), 4
        assert self.data[:4] == b"GGUF" and self.take("I") == 3
        n_tensors, n_pairs = self.take("Q"), self.take("Q")
        self.metadata = {}
        for _ in range(n_pairs):
            key = self.string().decode()
            assert key not in self.metadata
            self.metadata[key] = self.value(self.take("I"))
        heads, self.type_at, self.tensors = {}, {}, {}
        for _ in range(n_tensors):
            name = self.string().decode()
            shape = [self.take("Q") for _ in range(self.take("I"))]
            self.type_at[name] = self.at
            heads[name] = (self.take("I"), shape, self.take("Q"))
        start = -(-self.at // 32) * 32
        for name, (number, shape, offset) in heads.items():
            kind, elems, size = GGML[number]
            assert offset % 32 == 0 and shape[0] % elems == 0
            at, n = start + offset, math.prod(shape) // elems * size
            assert at + n <= len(self.data)
            self.tensors[name] = (kind, shape, self.data[at:at + n])

    def take(self, code):
        value, = struct.unpack_from("<" + code, self.data, self.at)
        self.at += struct.calcsize("<" + code)
        return value

    def string(self):
        n = self.take("Q")
        self.at += n
        return self.data[self.at - n:self.at]

    def value(self, kind):
        if kind == 8:
            return self.string()
        if kind == 9:
            elem, n = self.take("I"), self.take("Q")
            return [self.value(elem) for _ in range(n)]
        return self.take(self.SCALARS[kind])

    def types(self):
        return {name: t[0] for name, t in self.tensors.items()}
