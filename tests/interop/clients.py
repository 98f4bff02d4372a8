"""Python's own mail clients against a running stack.

usage: clients.py CA-FILE PORT-BASE HOSTNAME USER PASSWORD
A second user `bob` with the password `bobs secret` must exist. Every surprise is an assertion.
"""

import email
import email.message
import imaplib
import poplib
import smtplib
import ssl
import sys
import time

CA, BASE, HOSTNAME, USER, PASSWORD = sys.argv[1:6]
BASE = int(BASE)
ADDRESS = f"{USER}@{HOSTNAME}"
TLS = ssl.create_default_context(cafile=CA)
BODY = "first line\n.a dot\n..two dots\n\n From the start of a line\nümlaut\n" + "x" * 900 + "\n"


def build(subject):
    message = email.message.EmailMessage()
    message["From"] = ADDRESS
    message["To"] = f"{ADDRESS}, bob@{HOSTNAME}"
    message["Subject"] = subject
    message.set_content(BODY, cte="8bit")
    message.add_attachment(b"\x00\x01binary" * 100, maintype="application", subtype="octet-stream", filename="a b.bin")
    return message


def smtp():
    with smtplib.SMTP("localhost", BASE + 587, timeout=20) as client:
        client.ehlo()
        assert not client.has_extn("auth"), "AUTH offered in clear text"
        for name in ("pipelining", "size", "8bitmime", "smtputf8", "enhancedstatuscodes", "starttls"):
            assert client.has_extn(name), name
        try:
            client.login(USER, PASSWORD)
            raise AssertionError("login without TLS")
        except (smtplib.SMTPNotSupportedError, smtplib.SMTPAuthenticationError):
            pass
        client.starttls(context=TLS)
        client.ehlo()
        assert not client.has_extn("starttls"), "STARTTLS inside TLS"
        code, _ = client.mail(ADDRESS)
        assert code == 530, code
        try:
            client.login(USER, "wrong")
            raise AssertionError("wrong password accepted")
        except smtplib.SMTPAuthenticationError as error:
            assert error.smtp_code == 535, error
        client.login(USER, PASSWORD)
        client.send_message(build("one"), ADDRESS, [ADDRESS, f"bob@{HOSTNAME}"])
        # One bad recipient among good ones.
        refused = client.sendmail(ADDRESS, [ADDRESS, "x@remote.test"], build("two").as_bytes())
        assert list(refused) == ["x@remote.test"] and refused["x@remote.test"][0] == 550, refused
        assert client.verify(USER)[0] == 252
        assert client.noop()[0] == 250 and client.rset()[0] == 250
    with smtplib.SMTP_SSL("localhost", BASE + 465, context=TLS, timeout=20) as client:
        client.login(f"{USER}@{HOSTNAME}", PASSWORD)
        client.send_message(build("three"), ADDRESS, [ADDRESS])
    with smtplib.SMTP("localhost", BASE + 25, timeout=20) as client:
        client.sendmail("", [ADDRESS], build("four").as_bytes())


def check(raw, subject):
    message = email.message_from_bytes(raw, policy=email.policy.default)
    assert message["Subject"] == subject, message["Subject"]
    text, attachment = list(message.iter_parts())
    content = text.get_content().replace("\r\n", "\n")
    assert content == BODY, content
    assert attachment.get_content() == b"\x00\x01binary" * 100


def ok(answer):
    kind, data = answer
    assert kind == "OK", answer
    return data


def imap():
    with imaplib.IMAP4("localhost", BASE + 143, timeout=20) as client:
        assert "LOGINDISABLED" in client.capabilities and "AUTH=PLAIN" not in client.capabilities, client.capabilities
        try:
            client.login(USER, PASSWORD)
            raise AssertionError("LOGIN without TLS")
        except imaplib.IMAP4.error as error:
            assert "PRIVACYREQUIRED" in str(error), error
        client.starttls(ssl_context=TLS)
        assert "AUTH=PLAIN" in client.capabilities, client.capabilities
        ok(client.authenticate("PLAIN", lambda _: f"\0{USER}\0{PASSWORD}".encode()))
    with imaplib.IMAP4_SSL("localhost", BASE + 993, ssl_context=TLS, timeout=20) as client:
        try:
            client.login(USER, "wrong")
            raise AssertionError("wrong password accepted")
        except imaplib.IMAP4.error as error:
            assert "AUTHENTICATIONFAILED" in str(error), error
        ok(client.login(USER, PASSWORD))
        folders = b"\n".join(ok(client.list()))
        for name in (b"INBOX", b"Sent", b"Drafts", b"Trash", b"Junk"):
            assert name in folders, folders
        assert b"\\Sent" in folders, folders
        assert ok(client.select("INBOX")) == [b"4"]
        for number, subject in ((1, "one"), (2, "two"), (3, "three"), (4, "four")):
            data = ok(client.fetch(str(number), "(UID FLAGS INTERNALDATE RFC822.SIZE BODY.PEEK[])"))
            head, raw = data[0]
            assert f"RFC822.SIZE {len(raw)}".encode() in head, (head, len(raw))
            check(raw, subject)
        ok(client.fetch("1:*", "(ENVELOPE BODYSTRUCTURE BODY[HEADER.FIELDS (SUBJECT)])"))
        part = ok(client.fetch("1", "(BODY.PEEK[2] BODY.PEEK[1]<0.10> BODY.PEEK[]<1000000.10>)"))
        assert any(isinstance(p, tuple) and p[1] == b"first line" for p in part), part
        assert ok(client.search(None, "SUBJECT", "three")) == [b"3"]
        assert ok(client.search(None, "SEEN", "FROM", USER, "SMALLER", "1000000")) != [b""]
        assert ok(client.search("UTF-8", "BODY", '"ümlaut"'.encode())) == [b"1 2 3 4"]
        ok(client.store("1:2", "+FLAGS", r"(\Seen \Flagged $Label1)"))
        assert ok(client.search(None, "KEYWORD", "$Label1")) == [b"1 2"]
        ok(client.create("Work/Äbc".encode("utf-7").replace(b"+", b"&").decode()))
        ok(client.create("Projects/2026"))
        ok(client.subscribe("Projects/2026"))
        assert any(b"Projects/2026" in line for line in ok(client.lsub())), client.lsub()
        ok(client.copy("1:2", "Projects/2026"))
        date = imaplib.Time2Internaldate(time.time() - 86400 * 400)
        ok(client.append("Projects/2026", r"(\Answered)", date, build("appended").as_bytes(policy=email.policy.SMTP)))
        ok(client.store("3", "+FLAGS", r"(\Deleted)"))
        assert ok(client.expunge()) == [b"3"]
        ok(client.select("Projects/2026"))
        assert ok(client.search(None, "ALL")) == [b"1 2 3"]
        assert ok(client.search(None, "ANSWERED")) == [b"3"]
        assert date[1:12].encode() in ok(client.fetch("3", "(INTERNALDATE)"))[0]
        check(ok(client.fetch("3", "(RFC822)"))[0][1], "appended")
        status = ok(client.status("INBOX", "(MESSAGES UIDNEXT UIDVALIDITY UNSEEN)"))[0]
        assert b"MESSAGES 3" in status and b"UIDNEXT 5" in status, status
        ok(client.close())
        ok(client.rename("Projects/2026", "Projects/2027"))
        ok(client.delete("Projects/2027"))
        kind, data = client.select("Projects/2027")
        assert kind == "NO", (kind, data)


def idle():
    """A second session sees a delivery and a flag change while idling."""
    with imaplib.IMAP4_SSL("localhost", BASE + 993, ssl_context=TLS, timeout=20) as one:
        ok(one.login("bob", "bobs secret"))
        assert ok(one.select("INBOX")) == [b"1"]
        one.send(b"x1 IDLE\r\n")
        assert one.readline().startswith(b"+ ")
        with smtplib.SMTP("localhost", BASE + 25, timeout=20) as client:
            client.sendmail("", [f"bob@{HOSTNAME}"], build("idle").as_bytes())
        line = one.readline()
        while b"EXISTS" not in line:
            line = one.readline()
        assert line.startswith(b"* 2 EXISTS"), line
        with imaplib.IMAP4_SSL("localhost", BASE + 993, ssl_context=TLS, timeout=20) as two:
            ok(two.login("bob", "bobs secret"))
            ok(two.select("INBOX"))
            ok(two.store("1", "+FLAGS", r"(\Deleted)"))
            while b"FETCH" not in line:
                line = one.readline()
            ok(two.expunge())
            while b"EXPUNGE" not in line:
                line = one.readline()
            assert line.startswith(b"* 1 EXPUNGE"), line
        one.send(b"DONE\r\n")
        while not line.startswith(b"x1 "):
            line = one.readline()
        assert line.startswith(b"x1 OK"), line


def pop():
    client = poplib.POP3("localhost", BASE + 110, timeout=20)
    assert "STLS" in client.capa() and "USER" not in client.capa(), client.capa()
    try:
        client.user(USER)
        client.pass_(PASSWORD)
        raise AssertionError("USER/PASS without TLS")
    except poplib.error_proto:
        pass
    client.stls(context=TLS)
    for name in ("USER", "UIDL", "TOP", "SASL", "PIPELINING", "RESP-CODES"):
        assert name in client.capa(), client.capa()
    client.user(USER)
    client.pass_(PASSWORD)
    assert client.stat()[0] == 3
    uidl = client.uidl()[1]
    client.quit()
    client = poplib.POP3_SSL("localhost", BASE + 995, context=TLS, timeout=20)
    try:
        client.user(USER)
        client.pass_("wrong")
        raise AssertionError("wrong password accepted")
    except poplib.error_proto as error:
        assert b"[AUTH]" in error.args[0], error
    client.user(USER)
    client.pass_(PASSWORD)
    assert client.uidl()[1] == uidl, "UIDL changed between sessions"
    count, octets = client.stat()
    sizes = [int(line.split()[1]) for line in client.list()[1]]
    assert sum(sizes) == octets and len(sizes) == count
    for number, subject in enumerate(("one", "two", "four"), 1):
        _, lines, _ = client.retr(number)
        raw = b"\r\n".join(lines) + b"\r\n"
        assert len(raw) == sizes[number - 1], (len(raw), sizes)
        check(raw, subject)
    _, top, _ = client.top(1, 0)
    assert b"Subject: one" in top and b"first line" not in top
    client.dele(1)
    client.rset()
    client.dele(3)
    client.quit()
    client = poplib.POP3_SSL("localhost", BASE + 995, context=TLS, timeout=20)
    client.user(USER)
    client.pass_(PASSWORD)
    assert client.stat()[0] == 2
    client.dele(1)
    client.close()  # no QUIT: nothing is deleted
    client = poplib.POP3_SSL("localhost", BASE + 995, context=TLS, timeout=20)
    client.user(USER)
    client.pass_(PASSWORD)
    assert client.stat()[0] == 2
    client.quit()


for step in (smtp, imap, idle, pop):
    step()
    print(step.__name__, "ok", flush=True)
print("all good")
