"""Runs Python code in a process that the kernel kills as soon as it opens an internet socket, as a name look-up does.

python no_network.py CODE [ARGUMENT...]
"""

from __future__ import annotations

import ctypes
import platform
import socket
import struct
import sys

#: Of the system call `socket`, by processor.
_SOCKET_CALL = {"x86_64": 41, "aarch64": 198}
_NO_NEW_PRIVILEGES, _SECCOMP, _FILTER = 38, 22, 2
_KILL, _ALLOW = 0x80000000, 0x7FFF0000
_LOAD, _IF_EQUAL, _RETURN = 0x20, 0x15, 0x06


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("instructions", ctypes.c_void_p))


def forbid_network() -> None:
    """Kill this process at its first socket of the families IPv4 and IPv6, by a filter of system calls (seccomp)."""
    # (operation, jump if true, jump if false, operand). A call's number is at byte 0, its first argument at byte 16.
    instructions = (
        (_LOAD, 0, 0, 0),
        (_IF_EQUAL, 0, 4, _SOCKET_CALL[platform.machine()]),
        (_LOAD, 0, 0, 16),
        (_IF_EQUAL, 1, 0, socket.AF_INET),
        (_IF_EQUAL, 0, 1, socket.AF_INET6),
        (_RETURN, 0, 0, _KILL),
        (_RETURN, 0, 0, _ALLOW),
    )
    code = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *each) for each in instructions))
    program = _Program(len(instructions), ctypes.addressof(code))
    libc = ctypes.CDLL(None, use_errno=True)
    for arguments in ((_NO_NEW_PRIVILEGES, 1, 0, 0, 0), (_SECCOMP, _FILTER, ctypes.byref(program), 0, 0)):
        if libc.prctl(*arguments):
            raise OSError(ctypes.get_errno(), "prctl")


if __name__ == "__main__":
    forbid_network()
    code = sys.argv[1]
    sys.argv = ["-c", *sys.argv[2:]]
    exec(compile(code, "code", "exec"))
