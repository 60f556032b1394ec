"""What a scenario can do with one user's own manager: commands as that user, the journal, clients, and fresh ground.

It is root that does it, inside a throwaway system (tests/systemd/run boots it), because somebody has to
kill the daemon, read the whole journal, and be another user.
"""

import contextlib
import glob
import hashlib
import json
import os
import re
import shutil
import socket
import stat
import traceback

from stage import HARDENED, PATIENCE, as_user, run, same, secrets, until

TESTER = int(os.environ["TESTER_UID"])
OTHER = int(os.environ["OTHER_UID"])
HOME = os.environ["TESTER_HOME"]
RUNTIME = os.environ["TESTER_RUNTIME_DIR"]
SOCKET = f"{RUNTIME}/authsock.sock"
STATE = f"{RUNTIME}/authsock"
TOKEN = f"{STATE}/token"
CONFIG = f"{HOME}/.config/authsock/config.toml"
SERVICE, SOCKET_UNIT = "authsock.service", "authsock.socket"
DROPINS = "/etc/systemd/user"


# --- commands -----------------------------------------------------------------------------------


def systemctl(*words, fails=False):
    done = run("as-tester", "systemctl", "--user", "--no-pager", *words)
    assert fails or done.returncode == 0, f"systemctl --user {' '.join(words)}: {done.stderr.strip()}"
    return done.stdout.strip()


def show(unit, what):
    return systemctl("show", unit, "--value", "-p", what)


def authsock(*words):
    return run("as-tester", "authsock", *words)


def answered(*words):
    """What the command line says as JSON; it must succeed."""
    done = authsock(*words, "--json")
    assert done.returncode == 0, f"authsock {' '.join(words)}: {done.returncode}: {done.stderr.strip()}"
    return json.loads(done.stdout)


def daemon_pid():
    return int(show(SERVICE, "MainPID"))


def token():
    """The owner's token."""
    with open(TOKEN, encoding="ascii") as file:
        text = file.read()
    assert re.fullmatch("[0-9a-f]{64}", text), "the token's file does not hold 64 hexadecimal digits and nothing else"
    secrets.add(text)
    return text


def token_file():
    """What must not change of the token's file. The text goes by its hash, since it is compared in messages."""
    found = os.stat(TOKEN)
    mode = stat.S_IMODE(found.st_mode)
    return found.st_ino, oct(mode), found.st_uid, hashlib.sha256(token().encode()).hexdigest()[:12]


# --- the journal --------------------------------------------------------------------------------


def journal_now():
    run("journalctl", "--sync")
    return json.loads(run("journalctl", "-n1", "-ojson").stdout)["__CURSOR"]


def journal(since, **fields):
    """The entries since then with these fields. journalctl itself may skip the first one that
    matches (252: a cursor whose own entry does not match)."""
    run("journalctl", "--sync")
    lines = run("journalctl", "-ojson", "--all", f"--after-cursor={since}").stdout.splitlines()
    entries = [json.loads(line) for line in lines]
    return [entry for entry in entries if all(entry.get(name) == str(value) for name, value in fields.items())]


def logged(since, **fields):
    """Waits for an entry; what is logged comes by a socket of its own."""
    return until(f"a journal entry with {fields}", lambda: journal(since, **fields))

def unit_journal(since):
    """What the units' last words were, to be shown with a check that failed."""
    units = ["_SYSTEMD_USER_UNIT=authsock.service", "+", "USER_UNIT=authsock.service", "+", "USER_UNIT=authsock.socket"]
    return run("journalctl", "-n12", "--no-pager", "-oshort-precise", f"--since=@{since}", *units).stdout



# --- clients ------------------------------------------------------------------------------------


class Raw:
    """A client that knows nothing but the plain handshake."""

    def __init__(self, path=SOCKET, uid=TESTER):
        self.stream = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.stream.settimeout(PATIENCE)
        with as_user(uid) if os.getuid() == 0 else contextlib.nullcontext():
            self.stream.connect(path)
        self.lines = self.stream.makefile("rb")

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.lines.close()
        self.stream.close()

    def send(self, *messages):
        self.stream.sendall(b"".join(json.dumps(message).encode() + b"\n" for message in messages))

    def receive(self):
        """The next message, or None at the end."""
        line = self.lines.readline()
        return json.loads(line) if line else None

    def enter(self, secret):
        """The handshake, and nothing with it."""
        self.send({"type": "auth", "token": secret})
        result = self.receive()
        assert result and result["success"], f"refused: {result}"


def request(method):
    return {"jsonrpc": "2.0", "id": 1, "method": method}


def ask(secret, method="ping", path=SOCKET, uid=TESTER):
    """One exchange: what the method gave, or the code of the refusal, or that there was no word."""
    with Raw(path, uid) as raw:
        try:
            raw.send({"type": "auth", "token": secret}, request(method))
        except BrokenPipeError:
            pass  # refused before we spoke: the word can still be read
        result = raw.receive()
        if result is None:
            return "no word"
        if not result["success"]:
            return result["error"]["code"]
        return (raw.receive() or {}).get("result", "no answer")


PONG = {"pong": True}


def in_process_of(uid, function):
    """Runs a function in a process that is wholly another user's. Returns its pid and what it gave."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        status = 1
        try:
            os.setgroups([])
            os.setresgid(uid, uid, uid)
            os.setresuid(uid, uid, uid)
            with os.fdopen(writer, "w") as out:
                json.dump(function(), out)
            status = 0
        except BaseException:  # whatever it is, this process must not go on as a second scenario
            traceback.print_exc()
        finally:
            os._exit(status)
    os.close(writer)
    with os.fdopen(reader) as words:
        text = words.read()
    status = os.waitpid(child, 0)[1]
    assert status == 0, f"the process of uid {uid} failed"
    return child, json.loads(text)


# --- ground -------------------------------------------------------------------------------------


def configure(text):
    """Puts the configuration there, as the user would."""
    with as_user(TESTER):
        os.makedirs(os.path.dirname(CONFIG), exist_ok=True)
        with open(CONFIG + ".new", "w", encoding="utf-8") as file:
            file.write(text)
        os.replace(CONFIG + ".new", CONFIG)


def own_units():
    return [path for path in glob.glob(f"{DROPINS}/*authsock*") if not path.startswith(f"{DROPINS}/sockets.target")]


def ground(config="", **units):
    """Both units stopped, no files of an earlier check, then the socket started. A unit or drop-in
    is named like its file, with __ for the dot and in_ for the directory."""
    extra = [os.path.basename(path) for path in own_units() if path.endswith(".socket")]
    systemctl("stop", SOCKET_UNIT, SERVICE, *extra)
    for path in own_units():
        if os.path.isdir(path):
            for file in os.listdir(path):
                os.unlink(f"{path}/{file}")
            os.rmdir(path)
        else:
            os.unlink(path)
    if HARDENED:
        os.makedirs(f"{DROPINS}/{SERVICE}.d", exist_ok=True)
        shutil.copyfile("/opt/user/hardened.conf", f"{DROPINS}/{SERVICE}.d/hardened.conf")
    for name, text in units.items():
        path = f"{DROPINS}/{name.replace('__', '.')}"
        if name in ("authsock__socket", "authsock__service"):
            os.makedirs(f"{path}.d", exist_ok=True)
            path += ".d/check.conf"
        with open(path, "w", encoding="utf-8") as file:
            file.write(text)
    os.chmod(RUNTIME, 0o700)
    configure(config)
    systemctl("daemon-reload")
    systemctl("reset-failed")
    for name in units:
        if name.endswith("__socket") and name != "authsock__socket":
            systemctl("start", name.replace("__", "."))
    systemctl("start", SOCKET_UNIT)


def serving(config="", **units):
    """The ground, with a daemon on it that a client started; returns its pid."""
    ground(config, **units)
    found = ask("0" * 64)
    assert found in ("denied", "not_permitted"), f"a client without the token: {found}"
    return daemon_pid()


def assert_healthy(restarts=0):
    same(show(SOCKET_UNIT, "ActiveState"), "active", "the socket unit")
    same(show(SERVICE, "NRestarts"), str(restarts), "restarts that nobody asked for")


