"""Valid files made invalid, near enough to be read a long way: by their structure, and then by their bytes."""

from __future__ import annotations

import io
import json
import pickletools
import struct
import zipfile
from collections.abc import Callable
from functools import cache
from random import Random
from typing import Any

import onnx
import yaml

Mutation = Callable[[bytes, Random], bytes]

DEEP = 100_000
NUMBERS: tuple[Any, ...] = (0, -1, 1, 2**31, 2**53, 2**63, 2**64, -(2**63), 10**18, 10**600, 1.5, 1e308, -0.0)
STRINGS = ("", " ", ".", "..", "/etc/passwd", "../../x", "a" * 5000, "\x00", "\x1b]0;x\x07", "\ud800", "9" * 5000, "ﬁ")
VALUES: tuple[Any, ...] = (
    None,
    True,
    False,
    [],
    {},
    [[]],
    [None],
    {"": None},
    float("nan"),
    float("inf"),
    *NUMBERS,
    *STRINGS,
)
EDGES = (0, 1, 0x7F, 0x80, 0xFF)


def raw(data: bytes, random: Random) -> bytes:
    """A few edits of bytes: flipped, set, cut, doubled, swapped, made extreme."""
    out = bytearray(data)
    for _ in range(random.choice((1, 1, 2, 4, 16))):
        at = random.randrange(len(out) + 1)
        length = random.choice((1, 1, 2, 4, 8, 64, 1000))
        match random.randrange(8):
            case 0 if out:
                out[at % len(out)] ^= 1 << random.randrange(8)
            case 1 if out:
                out[at % len(out)] = random.choice(EDGES)
            case 2:
                del out[at : at + length]
            case 3:
                out[at:at] = out[at : at + length]
            case 4:
                out[at:at] = random.randbytes(length)
            case 5:
                del out[at:]
            case 6:
                order = random.choice("<>")
                out[at : at + 8] = struct.pack(f"{order}q", random.choice((0, -1, 2**31, 2**62, len(data), -(2**63))))
            case _:
                other = random.randrange(len(out) + 1)
                out[at:at] = out[other : other + length]
    return bytes(out)


def in_json(data: bytes, random: Random) -> bytes:
    """A field of another type or size, missing, doubled, or deep; now and then the bytes too."""
    found = json.loads(data)
    for _ in range(random.choice((1, 1, 1, 2, 3))):
        found = _edited(found, random)
    text = json.dumps(found, ensure_ascii=random.random() < 0.5)
    match random.randrange(24):
        case 0:
            text = text.replace('"DEEP"', "[" * DEEP + "]" * DEEP)
        case 1:
            text = text.replace("{", '{"a": 1, "a": {}, ', 1)
        case 2:
            return raw(text.encode("utf-8", "surrogatepass"), random)
        case 3:
            return b"\xef\xbb\xbf" + text.encode("utf-8", "surrogatepass")
        case 4:
            return text.encode("utf-16", "surrogatepass")
    return text.encode("utf-8", "surrogatepass")


def _edited(value: Any, random: Random) -> Any:
    """A copy with one thing changed, at a place drawn by walking down."""
    if isinstance(value, dict) and value and random.random() < 0.9:
        name = random.choice(list(value))
        copy = dict(value)
        match random.randrange(8):
            case 0:
                del copy[name]
            case 1:
                copy[random.choice(STRINGS)] = copy[name]
            case 2:
                copy[name], copy[random.choice(list(value))] = copy[random.choice(list(value))], copy[name]
            case _:
                copy[name] = _edited(value[name], random)
        return copy
    if isinstance(value, list) and value and random.random() < 0.9:
        copied = list(value)
        at = random.randrange(len(copied))
        match random.randrange(6):
            case 0:
                del copied[at]
            case 1:
                copied[at:at] = [copied[at]] * random.choice((1, 100))
            case _:
                copied[at] = _edited(copied[at], random)
        return copied
    if isinstance(value, int | float) and not isinstance(value, bool) and random.random() < 0.5:
        return random.choice((*NUMBERS, value + 1, value - 1, -value))
    return "DEEP" if random.random() < 0.02 else random.choice(VALUES)


def in_yaml(data: bytes, random: Random) -> bytes:
    """As in_json, of a YAML file; now and then aliases that double, tags that name code, or the bytes."""
    found = yaml.safe_load(data)
    for _ in range(random.choice((1, 1, 1, 2, 3))):
        found = _edited(found, random)
    text = yaml.safe_dump(found)
    match random.randrange(24):
        case 0:
            text = text.replace("DEEP", "[" * DEEP + "]" * DEEP)
        case 1:
            text += "a0: &a0 [x, x]\n" + "".join(f"a{i}: &a{i} [*a{i - 1}, *a{i - 1}]\n" for i in range(1, 40))
        case 2:
            text += "x: !!python/object/apply:os.system ['echo owned > OWNED']\n"
        case 3:
            return raw(text.encode(), random)
    return text.encode()


def in_header(data: bytes, random: Random) -> bytes:
    """One of the 32-bit numbers that a file begins with, or its bytes."""
    if random.random() < 0.3:
        return raw(data, random)
    at = 4 * random.choice((*range(8), random.randrange(256)))
    (value,) = struct.unpack_from("<i", data, at)
    other = random.choice((0, 1, -1, value + 1, value - 1, value * 2 & 0x7FFFFFFF, 5, 2**31 - 1, -(2**31)))
    return data[:at] + struct.pack("<i", other) + data[at + 4 :]


def in_onnx(data: bytes, random: Random) -> bytes:
    """A field of some message of the graph; now and then the bytes of the file."""
    if random.random() < 0.3:
        return raw(data, random)
    model = onnx.ModelProto()
    model.ParseFromString(data)
    for _ in range(random.choice((1, 1, 2, 4))):
        _edit_message(model, random)
    return bytes(model.SerializeToString())


def _edit_message(message: Any, random: Random) -> None:
    """One field of a protobuf message, or of one inside it."""
    fields = [field for field, _ in message.ListFields()]
    if not fields:
        return
    field = random.choice(fields)
    value = getattr(message, field.name)
    if field.is_repeated:
        at = random.randrange(len(value))
        match random.randrange(5):
            case 0:
                del value[at]
            case 1 if field.type == field.TYPE_MESSAGE:
                value.add().CopyFrom(value[at])
            case 2 if field.type == field.TYPE_MESSAGE and len(value) > 1:
                value[at].CopyFrom(value[random.randrange(len(value))])
            case _ if field.type == field.TYPE_MESSAGE:
                _edit_message(value[at], random)
            case _:
                value[at] = _scalar(field, value[at], random)
    elif field.type == field.TYPE_MESSAGE:
        if random.random() < 0.1:
            message.ClearField(field.name)
        else:
            _edit_message(value, random)
    else:
        setattr(message, field.name, _scalar(field, value, random))


def _scalar(field: Any, value: Any, random: Random) -> Any:
    if field.type == field.TYPE_STRING:
        return random.choice([s for s in STRINGS if "\ud800" not in s])
    if field.type == field.TYPE_BYTES:
        return random.choice((b"", b"\xff\xfe", raw(value, random)[:100_000], b"x" * 1000))
    if field.type in (field.TYPE_FLOAT, field.TYPE_DOUBLE):
        return random.choice((0.0, -1.0, 1e38, float("nan"), float("inf")))
    if field.type == field.TYPE_BOOL:
        return not value
    if field.type == field.TYPE_ENUM:
        return random.choice([v.number for v in field.enum_type.values])
    small = field.type == field.TYPE_INT32
    return random.choice((0, 1, -1, value + 1, 2**31 - 1, *(() if small else (2**40, 2**62, -(2**63)))))


def in_pickle(data: bytes, random: Random) -> bytes:
    """Opcodes dropped, doubled, swapped, or put in from what is hostile; now and then the bytes."""
    if random.random() < 0.3:
        return raw(data, random)
    starts = [at for _, _, at in pickletools.genops(data) if at is not None]
    spans = [data[a:b] for a, b in zip(starts, [*starts[1:], len(data)], strict=True)]
    for _ in range(random.choice((1, 1, 2, 4))):
        at = random.randrange(len(spans))
        match random.randrange(4):
            case 0:
                del spans[at]
            case 1:
                spans.insert(at, spans[random.randrange(len(spans))])
            case 2:
                other = random.randrange(len(spans))
                spans[at], spans[other] = spans[other], spans[at]
            case _:
                spans.insert(at, random.choice(HOSTILE_OPCODES))
        if not spans:
            break
    return b"".join(spans)


HOSTILE_OPCODES = (
    b"cos\nsystem\n(S'echo owned > OWNED'\ntR",
    b"c__builtin__\neval\n(S'1'\ntR",
    b"cposix\nsystem\nX\x01\x00\x00\x00a\x85R",
    b"ccollections\nOrderedDict\n)R",
    b"ctorch._utils\n_rebuild_tensor_v2\n",
    b"\x8c\x02os\x8c\x06system\x93",
    b"r\x00\x00\x00\x10",
    b"\x8a\xff" + b"\xff" * 255,
    b"]" * 50,
    b"(" * 1000,
    b"0",
    b"}",
    b"N",
    b"Q",
    b"b",
    b"\x81",
    b"J\xff\xff\xff\x7f",
    b"G\x7f\xf0\x00\x00\x00\x00\x00\x00",
)


@cache
def _records(data: bytes) -> dict[str, bytes]:
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def in_zip(data: bytes, random: Random) -> bytes:
    """torch.save's archive: its pickle, a record, a name, or its bytes."""
    if random.random() < 0.3:
        return raw(data, random)
    records = _records(data)
    names = list(records)
    chosen = random.choice([*names, *[name for name in names if name.endswith("data.pkl")] * len(names) * 2])
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as made:
        for name, record in records.items():
            body, to = record, name
            if name == chosen:
                if name.endswith("data.pkl"):
                    body = in_pickle(body, random)
                elif random.random() < 0.2:
                    continue
                elif random.random() < 0.3:
                    to = random.choice(("../x", "/etc/passwd", name + "x", "archive/code/x.py", "a" * 300))
                else:
                    body = raw(body, random)
            packed = name == chosen and random.random() < 0.3
            made.writestr(zipfile.ZipInfo(to), body, zipfile.ZIP_DEFLATED if packed else zipfile.ZIP_STORED)
    return out.getvalue()


def in_safetensors(data: bytes, random: Random) -> bytes:
    """Its JSON header, the number before it, or its bytes."""
    if random.random() < 0.3:
        return raw(data, random)
    (length,) = struct.unpack("<Q", data[:8])
    header = in_json(data[8 : 8 + length], random)
    said = len(header) if random.random() < 0.9 else random.choice((0, 2**63, 2**27, len(data) * 2))
    return struct.pack("<Q", said) + header + data[8 + length :]


def in_npy(data: bytes, random: Random) -> bytes:
    """The Python literal in its header, or its bytes."""
    if random.random() < 0.5:
        return raw(data, random)
    header = raw(data[10:128], random)
    return data[:8] + struct.pack("<H", len(header) if random.random() < 0.8 else 65535) + header + data[128:]


def in_text(data: bytes, random: Random) -> bytes:
    """Lines dropped and doubled, or bytes."""
    if random.random() < 0.5:
        return raw(data, random)
    lines = data.splitlines(keepends=True)
    at = random.randrange(len(lines))
    lines[at : at + random.choice((0, 1))] = [random.choice((lines[at] * 3, b"\xff\xfe\n", b"\x00", b"9" * 5000))]
    return b"".join(lines)
