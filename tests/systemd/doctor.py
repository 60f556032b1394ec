#!/usr/bin/env python3
"""Shows under a real systemd that `authsock doctor` names what is broken there, and leaves everything as it was.

Around every look at the doctor's report
stand two pictures of the user's files, units and processes, which must be the same.
"""

import contextlib
import hashlib
import json
import os
import shutil
import socket
import stat
import subprocess
import sys

from stage import as_user, check, main, run, same, until
from tester import (
    DROPINS, HOME, OTHER, PONG, RUNTIME, Raw, SERVICE, SOCKET, SOCKET_UNIT, TESTER, TOKEN, answered, ask, authsock,
    configure, daemon_pid, ground, in_process_of, serving, show, systemctl, token, unit_journal,
)

STATES = (
    "LoadState ActiveState SubState Result UnitFileState NRestarts NAccepted NConnections NRefused MainPID InvocationID "
    "StateChangeTimestampMonotonic ActiveEnterTimestampMonotonic InactiveEnterTimestampMonotonic NeedDaemonReload"
).split()


def files():
    """Everything below the user's directories: kind and mode, owner, size, time, inode, content."""
    found = {}
    for top in (HOME, RUNTIME, DROPINS):
        for directory, names, others in os.walk(top):
            for path in [directory] + [f"{directory}/{name}" for name in names + others]:
                meta = os.lstat(path)
                content = ""
                if stat.S_ISREG(meta.st_mode):
                    with open(path, "rb") as file:
                        content = hashlib.sha256(file.read()).hexdigest()
                found[path] = (oct(meta.st_mode), meta.st_uid, meta.st_size, meta.st_mtime_ns, meta.st_ino, content)
    return found


def processes():
    """The user's processes, each with the time of its start; one that has ended and waits for its parent to see that has
    ended. (systemd tells that a unit's control process is done before it reaps it.)"""
    found = set()
    for pid in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as file:
                text = file.read()
            fields = text.rsplit(") ", 1)[1].split()
            if os.stat(f"/proc/{pid}").st_uid == TESTER and fields[0] != "Z":
                found.add((pid, fields[19]))
    return found


def units():
    return {unit: systemctl("show", unit, "-p", ",".join(STATES)) for unit in (SOCKET_UNIT, SERVICE)}


def picture():
    return {"files": files(), "processes": processes(), "units": units()}


def doctor(*words):
    """The findings, as (level, id, subject, sentence)."""
    before = picture()
    done = authsock("doctor", "--json", *words)
    after = picture()
    for part, was in before.items():
        if part == "files":
            changed = [path for path in was.keys() | after[part].keys() if was.get(path) != after[part].get(path)]
            same(changed, [], "files that the doctor changed")
        same(after[part], was, f"{part} after the doctor was there")
    assert done.stderr == "", done.stderr
    report = json.loads(done.stdout)
    same(done.returncode, 1 if report["problems"] else 0, "its exit code")
    return [(entry["level"], entry["id"], entry["subject"], entry["says"]) for entry in report["findings"]]


def names(found, level, name, subject):
    assert any((level, name) == entry[:2] and subject in entry[2] for entry in found), f"no {level} {name} about {subject}: {faults(found)}"


def faults(found):
    return [entry for entry in found if entry[0] in ("warning", "problem")]


def healthy(found):
    same([entry for entry in found if entry[0] == "problem"], [], "problems")


@check("a socket that listens and a daemon that nobody has needed yet are healthy, and no daemon is started")
def _():
    ground()
    found = doctor()
    healthy(found)
    names(found, "note", "daemon-not-running", SOCKET)
    same(daemon_pid(), 0, "the daemon")


@check("a daemon that runs is asked, is healthy, and goes on")
def _():
    pid = serving()
    token()
    found = doctor()
    healthy(found)
    assert any(entry[1] == "daemon" and f"process {pid}" in entry[3] for entry in found), found
    same(daemon_pid(), pid, "the daemon")


@check("an enabled socket unit has nothing to be warned of, a disabled one is named")
def _():
    serving()
    names(doctor(), "warning", "unit-disabled", SOCKET_UNIT)
    systemctl("enable", SOCKET_UNIT)
    try:
        same(faults(doctor()), [], "faults")
    finally:
        systemctl("disable", SOCKET_UNIT)


@check("a socket unit that gave up after too many triggers is named with its result")
def _():
    ground(authsock__service="[Service]\nExecStart=\nExecStart=/bin/false\nRestart=no\n")

    def gave_up():
        with contextlib.suppress(OSError):
            with Raw() as raw:
                raw.receive()
        return show(SOCKET_UNIT, "ActiveState") == "failed"

    until("the socket unit gives up", gave_up)
    same(show(SOCKET_UNIT, "Result"), "trigger-limit-hit", "its result")
    found = doctor()
    names(found, "problem", "unit-trigger-limit", SOCKET_UNIT)
    names(found, "problem", "socket-dead", SOCKET)


@check("a socket unit that failed with its service's start limit is named with its result")
def _():
    unit = "[Unit]\nStartLimitIntervalSec=60\nStartLimitBurst=2\n[Service]\nExecStart=\nExecStart=/bin/false\nRestart=no\n"
    ground(authsock__service=unit)

    def gave_up():
        with contextlib.suppress(OSError):
            with Raw() as raw:
                raw.receive()
        return show(SOCKET_UNIT, "ActiveState") == "failed"

    until("the socket unit gives up", gave_up)
    same(show(SOCKET_UNIT, "Result"), "service-start-limit-hit", "its result")
    names(doctor(), "problem", "unit-start-limit", SOCKET_UNIT)


@check("a masked socket unit is named")
def _():
    ground()
    systemctl("stop", SOCKET_UNIT, SERVICE)
    systemctl("mask", SOCKET_UNIT)
    try:
        names(doctor(), "problem", "unit-masked", SOCKET_UNIT)
    finally:
        systemctl("unmask", SOCKET_UNIT)


@check("a stopped socket unit is named, and that nobody listens on what it left")
def _():
    ground()
    systemctl("stop", SOCKET_UNIT, SERVICE)
    found = doctor()
    names(found, "problem", "unit-stopped", SOCKET_UNIT)
    names(found, "problem", "socket-dead", SOCKET)


@check("a program that was removed is named")
def _():
    ground(authsock__service="[Service]\nExecStart=\nExecStart=/usr/bin/no-such-authsock serve\n")
    names(doctor(), "problem", "program-missing", "/usr/bin/no-such-authsock")


@check("a service that ends again and again is named with its result, and nobody is told to start it once more")
def _():
    ground(authsock__service="[Service]\nExecStart=\nExecStart=/bin/false\nRestart=on-failure\nRestartSec=600\n")
    with contextlib.suppress(OSError):
        with Raw():
            until("systemd waits to start it again", lambda: show(SERVICE, "SubState").startswith("auto-restart"))
    found = doctor()
    names(found, "problem", "unit-restarting", SERVICE)
    assert any(entry[1] == "unit-restarting" and "exit-code" in entry[3] for entry in found), found
    assert not any(entry[1] == "daemon-unreachable" for entry in found), found


@check("a program that others could replace, or that was replaced under the daemon, is named")
def _():
    # Not below /tmp, where anybody may take a name that was given up.
    path = "/opt/authsock-of-its-own"
    shutil.copy("/usr/bin/authsock", path)
    try:
        serving(authsock__service=f"[Service]\nExecStart=\nExecStart={path} serve\n")
        token()
        same([entry for entry in faults(doctor()) if entry[1].startswith("program-")], [], "faults of the program")
        shutil.copy("/usr/bin/authsock", path + ".new")
        os.replace(path + ".new", path)
        names(doctor(), "warning", "program-replaced", path)
        os.chmod(path, 0o777)
        names(doctor(), "problem", "program-replaceable", path)
        systemctl("restart", SERVICE)
        assert not any(entry[1] == "program-replaced" for entry in doctor())
    finally:
        os.unlink(path)


@check("a configuration that has changed is named until the daemon has read it")
def _():
    serving("[limits]\nsessions = 10\n")
    token()
    assert not any(entry[1] == "configuration-unread" for entry in doctor())
    configure("[limits]\nsessions = 11\n")
    names(doctor(), "warning", "configuration-unread", "config.toml")
    systemctl("try-reload-or-restart", SERVICE)
    until("the daemon has read it", lambda: not any(entry[1] == "configuration-unread" for entry in doctor()))


@check("a socket file that was removed, or replaced by another, is named")
def _():
    ground()
    # Old enough that the file's time is told from the unit's.
    until("the unit is older than a moment", lambda: age() > 6)
    os.unlink(SOCKET)
    names(doctor(), "problem", "socket-file-gone", SOCKET)
    with as_user(TESTER), socket.socket(socket.AF_UNIX) as impostor:
        impostor.bind(SOCKET)
        os.chmod(SOCKET, 0o600)
        impostor.listen()
        os.seteuid(0)
        names(doctor(), "problem", "socket-file-replaced", SOCKET)
    os.unlink(SOCKET)


def age():
    """How long the socket unit has been active, in seconds."""
    with open("/proc/uptime", encoding="ascii") as file:
        return float(file.read().split()[0]) - int(show(SOCKET_UNIT, "ActiveEnterTimestampMonotonic")) / 1e6


@check("a broken configuration is named with its line")
def _():
    serving()
    token()
    configure("[limits]\nsessions = 0\n")
    found = doctor()
    names(found, "problem", "configuration-invalid", "config.toml")
    assert any("line 2" in entry[3] for entry in found), found


@check("a token that others may read is named, and stays as it is")
def _():
    serving()
    token()
    os.chmod(TOKEN, 0o644)
    try:
        names(doctor(), "problem", "token-mode", TOKEN)
    finally:
        os.chmod(TOKEN, 0o600)
    same(ask(token()), PONG, "the daemon after it")


@check("a process of another user is named with its user and the directory that is closed to it")
def _():
    serving()
    token()
    pid, _ = in_process_of(OTHER, lambda: None)
    names(doctor("--pid", str(pid)), "problem", "process-gone", f"process {pid}")
    with contextlib.ExitStack() as stack:
        child = subprocess.Popen(["sleep", "600"], user=OTHER, group=OTHER, extra_groups=[])
        stack.callback(child.wait)
        stack.callback(child.kill)
        found = doctor("--pid", str(child.pid))
    names(found, "problem", "process-user", f"process {child.pid}")
    assert any(f"uid {OTHER} is not uid {TESTER}" in entry[3] for entry in found), found


@check("a user without a manager is told so, and that is no problem where nothing is installed for it")
def _():
    done = run("as-other", "authsock", "doctor", "--json")
    report = json.loads(done.stdout)
    assert any(entry["id"] == "manager-unreachable" for entry in report["findings"]), report
    same(report["problems"], 0, f"problems: {report}")


@check("after all of it the daemon serves as before")
def _():
    serving()
    same(answered("whoami")["session"]["name"], "owner", "the session")


if __name__ == "__main__":
    sys.exit(main(after_failure=unit_journal))
