"""A front that was taken over: speaks the internal protocols from the front's uid, tries everything, tells what it got."""

import base64
import json
import os
import random
import socket
import struct
import sys

SOCKETS, HOST, PASSWORD, PART = sys.argv[1:5]
PIDS = [int(pid) for pid in sys.argv[5].split(",") if pid]
ASK, ANSWER, DATA, DRAIN, STAGE, COMMIT, UNDO = range(1, 8)


def connect(name):
    stream = socket.socket(socket.AF_UNIX)
    stream.settimeout(20)
    stream.connect(os.path.join(SOCKETS, name))
    return stream


def record(kind, body=b""):
    return struct.pack(">BBI", 1, kind, len(body)) + body


def exactly(stream, count):
    got = b""
    while len(got) < count:
        piece = stream.recv(count - len(got))
        if not piece:
            raise EOFError
        got += piece
    return got


def answer(stream):
    """An answer in words; `closed` where there is none."""
    try:
        version, kind, length = struct.unpack(">BBI", exactly(stream, 6))
        body = json.loads(exactly(stream, length))
    except (EOFError, ConnectionError):
        return "closed"
    if isinstance(body, str):
        return body
    [(word, more)] = body.items()
    return word + " " + (more.get("user") or more["why"] + ": " + more["text"])


def ask(what):
    stream = connect("broker")
    try:
        stream.sendall(record(ASK, json.dumps(what).encode()))
    except BrokenPipeError:
        pass
    return stream, answer(stream)


class Login:
    def __init__(self, pid):
        self.pid = pid
        self.stream = connect("fronts-login")
        self.lines = self.stream.makefile("r", encoding="utf-8", newline="\n")
        for line in self.lines:
            words = line.rstrip("\n").split("\t")
            if words[0] == "COOKIE":
                self.cookie = words[1]
            if words[0] == "DONE":
                break
        self.stream.sendall(f"VERSION\t1\t2\nCPID\t{pid}\n".encode())

    def login(self, number, user, password):
        response = base64.b64encode(f"\0{user}\0{password}".encode()).decode()
        self.stream.sendall(f"AUTH\t{number}\tPLAIN\tservice=imap\tsecured=tls\tresp={response}\n".encode())
        return self.lines.readline().split("\t")[0]

    def session(self, number, cookie=None, pid=None, more=None):
        ticket = {"client_pid": pid or self.pid, "id": number, "cookie": cookie or self.cookie}
        about = {"protocol": "imap", "tag": "t", "mechanisms": [], "session": "s",
                 "local": "127.0.0.1:993", "remote": "192.0.2.1:4000"}
        about.update(more or {})
        return ask({"session": [ticket, about]})


def delivery(recipient, more=None):
    about = {"recipient": recipient, "service": "smtp", "session": "hostile"}
    about.update(more or {})
    return ask({"delivery": about})


def tell(name, result):
    print(f"{name}: {result}", flush=True)


def denied(name, action):
    try:
        action()
        tell(name, "done")
    except OSError as error:
        tell(name, type(error).__name__)


def files_and_processes():
    denied("read mail", lambda: os.listdir("/home/alice/Maildir"))
    denied("read shadow", lambda: open("/etc/shadow"))
    for number, pid in enumerate(PIDS):
        denied(f"kill {number}", lambda: os.kill(pid, 9))
        denied(f"look into {number}", lambda: open(f"/proc/{pid}/mem"))


def imap():
    mine = Login(os.getpid())
    tell("login", mine.login(1, "alice", PASSWORD))
    stream, said = mine.session(1)
    tell("own", said)
    tell("greeted", stream.makefile("r").readline().split(" [")[0])
    tell("again", mine.session(1)[1])
    tell("wrong password", mine.login(2, "bob", "wrong"))
    tell("not logged in", mine.session(2)[1])
    tell("never asked", mine.session(77)[1])
    tell("login", mine.login(3, "alice", PASSWORD))
    tell("another process", mine.session(3, pid=1)[1])
    tell("a pid above", mine.session(3, pid=os.getpid() + (1 << 22))[1])
    tell("guessed", mine.session(3, cookie="0" * 32)[1])
    tell("no cookie", mine.session(3, cookie="x")[1])
    tell("with a uid", mine.session(3, more={"uid": 0})[1])
    tell("with a user", mine.session(3, more={"user": "bob"})[1])
    # Under the pid of the real front: its own connection has that name already.
    try:
        other = Login(PIDS[0])
        tell("under another pid", other.login(1, "alice", PASSWORD) + " " + other.session(1)[1])
    except (OSError, AttributeError):
        tell("under another pid", "closed")
    tell("delivery", delivery(f"bob@{HOST}")[1])
    try:
        stream = connect("fronts-session")
        stream.sendall(f"VERSION\t1\t0\nREQUEST\t1\t{os.getpid()}\t3\t{mine.cookie}\n".encode())
        stream.settimeout(20)
        said = b""
        while True:
            piece = stream.recv(4096)
            said += piece
            if not piece or b"\nUSER" in said or b"\nFAIL" in said:
                break
        tell("request", "answered" if b"\nUSER" in said else "refused")
    except OSError:
        tell("request", "refused")
    tell("still good", mine.session(3)[1])
    files_and_processes()


def smtp():
    mine = Login(os.getpid())
    mine.login(1, "alice", PASSWORD)
    tell("session", mine.session(1)[1])
    for name in ["root", "nobody-here", "../alice", "alice/../bob", "", "bob\0", "bob\n"]:
        tell(f"to {name!r}", delivery(f"{name}@{HOST}")[1])
    tell("with a uid", delivery(f"bob@{HOST}", {"uid": 0})[1])
    tell("with a place", delivery(f"bob@{HOST}", {"root": "/home/alice/Maildir"})[1])
    for name, records in [
        ("commit at once", record(COMMIT)),
        ("commit before it is whole", record(DATA, b"x\r\n") + record(COMMIT)),
        ("undo of nothing", record(DATA, b"x\r\n") + record(UNDO)),
        ("another request", record(ASK, b"{}")),
        ("a session's word", record(DRAIN)),
        ("garbage", b"A1 SELECT INBOX\r\n" * 100),
        ("too much", struct.pack(">BBI", 1, DATA, 1 << 30)),
    ]:
        stream, said = delivery(f"bob@{HOST}")
        stream.sendall(records)
        tell(name, said.split()[0] + " " + answer(stream))
    for name, last in [("appended", COMMIT), ("taken back", UNDO), ("and more", DATA)]:
        stream, said = delivery(f"bob@{HOST}")
        stream.sendall(record(DATA, b"Subject: appended\r\n\r\nx\r\n") + record(STAGE))
        said = answer(stream)
        stream.sendall(record(COMMIT))
        said += " " + answer(stream)
        stream.sendall(record(last))
        tell(name, said + " " + answer(stream))
    files_and_processes()


def garbage():
    chance = random.Random(7)
    said = set()
    for number in range(200):
        stream = connect("broker")
        body = bytes(chance.randrange(256) for _ in range(chance.randrange(64)))
        if number % 3 == 0:
            body = record(ASK, body)
        elif number % 3 == 1:
            body = record(ASK, b'{"session":[{"client_pid":1}]}')[: chance.randrange(30)]
        try:
            stream.sendall(body)
            stream.shutdown(socket.SHUT_WR)
        except OSError:
            pass
        said.add(answer(stream).split(":")[0])
    tell("garbage", " ".join(sorted(said)))
    held = []
    try:
        for _ in range(400):
            held.append(connect("broker"))
    except OSError:
        pass
    tell("held", "some" if held else "none")
    sys.stdin.readline()


def stranger():
    for name in ["broker", "mail-delivery"]:
        if not os.path.exists(os.path.join(SOCKETS, name)) and name == "mail-delivery":
            continue
        try:
            stream = connect(name)
            stream.sendall(record(ASK, json.dumps({"delivery": {"recipient": f"bob@{HOST}", "service": "smtp",
                                                                "session": "s"}}).encode()))
            tell(name, answer(stream))
        except ConnectionError:
            tell(name, "closed")
        except OSError as error:
            tell(name, type(error).__name__)


{"imap": imap, "smtp": smtp, "garbage": garbage, "stranger": stranger}[PART]()
