#!/usr/bin/env python3
"""Proves a token as docs/protocol.md says and prints whoami's answer: prove.py SOCKET TOKEN_FILE | --vectors DIRECTORY"""
import glob, hashlib, hmac, json, os, re, secrets, socket, sys
FACTS = ("uid", "pid", "pidfs", "start", "pidns")
def stop(outcome, words=""): raise SystemExit(outcome + ": " + words)  # outcomes as in tests/vectors/README.md
def line(message): return json.dumps(message, separators=(",", ":")) + "\n"
def mac(key, text): return hmac.new(key, text, hashlib.sha256).digest()
def own_process():
    own = {**dict.fromkeys(FACTS), "uid": os.getuid(), "pid": os.getpid()}
    if sys.platform == "linux":
        start = int(open("/proc/self/stat").read().rsplit(")", 1)[1].split()[19])
        ours, other = (os.fstat(os.pidfd_open(pid)).st_ino for pid in (os.getpid(), os.getppid() or os.getpid()))
        own.update(start=start, pidns=os.stat("/proc/self/ns/pid").st_ino, pidfs=ours if ours != other else None)  # one for all before pidfs
    return own
def compare(own, peer):
    if own["pidfs"] and peer.get("pidfs"): same = own["pidfs"] == peer["pidfs"]
    elif peer["pid"] == 0 or own["pidns"] and peer.get("pidns") and own["pidns"] != peer["pidns"]: same = None
    elif (own["uid"], own["pid"]) != (peer["uid"], peer["pid"]): same = False
    else: same = own["start"] == peer.get("start") if (own["start"] is None) == (peer.get("start") is None) else None
    if same is None: stop("incomparable", "whether something relays cannot be told")
    if not same: stop("relay", f"the daemon is genuine, but its kernel sees process {peer['pid']} at the other end")
def transcript(role, *texts, peer):
    fields = ["authsock", "1", role, *texts] + ["" if peer.get(name) is None else str(peer[name]) for name in FACTS]
    return b"".join(len(field).to_bytes(4, "big") + field.encode() for field in fields)
def read(text, wanted):
    try:
        said = json.loads(text)
        if said["type"] == "auth_result" and said["success"] is False and "session" not in said:
            stop("refused:" + said["error"]["code"], said["error"]["message"])
        texts, peer = ((said["nonce"], said["proof"]), said["peer"]) if wanted == "challenge" else ((), {})
        whole = all(re.fullmatch("[0-9a-f]{64}", text) for text in texts) and said["type"] == wanted
        whole = whole and all(type(peer.get(name)) in (int, type(None)) for name in FACTS)
        if whole and said.get("success", True) is True: return said
    except (ValueError, LookupError, TypeError, RecursionError): pass
    stop("not_a_daemon", "what listens there does not speak the handshake; no secret was sent")
def shake(token, own, nonce, service, ask):  # ask sends a line and returns the one that answers it
    client, server, token_id = mac(token, b"Client Key"), mac(token, b"Server Key"), mac(token, b"authsock token id")[:8].hex()
    want = {} if own["pidfs"] else {"want": ["start"]}
    said = read(ask(line({"type": "auth", "v": 1, "service": service, "token_id": token_id, "nonce": nonce, **want})), "challenge")
    texts, peer = (token_id, nonce, said["nonce"], service), said["peer"]
    genuine = hmac.compare_digest(mac(server, transcript("server", *texts, peer=peer)).hex(), said["proof"])
    if not genuine or said["nonce"] == nonce: stop("impostor", "or a stale token: what listens there does not know this token")
    compare(own, peer)
    signature = mac(hashlib.sha256(client).digest(), transcript("client", *texts, peer=peer))
    read(ask(line({"type": "auth", "proof": bytes(a ^ b for a, b in zip(client, signature)).hex()})), "auth_result")
def check(path, client={}, lines=(), **_):
    if not client.get("outcome"): return 0  # a file for servers, or no exchange
    said, (golden, answers) = [], ([item.get("line") for item in lines if item["from"] == side] for side in ("client", "server"))
    def ask(text): return said.append(text.rstrip()) or answers.pop(0)
    try: outcome = shake(bytes.fromhex(client["token"]), client["own"], client["nonce"], client["service"], ask) or "accepted"
    except SystemExit as ended: outcome = str(ended).split(": ")[0]
    return 1 if (outcome, said) == (client["outcome"], golden) else sys.exit(f"{path}: {outcome}, {said}")
if not sys.argv[2:]: sys.exit(__doc__)
if sys.argv[1] == "--vectors": sys.exit(print(sum(check(path, **json.load(open(path))) for path in glob.glob(sys.argv[2] + "/*.json")), "exchanges hold"))
connection, token = socket.socket(socket.AF_UNIX), bytes.fromhex(open(sys.argv[2]).read().strip())
connection.settimeout(10) or connection.connect(sys.argv[1])
stream, request = connection.makefile("rwb", 0), line({"jsonrpc": "2.0", "id": 1, "method": "whoami"})
def ask(text): return stream.write((text + request * ("proof" in text)).encode()) and stream.readline(4096)
shake(token, own_process(), secrets.token_hex(32), "control", ask)
print(stream.readline().decode(), end="")
