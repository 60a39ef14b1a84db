"""The native engine's reader of JSON against Python's: documents, and what each makes of them."""

from __future__ import annotations

import json
import random
import struct
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from support.hostile_files import Parts
from support.native_build import SEEDS, build, run
from support.random_bundle import random_bundle

DEPTH, VALUES = 64, 2**19
RULES = ("utf-8", "surrogate", "twice", "constant", "range", "depth", "values")  # of docs/bundle.md

# Documents at the edges of the grammar, valid and not.
EDGES: tuple[bytes, ...] = (
    *rb'''
        0 -0 -0.0 0.0 0e0 0E+0 -0e-0 1 -1 10 1.5 -1.5e3 1e5 1E5 1e+5 1e-5 1e05 0.1 1.0 01 -01 00 -00
        +1 .5 1. 1.e5 -.5 1e 1e+ 1E- - -- 0x10 1_0 1e1.5 1,5 0b1 1f 1L --1 1e5e5 9007199254740992
        9007199254740993 -9007199254740993 9223372036854775807 18446744073709551616
        123456789012345678901234567890 1e308 1e309 -1e309 1e400 1.7976931348623157e308
        1.7976931348623158e308 1.7976931348623159e308 2.2250738585072014e-308
        2.2250738585072011e-308 5e-324 4.9e-324 2.5e-324 2.4e-324 1e-323 1e-324 -1e-324 1e-400
        -1e-400 0e400 0e-400 0.0e99999 1e99999 1e-99999 1e99999999999999999999
        1e-99999999999999999999 0e99999999999999999999 9007199254740993.0
        0.1000000000000000055511151231257827 2.00000000000000011102230246251
    '''.split(),
    b"9" * 308, b"9" * 309, b"1" + b"0" * 308, b"1" + b"0" * 309, b"9" * 4300, b"9" * 4301,
    b"1" + b"0" * 400 + b"e-400", b"0." + b"0" * 400 + b"1e401", b"0." + b"3" * 5000,
    b"179769313486231580793728971405303415079934132710037826936173778980444968292764750946649017977"
    + b"0" * 216,
    *rb'''
        NaN Infinity -Infinity nan inf -NaN +Infinity [NaN] null true false nul truex True None ""
        "a" "\u0000" "\u0041" "\u00e9" "\u00E9" "\u20ac" "\ud83d\ude00" "\uD83D\uDE00" "\ud800"
        "\udc00" "\ud800\ud800" "\udc00\ud800" "\ud800x" "\ud800\n" "\ud83d\u0041"
        "\ud83d\ud83d\ude00" "\ud800\u" "\ud800\udc0" "\udbff\udfff" "\ud800\udc00" "\uffff" "\"
        "\\" "\/" "\"" "\b\f\n\r\t" "\a" "\x41" "\u12" "\u12g4" "\U0041" "\u+041" "\u 041" 'a' "a
        "a"b" "\u00_1" "\u0x1" {"\ud800":1} {"\u0061":1,"a":2} {"a":1,"a":1}
    '''.split(),
    b'"\x00"', b'"\x1f"', b'"\x7f"', b'"\n"', b'"\t"', b'"a\\\nb"', b"\x00", b"1\x00", b'"a"\x00',
    b'"\xc3\xa9"', b'"\xe2\x82\xac"', b'"\xf0\x9f\x98\x80"', b'"\xef\xbf\xbf"',
    b'"\xf4\x8f\xbf\xbf"',
    b'"\x80"', b'"\xc0\x80"', b'"\xc1\xbf"', b'"\xe0\x80\x80"', b'"\xe0\x9f\xbf"',
    b'"\xed\xa0\x80"',
    b'"\xed\xbf\xbf"', b'"\xf0\x80\x80\x80"', b'"\xf4\x90\x80\x80"', b'"\xf5\x80\x80\x80"',
    b'"\xff"',
    b'"\xc3"', b'"\xe2\x82"', b'"\xf0\x9f\x98"', b'"\xc3', b'"\xf0\x9f',
    b'"\xed\xa0\x80\xed\xb0\x80"',
    b"\xef\xbb\xbf1", b"1\xef\xbb\xbf", b"\xff\xfe1\x00", b"1\x00", b"\x001", b"1\x00\x00\x00",
    b"\xc2\xa01", b"\xe2\x80\xa81", b'"\xe2\x80\xa8"', b"\x0b1", b"\x0c1", b" \t\r\n1 \t\r\n",
    b"", b" ", b"[", b"]", b"[]", b"[ ]", b"[1]", b"[1,]", b"[,1]", b"[1 2]", b"[1,,2]", b"[1",
    b"[1,",
    b"{", b"}", b"{}", b"{ }", b'{"a":1}', b'{"a":1,}', b'{,"a":1}', b'{"a" 1}', b'{"a":}',
    b'{"a"}',
    b"{1:1}", b"{a:1}", b'{"a":1 "b":2}', b'{"a":1,"b":2}', b'{"b":1,"a":2}', b'{"":0}',
    b'{"":0,"":0}',
    b"1 2", b"[] []", b"[]]", b"{}}", b"1,", b"// a\n1", b"/* a */1", b"1#", b"[1]x", b'"a""b"',
    b"truefalse",
    *(b"[" * n + b"]" * n for n in (DEPTH - 1, DEPTH, DEPTH + 1, 900, 5000)),
    *(b'{"a":' * n + b"1" + b"}" * n for n in (DEPTH, DEPTH + 1)),
    *(b"[" + b"0," * n + b"0]" for n in (VALUES - 2, VALUES - 1)),
    b"[" * DEPTH, b'{"a":[' * 3, b'[{"a":1,"b":{"a":1}}]', b'{"a":{"b":1,"b":2},"c":3}',
)  # fmt: skip

TOKENS: tuple[bytes, ...] = (
    *b'{ } [ ] , : " \\ - + . e E 0 1 9 e9 e-9 e999 .0 null true false NaN Infinity -0'.split(),
    *rb'"" "a" "a":1, \ud83d \ude00 \u0000 \n 9007199254740993 1e309 5e-324 [1,2]'.split(),
    b" ", b"\n", b"\x00", b"\x1f", b"\x7f", b"\xc3\xa9", b"\xed\xa0\x80", b"\xff",
    b"\xef\xbb\xbf", b"/**/",
)  # fmt: skip


def bundle_texts() -> list[bytes]:
    """Plans and safetensors headers of bundles of every shape."""
    texts = []
    for name, keywords in SEEDS.items():
        data = random_bundle(1, **keywords)
        texts.append(data[8 : 8 + int.from_bytes(data[:8], "little")])
        if name in ("basic", "bottleneck", "budget"):
            texts.append(json.dumps(Parts.of(data).plan).encode())
    return texts


def documents(count: int, seed: int) -> Iterator[bytes]:
    """The edges, the bundles' texts, then documents made of them and of others by damage."""
    yield from EDGES
    texts = bundle_texts()
    yield from texts
    short = [edge for edge in EDGES if len(edge) < 500]
    rng = random.Random(seed)
    for _ in range(count):
        kind = rng.random()
        if kind < 0.15:
            document = rng.choice(texts)
        elif kind < 0.4:
            document = rng.choice(short)
        else:
            document = made(rng, rng.randrange(1, 5))
        for _ in range(rng.choice((0, 0, 0, 1, 1, 2))):
            document = damaged(document, rng, short)
        yield document


def made(rng: random.Random, depth: int) -> bytes:
    """A document, mostly valid, however it may be written."""
    gap = rng.choice((b"", b"", b"", b" ", b"\n\t", b"\r"))
    if depth and rng.random() < 0.6:
        items = [made(rng, depth - 1) for _ in range(rng.randrange(4))]
        if rng.random() < 0.5:
            return b"[" + gap + (gap + b"," + gap).join(items) + gap + b"]"
        members = [text(rng) + gap + b":" + gap + item for item in items]
        return b"{" + gap + (b"," + gap).join(members) + gap + b"}"
    return rng.choice((number, number, text, lambda _: rng.choice((b"true", b"false", b"null"))))(
        rng
    )


def number(rng: random.Random) -> bytes:
    """A number: of any bits, of many digits, or short."""
    kind = rng.randrange(4)
    if kind == 0:
        return repr(struct.unpack("<d", rng.randbytes(8))[0]).encode()  # may be nan or inf
    if kind == 1:
        return str(rng.randrange(-(2**70), 2**70) >> rng.randrange(70)).encode()
    digits = "".join(rng.choice("0123456789") for _ in range(rng.randrange(1, 25)))
    sign, point, exponent = (
        rng.choice(("", "-")),
        rng.choice(("", ".")),
        rng.choice(("", "e", "E-")),
    )
    whole = digits.lstrip("0") or "0"
    tail = point + digits[::-1] if point else ""
    return f"{sign}{whole}{tail}{exponent}{rng.randrange(330) if exponent else ''}".encode()


def text(rng: random.Random) -> bytes:
    """A string of plain characters and escapes."""
    pieces = [
        b"a",
        b"b",
        b" ",
        b"\xc3\xa9",
        b"\xf0\x9f\x98\x80",
        rb"\n",
        rb"\"",
        rb"\/",
        rb"\u00e9",
    ]
    pieces += [b"\\u%04x" % rng.randrange(2**16), rb"\ud83d\ude00"]
    return b'"' + b"".join(rng.choice(pieces) for _ in range(rng.randrange(5))) + b'"'


def damaged(document: bytes, rng: random.Random, others: Sequence[bytes]) -> bytes:
    """With one place changed."""
    at = rng.randrange(len(document) + 1)
    end = min(len(document), at + rng.choice((1, 1, 2, 4, rng.randrange(1, 60))))
    ways: tuple[Callable[[], bytes], ...] = (
        lambda: document[:at] + rng.choice(TOKENS) + document[at:],
        lambda: document[:at] + rng.choice(TOKENS) + document[end:],
        lambda: document[:at] + document[end:],
        lambda: document[:end] + document[at:],
        lambda: document[:at] + rng.randbytes(1) + document[at + 1 :],
        lambda: document[:at] + rng.choice(others) + document[end:],
        lambda: document[:at],
    )
    return rng.choice(ways)()


# -- Python's reader, and the rules by which the native one refuses more (docs/bundle.md) ----------


class _Constant:
    """NaN or an infinity, written as a word."""


class _Pairs(list[tuple[str, Any]]):
    """An object's members as they are written, keys that are there twice too."""


def python_reads(document: bytes) -> tuple[Any, str | None] | None:
    """What Python's json makes of it, and the rule that it breaks all the same; None if refused."""
    try:
        tree = json.loads(document, object_pairs_hook=_Pairs, parse_constant=lambda _: _Constant())
    except (ValueError, RecursionError) as error:
        # Without its limit of digits Python would take them; as floats they are infinite.
        return (None, "range") if "integer string conversion" in str(error) else None
    try:
        document.decode()
    except UnicodeDecodeError:
        return tree, "utf-8"
    if document.startswith(b"\xef\xbb\xbf") or b"\0" in document:
        return tree, "utf-8"
    return tree, next(broken_rules(tree), None)


def broken_rules(tree: Any) -> Iterator[str]:
    """The rules that a value breaks."""
    level, values = [tree], 0
    for depth in range(DEPTH + 2):
        values += len(level)
        if depth >= DEPTH and any(isinstance(value, list) for value in level):
            yield "depth"
        inner: list[Any] = []
        for value in level:
            yield from _broken_by(value)
            inner += [item for _, item in value] if isinstance(value, _Pairs) else ()
            inner += value if type(value) is list else ()
        level = inner
    if values > VALUES:
        yield "values"


def _broken_by(value: Any) -> Iterator[str]:
    if isinstance(value, _Pairs):
        keys = [key for key, _ in value]
        if len(set(keys)) < len(keys):
            yield "twice"
        for key in keys:
            yield from _broken_by(key)
    elif isinstance(value, str):
        if any("\ud800" <= character <= "\udfff" for character in value):
            yield "surrogate"
    elif isinstance(value, _Constant):
        yield "constant"
    elif type(value) in (int, float):
        try:
            if not abs(float(value)) < float("inf"):
                yield "range"
        except OverflowError:
            yield "range"


def encoded(tree: Any) -> bytes:
    """A value as native/tests/json.cpp writes it."""
    if isinstance(tree, str):
        data = tree.encode()
        return b"s" + struct.pack("<I", len(data)) + data
    if isinstance(tree, _Pairs):
        members = b"".join(encoded(key) + encoded(value) for key, value in tree)
        return b"o" + struct.pack("<I", len(tree)) + members
    if isinstance(tree, list):
        return b"a" + struct.pack("<I", len(tree)) + b"".join(map(encoded, tree))
    if tree is None or isinstance(tree, bool):
        return {None: b"n", True: b"t", False: b"f"}[tree]
    return (b"i" if isinstance(tree, int) else b"d") + struct.pack("<d", float(tree))


# -- both ------------------------------------------------------------------------------------------


def compare(count: int, seed: int, folder: Path, batch: int = 20_000) -> Counter[str]:
    """Reads documents by both, and counts what became of them.

    Args:
        count: Of documents made at random, besides those at the edges.
        seed: They follow from it.
        folder: For files.
        batch: Documents that the native reader gets at once.

    Returns:
        How many both read to the same value ("same") and both refused ("refused"), and how many
        the native reader alone refused, by rule.

    Raises:
        AssertionError: if they differ otherwise.
    """
    driver = build("address", "native_json") / "tests" / "json"
    outcomes: Counter[str] = Counter()
    made_here = documents(count, seed)
    while chunk := [document for _, document in zip(range(batch), made_here, strict=False)]:
        path = folder / "documents"
        path.write_bytes(b"".join(struct.pack("<I", len(each)) + each for each in chunk))
        lines = run([str(driver), str(path)]).split("\n")
        for document, line in zip(chunk, lines, strict=False):
            outcomes[_outcome(document, line)] += 1
    return outcomes


def _outcome(document: bytes, line: str) -> str:
    shown = document if len(document) < 2000 else document[:2000] + b"..."
    found = python_reads(document)
    if line.startswith("!"):
        at, _, what = line.removeprefix("!JSON, byte ").partition(": ")
        assert int(at) <= len(document), (line, shown)
        assert what.isprintable(), (line, shown)
        assert what.isascii(), (line, shown)
        if found is None:
            return "refused"
        assert found[1] is not None, f"refused without a rule: {line}: {shown!r}"
        return found[1]
    assert found is not None, f"Python refuses what was read: {shown!r}"
    assert found[1] is None, f"read against the rule of {found[1]}: {shown!r}"
    assert bytes.fromhex(line) == encoded(found[0]), f"another value: {line} {shown!r}"
    return "same"
