#!/usr/bin/env python3
"""Shows under a real systemd, in one user's own manager, what the units and the daemon promise there.

Each check is a sentence and stands on ground of its own: units freshly started, no drop-in, a
configuration that it gives itself.
"""

import contextlib
import glob
import json
import os
import random
import re
import signal
import socket
import stat
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

from stage import PATIENCE, SEED, check, main, run, same, secrets, until
from tester import (
    DROPINS, HOME, OTHER, PONG, RUNTIME, Raw, SERVICE, SOCKET, SOCKET_UNIT, STATE, TESTER, TOKEN, answered,
    ask, assert_healthy, authsock, configure, daemon_pid, ground, in_process_of, journal, journal_now,
    logged, request, serving, show, systemctl, token, token_file, unit_journal,
)

# What does not hold under hardened.conf, each with the reason: there a user namespace of its own
# shows the daemon root and every other user as one (65534), so it refuses them all and names none.
ONE_FOR_ALL = "root and all other users are one, 65534, to the daemon"
NOT_HARDENED = {
    "with every other guard open another user is refused before a byte is read, and the journal names it": ONE_FOR_ALL,
    "another user is refused even with the owner's token": ONE_FOR_ALL,
    "another user is refused by a daemon that cannot serve, too": ONE_FOR_ALL,
    "another user's connection that starts the daemon is refused all the same": ONE_FOR_ALL,
    "root is refused by default before a byte is read, and the journal names it": ONE_FOR_ALL,
    "root is admitted with allow_root, but not without a token": ONE_FOR_ALL,
}


# --- units --------------------------------------------------------------------------------------


@check("the program runs on this system and the units are where systemd finds them")
def _():
    done = authsock("--version")
    same(done.returncode, 0, f"authsock --version: {done.stderr.strip()}")
    same(show(SOCKET_UNIT, "LoadState"), "loaded", "the socket unit")
    same(show(SERVICE, "LoadState"), "loaded", "the service unit")


@check("systemd understands every line of the units")
def _():
    # What it says counts: its status says nothing of unknown keys on older versions. No manual
    # page is installed here.
    done = run("as-tester", "systemd-analyze", "--user", "--man=no", "verify", SOCKET_UNIT, SERVICE)
    same((done.stdout + done.stderr).strip(), "", "systemd-analyze verify")
    same(done.returncode, 0, "its status")


@check("enabling the socket unit has it started with the user's manager")
def _():
    systemctl("enable", SOCKET_UNIT)
    same(systemctl("is-enabled", SOCKET_UNIT).strip(), "enabled", "the socket unit")
    wants = show("sockets.target", "Wants").split()
    systemctl("disable", SOCKET_UNIT)
    assert SOCKET_UNIT in wants, "sockets.target does not want it"


@check("the exposure that systemd-analyze sees is at most 6.5")
def _():
    done = run("as-tester", "systemd-analyze", "--user", "--no-pager", "security", SERVICE)
    overall = re.search(r"Overall exposure level for \S+: ([0-9.]+)", done.stdout)
    assert overall, f"no figure: {done.stdout[-300:]}{done.stderr}"
    print(f"      exposure level {overall.group(1)}")
    assert float(overall.group(1)) <= 6.5


# --- activation ---------------------------------------------------------------------------------


@check("the first client starts the service, and it is systemd's daemon that answers")
def _():
    ground()
    same(show(SERVICE, "ActiveState"), "inactive", "the service before any client")
    who = answered("whoami")
    same(who["session"]["name"], "owner", "the session")
    same(show(SERVICE, "ActiveState"), "active", "the service")
    same(who["daemon"]["pid"], daemon_pid(), "the daemon's process")
    status = answered("status")
    same(status["activation"], "init", "activation")
    same(status["sockets"], [SOCKET], "sockets")


@check("the socket is 0600 and the user's, and lies apart from the token's directory")
def _():
    serving()
    for path, kind, mode in [(SOCKET, stat.S_ISSOCK, 0o600), (STATE, stat.S_ISDIR, 0o700), (TOKEN, stat.S_ISREG, 0o600)]:
        found = os.lstat(path)
        assert kind(found.st_mode), f"{path} is something else"
        same(oct(stat.S_IMODE(found.st_mode)), oct(mode), f"the mode of {path}")
        same(found.st_uid, TESTER, f"the owner of {path}")


@check("a stopped socket unit is an error with advice to every client, and nobody starts a daemon of their own")
def _():
    serving()
    systemctl("stop", SOCKET_UNIT)
    refused = authsock("whoami")
    same(refused.returncode, 3, f"the exit code: {refused.stderr.strip()}")
    assert "systemctl --user restart authsock.socket" in refused.stderr, refused.stderr
    assert not os.path.exists(f"{RUNTIME}/authsock-ondemand.sock"), "a client started a daemon"
    # Requires= in the service: without its socket it would be of no use to anybody.
    until("the service stops with its socket", lambda: show(SERVICE, "ActiveState") == "inactive")


# --- the token ----------------------------------------------------------------------------------


def kill_daemon():
    os.kill(daemon_pid(), signal.SIGKILL)


def idle_out():
    configure("[lifecycle]\nidle_exit_seconds = 1\n")
    systemctl("reload", SERVICE)
    until("the daemon leaves when it is idle", lambda: show(SERVICE, "ActiveState") == "inactive")
    same(show(SERVICE, "Result"), "success", "the end of an idle daemon")


def token_is_kept(act, restarts=0):
    old = serving()
    before = token_file()
    act()
    new = answered("whoami")["daemon"]["pid"]
    assert new != old, "it is still the same process"
    same(token_file(), before, "inode, mode, owner and text of the token")
    assert_healthy(restarts)


@check("the token is the same file with the same text after systemctl restart")
def _():
    token_is_kept(lambda: systemctl("restart", SERVICE))


@check("the token is the same file with the same text after a stop, when the next client starts the service")
def _():
    def stop():
        systemctl("stop", SERVICE)
        same(show(SERVICE, "ActiveState"), "inactive", "the service")

    token_is_kept(stop)


@check("the token is the same file with the same text after kill -9, and a client at that moment is answered")
def _():
    token_is_kept(kill_daemon, restarts=1)


@check("the token is the same file with the same text after an idle exit")
def _():
    token_is_kept(idle_out)


@check("the token is the same file with the same text after a restart of the socket unit")
def _():
    token_is_kept(lambda: systemctl("restart", SOCKET_UNIT))


@check("the token is the same file with the same text after both units were stopped")
def _():
    token_is_kept(lambda: (systemctl("stop", SOCKET_UNIT, SERVICE), systemctl("start", SOCKET_UNIT)))


@check("the token is the same file with the same text after the manager executed itself anew")
def _():
    def reexec():
        systemctl("daemon-reexec")
        systemctl("restart", SERVICE)

    token_is_kept(reexec)


# --- crowds -------------------------------------------------------------------------------------

CLIENTS, ROUNDS, BY_COMMAND_LINE = 1000, 25, 120


def crowd(secret, rounds):
    """Runs in a process of the user: each round's clients at their moments, one thread for each.
    A round begins so long after the end of the one before that the daemon is just leaving."""
    environment = {"HOME": HOME, "XDG_RUNTIME_DIR": RUNTIME, "PATH": os.environ["PATH"]}
    troubles, served = [], 0

    def client(moment, by_command_line):
        time.sleep(max(0.0, moment - time.monotonic()))
        try:
            if by_command_line:
                words = ["authsock", "whoami", "--json"]
                done = subprocess.run(words, env=environment, capture_output=True, text=True, timeout=60, check=False)
                return None if done.returncode == 0 else f"command line: {done.returncode}: {done.stderr.strip()}"
            found = ask(secret)
            return None if found == PONG else f"raw: {found}"
        except Exception as error:  # a client that is lost must be told, not end the crowd
            return f"{'command line' if by_command_line else 'raw'}: {error!r}"

    with ThreadPoolExecutor(max_workers=64) as threads:
        for pause, clients in rounds:
            start = time.monotonic() + pause
            results = [threads.submit(client, start + offset, by_command_line) for offset, by_command_line in clients]
            for result in results:
                trouble = result.result()
                served += trouble is None
                if trouble:
                    troubles.append(trouble)
    return {"served": served, "troubles": troubles}


@check(f"of {CLIENTS} clients that arrive at random moments across idle exits none is refused and none is lost")
def _():
    serving("[lifecycle]\nidle_exit_seconds = 1\n")
    choose = random.Random(SEED)
    by_command_line = set(choose.sample(range(CLIENTS), BY_COMMAND_LINE))
    share = CLIENTS // ROUNDS
    rounds = []
    for turn in range(ROUNDS):
        clients = [(choose.uniform(0, 0.3), turn * share + place in by_command_line) for place in range(share)]
        # The daemon counts a second from its last client's end.
        rounds.append((choose.uniform(0.9, 1.3), clients))
    secret, before, since = token(), token_file(), journal_now()
    _, found = in_process_of(TESTER, lambda: crowd(secret, rounds))
    started = journal(since, AUTHSOCK_EVENT="serving")
    idle = journal(since, AUTHSOCK_EVENT="stopping", AUTHSOCK_REASON="idle")
    print(f"      {found['served']} answered, {len(started)} activations, {len(idle)} idle exits, seed {SEED}")
    same((found["served"], found["troubles"][:5]), (CLIENTS, []), f"answered, and troubles (seed {SEED})")
    assert len(started) >= 10, f"only {len(started)} activations: idle exits were not met (seed {SEED})"
    same(token_file(), before, "the token")
    assert_healthy()


@check("of 400 clients that arrive while the service is restarted again and again none is refused and none is lost")
def _():
    serving()
    choose = random.Random(SEED)
    clients = [(choose.uniform(0, 4), turn % 8 == 0) for turn in range(400)]
    secret, since = token(), journal_now()
    words = "while systemctl --user restart authsock.service; do sleep 0.1; done"
    with subprocess.Popen(["as-tester", "sh", "-c", words], stderr=subprocess.DEVNULL) as restarting:
        try:
            _, found = in_process_of(TESTER, lambda: crowd(secret, [(0, clients)]))
        finally:
            restarting.kill()
    started = journal(since, AUTHSOCK_EVENT="serving")
    print(f"      {found['served']} answered, {len(started)} starts, seed {SEED}")
    same((found["served"], found["troubles"][:5]), (400, []), f"answered, and troubles (seed {SEED})")
    assert len(started) >= 5, f"only {len(started)} starts"
    assert_healthy()


# --- strangers ----------------------------------------------------------------------------------


def connect_and_wait(words=b""):
    """Says what it is given, waits for what it is told; run as somebody else."""
    stream = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    stream.settimeout(PATIENCE)
    try:
        stream.connect(SOCKET)
    except OSError as error:
        return {"errno": error.errno}
    with contextlib.suppress(BrokenPipeError):
        stream.sendall(words)
    heard = b""
    while True:
        with contextlib.suppress(ConnectionResetError):
            more = stream.recv(4096)
            heard += more
            if more:
                continue
        return {"heard": heard.decode()}


def open_all_other_guards(config=""):
    """Only the check of the peer is left to refuse anybody."""
    pid = serving(config, authsock__socket="[Socket]\nSocketMode=0666\n")
    os.chmod(RUNTIME, 0o711)
    return pid


def refused_as_peer(uid, words=b""):
    since = journal_now()
    pid, found = in_process_of(uid, lambda: connect_and_wait(words))
    line, rest = found["heard"].split("\n", 1)
    result = json.loads(line)
    same((result["success"], result["error"]["code"], rest), (False, "peer_denied", ""), "what it was told")
    entries = logged(since, AUTHSOCK_EVENT="refused", AUTHSOCK_PEER_UID=uid, AUTHSOCK_PEER_PID=pid)
    same(len(entries), 1, "entries in the journal")
    assert f"uid {uid}" in entries[0]["AUTHSOCK_REASON"], entries[0]["AUTHSOCK_REASON"]
    same(entries[0]["_SYSTEMD_USER_UNIT"], SERVICE, "the unit that the journal files it under")


@check("another user cannot even connect: the directory is the user's, and so is the socket in it")
def _():
    serving()
    since = journal_now()
    same(in_process_of(OTHER, connect_and_wait)[1], {"errno": 13}, "behind the directory")
    os.chmod(RUNTIME, 0o711)
    same(in_process_of(OTHER, connect_and_wait)[1], {"errno": 13}, "at the socket")
    same(journal(since, AUTHSOCK_EVENT="refused"), [], "what the daemon heard of it")


@check("with every other guard open another user is refused before a byte is read, and the journal names it")
def _():
    pid = open_all_other_guards()
    refused_as_peer(OTHER)
    same(daemon_pid(), pid, "the daemon")


@check("another user is refused even with the owner's token")
def _():
    open_all_other_guards()
    refused_as_peer(OTHER, json.dumps({"type": "auth", "token": token()}).encode() + b"\n")


@check("another user is refused by a daemon that cannot serve, too")
def _():
    ground("nonsense", authsock__socket="[Socket]\nSocketMode=0666\n")
    os.chmod(RUNTIME, 0o711)
    refused_as_peer(OTHER)


@check("another user's connection that starts the daemon is refused all the same")
def _():
    open_all_other_guards()
    systemctl("stop", SERVICE)
    refused_as_peer(OTHER)
    same(show(SERVICE, "ActiveState"), "active", "the service")


@check("root is refused by default before a byte is read, and the journal names it")
def _():
    serving()
    refused_as_peer(0)


@check("root is admitted with allow_root, but not without a token")
def _():
    serving("[policy]\nallow_root = true\n")
    same(ask(token(), uid=0), PONG, "root with the token")
    same(ask("0" * 64, uid=0), "denied", "root with another")


# --- a daemon that cannot serve -----------------------------------------------------------------


def all_are_told_unavailable(reason, code=3, words="the daemon cannot serve"):
    """25 clients in a row, of both kinds; returns the daemon's pid. `code` and `words` are what the
    command line ends with."""
    for turn in range(25):
        if turn % 2 == 0:
            same(ask("0" * 64), "unavailable", f"raw client {turn}")
        else:
            done = authsock("whoami")
            same((done.returncode, done.stdout), (code, ""), f"command line {turn}: {done.stderr.strip()}")
            assert words in done.stderr, f"command line {turn}: {done.stderr.strip()}"
    pid = daemon_pid()
    status = systemctl("status", "--full", SERVICE)
    line = next((line for line in status.splitlines() if "Status:" in line), "")
    assert "cannot serve" in line and reason in line, f"systemctl status: {line!r}"
    assert_healthy()
    return pid


def heals(pid):
    # It looks again at a client's coming, once a second at most.
    until("a client is served again", lambda: authsock("whoami").returncode == 0)
    same(daemon_pid(), pid, "the daemon's process")
    until("the status says so", lambda: show(SERVICE, "StatusText").startswith("serving"))
    assert_healthy()


@check("a broken configuration is told to 25 clients in a row as unavailable, and mending it heals without a restart")
def _():
    ground("[policy]\nallow_rot = true\n")
    since = journal_now()
    pid = all_are_told_unavailable("allow_rot")
    entries = journal(since, AUTHSOCK_EVENT="cannot_serve")
    assert entries and all("allow_rot" in entry["AUTHSOCK_REASON"] for entry in entries), "the journal's reason"
    configure("[policy]\nallow_root = false\n")
    heals(pid)
    logged(since, AUTHSOCK_EVENT="healed")


@check("a broken configuration that is mended heals at a reload, without any client")
def _():
    ground("nonsense")
    same(ask("0" * 64), "unavailable", "the client")
    pid = daemon_pid()
    configure("")
    systemctl("reload", SERVICE)
    until("the status says so", lambda: show(SERVICE, "StatusText").startswith("serving"))
    same(daemon_pid(), pid, "the daemon's process")


@check("a token file that others may read is left untouched, answered with unavailable, and heals after chmod 600")
def _():
    serving()
    before = token_file()
    systemctl("stop", SERVICE)
    os.chmod(TOKEN, 0o644)
    try:
        spoilt = token_file()
        # Our own clients find that out by themselves, and send no token from such a file.
        pid = all_are_told_unavailable(TOKEN, 4, "chmod 600")
        same(token_file(), spoilt, "the file that cannot be used")
    finally:
        os.chmod(TOKEN, 0o600)
    heals(pid)
    same(token_file(), before, "the file")


@check("a token file that is a link is left untouched, and the file it leads to as well")
def _():
    serving()
    systemctl("stop", SERVICE)
    os.rename(TOKEN, f"{STATE}/elsewhere")
    os.symlink("elsewhere", TOKEN)
    try:
        pid = all_are_told_unavailable(TOKEN, 4, TOKEN)
        same(os.readlink(TOKEN), "elsewhere", "the link")
    finally:
        os.unlink(TOKEN)
        os.rename(f"{STATE}/elsewhere", TOKEN)
    heals(pid)


@check("a program that fails at once is tried again at leisure, its client is told where to look, and mending it is enough")
def _():
    ground(authsock__service="[Service]\nExecStart=\nExecStart=/bin/false\n")
    began = time.monotonic()
    done = authsock("--timeout", "4", "whoami")
    restarts, elapsed = int(show(SERVICE, "NRestarts")), time.monotonic() - began
    same((done.returncode, done.stdout), (3, ""), f"the command line: {done.stderr.strip()}")
    assert "systemctl --user status" in done.stderr, done.stderr
    assert 1 <= restarts <= elapsed + 1, f"{restarts} restarts in {elapsed:.1f} s"
    same(show(SOCKET_UNIT, "ActiveState"), "active", "the socket unit")
    os.unlink(f"{DROPINS}/{SERVICE}.d/check.conf")
    systemctl("daemon-reload")
    same(answered("status")["activation"], "init", "activation")


# --- life ---------------------------------------------------------------------------------------


def status_text(wanted):
    until(f"the status says {wanted!r}, not {show(SERVICE, 'StatusText')!r}", lambda: wanted in show(SERVICE, "StatusText"))


@check("the status counts connections and sessions")
def _():
    serving()
    status_text("serving: 0 connections, 0 sessions")
    with Raw() as one, Raw() as two:
        one.enter(token())
        two.enter(token())
        status_text("serving: 2 connections, 0 sessions")
    words = ["as-tester", "authsock", "run", "--name", "counted", "--", "cat"]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL) as session:
        status_text("1 session")
        session.stdin.close()
    status_text("serving: 0 connections, 0 sessions")


@check("a reload reads the configuration again")
def _():
    pid = serving()
    same(ask(token()), PONG, "a plain token before")
    configure('[handshake]\nplain = "none"\n')
    since = journal_now()
    systemctl("reload", SERVICE)
    logged(since, AUTHSOCK_EVENT="reloaded")
    same(ask(token()), "not_permitted", "a plain token after")
    same(daemon_pid(), pid, "the daemon's process")
    same(show(SERVICE, "ActiveState"), "active", "the service")


@check("a reload of a broken configuration changes nothing, and the status complains until it is mended")
def _():
    pid = serving('[handshake]\nplain = "none"\n')
    configure("[handshake]\nplane = 1\n")
    systemctl("reload", SERVICE)
    status_text("reload failed")
    status_text("plane")
    same(ask(token()), "not_permitted", "a plain token")
    same(authsock("whoami").returncode, 0, "the command line")
    configure("")
    systemctl("reload", SERVICE)
    until("the complaint is withdrawn", lambda: "reload failed" not in show(SERVICE, "StatusText"))
    same(ask(token()), PONG, "a plain token after")
    same(daemon_pid(), pid, "the daemon's process")


@check("the watchdog is fed while the daemon has nothing else to do")
def _():
    pid = serving(authsock__service="[Service]\nWatchdogSec=1\n")
    seen = set()

    def fed():
        seen.add(show(SERVICE, "WatchdogTimestampMonotonic"))
        return len(seen) >= 6

    until("it was fed six times", fed)
    same(daemon_pid(), pid, "the daemon's process")
    assert_healthy()


@check("a daemon that hangs is ended by the watchdog and started again with its token")
def _():
    pid = serving(authsock__service="[Service]\nWatchdogSec=1\n")
    before = token_file()
    os.kill(pid, signal.SIGSTOP)
    until("another daemon runs", lambda: daemon_pid() not in (0, pid))
    answered("whoami")
    same(token_file(), before, "the token")
    assert_healthy(restarts=1)


@check("SIGTERM while requests are under way: each is answered, then the daemon ends well")
def _():
    pid = serving()
    with contextlib.ExitStack() as stack:
        connections = [stack.enter_context(Raw()) for _ in range(40)]
        for connection in connections:
            connection.enter(token())
        for known in connections[::2]:
            known.send(request("ping"))
            same(known.receive()["result"], PONG, "before")
        # They ask before it is told to end, but it can only look afterwards.
        os.kill(pid, signal.SIGSTOP)
        for connection in connections:
            connection.send(request("ping"))
        os.kill(pid, signal.SIGTERM)
        os.kill(pid, signal.SIGCONT)
        answers = [(connection.receive() or {}).get("result") == PONG for connection in connections]
        same(answers.count(True), len(answers), "answered")
        same([connection.receive() for connection in connections], [None] * len(answers), "what comes after")
    until("the daemon has ended", lambda: show(SERVICE, "ActiveState") == "inactive")
    same(show(SERVICE, "Result"), "success", "its end")
    assert_healthy()


@check("while the daemon drains systemd knows that it stops, and a client that comes then is served by the next")
def _():
    pid = serving()
    with Raw() as quiet:
        quiet.enter(token())
        os.kill(pid, signal.SIGTERM)
        until("systemd knows", lambda: show(SERVICE, "ActiveState") == "deactivating")
        assert show(SERVICE, "StatusText").startswith("stopping"), show(SERVICE, "StatusText")
        late = answered("whoami")["daemon"]["pid"]
        assert late != pid, "the old one answered"
        # It had not asked anything yet, and was let wait for a moment.
        same(quiet.receive(), None, "the old connection")
    same(daemon_pid(), late, "the daemon")
    assert_healthy()


@check("systemctl stop ends a daemon with a hundred open connections well within its time")
def _():
    serving()
    secret = token()
    with contextlib.ExitStack() as stack:
        for _ in range(100):
            stack.enter_context(Raw()).enter(secret)
        systemctl("stop", SERVICE)
        same(show(SERVICE, "Result"), "success", "its end")


# --- sessions and secrets -----------------------------------------------------------------------


def assert_no_secret_in_processes():
    for place in ("cmdline", "environ"):
        for path in glob.glob(f"/proc/[0-9]*/{place}"):
            with contextlib.suppress(OSError), open(path, "rb") as file:
                text = file.read().decode(errors="replace")
                assert not any(secret in text for secret in secrets), f"a token stands in {path}"


@check("a session's beginning and end stand in the journal under its id, and no token in any command line or environment")
def _():
    serving()
    token()
    since = journal_now()
    inside = 'cat "$AUTHSOCK_TOKEN_FILE"; echo; authsock whoami --json; read -r _'
    words = ["as-tester", "authsock", "run", "--name", "noted", "--", "sh", "-c", inside]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as session:
        secret = session.stdout.readline().strip()
        assert re.fullmatch("[0-9a-f]{64}", secret), "no token came out of the session's file"
        secrets.add(secret)
        text = ""
        while True:
            text += session.stdout.readline()
            with contextlib.suppress(ValueError):
                who = json.loads(text)
                break
        same(who["session"]["name"], "noted", "the session")
        assert_no_secret_in_processes()
        started = logged(since, AUTHSOCK_EVENT="session_started", AUTHSOCK_SESSION=who["session"]["id"])
        same(started[0]["AUTHSOCK_PEER_UID"], str(TESTER), "its user")
        same(started[0]["AUTHSOCK_PEER_PID"], str(who["session"]["leader"]["pid"]), "its leader")
        session.stdin.close()
    ended = logged(since, AUTHSOCK_EVENT="session_ended", AUTHSOCK_SESSION=who["session"]["id"])
    assert ended[0]["AUTHSOCK_REASON"], "no reason"


@check("what systemd-run starts from a session is outside of it as a service, and inside as a scope")
def _():
    serving()
    token()
    # The session's token and the owner's, each with what came of it.
    probe = f'for token in "$1" {TOKEN}; do AUTHSOCK_TOKEN=$(cat "$token") authsock --socket {SOCKET} whoami 2>&1 | tr "\\n" " "; echo; done'
    inside = f"""
probe() {{ env -u AUTHSOCK_TOKEN_FILE -u AUTHSOCK_SOCKET "$@" sh -c '{probe}' probe "$token"; }}
token=$AUTHSOCK_TOKEN_FILE
probe systemd-run --user --quiet --collect --wait --pipe
probe systemd-run --user --quiet --collect --scope
systemd-run --user --quiet --collect --wait --pipe authsock whoami --json | tr -d '\\n'; echo
"""
    done = run("as-tester", "authsock", "run", "--name", "starting", "--", "sh", "-c", inside)
    same(done.returncode, 0, done.stderr)
    lines = done.stdout.splitlines()
    same(len(lines), 5, f"answers: {done.stdout} {done.stderr}")
    for found, wanted in zip(lines, ("refused: binding", "(owner)", "starting", "refused: binding", '"owner"')):
        assert wanted in found, f"{found!r} without {wanted!r}: {lines}"


@check("a session's program notices nothing of a restart, a kill and a restart of the socket unit")
def _():
    serving()
    token()
    inside = "while read -r _; do authsock whoami --json | tr -d '\\n'; echo; done"
    words = ["as-tester", "authsock", "run", "--name", "lasting", "--", "sh", "-c", inside]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1) as session:

        def whoami():
            session.stdin.write("\n")
            return json.loads(session.stdout.readline())

        first = whoami()
        for act in (
            lambda: systemctl("restart", SERVICE),
            kill_daemon,
            lambda: systemctl("restart", SOCKET_UNIT),
        ):
            before = whoami()["daemon"]["pid"]
            act()
            who = whoami()
            assert who["daemon"]["pid"] != before, "it is the same daemon"
            same(who["session"], first["session"], "the session")
        since = journal_now()
        session.stdin.close()
    ended = logged(since, AUTHSOCK_EVENT="session_ended", AUTHSOCK_SESSION=first["session"]["id"])
    same(ended[0]["AUTHSOCK_REASON"], "leader_exited", "its end")


@check("logs shows the daemon's journal to those who may read it, and tells the others how they may")
def _():
    serving()
    answered("whoami")
    run("journalctl", "--sync")
    words = ("authsock", "logs", "-n", "50")
    own = run("as-tester", *words)
    # Where there is a journal on disk users have their own; here there may be none.
    own_files = glob.glob(f"/var/log/journal/*/user-{TESTER}.journal")
    same("systemd-journal" in own.stderr, not own_files, "that it explains itself")
    member = run(
        *("setpriv", f"--reuid={TESTER}", f"--regid={TESTER}", "--groups=systemd-journal"),
        *("env", f"XDG_RUNTIME_DIR={RUNTIME}", f"HOME={HOME}", *words),
    )
    for done in [member] + [own] * bool(own_files):
        assert "serving on" in done.stdout, f"{done.stdout!r} {done.stderr!r}"
        assert "usermod" not in done.stderr, done.stderr


@check("the owner's token is rotated in place, and the next daemon goes by the new one")
def _():
    serving()
    old = token()
    same(authsock("token", "rotate", "--now").returncode, 0, "token rotate")
    assert token() != old, "it is the same token"
    same(oct(stat.S_IMODE(os.stat(TOKEN).st_mode)), "0o600", "its mode")
    same(ask(old), "revoked", "the old one")
    systemctl("restart", SERVICE)
    same(ask(old), "revoked", "the old one after a restart")
    same(ask(token()), PONG, "the new one")


# --- confinement --------------------------------------------------------------------------------


def tries(*options):
    """Which of the ways to the user's systemd and session bus a program in a session gets through by."""
    started = "systemd-run --user --wait --pipe --quiet cat /proc/self/status"
    bus = f"DBUS_SESSION_BUS_ADDRESS=unix:path={RUNTIME}/bus"
    ways = {
        "systemd-run": started, "systemd-run by a variable": f"{bus} {started}",
        "systemctl": "systemctl --user show --property Version",
        "the bus": "busctl --user list", "the bus by a variable": f"{bus} busctl --user list",
        "the journal": "systemd-cat true",
    }
    inside = "\n".join(f"({way}) </dev/null >/dev/null 2>&1 && echo '{name}'" for name, way in ways.items())
    done = authsock("run", *options, "--", "sh", "-c", f"authsock whoami >/dev/null || exit 1\n{inside}\ntrue")
    same(done.returncode, 0, done.stderr)
    return set(done.stdout.splitlines()), set(ways)


@check("a program in a session has systemd start others outside of it, and a confined one cannot: confine")
def _():
    serving()
    got, ways = tries()
    same(got, ways, "what a program gets that is not confined")
    got, _ = tries("--confine")
    same(got, {"the journal"}, "what a confined program gets")


@check("a confined session goes on when the daemon ends and when another takes its place: confine")
def _():
    serving()
    before = daemon_pid()
    again = "until authsock whoami; do :; done"
    inside = f"authsock whoami | head -n1; read line; {again} | head -n1; read line; {again} | head -n1; ls -A {RUNTIME}"
    words = ["as-tester", "authsock", "run", "--confine", "--name", "kept", "--", "sh", "-c", inside]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as program:
        try:
            assert "kept" in program.stdout.readline()
            kill_daemon()
            until("another daemon", lambda: answered("whoami")["daemon"]["pid"] != before)
            program.stdin.write("go\n")
            program.stdin.flush()
            assert "kept" in program.stdout.readline()
            # The socket's file is another one then.
            systemctl("restart", SOCKET_UNIT)
            answered("whoami")
            said, _ = program.communicate("go\n", timeout=PATIENCE)
        finally:
            program.kill()
    same(said.count("kept"), 1, said)
    assert said.endswith("authsock-run\nauthsock.sock\n"), said


# --- takeover -----------------------------------------------------------------------------------


def uninstall():
    """As where no unit was ever started: the file that a stopped one leaves is gone."""
    systemctl("stop", SOCKET_UNIT, SERVICE)
    os.unlink(SOCKET)


@check("a daemon that a client started gives way to the unit's, with the same token")
def _():
    ground()
    uninstall()
    first = answered("status")
    same(first["activation"], "on_demand", "activation")
    same(first["sockets"], [f"{RUNTIME}/authsock-ondemand.sock"], "sockets")
    before = token_file()
    same(show(SERVICE, "ActiveState"), "inactive", "the service")
    since = journal_now()
    systemctl("start", SOCKET_UNIT)
    second = answered("status")
    same(second["activation"], "init", "activation")
    same(second["pid"], daemon_pid(), "the daemon's process")
    until("the other daemon has ended", lambda: not os.path.exists(f"/proc/{first['pid']}"))
    assert not os.path.exists(f"{RUNTIME}/authsock-ondemand.sock"), "its socket is still there"
    same(token_file(), before, "the token")
    logged(since, AUTHSOCK_EVENT="takeover")
    assert_healthy()


@check("a daemon that a client started gives way even while a connection to it is open")
def _():
    ground()
    uninstall()
    first = answered("status")
    with Raw(f"{RUNTIME}/authsock-ondemand.sock") as open_one:
        open_one.enter(token())
        systemctl("start", SOCKET_UNIT)
        same(answered("status")["activation"], "init", "activation")
        same(open_one.receive(), None, "the open connection")
    until("the other daemon has ended", lambda: not os.path.exists(f"/proc/{first['pid']}"))
    assert_healthy()


# --- several sockets ----------------------------------------------------------------------------


@check("a second ListenStream of the unit is served like the first")
def _():
    serving(authsock__socket="[Socket]\nListenStream=%t/authsock-second.sock\n")
    same(answered("status")["sockets"], [SOCKET, f"{RUNTIME}/authsock-second.sock"], "sockets")
    for path in (SOCKET, f"{RUNTIME}/authsock-second.sock"):
        same(ask(token(), path=path), PONG, path)
        same(answered("--socket", path, "whoami")["session"]["name"], "owner", path)


@check("a socket that is named for a service that nobody configured answers unknown_service, and the status says so")
def _():
    unit = "[Socket]\nListenStream=%t/authsock-other.sock\nSocketMode=0600\nRemoveOnStop=yes\n"
    serving(authsock_other__socket=unit + f"FileDescriptorName=other\nService={SERVICE}\n")
    same(ask(token(), path=f"{RUNTIME}/authsock-other.sock"), "unknown_service", "there")
    same(ask(token()), PONG, "at the usual place")
    status_text('named "other"')


@check("a datagram socket is named as an error and keeps nobody from the others")
def _():
    since = journal_now()
    serving(authsock__socket="[Socket]\nListenDatagram=%t/authsock-datagram.sock\n")
    same(ask(token()), PONG, "at the usual place")
    status_text("descriptor 4")
    status_text("not of type stream")
    rejected = logged(since, AUTHSOCK_EVENT="socket_rejected")
    assert "descriptor 4" in rejected[0]["MESSAGE"], rejected[0]["MESSAGE"]
    assert_healthy()


# --- the end ------------------------------------------------------------------------------------


@check("in the whole journal and in the log of daemons that clients started there is not one token, be it the owner's or a session's")
def _():
    assert secrets, "no token was seen"
    run("journalctl", "--sync")
    text = run("journalctl", "-oexport", "--all").stdout.lower()
    assert "authsock_event=refused" in text, "the journal was not read"
    same(sum(secret in text for secret in secrets), 0, "tokens in the journal")
    with open(f"{HOME}/.local/state/authsock/log", encoding="utf-8", errors="replace") as file:
        text = file.read().lower()
    assert "serving on" in text, "the log was not read"
    same(sum(secret in text for secret in secrets), 0, "tokens in the log")

if __name__ == "__main__":
    sys.exit(main(NOT_HARDENED, unit_journal))
