#!/usr/bin/env python3
"""Shows under a real systemd what the daemon of the whole machine promises to several users.

Two users are admitted, one by name and one by a group, and a third is not. It runs as root inside a
throwaway system (tests/systemd/run boots it), because it has to be each of them and the administrator.
"""

import json
import os
import pwd
import re
import shutil
import socket
import stat
import subprocess
import sys

from stage import HARDENED, PATIENCE, as_user, check, main, run, secrets, until

SOCKET, STATE, CONFIG = "/run/authsock.sock", "/run/authsock", "/etc/authsock/config.toml"
DROPIN = "/etc/systemd/system/authsock.service.d"
GROUP = "authsock-users"


def systemctl(*words, fails=False):
    done = run("systemctl", "--no-pager", *words)
    assert fails or done.returncode == 0, f"systemctl {' '.join(words)}: {done.stderr.strip()}"
    return done.stdout


class User:
    """A user of the machine, who does nothing but what a user can do: run programs."""

    def __init__(self, name, groups=()):
        self.name = name
        if run("getent", "passwd", name).returncode != 0:
            done = run("useradd", "--create-home", *(["-G", ",".join(groups)] if groups else []), name)
            assert done.returncode == 0, done.stderr
        entry = pwd.getpwnam(name)
        self.uid, self.gid, self.home = entry.pw_uid, entry.pw_gid, entry.pw_dir
        self.runtime = f"/run/user/{self.uid}"
        self.token_path = f"{STATE}/users/{self.uid}/token"

    def command(self, *words):
        # As after a login: the own groups, a runtime directory, and no variable of ours.
        os.makedirs(self.runtime, mode=0o700, exist_ok=True)
        os.chown(self.runtime, self.uid, self.gid)
        return (
            "setpriv", f"--reuid={self.uid}", f"--regid={self.gid}", "--init-groups", "--inh-caps=-all",
            "env", "-i", f"HOME={self.home}", f"USER={self.name}", f"XDG_RUNTIME_DIR={self.runtime}",
            "PATH=/usr/local/bin:/usr/bin:/bin", *words,
        )

    def run(self, *words):
        return run(*self.command(*words))

    def authsock(self, *words):
        return self.run("authsock", "--system", *words)

    def answered(self, *words):
        """What the command line says as JSON; it must succeed."""
        done = self.authsock(*words, "--json")
        assert done.returncode == 0, f"{self.name}: authsock {' '.join(words)}: {done.returncode}: {done.stderr.strip()}"
        return json.loads(done.stdout)

    def connection(self):
        """A bare connection of this user's, on which nothing was said yet."""
        stream = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        stream.settimeout(PATIENCE)
        with as_user(self.uid, self.gid):
            stream.connect(SOCKET)
        return stream

    def token(self):
        with open(self.token_path, encoding="ascii") as file:
            text = file.read()
        secrets.add(text)
        return text


def configure(text):
    os.makedirs(os.path.dirname(CONFIG), exist_ok=True)
    with open(CONFIG, "w", encoding="utf-8") as file:
        file.write(text)
    os.chmod(CONFIG, 0o644)


def fresh(config=None):
    """Ground of its own: no daemon, no state, and a configuration."""
    systemctl("stop", "authsock.socket", "authsock.service")
    systemctl("clean", "--what=runtime", "authsock.service", fails=True)
    run("rm", "-rf", STATE)
    if HARDENED:
        os.makedirs(DROPIN, exist_ok=True)
        shutil.copyfile("/opt/system/hardened.conf", f"{DROPIN}/hardened.conf")
        systemctl("daemon-reload")
    configure(POLICY if config is None else config)
    systemctl("reset-failed", "authsock.socket", "authsock.service", fails=True)
    systemctl("start", "authsock.socket")


def journal(**fields):
    run("journalctl", "--sync")
    lines = run("journalctl", "-ojson", "--all", "-u", "authsock.service").stdout.splitlines()
    entries = [json.loads(line) for line in lines]
    return [entry for entry in entries if all(entry.get(name) == str(value) for name, value in fields.items())]


def refused(user, code, *words):
    done = user.authsock(*(words or ("whoami",)), "--json")
    error = json.loads(done.stderr)["error"] if done.returncode else None
    assert error and error["code"] == code, f"{user.name}: {done.returncode}: {done.stdout} {done.stderr}"
    return error


run("groupadd", "-f", GROUP)
ada, bob, eve = User("ada"), User("bob", [GROUP]), User("eve")
POLICY = f'[policy]\nusers = ["ada"]\ngroups = ["{GROUP}"]\n'


@check("each admitted user's first command works, one by name and one by a group, with no step before it")
def _():
    fresh()
    for user in (ada, bob):
        answer = user.answered("whoami")
        assert answer["session"]["id"] == f"user-{user.uid}", answer
        assert answer["peer"]["uid"] == user.uid and answer["daemon"]["uid"] == 0, answer
        assert answer["handshake"] == "proof", answer
    assert systemctl("show", "authsock.service", "--value", "-p", "ActiveState").strip() == "active"


@check("both come at once from cold, many times over, and each has one token")
def _():
    fresh()
    running = [
        subprocess.Popen(user.command("authsock", "--system", "whoami"), stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        for user in (ada, bob) * 10
    ]
    for program in running:
        _, errors = program.communicate(timeout=60)
        assert program.returncode == 0, errors
    minted = journal(AUTHSOCK_EVENT="token_minted")
    since = [entry for entry in minted if entry["_PID"] == systemctl("show", "authsock.service", "--value", "-p", "MainPID").strip()]
    uids = sorted(int(entry["AUTHSOCK_PEER_UID"]) for entry in since if "AUTHSOCK_PEER_UID" in entry)
    assert uids == sorted([ada.uid, bob.uid]), uids


@check("the third user is refused by the kernel's word alone, before a byte is read, and the journal names it")
def _():
    fresh()
    refused(eve, "peer_denied")
    with eve.connection() as stream:
        # Not one byte was sent.
        said = json.loads(stream.makefile().readline())
    assert said["error"]["code"] == "peer_denied", said
    assert until("the journal's word", lambda: journal(AUTHSOCK_CODE="peer_denied", AUTHSOCK_PEER_UID=eve.uid))
    assert not os.path.exists(f"{STATE}/users/{eve.uid}"), "nothing is made for who is not admitted"


@check("the third user is refused even with an admitted user's token")
def _():
    fresh()
    ada.answered("whoami")
    path = f"{eve.home}/stolen"
    with open(path, "w", encoding="ascii") as file:
        file.write(ada.token())
    os.chown(path, eve.uid, eve.gid)
    os.chmod(path, 0o600)
    refused(eve, "peer_denied", "--token-file", path, "whoami")


@check("neither user reads the other's token, lists the other's directory, or comes in with the other's token")
def _():
    fresh()
    for user in (ada, bob):
        user.answered("whoami")
    for user, other in ((ada, bob), (bob, ada)):
        done = user.run("cat", other.token_path)
        assert done.returncode != 0 and "Permission denied" in done.stderr, done
        for path in (f"{STATE}/users", STATE, f"{STATE}/users/{other.uid}", f"{STATE}/verifiers"):
            done = user.run("ls", path)
            assert done.returncode != 0 and "Permission denied" in done.stderr, (path, done)
        path = f"{user.home}/stolen"
        with open(path, "w", encoding="ascii") as file:
            file.write(other.token())
        os.chown(path, user.uid, user.gid)
        os.chmod(path, 0o600)
        refused(user, "binding", "--token-file", path, "whoami")


@check("neither user sees or ends the other's sessions, and root sees all")
def _():
    fresh()
    running = {}
    for user in (ada, bob):
        running[user] = subprocess.Popen(
            user.command("authsock", "--system", "run", "--name", f"of-{user.name}", "--", "cat"),
            stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        )
    try:
        def names(answer):
            return {session["name"]: session["id"] for session in answer["sessions"]}
        everybody = until("both sessions", lambda: (
            lambda found: found if {"of-ada", "of-bob"} <= set(found) else None
        )(names(json.loads(run("authsock", "--system", "session", "list", "--json").stdout))))
        for user, other in ((ada, bob), (bob, ada)):
            for words in ((), ("--all-realms",)):
                seen = names(user.answered("session", "list", *words))
                assert f"of-{user.name}" in seen and f"of-{other.name}" not in seen and "owner" not in seen, seen
            for target in (everybody[f"of-{other.name}"], f"user-{other.uid}", "owner"):
                for verb in (("session", "revoke", target), ("call", "session.rotate", json.dumps({"id": target}))):
                    done = user.authsock(*verb, "--json")
                    assert done.returncode == 1 and "no session" in done.stderr, (verb, done)
        # The same realm's name is another realm for another user.
        for user in (ada, bob):
            done = user.authsock("run", "--realm", "shared", "--", "authsock", "session", "list", "--json")
            uids = {session["uid"] for session in json.loads(done.stdout)["sessions"]}
            assert uids == {user.uid}, uids
        ended = ada.answered("session", "revoke", everybody["of-ada"])
        assert ended["ended"] == 1, ended
    finally:
        for program in running.values():
            program.communicate(timeout=60)


@check("a user's programs run in sessions of their own, and do not step out of them by the user's token")
def _():
    fresh()
    done = ada.authsock("run", "--name", "inner", "--", "authsock", "whoami", "--json")
    answer = json.loads(done.stdout)["session"]
    assert (answer["name"], answer["uid"], answer["parent"]) == ("inner", ada.uid, f"user-{ada.uid}"), answer
    done = ada.authsock("run", "--", "env", "-u", "AUTHSOCK_SOCKET", "-u", "AUTHSOCK_TOKEN_FILE",
                        "authsock", "--system", "whoami", "--json")
    assert json.loads(done.stderr)["error"]["code"] == "binding", done


# What a confined program looks for, and one line for each thing that it finds.
LOOKS = """
authsock whoami --json
echo "socket $AUTHSOCK_SOCKET"
for path in /run/authsock/* /run/authsock/users/*/token "$XDG_RUNTIME_DIR"/authsock/token; do
    if [ -e "$path" ]; then echo "found $path"; fi
done
env -u AUTHSOCK_SOCKET -u AUTHSOCK_TOKEN_FILE authsock --system whoami || echo "exit code $?"
"""


def confined(user, *options):
    """What a confined program of a user says: who it is, and what it finds."""
    words = ("authsock", *options, "run", "--confine", "--name", "kept", "--", "sh", "-c", LOOKS)
    done = user.run(*words)
    assert done.returncode == 0, done
    who, *lines = done.stdout.splitlines()
    return json.loads(who)["session"], lines


@check("a confined program reaches the machine's daemon as its session, and finds nobody's token: confine")
def _():
    fresh()
    for user in (ada, bob):
        # The first one finds no daemon yet, and no state.
        session, lines = confined(user, "--system")
        assert (session["name"], session["parent"]) == ("kept", f"user-{user.uid}"), session
        assert lines == [f"socket {user.runtime}/authsock.sock", "exit code 4"], lines


@check("a confined program of root's reaches the machine's daemon too: confine")
def _():
    fresh()
    os.makedirs("/run/user/0", mode=0o700, exist_ok=True)
    words = ("run", "--confine", "--name", "kept", "--", "sh", "-c", LOOKS)
    done = run("env", "XDG_RUNTIME_DIR=/run/user/0", "authsock", "--system", *words)
    assert done.returncode == 0, done
    who, *lines = done.stdout.splitlines()
    assert json.loads(who)["session"]["parent"] == "owner", who
    assert lines == ["socket /run/user/0/authsock.sock", "exit code 4"], lines


@check("a confined program of the user's own daemon finds no token at the machine's, which had not started yet: confine")
def _():
    fresh()
    assert not os.path.exists(STATE)
    session, lines = confined(ada)
    assert (session["name"], session["parent"]) == ("kept", "owner"), session
    assert lines[0].startswith(f"socket {ada.runtime}/authsock-run/") and lines[1:] == ["exit code 4"], lines
    assert os.path.exists(STATE), "it was not started, so that nothing was there to be hidden"
    assert ada.run("authsock", "call", "daemon.retire").returncode == 0


def spoilt(spoil, words):
    """The user spoils the own file: nobody else notices, and the own clients say what is wrong."""
    fresh()
    ada.answered("whoami")
    bob.answered("whoami")
    pid = systemctl("show", "authsock.service", "--value", "-p", "MainPID")
    spoil()
    done = ada.authsock("whoami")
    assert done.returncode == 4 and words in done.stderr and ada.token_path in done.stderr, done
    bob.answered("whoami")
    assert systemctl("show", "authsock.service", "--value", "-p", "MainPID") == pid
    systemctl("restart", "authsock.service")
    bob.answered("whoami")
    assert ada.authsock("whoami").returncode == 4


def as_ada(script):
    done = ada.run("sh", "-c", script)
    assert done.returncode == 0, done.stderr


@check("a user who makes the own token readable for all harms only themself, and chmod 600 mends it")
def _():
    spoilt(lambda: as_ada(f"chmod 644 {ada.token_path}"), "wider than 0600")
    as_ada(f"chmod 600 {ada.token_path}")
    ada.answered("whoami")


@check("a user who empties or overwrites the own token harms only themself, and root's removal of it makes a new one")
def _():
    spoilt(lambda: as_ada(f": >{ada.token_path}"), "64 hexadecimal digits")
    old = ada.token_path
    os.unlink(old)
    ada.answered("whoami")
    assert re.fullmatch("[0-9a-f]{64}", ada.token())


@check("a token that root removed is worth nothing after a reload, also to whoever kept a copy and stays connected")
def _():
    fresh()
    ada.answered("whoami")
    bob.answered("whoami")
    kept = ada.token()

    def come(secret):
        stream = ada.connection()
        stream.sendall(json.dumps({"type": "auth", "token": secret}).encode() + b"\n")
        lines = stream.makefile()
        return json.loads(lines.readline()), lines, stream

    said, open_lines, open_stream = come(kept)
    assert said["success"], said
    os.unlink(ada.token_path)
    systemctl("reload", "authsock.service")
    assert open_lines.readline() == "", "the connection stayed open"
    open_stream.close()
    said, _, stream = come(kept)
    assert said["error"]["code"] == "revoked", said
    stream.close()
    ada.answered("whoami")
    assert ada.token() != kept
    bob.answered("whoami")


@check("a user cannot put a link, a directory or another file in the place of the own token")
def _():
    fresh()
    ada.answered("whoami")
    home = os.path.dirname(ada.token_path)
    before = os.stat(ada.token_path).st_ino
    for script in (f"rm -f {ada.token_path}", f"mv {ada.token_path} {home}/x", f"ln -sf /etc/shadow {ada.token_path}",
                   f"mkdir {home}/d", f"touch {home}/f", f"ln {ada.token_path} {home}/l"):
        assert ada.run("sh", "-c", script).returncode != 0, script
    assert os.stat(ada.token_path).st_ino == before and os.listdir(home) == ["token"]
    ada.answered("whoami")


@check("what an administrator or a mishap puts there instead, a link or a directory, harms that user only")
def _():
    def link():
        os.unlink(ada.token_path)
        os.symlink("/etc/shadow", ada.token_path)
    spoilt(link, "symbolic link")
    assert stat.S_IMODE(os.stat("/etc/shadow").st_mode) in (0o640, 0o600), "what it leads to is untouched"

    def directory():
        os.unlink(ada.token_path)
        os.mkdir(ada.token_path)
        os.chown(ada.token_path, ada.uid, ada.gid)
    spoilt(directory, "is not a regular file")


@check("tokens and users' sessions are the same after a restart, a kill -9 and an idle exit")
def _():
    fresh(POLICY + "[lifecycle]\nidle_exit_seconds = 1\n")
    before = {user: (user.answered("whoami")["session"]["token_id"], os.stat(user.token_path).st_ino) for user in (ada, bob)}

    def idle():
        until("the idle exit", lambda: systemctl("show", "authsock.service", "--value", "-p", "ActiveState").strip() == "inactive")

    for act in (lambda: systemctl("restart", "authsock.service"),
                lambda: systemctl("kill", "-s", "KILL", "authsock.service"), idle):
        act()
        for user in (ada, bob):
            after = user.answered("whoami")["session"]["token_id"], os.stat(user.token_path).st_ino
            assert after == before[user], (after, before[user])


@check("programs in users' sessions notice nothing of a restart and a kill -9, and are still not the users themselves")
def _():
    fresh()
    inside = ("while read -r _; do authsock whoami --json | tr -d '\\n'; echo; "
              "env -u AUTHSOCK_SOCKET -u AUTHSOCK_TOKEN_FILE authsock --system whoami --json 2>&1 | tr -d '\\n'; echo; done")
    running = {user: subprocess.Popen(
        user.command("authsock", "--system", "run", "--name", "lasting", "--", "sh", "-c", inside),
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1,
    ) for user in (ada, bob)}

    def ask(user):
        running[user].stdin.write("\n")
        session = json.loads(running[user].stdout.readline())["session"]
        outside = json.loads(running[user].stdout.readline())
        assert outside["error"]["code"] == "binding", outside
        return session

    try:
        before = {user: ask(user) for user in running}
        for act in (("restart",), ("kill", "-s", "KILL")):
            systemctl(*act, "authsock.service")
            for user in running:
                after = ask(user)
                assert after == before[user] and after["uid"] == user.uid, (after, before[user])
    finally:
        for program in running.values():
            program.communicate(timeout=60)


@check("a user rotates the own token, and only that")
def _():
    fresh()
    bob.answered("whoami")
    old = ada.answered("whoami")["session"]["token_id"]
    kept = bob.token()
    new = ada.answered("token", "rotate", "--now")["token_id"]
    assert new != old and ada.answered("whoami")["session"]["token_id"] == new
    assert os.stat(ada.token_path).st_uid == ada.uid and bob.token() == kept
    systemctl("restart", "authsock.service")
    assert ada.answered("whoami")["session"]["token_id"] == new
    done = ada.authsock("session", "revoke", f"user-{ada.uid}")
    assert done.returncode == 1 and "does not end" in done.stderr, done


@check("a reload admits and turns away: who is no longer in the policy is disconnected at once")
def _():
    fresh()
    ada.answered("whoami")
    with ada.connection() as stream:
        stream.sendall(json.dumps({"type": "auth", "token": ada.token()}).encode() + b"\n")
        lines = stream.makefile()
        assert json.loads(lines.readline())["success"]
        configure('[policy]\nusers = ["eve", "no-such-user"]\n')
        systemctl("reload", "authsock.service")
        assert lines.readline() == "", "the connection ends"
    refused(ada, "peer_denied")
    eve.answered("whoami")
    status = json.loads(run("authsock", "--system", "status", "--json").stdout)
    assert any("no-such-user" in complaint for complaint in status["complaints"]), status["complaints"]
    assert status["mode"] == "system"


def verified(token):
    """What a proxy is told of a token: it asks with root's own."""
    with open(f"{STATE}/token", encoding="ascii") as file:
        asker = file.read()
    secrets.add(asker)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as stream:
        stream.settimeout(PATIENCE)
        stream.connect(SOCKET)
        fields = f"Host: x\r\nConnection: close\r\nAuthsock-Asker: Bearer {asker}\r\nAuthorization: Bearer {token}\r\n"
        stream.sendall(f"GET /v1/verify HTTP/1.1\r\n{fields}\r\n".encode())
        return int(stream.makefile().readline().split()[1])


@check("a proxy is told that no token is worth anything whose user a reload, or the machine's own lists, no longer admit")
def _():
    fresh()
    for user in (ada, bob):
        user.answered("whoami")
    tokens = [user.token() for user in (ada, bob)]
    assert [verified(token) for token in tokens] == [200, 200]
    # The lists are asked, with the confinement of the unit.
    assert run("gpasswd", "-d", "bob", GROUP).returncode == 0
    try:
        assert [verified(token) for token in tokens] == [200, 401]
    finally:
        assert run("gpasswd", "-a", "bob", GROUP).returncode == 0
    assert [verified(token) for token in tokens] == [200, 200]
    configure(f'[policy]\ngroups = ["{GROUP}"]\n')
    systemctl("reload", "authsock.service")
    assert [verified(token) for token in tokens] == [401, 200]


@check("the scopes that the configuration gives are what a user's session may do, and what has more ends at a reload")
def _():
    fresh(POLICY + 'scopes = ["session:create", "service:docker"]\n')
    scopes = ada.answered("whoami")["session"]["scopes"]
    assert sorted(scopes) == ["service:docker", "session:create", "session:self"], scopes
    program = subprocess.Popen(ada.command("authsock", "--system", "run", "--allow", "service:docker", "--", "cat"), stdin=subprocess.PIPE)
    until("the session", lambda: len(ada.answered("session", "list")["sessions"]) == 2)
    configure(POLICY + 'scopes = ["session:create"]\n')
    systemctl("reload", "authsock.service")
    assert len(ada.answered("session", "list")["sessions"]) == 1
    program.communicate(timeout=60)
    done = ada.authsock("call", "daemon.retire", "--json")
    assert done.returncode == 1 and "daemon:manage" in done.stderr, done


@check("a broken configuration is told to every user as unavailable, and mending it heals")
def _():
    fresh("[policy]\nusers = 7\n")
    for user in (ada, eve):
        refused(user, "unavailable")
    configure(POLICY)
    until("healed", lambda: ada.authsock("whoami").returncode == 0)
    refused(eve, "peer_denied")


@check("without a configuration nobody but root is served")
def _():
    fresh("")
    refused(ada, "peer_denied")
    done = run("authsock", "--system", "whoami", "--json")
    assert json.loads(done.stdout)["session"]["id"] == "owner", done


@check("the daemon has one capability, and the files are whose they should be")
def _():
    fresh()
    ada.answered("whoami")
    pid = systemctl("show", "authsock.service", "--value", "-p", "MainPID").strip()
    with open(f"/proc/{pid}/status", encoding="ascii") as file:
        caps = {line.split()[0]: int(line.split()[1], 16) for line in file if line.startswith("Cap")}
    cap_chown = 1 << 0  # linux/capability.h
    assert caps["CapEff:"] == caps["CapBnd:"] == cap_chown, caps
    for path, uid, mode in (
        (SOCKET, 0, 0o666), (STATE, 0, 0o711), (f"{STATE}/token", 0, 0o600), (f"{STATE}/users", 0, 0o711),
        (f"{STATE}/users/{ada.uid}", 0, 0o711), (ada.token_path, ada.uid, 0o600),
        (f"{STATE}/verifiers", 0, 0o700), (f"{STATE}/verifiers/{ada.uid}", 0, 0o600),
    ):
        found = os.stat(path)
        assert (found.st_uid, stat.S_IMODE(found.st_mode)) == (uid, mode), (path, found)


@check("doctor finds nothing wrong for an admitted user, and tells the other, and root of any process, why it is refused")
def _():
    fresh()
    ada.answered("whoami")
    report = json.loads(ada.authsock("doctor", "--json").stdout)
    assert report["problems"] == 0, [found for found in report["findings"] if found["level"] == "problem"]
    done = eve.authsock("doctor", "--json")
    problems = [found for found in json.loads(done.stdout)["findings"] if found["level"] == "problem"]
    assert done.returncode == 1 and any("peer_denied" in found["says"] for found in problems), problems
    assert not any("--user" in str(found) for found in problems), problems
    for user, refused_too in ((ada, False), (bob, False), (eve, True)):
        program = subprocess.Popen(user.command("sleep", "60"))
        try:
            until("the user's process", lambda: os.stat(f"/proc/{program.pid}").st_uid == user.uid)
            report = json.loads(run("authsock", "--system", "doctor", "--json", "--pid", str(program.pid)).stdout)
            found = [finding for finding in report["findings"] if finding["id"] == "process-user"]
            assert found and (found[0]["level"] == "problem") == refused_too, (user.name, found)
        finally:
            program.kill()
            program.wait()


@check("in a session the variables lead back to this daemon, and a user who made it the default needs no option")
def _():
    fresh()
    done = ada.authsock("run", "--", "sh", "-c", "echo $AUTHSOCK_SOCKET; ls -l $AUTHSOCK_TOKEN_FILE; authsock whoami")
    assert done.returncode == 0 and SOCKET in done.stdout and "-rw-------" in done.stdout, done
    as_ada("mkdir -p ~/.config/authsock && echo '[client]\nsystem = true' >~/.config/authsock/config.toml")
    try:
        done = ada.run("authsock", "whoami", "--json")
        assert json.loads(done.stdout)["session"]["id"] == f"user-{ada.uid}", done
    finally:
        as_ada("rm -r ~/.config/authsock")


@check("no token stands in the journal")
def _():
    run("journalctl", "--sync")
    text = run("journalctl", "-ojson", "--all").stdout
    for user in (ada, bob):
        if os.path.isfile(user.token_path):
            user.token()
    assert len(secrets) >= 2
    assert not any(secret.strip() and secret in text for secret in secrets)


def unit_journal(_since):
    return run("journalctl", "-n15", "-u", "authsock*", "--no-pager", "-ocat").stdout


if __name__ == "__main__":
    sys.exit(main(after_failure=unit_journal))
