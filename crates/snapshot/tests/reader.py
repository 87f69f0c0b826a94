#!/usr/bin/env python3
"""Reads an image from a cowslip store: reader.py STORE NAME[:disk|:memory|:state] OUT.raw

Written from docs/format.md alone, to see that the page is enough. Standard library only; zstd comes
from libzstd or the zstd command; deltas want libzstd, as the command cannot be given a prefix from memory.
BLAKE3 is checked if there is a module for it. Exit code 77: no zstd that can.
"""
import ctypes, ctypes.util, os, shutil, struct, subprocess, sys, uuid

try:
    from blake3 import blake3
except ImportError:
    blake3 = None


def crc_table():
    for n in range(256):
        for _ in range(8):
            n = (n >> 1) ^ (0x82F63B78 if n & 1 else 0)
        yield n


TABLE = list(crc_table())


def crc32c(data):
    crc = 0xFFFFFFFF
    for byte in data:
        crc = TABLE[(crc ^ byte) & 0xFF] ^ (crc >> 8)
    return crc ^ 0xFFFFFFFF


def find_zstd():
    name = ctypes.util.find_library("zstd") or "libzstd.so.1"
    try:
        library = ctypes.CDLL(name)
        library.ZSTD_createDCtx.restype = ctypes.c_void_p
        library.ZSTD_decompressDCtx.restype = library.ZSTD_DCtx_refPrefix.restype = ctypes.c_size_t
    except OSError:
        if not shutil.which("zstd"):
            sys.exit(77)

        def by_command(data, size, prefix):
            if prefix is not None:
                sys.exit(77)
            return subprocess.run(["zstd", "-dc"], input=data, stdout=subprocess.PIPE, check=True).stdout
        return by_command
    context = ctypes.c_void_p(library.ZSTD_createDCtx())

    def decompress(data, size, prefix):
        if prefix is not None:
            assert library.ZSTD_DCtx_refPrefix(context, prefix, ctypes.c_size_t(len(prefix))) == 0
        out = ctypes.create_string_buffer(size)
        length = ctypes.c_size_t(len(data))
        got = library.ZSTD_decompressDCtx(context, out, ctypes.c_size_t(size), data, length)
        assert got == size, "zstd"
        return out.raw
    return decompress


ZSTD = find_zstd()


def check_hash(data, want):
    assert blake3 is None or blake3(data).digest()[:16] == want, "hash"


def read(*path):
    with open(os.path.join(*path), "rb") as file:
        return file.read()


class Bytes:
    def __init__(self, data):
        self.data, self.at = data, 0

    def take(self, n):
        assert self.at + n <= len(self.data), "cut short"
        self.at += n
        return self.data[self.at - n:self.at]

    def varint(self):
        value = shift = 0
        while True:
            byte = self.take(1)[0]
            value |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                return value

    def delta(self, expected):
        zigzag = self.varint()
        return (expected + ((zigzag >> 1) ^ -(zigzag & 1))) % 2**64

    def ids(self):
        return [uuid.UUID(bytes=self.take(16)) for _ in range(self.varint())]

    def pick(self, ids):
        return 0 if len(ids) == 1 else self.varint()


class Layer:
    def __init__(self, store, name):
        self.data = read(store, "layers", str(name))
        footer = self.data[-64:]
        fields = struct.unpack("<16sQIIQIIII8s", footer)
        ident, self.blocks, self.block_size, self.per_frame, index_at, index_crc, bases, version, crc, magic = fields
        assert magic == b"cowslipL" and version == (2 if bases else 1) and crc == crc32c(footer[:52])
        assert ident == name.bytes and bases <= 256
        tables = Bytes(self.data[index_at:-64])
        assert crc32c(tables.data) == index_crc
        index = tables.take(8 * -(-self.blocks // self.per_frame))
        self.store = store
        self.frames, at = [], 0
        for word, crc in struct.iter_unpack("<II", index):
            self.frames.append((at, word & 0xFFFFFF, word >> 24, crc))
            at += word & 0xFFFFFF
        assert at == index_at
        self.decoded = {}
        self.over = self.bases(tables, [uuid.UUID(bytes=tables.take(16)) for _ in range(bases)])
        assert tables.at == len(tables.data), "bytes too many"

    def frame_blocks(self, n):
        return min(self.per_frame, self.blocks - n * self.per_frame)

    def bases(self, table, layers):
        """For each delta frame, where the base of each block is."""
        over, expected = {}, [0] * len(layers)
        for n, (_, _, kind, _) in enumerate(self.frames):
            if kind != 2:
                continue
            over[n] = []
            for _ in range(self.frame_blocks(n)):
                number = table.varint()
                if number == 0:
                    over[n].append(None)
                    continue
                block = table.delta(expected[number - 1])
                expected[number - 1] = block + 1
                over[n].append((layers[number - 1], block))
        return over

    def prefix(self, n):
        out = b""
        for base in self.over[n]:
            if base is None:
                out += bytes(self.block_size)
                continue
            layer = layer_of(self.store, base[0])
            assert layer.block_size == self.block_size and layer.frames[base[1] // self.per_frame][2] != 2
            out += layer.block(base[1])
        return out

    def frame(self, n):
        if n not in self.decoded:
            at, length, kind, crc = self.frames[n]
            stored = self.data[at:at + length]
            size = self.frame_blocks(n) * self.block_size
            assert crc32c(stored) == crc
            self.decoded[n] = stored if kind == 0 else ZSTD(stored, size, self.prefix(n) if kind == 2 else None)
            assert len(self.decoded[n]) == size
        return self.decoded[n]

    def block(self, n):
        at = n % self.per_frame * self.block_size
        return self.frame(n // self.per_frame)[at:at + self.block_size]


LAYERS = {}


def layer_of(store, name):
    return LAYERS.get(name) or LAYERS.setdefault(name, Layer(store, name))


def leaf(data):
    """Yields (first block, count, layer, at)."""
    ids, count, end, spans = data.ids(), data.varint(), 0, []
    for _ in range(count):
        start = end + data.varint()
        end = start + data.varint() + 1
        spans.append((start, end - start))
    numbers = [data.pick(ids) for _ in spans]
    expected = [0] * len(ids)
    for (start, length), number in zip(spans, numbers):
        at = data.delta(expected[number])
        expected[number] = at + length
        yield start, length, ids[number], at


def walk(store, slot, level, base):
    """Yields (first block, count, layer, at) of the image."""
    kind, ident, at, length, digest = slot
    span = 256 * 32**level
    if kind == 1:
        yield base, span, ident, at
    if kind != 2:
        return
    node = read(store, "headers", str(ident))[at:at + length]
    check_hash(node, digest)
    data = Bytes(node)
    assert data.take(1)[0] == level, "level"
    if level == 0:
        for start, count, layer, where in leaf(data):
            yield base + start, count, layer, where
    else:
        layers, headers = data.ids(), data.ids()
        kinds = int.from_bytes(data.take(8), "little")
        run_end, node_end, below = [0] * len(layers), [0] * len(headers), span // 32
        for i in range(32):
            child, kind = None, kinds >> 2 * i & 3
            if kind == 1:
                number = data.pick(layers)
                where = data.delta(run_end[number])
                run_end[number] = where + below
                child = (1, layers[number], where, 0, b"")
            elif kind == 2:
                number = data.pick(headers)
                where, length = data.delta(node_end[number]), data.varint()
                node_end[number] = where + length
                child = (2, headers[number], where, length, data.take(16))
            if child:
                yield from walk(store, child, level - 1, base + i * below)
    assert data.at == len(node), "bytes too many"


def part_of(record, name, part):
    """The uuid, length and hash of a header."""
    magic, version = struct.unpack_from("<8sI", record)
    assert magic == b"cowslipN" and version in (1, 2, 3)
    named = b"" if version == 1 else name.encode()
    assert record[-4:] == crc32c(record[:-4] + named).to_bytes(4, "little")
    if version < 3:
        assert len(record) == {1: 56, 2: 72}[version]
        parts = {1: struct.unpack_from("<16sQ16s", record, 12)}
    else:
        assert 1 <= record[28] <= 4 and len(record) == 33 + 41 * record[28]
        found = list(struct.iter_unpack("<B16sQ16s", record[29:-4]))
        parts = {kind: where for kind, *where in found}
        assert [kind for kind, *_ in found] == sorted(parts) and set(parts) <= {1, 2, 3, 4}
    return parts[{"disk": 1, "memory": 2, "state": 3, "trace": 4}[part] if part else min(parts)]


def main(store, image, out):
    name, _, part = image.partition(":")
    marker, record = read(store, "store"), read(store, "snapshots", name)
    assert struct.unpack("<8sII", marker) == (b"cowslipS", 1, crc32c(marker[:12]))
    ident, length, digest = part_of(record, name, part)
    header = read(store, "headers", str(uuid.UUID(bytes=ident)))
    nodes, meta_len, meta_crc, version, crc, magic = struct.unpack("<QIIII8s", header[-32:])
    assert magic == b"cowslipH" and version in (1, 2) and crc == crc32c(header[-32:-12])
    assert len(header) == length == nodes + meta_len + 32
    check_hash(header[nodes:], digest)
    meta = header[nodes:-32]
    assert crc32c(meta) == meta_crc and meta[:16] == ident
    size, block_size = struct.unpack_from("<QI", meta, 64)
    kind, target, at, length, digest = struct.unpack_from("<B16sQI16s", meta, 108)
    blocks, level = -(-size // block_size), 0
    while 256 * 32**level < blocks:
        level += 1
    with open(out, "wb") as raw:
        for first, count, ident, where in walk(store, (kind, uuid.UUID(bytes=target), at, length, digest), level, 0):
            assert first + count <= blocks, "mapped past the end"
            layer = layer_of(store, ident)
            assert layer.block_size == block_size
            for i in range(count):
                raw.seek((first + i) * block_size)
                raw.write(layer.block(where + i))
        raw.truncate(size)


if __name__ == "__main__":
    main(*sys.argv[1:4])
