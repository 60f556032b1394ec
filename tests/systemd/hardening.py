#!/usr/bin/env python3
"""Shows under a real systemd what the units cost and buy in hardening, for a user and for the machine.

Each check is a sentence on ground of its own. What the daemon of the machine does for users is for
system.py to show.
"""

import json
import os
import re
import shutil
import stat
import subprocess
import sys

from stage import check, main, run, same, secrets
from tester import (
    OTHER, PONG, RUNTIME, SERVICE, SOCKET_UNIT, TESTER, answered, ask, authsock, configure, ground, show, systemctl, token,
    unit_journal,
)

SYSTEM = "/etc/systemd/system/authsock.service.d"


def exposure(what, ceiling, *words):
    done = run(*words, "--no-pager", "security", SERVICE)
    overall = re.search(r"Overall exposure level for \S+: ([0-9.]+)", done.stdout)
    assert overall, f"no figure: {done.stdout[-300:]}{done.stderr}"
    print(f"      systemd-analyze security, {what}: {overall.group(1)}")
    assert float(overall.group(1)) <= ceiling, f"{overall.group(1)} is more than {ceiling}"


def harden_user(config="", **units):
    with open("/opt/user/hardened.conf", encoding="utf-8") as file:
        ground(config, authsock__service=file.read(), **units)


def root_ctl(*words):
    done = run("systemctl", "--no-pager", *words)
    assert done.returncode == 0, f"systemctl {' '.join(words)}: {done.stderr.strip()}"


def of_the_machine(hardened):
    """The machine's socket and a daemon on it."""
    run("systemctl", "stop", SOCKET_UNIT, SERVICE)
    shutil.rmtree(SYSTEM, ignore_errors=True)
    os.makedirs(SYSTEM)
    if hardened:
        shutil.copyfile("/opt/system/hardened.conf", f"{SYSTEM}/hardened.conf")
    root_ctl("daemon-reload")
    root_ctl("start", SOCKET_UNIT)


def serves_the_machine():
    same(ask("0" * 64, path="/run/authsock.sock", uid=0), "denied", "a client that starts the daemon")
    with open("/run/authsock/token", encoding="ascii") as file:
        secret = file.read()
    secrets.add(secret)
    same(oct(os.stat("/run/authsock").st_mode & 0o7777), "0o711", "the mode of /run/authsock")
    root_ctl("reload", SERVICE)
    same(ask(secret, path="/run/authsock.sock", uid=0), PONG, "a client after a reload")
    root_ctl("stop", SERVICE)
    same(ask(secret, path="/run/authsock.sock", uid=0), PONG, "a client with the same token after a stop")


@check("systemd has nothing to say of the user's units, nor with hardened.conf")
def _():
    for prepare in (ground, harden_user):
        prepare()
        done = run("as-tester", "systemd-analyze", "--user", "--man=no", "verify", SOCKET_UNIT, SERVICE)
        same((done.stdout + done.stderr).strip(), "", "systemd-analyze --user verify")


@check("systemd has nothing to say of the machine's units, nor with hardened.conf")
def _():
    for hardened in (False, True):
        of_the_machine(hardened)
        done = run("systemd-analyze", "--man=no", "verify", SOCKET_UNIT, SERVICE)
        same((done.stdout + done.stderr).strip(), "", "systemd-analyze verify")


@check("the exposure of the user's daemon is at most 6.5")
def _():
    ground()
    exposure("the user's service", 6.5, "as-tester", "systemd-analyze", "--user")


@check("the exposure of the user's daemon under hardened.conf is at most 1.5, and it serves and reloads")
def _():
    harden_user()
    exposure("the user's service with hardened.conf", 1.5, "as-tester", "systemd-analyze", "--user")
    same(ask("0" * 64), "denied", "a client that starts the daemon")
    systemctl("reload", SERVICE)
    same(ask(token()), PONG, "a client after a reload")
    same(show(SERVICE, "PrivateUsers"), "yes", "PrivateUsers")


def directory_of_a_session():
    done = authsock("run", "--name", "placed", "--", "authsock", "whoami", "--json")
    same(done.returncode, 0, f"run: {done.stderr.strip()}")
    return json.loads(done.stdout)["session"].get("cwd")


@check("the working directory of a session is known, and not under hardened.conf")
def _():
    ground()
    assert directory_of_a_session(), "it is unknown"
    harden_user()
    same(directory_of_a_session(), None, "it, under hardened.conf")


@check("under hardened.conf root and another user are refused before anything else, whatever the policy says of root")
def _():
    harden_user("[policy]\nallow_root = true\n", authsock__socket="[Socket]\nSocketMode=0666\n")
    same(ask("0" * 64), "denied", "the user")
    os.chmod(RUNTIME, 0o711)
    for uid in (0, OTHER):
        same(ask(token(), uid=uid), "peer_denied", f"uid {uid}")


@check("a stolen token is refused outside of its session under hardened.conf too")
def _():
    harden_user()
    script = "cat \"$AUTHSOCK_TOKEN_FILE\"; echo; read -r _"
    words = ["as-tester", "authsock", "run", "--", "sh", "-c", script]
    pipe = subprocess.PIPE
    with subprocess.Popen(words, stdin=pipe, stdout=pipe, text=True) as session:
        secret = session.stdout.readline().strip()
        assert re.fullmatch("[0-9a-f]{64}", secret), "no token came out of the session's file"
        secrets.add(secret)
        same(ask(secret), "binding", "the thief")
        session.stdin.close()


@check("the exposure of the machine's daemon is at most 1.6, and it serves, reloads, and keeps its token")
def _():
    of_the_machine(hardened=False)
    exposure("the machine's service", 1.6, "systemd-analyze")
    serves_the_machine()


@check("the exposure of the machine's daemon under hardened.conf is at most 1.5, and it does the same")
def _():
    of_the_machine(hardened=True)
    exposure("the machine's service with hardened.conf", 1.5, "systemd-analyze")
    serves_the_machine()


@check("whoever is the machine's daemon reaches none of systemd's sockets that do anything, nor the system bus, hardened or not")
def _():
    found = "/run/authsock/reached"
    script = "/opt/reach.py"
    below = [f"{top}/{name}" for root in ("/run/systemd", "/run/dbus") for top, _, names in os.walk(root) for name in names]
    sockets = sorted(path for path in below if stat.S_ISSOCK(os.lstat(path).st_mode))
    assert "/run/systemd/private" in sockets and "/run/systemd/notify" in sockets, sockets
    needed = ("/run/systemd/notify", "/run/systemd/journal/", "/run/systemd/userdb/io.systemd.Multiplexer",
              "/run/systemd/userdb/io.systemd.NameServiceSwitch")
    for hardened in (False, True):
        of_the_machine(hardened)
        run("systemctl", "stop", SERVICE)
        with open(f"{SYSTEM}/reach.conf", "w", encoding="utf-8") as file:
            file.write(f"[Service]\nExecStartPre=/usr/bin/python3 -B {script} {found} {' '.join(sockets)}\n")
        root_ctl("daemon-reload")
        serves_the_machine()
        with open(found, encoding="utf-8") as file:
            reached = json.load(file)
        os.unlink(found)
        same([path for path in reached if not path.startswith(needed)], [], "what the daemon reaches beside what it needs")
        # This one shows that the probe can reach what is not closed.
        assert "/run/systemd/notify" in reached, reached


def version():
    return int(re.search(r"systemd (\d+)", run("systemctl", "--version").stdout).group(1))


@check("with notify-reload.conf, where systemd knows the type, a reload returns when the new configuration holds")
def _():
    if version() < 253:
        return
    with open("/opt/user/notify-reload.conf", encoding="utf-8") as file:
        ground("", authsock__service=file.read())
    done = run("as-tester", "systemd-analyze", "--user", "--man=no", "verify", SOCKET_UNIT, SERVICE)
    same((done.stdout + done.stderr).strip(), "", "systemd-analyze --user verify")
    same(authsock("whoami").returncode, 0, "a client")
    same(show(SERVICE, "Type"), "notify-reload", "the type")
    for seconds in range(100, 110):
        configure(f"[lifecycle]\nidle_exit_seconds = {seconds}\n")
        systemctl("reload", SERVICE)
        same(answered("status")["idle_exit_seconds"], seconds, "what holds after the reload")


@check("a token that the unit loads as a credential is the owner's, and one that is no token is told to every client")
def _():
    secret = "c5" * 32
    secrets.add(secret)
    path = "/run/given.token"
    with open(path, "w", encoding="ascii") as file:
        file.write(secret)
    os.chown(path, TESTER, TESTER)
    os.chmod(path, 0o600)
    for dropin in (f"LoadCredential=authsock.token:{path}", f"SetCredential=authsock.token:{secret}"):
        ground("", authsock__service=f"[Service]\n{dropin}\n")
        same(authsock("whoami").returncode, 0, dropin.split("=")[0])
        same(answered("status")["token_source"], "credential", "its source")
        assert token() == secret, "clients find another token where they look"
    # Of a directory systemd makes one credential for each file in it, and none of the name that counts.
    os.makedirs("/run/given", exist_ok=True)
    os.chmod("/run/given", 0o755)
    shutil.copy(path, "/run/given/of-a-directory")
    os.chown("/run/given/of-a-directory", TESTER, TESTER)
    ground("", authsock__service="[Service]\nLoadCredential=authsock.token:/run/given\n")
    same(authsock("whoami").returncode, 3, "a client of a daemon whose credential is a directory")
    assert "names a directory" in show(SERVICE, "StatusText"), show(SERVICE, "StatusText")
    ground("", authsock__service="[Service]\nSetCredential=authsock.token:nonsense\n")
    done = authsock("whoami")
    same(done.returncode, 3, f"a client of a daemon without a token: {done.stderr}")
    assert "credentials" in show(SERVICE, "StatusText"), show(SERVICE, "StatusText")


if __name__ == "__main__":
    sys.exit(main(after_failure=unit_journal))
