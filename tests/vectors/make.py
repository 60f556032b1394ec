#!/usr/bin/env python3
"""Writes the golden exchanges from docs/protocol.md alone, with Python's hmac and hashlib: make.py [DIRECTORY]

It shares no code with the crate, so that the two can only agree by both following the manual. README.md describes the files.
"""
import hashlib
import hmac
import json
import os
import sys

CODES = {
    "malformed": "the message was not understood; docs/protocol.md describes the handshake",
    "too_large": "a line of the handshake may have 4096 bytes",
    "timeout": "the handshake took too long",
    "version": "this version of the handshake is not spoken here",
    "busy": "too many connections are waiting to be authenticated; try again",
    "unavailable": "the daemon cannot serve at present; its status and log say why",
    "peer_denied": "this user may not connect",
    "peer_gone": "the process that opened this connection is gone, or something relays it",
    "denied": "the token was not accepted",
    "expired": "the session has expired",
    "revoked": "the session has ended",
    "binding": "the token is not good for this process",
    "not_permitted": "this is not permitted",
    "unknown_service": "there is no such service",
}

# Never used outside these files.
TOKEN = bytes(range(32))
OTHER_TOKEN = bytes(range(255, 223, -1))
CLIENT_NONCE = hashlib.sha256(b"client nonce").hexdigest()
SERVER_NONCE = hashlib.sha256(b"server nonce").hexdigest()
DECOY = {
    "stored_key": hashlib.sha256(b"decoy stored key").hexdigest(),
    "server_key": hashlib.sha256(b"decoy server key").hexdigest(),
}
SESSION = {"id": "01jd2k8v5x7qwert", "name": "demo", "realm": "default"}
# The process of the client, as its own kernel knows it.
OWN = {"uid": 1000, "pid": 4711, "pidfs": 9001, "start": 123456, "pidns": 4026531836}


def mac(key, text):
    return hmac.new(key, text, hashlib.sha256).digest()


def keys(token):
    client_key = mac(token, b"Client Key")
    return {
        "token": token.hex(),
        "token_id": mac(token, b"authsock token id")[:8].hex(),
        "client_key": client_key.hex(),
        "stored_key": hashlib.sha256(client_key).hexdigest(),
        "server_key": mac(token, b"Server Key").hex(),
    }


def fields(role, token_id, client_nonce, server_nonce, service, peer):
    numbers = [peer.get(name) for name in ("uid", "pid", "pidfs", "start", "pidns")]
    texts = ["" if number is None else str(number) for number in numbers]
    return ["authsock", "1", role, token_id, client_nonce, server_nonce, service] + texts


def framed(texts):
    return b"".join(len(text.encode()).to_bytes(4, "big") + text.encode() for text in texts)


def server_proof(token, texts):
    return mac(bytes.fromhex(keys(token)["server_key"]), framed(texts)).hex()


def client_proof(token, texts):
    signature = mac(bytes.fromhex(keys(token)["stored_key"]), framed(texts))
    return bytes(a ^ b for a, b in zip(bytes.fromhex(keys(token)["client_key"]), signature)).hex()


def text(message):
    return json.dumps(message, separators=(",", ":"), ensure_ascii=False)


def refusal(code):
    error = {"code": code, "message": CODES[code]}
    if code == "version":
        error["supported"] = [1]
    return text({"type": "auth_result", "success": False, "error": error})


def seen(own, names=("uid", "pid", "pidfs")):
    """The server's view of a process: some of its facts, in the order of the wire."""
    return {name: own[name] for name in names}


WITH_START = ("uid", "pid", "pidfs", "start", "pidns")


class Exchange:
    """A proof handshake, spoken right unless a caller bends a part of it."""

    def __init__(self, token=TOKEN, own=OWN, peer=None, service="control", server_nonce=SERVER_NONCE, known=True):
        self.token, self.own, self.service, self.server_nonce = token, own, service, server_nonce
        self.wants_start = own["pidfs"] is None
        self.peer = peer or seen(own, WITH_START if self.wants_start else ("uid", "pid", "pidfs"))
        self.token_id = keys(token)["token_id"]
        self.known = known

    def texts(self, role, **bent):
        parts = {
            "token_id": self.token_id,
            "client_nonce": CLIENT_NONCE,
            "server_nonce": self.server_nonce,
            "service": self.service,
            "peer": self.peer,
        }
        return fields(role, **{**parts, **bent})

    def opening(self, **bent):
        message = {
            "type": "auth",
            "v": 1,
            "service": self.service,
            "token_id": self.token_id,
            "nonce": CLIENT_NONCE,
        }
        if self.wants_start:
            message["want"] = ["start"]
        return text({**message, **bent})

    def challenge(self, **bent):
        proof = server_proof(self.token, self.texts("server"))
        if not self.known:
            proof = mac(bytes.fromhex(DECOY["server_key"]), framed(self.texts("server"))).hex()
        message = {"type": "challenge", "nonce": self.server_nonce, "peer": self.peer, "proof": proof}
        return text({**message, **bent})

    def proof(self, proof=None):
        return text({"type": "auth", "proof": client_proof(self.token, self.texts("client")) if proof is None else proof})

    def accepted(self):
        return text({"type": "auth_result", "success": True, "session": SESSION})

    def vector(self, about, lines, client=None, server=None, verdict="accepted"):
        """`client` and `server` are how each half must end; a half without an end is not driven."""
        vector = {
            "about": about,
            "kind": "exchange",
            "client": {
                "token": self.token.hex(),
                "service": self.service,
                "nonce": CLIENT_NONCE,
                "own": self.own,
                "outcome": client,
            },
            "server": {
                "token": TOKEN.hex(),
                "decoy": DECOY,
                "nonce": self.server_nonce,
                "peer": self.peer,
                "wants_start": self.wants_start,
                "verdict": verdict,
                "session": SESSION,
                "outcome": server,
            },
            "lines": [],
        }
        for sender, line in zip("client server".split() * len(lines), lines):
            whole = {"line": line} if isinstance(line, str) else {"hex": line.hex()}
            vector["lines"].append({"from": sender, **whole})
        return vector


def good():
    for name, token in (("keys", TOKEN), ("keys-other", OTHER_TOKEN), ("keys-zero", bytes(32))):
        yield name, {"about": "what follows from a token", "kind": "keys", **keys(token)}

    no_pidfs = {**OWN, "pidfs": None}
    views = {
        "transcript": seen(OWN),
        "transcript-with-start": seen(OWN, WITH_START),
        "transcript-without-pidfs": seen(no_pidfs, WITH_START),
        "transcript-pid-alone": {"uid": 501, "pid": 321, "pidfs": None},
        "transcript-widest": {"uid": 2**32 - 2, "pid": 2**32 - 1, "pidfs": 2**64 - 1, "start": 2**64 - 1, "pidns": 2**64 - 1},
    }
    for name, peer in views.items():
        service = "a.service_with-64-characters".ljust(64, "0") if name.endswith("widest") else "control"
        exchange = Exchange(peer=peer, service=service)
        yield name, {
            "about": "what both ends sign, and their proofs over it",
            "kind": "transcript",
            "token": TOKEN.hex(),
            "client_nonce": CLIENT_NONCE,
            "server_nonce": SERVER_NONCE,
            "service": service,
            "peer": peer,
            "server_transcript": framed(exchange.texts("server")).hex(),
            "client_transcript": framed(exchange.texts("client")).hex(),
            "server_proof": server_proof(TOKEN, exchange.texts("server")),
            "client_proof": client_proof(TOKEN, exchange.texts("client")),
        }

    for code in CODES:
        name = "refusal-" + code.replace("_", "-")
        yield name, {"about": "a refusal as the peer hears it", "kind": "refusal", "code": code, "line": refusal(code)}

    ok = Exchange()
    whole = [ok.opening(), ok.challenge(), ok.proof(), ok.accepted()]
    yield "proof", ok.vector("the proof handshake, as our own clients speak it", whole, "accepted", "accepted")
    plain = [text({"type": "auth", "token": TOKEN.hex()}), ok.accepted()]
    yield "plain", ok.vector("the plain handshake", plain, server="accepted")
    plain = [text({"type": "auth", "v": 1, "token": TOKEN.hex().upper(), "service": "control"}), ok.accepted()]
    yield "plain-upper-case", ok.vector("a token is read in either case", plain, server="accepted")
    unknown = text({"later": {"x": [1, None]}, "type": "auth", "token": TOKEN.hex()})
    yield "plain-unknown-field", ok.vector("a server ignores fields that it does not know", [unknown, ok.accepted()], server="accepted")

    start = Exchange(own=no_pidfs)
    whole = [start.opening(), start.challenge(), start.proof(), start.accepted()]
    yield "proof-want-start", start.vector("a client without pidfs asks for pid, start time and pid namespace", whole, "accepted", "accepted")
    both = Exchange(own=no_pidfs, peer=seen(OWN, WITH_START))
    whole = [both.opening(), both.challenge(), both.proof(), both.accepted()]
    yield "proof-client-without-pidfs", both.vector("the server has an inode, the client has none: pid and start time decide", whole, "accepted", "accepted")
    old = Exchange(peer=seen(no_pidfs, WITH_START))
    whole = [old.opening(), old.challenge(), old.proof(), old.accepted()]
    yield "proof-null-pidfs", old.vector("a server without pidfs says null and adds the start time unasked", whole, "accepted", "accepted")
    mac_os = {"uid": 501, "pid": 321, "pidfs": None, "start": None, "pidns": None}
    bare = Exchange(own=mac_os, peer=seen(mac_os))
    whole = [bare.opening(), bare.challenge(), bare.proof(), bare.accepted()]
    yield "proof-pid-alone", bare.vector("a platform with neither inodes nor start times: the pid alone", whole, "accepted", "accepted")
    elsewhere = Exchange(peer={"uid": 0, "pid": 0, "pidfs": OWN["pidfs"]})
    whole = [elsewhere.opening(), elsewhere.challenge(), elsewhere.proof(), elsewhere.accepted()]
    yield "proof-other-namespaces", elsewhere.vector("the inode is the same in every pid and user namespace, so pid and uid do not matter", whole, "accepted", "accepted")
    other = Exchange(service="docker")
    whole = [other.opening(), other.challenge(), other.proof(), other.accepted()]
    yield "proof-service", other.vector("another service than control is part of what is signed", whole, "accepted", "accepted")
    extra = {"cookie_file": "/home/u/.ssh/id_ed25519", "method": "plain", "fallback": ["plain"]}
    whole = [ok.opening(), text({**json.loads(ok.challenge()), **extra}), ok.proof(), ok.accepted()]
    yield "proof-unknown-server-fields", ok.vector("a client ignores what it does not know: it opens no path and changes no form", whole, "accepted")

    for code in ("expired", "revoked", "binding", "not_permitted", "unknown_service", "peer_gone", "busy"):
        lines = [ok.opening(), ok.challenge(), ok.proof(), refusal(code)]
        about = "refused after both ends proved themselves"
        yield "refused-" + code.replace("_", "-"), ok.vector(about, lines, "refused:" + code, code, verdict=code)


def bad_clients():
    """A server must refuse each of these, with this word."""
    ok = Exchange()
    denied, malformed = refusal("denied"), refusal("malformed")

    def second(name, about, line, code="malformed"):
        return "bad-client-" + name, ok.vector(about, [ok.opening(), ok.challenge(), line, refusal(code)], server=code)

    def proof(name, about, digits, code="denied"):
        return second(name, about, ok.proof(digits), code)

    right = client_proof(TOKEN, ok.texts("client"))
    shown = server_proof(TOKEN, ok.texts("server"))
    yield proof("echoed-proof", "the server's own proof, sent back", shown)
    yield proof("echoed-nonce", "the server's nonce in place of a proof", SERVER_NONCE)
    yield proof("role-swap", "the client's key over the server's transcript", client_proof(TOKEN, ok.texts("server")))
    signature = mac(bytes.fromhex(keys(TOKEN)["server_key"]), framed(ok.texts("client"))).hex()
    yield proof("server-key", "the server's key over the client's transcript", signature)
    signature = mac(bytes.fromhex(keys(TOKEN)["stored_key"]), framed(ok.texts("client"))).hex()
    yield proof("stored-key-alone", "the signature without ClientKey: who stole the daemon's verifier cannot pose as a client", signature)
    yield proof("other-token", "a proof made with another token", client_proof(OTHER_TOKEN, ok.texts("client")))
    yield proof("zero-proof", "a proof of zeros", "00" * 32)
    yield proof("replayed-proof", "a proof over an earlier nonce of the server", client_proof(TOKEN, ok.texts("client", server_nonce=hashlib.sha256(b"earlier").hexdigest())))
    yield proof("swapped-nonces", "a proof over the two nonces exchanged", client_proof(TOKEN, ok.texts("client", client_nonce=SERVER_NONCE, server_nonce=CLIENT_NONCE)))
    yield proof("other-service", "a proof for another service than the one announced", client_proof(TOKEN, ok.texts("client", service="docker")))
    shifted = {"uid": 10004, "pid": 711, "pidfs": 9001}
    yield proof("shifted-bytes", "the same digits, moved from pid to uid", client_proof(TOKEN, ok.texts("client", peer=shifted)))
    shifted = {"uid": 1000, "pid": 4711, "pidfs": None, "start": 9001}
    yield proof("shifted-field", "the inode's digits in the place of the start time", client_proof(TOKEN, ok.texts("client", peer=shifted)))
    unframed = "".join(ok.texts("client")).encode()
    signature = mac(bytes.fromhex(keys(TOKEN)["stored_key"]), unframed)
    unframed = bytes(a ^ b for a, b in zip(bytes.fromhex(keys(TOKEN)["client_key"]), signature)).hex()
    yield proof("unframed", "a proof over the fields without their lengths", unframed)
    yield proof("truncated-proof", "a proof that lacks its last byte", right[:62], "malformed")
    yield proof("empty-proof", "a proof of nothing", "", "malformed")
    yield proof("long-proof", "a proof with a byte too many", text({"type": "auth", "proof": right + "00"}), "malformed")
    yield proof("upper-case-proof", "a proof in upper case", right.upper(), "malformed")
    yield second("number-for-proof", "a proof that is no text", b'{"type":"auth","proof":7}')
    yield second("token-for-proof", "the token where the proof should be: a server never takes a change of form", text({"type": "auth", "token": TOKEN.hex()}))
    yield second("proof-and-token", "a right proof, and the token beside it", text({"type": "auth", "proof": right, "token": TOKEN.hex()}))
    yield second("second-opening", "another opening in place of the proof", ok.opening())
    yield second("request-for-proof", "a request before the handshake's end", text({"jsonrpc": "2.0", "id": 1, "method": "whoami"}))
    yield second("version-changes", "another version in the second line", text({"type": "auth", "v": 2, "proof": right}), "version")

    stranger = Exchange(token=OTHER_TOKEN, known=False)
    lines = [stranger.opening(), stranger.challenge(), stranger.proof(), denied]
    yield "bad-client-unknown-token", stranger.vector("an unknown token id is challenged like a known one, and the same word ends it", lines, server="denied")
    lines = [text({"type": "auth", "token": OTHER_TOKEN.hex()}), denied]
    yield "bad-client-unknown-plain-token", ok.vector("a plain token that nobody has", lines, server="denied")
    lines = [Exchange(server_nonce=CLIENT_NONCE).opening(), malformed]
    yield "bad-client-equal-nonces", Exchange(server_nonce=CLIENT_NONCE).vector("the client's nonce is the one that the server drew", lines, server="malformed")

    token, nonce = TOKEN.hex(), CLIENT_NONCE
    firsts = {
        "empty-line": "",
        "not-json": "{",
        "null": "null",
        "a-list": '["auth"]',
        "a-number": "7",
        "other-type": text({"type": "hello"}),
        "type-is-number": '{"type":7}',
        "nothing-to-prove": text({"type": "auth"}),
        "request-first": text({"jsonrpc": "2.0", "id": 1, "method": "whoami"}),
        "proof-first": ok.proof(),
        "token-and-nonce": text({"type": "auth", "v": 1, "token": token, "token_id": ok.token_id, "nonce": nonce}),
        "token-and-token-id": text({"type": "auth", "token": token, "token_id": ok.token_id}),
        "token-for-other-service": text({"type": "auth", "token": token, "service": "docker"}),
        "token-is-number": '{"type":"auth","token":7}',
        "token-is-null": '{"type":"auth","token":null}',
        "token-is-list": text({"type": "auth", "token": [token]}),
        "token-is-object": text({"type": "auth", "token": {"value": token}}),
        "token-is-true": '{"type":"auth","token":true}',
        "token-too-short": text({"type": "auth", "token": token[:63]}),
        "token-too-long": text({"type": "auth", "token": token + "0"}),
        "token-not-hex": text({"type": "auth", "token": "g" + token[1:]}),
        "token-with-spaces": text({"type": "auth", "token": " " + token[1:]}),
        "duplicate-token": '{"type":"auth","token":"%s","token":"%s"}' % ("00" * 32, token),
        "duplicate-type": '{"type":"hello","type":"auth","token":"%s"}' % token,
        "duplicate-nonce": '{"type":"auth","v":1,"token_id":"%s","nonce":"%s","nonce":"%s"}' % (ok.token_id, nonce, nonce),
        "nested": '{"type":"auth","token":%s%s}' % ("[" * 2000, "]" * 2000),
        "nested-open": '{"type":"auth","x":' + "[" * 2000,
        "nul-in-token": '{"type":"auth","token":"%s\0"}' % token[:63],
        "nul-behind": '{"type":"auth","token":"%s"}\0' % token,
        "garbage-behind": '{"type":"auth","token":"%s"}{}' % token,
        "invalid-utf8": b'{"type":"auth","token":"\xff\xfe"}',
        "invalid-utf8-elsewhere": b'{"type":"auth","token":"' + token.encode() + b'","x":"\xc3\x28"}',
        "upper-case-nonce": ok.opening(nonce=nonce.upper()),
        "short-nonce": ok.opening(nonce=nonce[:62]),
        "upper-case-token-id": ok.opening(token_id=ok.token_id.upper()),
        "short-token-id": ok.opening(token_id=ok.token_id[:14]),
        "long-token-id": ok.opening(token_id=ok.token_id + "00"),
        "no-version": text({"type": "auth", "token_id": ok.token_id, "nonce": nonce}),
        "version-is-text": ok.opening(v="1"),
        "version-is-negative": ok.opening(v=-1),
        "version-is-fraction": ok.opening(v=1.5),
        "service-is-path": ok.opening(service="../control"),
        "service-is-empty": ok.opening(service=""),
        "service-too-long": ok.opening(service="s" * 65),
    }
    for name, line in firsts.items():
        yield "bad-client-" + name, ok.vector("no opening of a handshake", [line, malformed], server="malformed")
    for name, line in {
        "version-2": ok.opening(v=2),
        "version-0": ok.opening(v=0),
        "version-huge": ok.opening(v=2**64 - 1),
        "version-2-other-fields": '{"type":"hello","v":2,"nonce":["later"]}',
        "version-2-plain": text({"type": "auth", "v": 2, "token": token}),
    }.items():
        yield "bad-client-" + name, ok.vector("another version is told so, whatever else it says", [line, refusal("version")], server="version")


def bad_servers():
    """A client must give up on each of these, for this reason, and say no more than the lines here."""
    ok = Exchange()

    def answer(name, about, line, outcome, exchange=ok):
        return "bad-server-" + name, exchange.vector(about, [exchange.opening(), line], client=outcome)

    wrong = "impostor"
    yield answer("no-key", "a server that does not know the token", ok.challenge(proof=hashlib.sha256(b"guess").hexdigest()), wrong)
    yield answer("other-token", "a server that knows another token", ok.challenge(proof=server_proof(OTHER_TOKEN, ok.texts("server"))), wrong)
    yield answer("echoed-nonce-as-proof", "the client's nonce, sent back as a proof", ok.challenge(proof=CLIENT_NONCE), wrong)
    yield answer("zero-proof", "a proof of zeros", ok.challenge(proof="00" * 32), wrong)
    mirror = Exchange(server_nonce=CLIENT_NONCE)
    yield answer("reflection", "the client's nonce comes back as the server's, even with a proof that fits", mirror.challenge(), wrong, mirror)
    yield answer("role-swap", "the server's key over the client's transcript", ok.challenge(proof=server_proof(TOKEN, ok.texts("client"))), wrong)
    yield answer("client-proof", "a client's proof from another exchange, in place of the server's", ok.challenge(proof=client_proof(TOKEN, ok.texts("client"))), wrong)
    yield answer("replayed-challenge", "a challenge that was made for another nonce of the client", ok.challenge(proof=server_proof(TOKEN, ok.texts("server", client_nonce=hashlib.sha256(b"earlier").hexdigest()))), wrong)
    yield answer("other-service", "a proof for another service: what listens there was given away", ok.challenge(proof=server_proof(TOKEN, ok.texts("server", service="docker"))), wrong)
    yield answer("other-token-id", "a proof for another token id", ok.challenge(proof=server_proof(TOKEN, ok.texts("server", token_id="00" * 8))), wrong)
    yield answer("shifted-bytes", "a genuine proof; digits of the pid were moved to the uid", ok.challenge(peer={"uid": 10004, "pid": 711, "pidfs": 9001}), wrong)
    yield answer("shifted-field", "a genuine proof; the inode was moved to the start time", ok.challenge(peer={"uid": 1000, "pid": 4711, "pidfs": None, "start": 9001}), wrong)
    yield answer("added-start", "a genuine proof; a start time was added to what it covers", ok.challenge(peer={**ok.peer, "start": OWN["start"]}), wrong)
    relay = Exchange(peer={"uid": 1000, "pid": 4712, "pidfs": 9002})
    yield answer("bent-peer", "a relay puts the client's own numbers into the genuine server's challenge", relay.challenge(peer=ok.peer), wrong, relay)

    yield answer("relay", "a genuine server that sees another process: something relays", relay.challenge(), "relay", relay)
    recycled = Exchange(peer={"uid": 1000, "pid": 4711, "pidfs": 9002})
    yield answer("recycled-pid", "another process that has the client's pid: its inode differs", recycled.challenge(), "relay", recycled)
    no_pidfs = {**OWN, "pidfs": None}
    recycled = Exchange(own=no_pidfs, peer={**seen(no_pidfs, WITH_START), "start": 123457})
    yield answer("recycled-pid-start", "another process that has the client's pid: its start time differs", recycled.challenge(), "relay", recycled)
    recycled = Exchange(peer={**seen(no_pidfs, WITH_START), "start": 123457})
    yield answer("recycled-pid-server-without-pidfs", "the same, where only the client has an inode", recycled.challenge(), "relay", recycled)
    relay = Exchange(own=no_pidfs, peer={**seen(no_pidfs, WITH_START), "pid": 4712})
    yield answer("relay-without-pidfs", "another pid in the same pid namespace", relay.challenge(), "relay", relay)
    relay = Exchange(own=no_pidfs, peer={**seen(no_pidfs, WITH_START), "uid": 1001})
    yield answer("other-uid-without-pidfs", "another user, where no inode says more", relay.challenge(), "relay", relay)
    other = Exchange(own=no_pidfs, peer={**seen(no_pidfs, WITH_START), "pidns": 4026532999})
    yield answer("other-pid-namespace", "no inodes and two pid namespaces: nothing can be compared", other.challenge(), "incomparable", other)
    other = Exchange(own=no_pidfs, peer={**seen(no_pidfs, WITH_START), "pid": 0})
    yield answer("no-pid", "no inodes, and the server sees no pid at all", other.challenge(), "incomparable", other)
    other = Exchange(own=no_pidfs, peer=seen(no_pidfs))
    yield answer("no-start", "no inodes, and the server names no start time", other.challenge(), "incomparable", other)
    blind = Exchange(own={**OWN, "start": None}, peer=seen(no_pidfs, WITH_START))
    yield answer("no-start-of-its-own", "the server names a start time, and the client does not know its own", blind.challenge(), "incomparable", blind)

    other = "not_a_daemon"
    yield answer("accepts-before-proof", "success before anything was proven", ok.accepted(), other)
    yield answer("asks-for-the-token", "a server that chooses the plain form", text({"type": "auth_request", "methods": ["plain"], "message": "send the token"}), other)
    yield answer("names-a-cookie", "a server that names a file in place of a proof", text({"type": "challenge", "nonce": SERVER_NONCE, "peer": ok.peer, "cookie_file": "/home/u/.ssh/id_ed25519"}), other)
    yield answer("upper-case-nonce", "a nonce in upper case", ok.challenge(nonce=SERVER_NONCE.upper()), other)
    yield answer("upper-case-proof", "a proof in upper case", ok.challenge(proof=server_proof(TOKEN, ok.texts("server")).upper()), other)
    yield answer("truncated-proof", "a proof that lacks its last byte", ok.challenge(proof=server_proof(TOKEN, ok.texts("server"))[:62]), other)
    yield answer("empty-proof", "a proof of nothing", ok.challenge(proof=""), other)
    yield answer("no-peer", "a challenge that names no peer", text({"type": "challenge", "nonce": SERVER_NONCE, "proof": CLIENT_NONCE}), other)
    yield answer("peer-is-text", "numbers as texts", ok.challenge(peer={"uid": "1000", "pid": "4711", "pidfs": "9001"}), other)
    yield answer("neither-yes-nor-no", "a result without session or error", '{"type":"auth_result","success":false}', other)
    yield answer("yes-and-no", "success with an error", text({"type": "auth_result", "success": False, "session": SESSION, "error": {"code": "denied", "message": "no"}}), other)
    yield answer("garbage", "something else that speaks lines", "220 mail.example.org ESMTP", other)
    yield answer("invalid-utf8", "bytes that are no text", b'{"type":"challenge","nonce":"\xff"}', other)
    yield answer("empty-line", "an empty line", "", other)
    lines = [ok.opening(), ok.challenge(), ok.proof(), ok.challenge()]
    yield "bad-server-second-challenge", ok.vector("a challenge in place of the result", lines, client=other)
    yield answer("too-old-for-the-client", "a server that speaks an older version only", text({"type": "auth_result", "success": False, "error": {"code": "version", "message": "no", "supported": [0]}}), "refused:version")
    yield answer("unknown-code", "a refusal with a word of a later version", text({"type": "auth_result", "success": False, "error": {"code": "later", "message": "words"}}), "refused:later")
    for code in ("denied", "unavailable", "malformed"):
        yield answer("refuses-" + code, "a refusal in place of a challenge ends it; nothing else is tried", refusal(code), "refused:" + code)


def main():
    directory = sys.argv[1] if len(sys.argv) > 1 else os.path.dirname(os.path.abspath(__file__))
    written = set()
    for vectors in (good(), bad_clients(), bad_servers()):
        for name, vector in vectors:
            assert name not in written, name
            written.add(name)
            with open(os.path.join(directory, name + ".json"), "w", encoding="utf-8", newline="\n") as file:
                file.write(json.dumps(vector, indent=1, ensure_ascii=True) + "\n")
    print(len(written), "vectors")


if __name__ == "__main__":
    main()
