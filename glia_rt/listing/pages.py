"""What the pages of a Parquet column and its footer take in memory, found out before Arrow reads them.

Arrow decompresses a page whole, into as many bytes as the page's header says. The footer has sizes too, but nothing
makes them agree with the headers. pyarrow shows no page headers and has no limit on what a reader takes.
"""

from __future__ import annotations

import os
from typing import Any, BinaryIO, Final

#: What a page may unpack to, however small it is in the file. A picture that fills such a page takes six times that
#: while it is read: the page, what is decoded from it and from the page before, and bytes in Python.
_ANYWAY: Final = 50_000_000
#: Likewise for a page of a dictionary, of which the reader keeps a copy, with 20 bytes for each of its values.
_DICTIONARY_ANYWAY: Final = 25_000_000
_A_VALUE: Final = 20
#: Larger pages are read if they hardly shrink, as those of encoded pictures do: a small file has none of them. Arrow
#: writes 1,024 values into a page whatever their size, so pictures of 1 MB make pages of 1 GB.
_MOST_SHRUNK: Final = 2
_MOST: Final = 1 << 30

_DATA, _INDEX, _DICTIONARY, _DATA_V2 = range(4)
#: Encodings by their numbers, and those that are not read. A page of these begins with a number of lengths, for all of
#: which Arrow makes room: 200 million of them fit into a page of 20 bytes.
_ENCODINGS: Final = (
    "PLAIN", "1", "PLAIN_DICTIONARY", "RLE", "BIT_PACKED", "DELTA_BINARY_PACKED", "DELTA_LENGTH_BYTE_ARRAY",
    "DELTA_BYTE_ARRAY", "RLE_DICTIONARY", "BYTE_STREAM_SPLIT",
)  # fmt: skip
_UNREAD: Final = ("DELTA_BINARY_PACKED", "DELTA_LENGTH_BYTE_ARRAY", "DELTA_BYTE_ARRAY")
_MAX_HEADER: Final = 1 << 24
#: Values of a header that are inside each other.
_MAX_DEPTH: Final = 16

#: Bytes that Arrow takes for a struct in a list of a footer, and for another value. In the file these may have three
#: bytes, and one. A footer below a size takes little anyway.
_A_STRUCT: Final = 720
_AN_ELEMENT: Final = 32
_MOST_TAKEN: Final = 300_000_000
_FOOTER_ANYWAY: Final = 1 << 20

# Types of Thrift's compact protocol.
_TRUE, _FALSE, _BYTE, _I16, _I32, _I64, _DOUBLE, _BINARY, _LIST, _SET, _MAP, _STRUCT = range(1, 13)


class UnreadPageError(ValueError):
    """A page is too large, or of an encoding that is not read."""


def largest_page(file: BinaryIO, start: int, size: int, beside: int = 0) -> int:
    """Return the size of the largest page of a column chunk, packed or not, in bytes.

    Args:
        file: The file.
        start: Where the chunk begins.
        size: Length of the chunk, in bytes.
        beside: Number of chunks that are read at the same time. They share what pages may unpack to.

    Raises:
        UnreadPageError: A page is not to be read.
        ValueError: The headers are damaged.
    """
    largest, end = 0, start + size
    if start < 0:
        raise ValueError(f"a column that begins at byte {start}")
    file.seek(start)
    while (at := file.tell()) < end:
        header = _Reader(file).struct()
        kind, unpacked, packed = (_number(header, field) for field in (1, 2, 3))
        if min(unpacked, packed) < 0 or file.tell() - at > _MAX_HEADER:
            raise ValueError(f"a page that has {packed} bytes and unpacks to {unpacked}")
        if kind in (_DATA, _DATA_V2):
            # Fields of the header of the kind: 2 and 4 are the encoding.
            encoding = _number(header.get(5), 2) if kind == _DATA else _number(header.get(8), 4)
            if not 0 <= encoding < len(_ENCODINGS):
                raise ValueError(f"a page of encoding {encoding}")
            if _ENCODINGS[encoding] in _UNREAD:
                raise UnreadPageError(f"encoding {_ENCODINGS[encoding]}, which is not read: write it as PLAIN")
            most = _ANYWAY // (1 + beside)
        else:
            most = _DICTIONARY_ANYWAY // (1 + beside)
        taken = max(packed, unpacked)
        if kind == _DICTIONARY:
            taken += _A_VALUE * max(0, _number(header.get(7), 1))
        if taken > most and taken > min(_MOST, _MOST_SHRUNK * packed):
            raise UnreadPageError(
                f"a page of {packed} bytes that unpacks to {unpacked}: write smaller pages, or row groups of fewer rows"
            )
        largest = max(largest, taken)
        file.seek(packed, os.SEEK_CUR)
    return largest


def check_footer(file: BinaryIO, size: int) -> None:
    """Find out whether the footer of a file takes little memory once it is read. Arrow checks the rest of it.

    Args:
        file: The file.
        size: Its size in bytes.

    Raises:
        ValueError: It takes too much, or is damaged.
    """
    file.seek(max(0, size - 8))
    length = int.from_bytes(file.read(4), "little")
    if _FOOTER_ANYWAY < length <= size - 8:
        file.seek(size - 8 - length)
        _Reader(file).struct()


def _number(fields: Any, field: int) -> int:
    """Return a field of 32 bits of a struct."""
    value = fields.get(field) if isinstance(fields, dict) else None
    if not isinstance(value, int):
        raise ValueError("a header without a field that it must have")
    return value


class _Reader:
    """Reads Thrift's compact protocol. Values that are not asked for here are passed over.

    What Arrow might read otherwise is an error: numbers that do not fit, and fields that are there twice.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._taken = 0

    def struct(self, depth: int = 0) -> dict[int, Any]:
        """Read a struct. Return its fields that are structs or of 32 bits, by number."""
        fields: dict[int, Any] = {}
        field = 0
        while head := self._byte():
            field = field + (head >> 4) if head >> 4 else self._integer(16)
            if field in fields or field > 0x7FFF:
                raise ValueError(f"a header with a second field {field}")
            fields[field] = self._value(head & 15, depth)
        return fields

    def _value(self, kind: int, depth: int) -> Any:
        if depth > _MAX_DEPTH:
            raise ValueError("a header that is nested too deep")
        if kind == _STRUCT:
            return self.struct(depth + 1)
        if kind == _I32:
            return self._integer(32)
        if kind in (_I16, _I64):
            self._integer(64)
        elif kind in (_BYTE, _DOUBLE):
            self._skip(1 if kind == _BYTE else 8)
        elif kind == _BINARY:
            self._skip(self._varint())
        elif kind in (_LIST, _SET):
            self._list(depth)
        elif kind not in (_TRUE, _FALSE):  # a field has these in its head
            raise ValueError(f"a header with a field of type {kind}")
        return None

    def _list(self, depth: int) -> None:
        head = self._byte()
        count, kind = head >> 4, head & 15
        if count == 15:
            count = self._varint()
        self._taken += count * (_A_STRUCT if kind == _STRUCT else _AN_ELEMENT)
        if self._taken > _MOST_TAKEN:
            raise ValueError(f"a header with {count} elements in a list")
        for _ in range(count):
            self._value(_BYTE if kind in (_TRUE, _FALSE) else kind, depth + 1)

    def _integer(self, bits: int) -> int:
        value = self._varint()
        if value >> bits:
            raise ValueError(f"a header with a number over {bits} bits")
        return (value >> 1) ^ -(value & 1)

    def _varint(self) -> int:
        value = 0
        for shift in range(0, 70, 7):
            byte = self._byte()
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                return value
        raise ValueError("a header with a number that does not end")

    def _byte(self) -> int:
        byte = self._file.read(1)
        if not byte:
            raise ValueError("a header that is cut off")
        return byte[0]

    def _skip(self, size: int) -> None:
        if size > _MAX_HEADER:
            raise ValueError(f"a header with a field of {size} bytes")
        self._file.seek(size, os.SEEK_CUR)
