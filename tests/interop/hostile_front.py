"""What a daemon that was taken over would try. Reads a JSON object, prints one with everything that succeeded."""

import ctypes
import json
import os
import socket
import sys

wanted = json.load(sys.stdin)
libc = ctypes.CDLL(None, use_errno=True)
done = {name: [] for name in ("read", "list", "remove", "signal", "trace", "memory", "look", "connect", "served", "become")}


def attempt(kind, what, work):
    try:
        if work():
            done[kind].append(what)
    except OSError:
        pass


def trace(pid):
    if libc.ptrace(16, pid, None, None) != 0:  # PTRACE_ATTACH
        return False
    libc.ptrace(17, pid, None, None)  # PTRACE_DETACH
    return True


class Span(ctypes.Structure):
    _fields_ = [("base", ctypes.c_void_p), ("length", ctypes.c_size_t)]


def memory(pid):
    here = ctypes.create_string_buffer(8)
    ours = Span(ctypes.cast(here, ctypes.c_void_p), 8)
    # Position-independent programs lie above this; any address would do, a refusal comes before it is looked at.
    theirs = Span(0x555555554000, 8)
    ctypes.set_errno(0)
    libc.process_vm_readv(pid, ctypes.byref(ours), 1, ctypes.byref(theirs), 1, 0)
    return ctypes.get_errno() not in (1, 13, 38)  # EPERM, EACCES, ENOSYS


for path in wanted["read"]:
    attempt("read", path, lambda: open(path, "rb").read(1) is not None)
for path in wanted["list"]:
    attempt("list", path, lambda: os.listdir(path) is not None)
for path in wanted["remove"]:
    attempt("remove", path, lambda: os.unlink(path) is None)
for pid in wanted["pids"]:
    attempt("signal", pid, lambda: os.kill(pid, 0) is None)
    attempt("trace", pid, lambda: trace(pid))
    attempt("memory", pid, lambda: memory(pid))
    for name in ("mem", "environ", "maps", "auxv"):
        attempt("look", pid, lambda: open(f"/proc/{pid}/{name}", "rb").read(1) is not None)
    attempt("look", pid, lambda: os.listdir(f"/proc/{pid}/fd") is not None)
for path in wanted["connect"]:
    peer = socket.socket(socket.AF_UNIX)
    peer.settimeout(10)
    attempt("connect", path, lambda: peer.connect(path) is None)
    if path in done["connect"]:
        attempt("served", path, lambda: len(peer.recv(1)) == 1)
for uid in wanted["become"]:
    child = os.fork()
    if child == 0:
        try:
            os.setuid(uid)
        except OSError:
            os._exit(1)
        os._exit(0)
    if os.waitpid(child, 0)[1] == 0:
        done["become"].append(uid)
json.dump(done, sys.stdout)
