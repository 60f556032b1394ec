#!/usr/bin/env python3
"""Shows under a real systemd what `authsock install` and `authsock uninstall` do, and that they leave nothing.

The program lies in /usr/local/bin and no package has put any unit in place. It runs as root inside a
throwaway system (tests/systemd/run boots it); what users do is done as the user.
A line beginning with "ok" or "FAIL" is one check; tests/systemd/run counts them.
"""

import contextlib
import json
import os
import socket
import subprocess
import sys
import time
import traceback

TESTER = int(os.environ["TESTER_UID"])
HOME = os.environ["TESTER_HOME"]
RUNTIME = os.environ["TESTER_RUNTIME_DIR"]
SOCKET = f"{RUNTIME}/authsock.sock"
UNITS = f"{HOME}/.config/systemd/user"
PATIENCE = 20
CHECKS = []


def check(name):
    """Makes a function a check; the name is what it shows."""

    def note(function):
        CHECKS.append((name, function))
        return function

    return note


def run(*command, **options):
    return subprocess.run(
        command, capture_output=True, text=True, errors="replace", timeout=90, stdin=subprocess.DEVNULL, **options
    )


def tester(*words):
    return run("as-tester", *words)


def done_by(done):
    assert done.returncode == 0, f"{' '.join(done.args)}: {done.returncode}: {done.stdout} {done.stderr}"
    return done.stdout


def authsock(*words):
    return done_by(tester("authsock", *words))


def until(what, probe):
    """Waits for a state that nothing announces, and returns what the probe found."""
    deadline = time.monotonic() + PATIENCE
    while not (found := probe()):
        assert time.monotonic() < deadline, f"{what}: still not so after {PATIENCE} s"
        time.sleep(0.02)
    return found


def files(*roots):
    """Every file and directory below these, with what would show a change."""
    found = {}
    for root in roots:
        for directory, names, others in os.walk(root):
            for name in names + others:
                path = os.path.join(directory, name)
                meta = os.lstat(path)
                found[path] = (oct(meta.st_mode), meta.st_uid, meta.st_ino if not name.startswith(".") else 0)
    return found


def places():
    """Where an installation of the user could leave anything. What the user manager keeps for itself
    in the runtime directory comes and goes with it."""
    found = files(HOME, "/etc/systemd", "/usr/local/lib", "/usr/lib/systemd/user")
    for name in os.listdir(RUNTIME):
        if name not in ("systemd", "bus", "dbus-1", "gnupg", "credentials"):
            found[f"{RUNTIME}/{name}"] = ()
    return found


def same_files(before, after):
    gone = sorted(set(before) - set(after))
    new = sorted(set(after) - set(before))
    assert not gone and not new, f"gone: {gone}; new: {new}"


@contextlib.contextmanager
def clean():
    """Begins with nothing installed, and ends so whatever happened."""
    tester("authsock", "uninstall", "--purge")
    try:
        yield
    finally:
        tester("systemctl", "--user", "unmask", "authsock.socket")
        tester("authsock", "uninstall", "--purge")


class Session:
    """A program that runs in a session, and asks who it is when told to."""

    def __init__(self, name):
        script = "while read -r line; do authsock whoami --json; done"
        self.program = subprocess.Popen(
            ("as-tester", "authsock", "run", "--name", name, "--", "sh", "-c", f"echo $$; {script}"),
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        self.pid = int(self.program.stdout.readline())

    def whoami(self):
        self.program.stdin.write("?\n")
        self.program.stdin.flush()
        line = self.program.stdout.readline()
        return json.loads(line)

    def end(self):
        self.program.stdin.close()
        self.program.wait(timeout=PATIENCE)
        for stream in (self.program.stdout, self.program.stderr):
            stream.close()


@check("install, and a new login's run and whoami are answered by systemd's daemon")
def _():
    with clean():
        print("      " + authsock("install", "--user").replace("\n", "\n      ").rstrip())
        done = run("su", "-", "tester", "-c", "authsock run --name login -- authsock whoami --json")
        answer = json.loads(done_by(done))
        assert answer["session"]["name"] == "login", answer
        pid = done_by(tester("systemctl", "--user", "show", "authsock.service", "--value", "-p", "MainPID")).strip()
        assert answer["daemon"]["pid"] == int(pid), (answer["daemon"], pid)
        enabled = done_by(tester("systemctl", "--user", "is-enabled", "authsock.socket")).strip()
        assert enabled == "enabled", enabled
        with open(f"{UNITS}/authsock.service", encoding="utf-8") as file:
            assert "ExecStart=/usr/local/bin/authsock serve\n" in file.read()


@check("a dry run says what would be done and does nothing")
def _():
    with clean():
        before = places()
        said = authsock("install", "--dry-run")
        assert "would write" in said and "would run systemctl --user enable" in said, said
        same_files(before, places())
        authsock("install")
        before = places()
        said = authsock("uninstall", "--dry-run")
        assert "would remove" in said and "would run systemctl --user stop" in said, said
        same_files(before, places())
        assert authsock("whoami")


@check("install run twice changes nothing the second time, and restarts nothing")
def _():
    with clean():
        authsock("install")
        pid = json.loads(authsock("status", "--json"))["pid"]
        before = {path: os.stat(path).st_mtime_ns for path in files(UNITS)}
        said = json.loads(authsock("install", "--json"))
        assert said["changed"] is False and said["steps"] == [], said
        assert {path: os.stat(path).st_mtime_ns for path in files(UNITS)} == before
        assert json.loads(authsock("status", "--json"))["pid"] == pid


@check("install over a running on-demand daemon with ten live sessions: all ten answer afterwards and none was restarted")
def _():
    with clean():
        sessions = [Session(f"s{number}") for number in range(10)]
        try:
            before = [session.whoami() for session in sessions]
            assert len({answer["daemon"]["pid"] for answer in before}) == 1, "one daemon"
            assert os.path.exists(f"{RUNTIME}/authsock-ondemand.sock")
            done = json.loads(authsock("install", "--json"))
            after = [session.whoami() for session in sessions]
            for session, old, new in zip(sessions, before, after):
                assert new["session"] == old["session"], (old["session"], new["session"])
                assert new["daemon"]["pid"] == done["daemon"]["pid"] != old["daemon"]["pid"]
                assert session.program.poll() is None and os.path.exists(f"/proc/{session.pid}")
            print(f"      10 sessions of process {before[0]['daemon']['pid']} answer from process {after[0]['daemon']['pid']}")
        finally:
            for session in sessions:
                session.end()


@check("install, use and uninstall while clients are connected: every file that was there is there, and no other")
def _():
    with clean():
        before = places()
        authsock("whoami")  # by a daemon that this client starts
        authsock("install")
        session = Session("connected")
        session.whoami()
        with open(f"{RUNTIME}/authsock/token", encoding="ascii") as file:
            secret = file.read()
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as stream:
            os.setegid(TESTER)
            os.seteuid(TESTER)
            try:
                stream.connect(SOCKET)
            finally:
                os.seteuid(0)
                os.setegid(0)
            stream.settimeout(PATIENCE)
            stream.sendall(json.dumps({"type": "auth", "token": secret}).encode() + b"\n")
            lines = stream.makefile()
            assert json.loads(lines.readline())["success"]
            print("      " + authsock("uninstall").replace("\n", "\n      ").rstrip())
            assert lines.readline() == "", "the connection ends"
        session.end()
        after = places()
        same_files(before, after)
        print(f"      {len(before)} files and directories before, {len(after)} after")
        state = done_by(tester("systemctl", "--user", "show", "authsock.socket", "authsock.service", "-p", "LoadState", "--value"))
        assert set(state.split()) == {"not-found"}, state


@check("uninstall where nothing is installed has nothing to do, and ends a daemon that a client started")
def _():
    with clean():
        assert "nothing" in authsock("uninstall")
        before = places()
        authsock("whoami")
        assert "ask" in authsock("uninstall")
        same_files(before, places())


@check("the configuration is kept unless --purge says so")
def _():
    with clean():
        done_by(tester("sh", "-c", "mkdir -p ~/.config/authsock && echo '[lifecycle]' >~/.config/authsock/config.toml"))
        authsock("install")
        assert "is kept" in authsock("uninstall")
        assert os.path.exists(f"{HOME}/.config/authsock/config.toml")
        authsock("uninstall", "--purge")
        assert not os.path.exists(f"{HOME}/.config/authsock")


@check("a unit that somebody else wrote is not overwritten, and nothing else is done")
def _():
    with clean():
        done_by(tester("sh", "-c", f"mkdir -p {UNITS} && echo '[Unit]' >{UNITS}/authsock.service"))
        try:
            before = places()
            done = tester("authsock", "install")
            assert done.returncode == 1 and f"{UNITS}/authsock.service was not written by" in done.stderr, done
            same_files(before, places())
            authsock("uninstall")
            assert os.path.exists(f"{UNITS}/authsock.service"), "and not removed"
        finally:
            os.unlink(f"{UNITS}/authsock.service")


@check("a masked unit is an error with the way out")
def _():
    with clean():
        done_by(tester("systemctl", "--user", "mask", "authsock.socket"))
        done = tester("authsock", "install")
        assert done.returncode == 1 and "masked" in done.stderr and "unmask" in done.stderr, done


@check("a socket that was given up for good is started again")
def _():
    with clean():
        authsock("install")
        done_by(tester("systemctl", "--user", "stop", "authsock.socket", "authsock.service"))
        said = json.loads(authsock("install", "--json"))
        assert any("start authsock.socket" in step for step in said["steps"]), said
        assert authsock("whoami")


@check("a program that moved is installed anew, and a living session goes on")
def _():
    with clean():
        authsock("install")
        session = Session("lasting")
        before = session.whoami()
        done_by(run("install", "-D", "-m755", "/usr/local/bin/authsock", "/opt/new place/authsock"))
        said = json.loads(done_by(tester("/opt/new place/authsock", "install", "--json")))
        assert any("write" in step for step in said["steps"]) and any("restart" in step for step in said["steps"]), said
        after = session.whoami()
        assert after["session"] == before["session"] and after["daemon"]["pid"] != before["daemon"]["pid"], (before, after)
        exe = os.readlink(f"/proc/{after['daemon']['pid']}/exe")
        assert exe == "/opt/new place/authsock", exe
        session.end()


@check("a program that others could change is not installed")
def _():
    with clean():
        done_by(run("install", "-D", "-m777", "/usr/local/bin/authsock", "/opt/open/authsock"))
        done = tester("/opt/open/authsock", "install")
        assert done.returncode == 1 and "may be written by others" in done.stderr, done


@check("without a manager of the user's services install says so, and a client still works")
def _():
    with clean():
        done = run("as-other", "authsock", "install")
        assert done.returncode == 1 and "enable-linger" in done.stderr, done
        assert run("as-other", "authsock", "whoami").returncode == 0
        assert run("as-other", "authsock", "uninstall").returncode == 0


@check("install and uninstall for the whole machine leave nothing, and need root")
def _():
    def system_places():
        found = files("/etc", "/usr/local")
        for name in ("authsock", "authsock.sock"):
            if os.path.exists(f"/run/{name}"):
                found[f"/run/{name}"] = ()
        return found

    done = tester("authsock", "install", "--system")
    assert done.returncode == 1 and "needs root" in done.stderr, done
    before = system_places()
    print("      " + done_by(run("authsock", "install", "--system")).replace("\n", "\n      ").rstrip())
    answer = json.loads(done_by(run("authsock", "--system", "whoami", "--json")))
    assert answer["session"]["id"] == "owner", answer
    again = json.loads(done_by(run("authsock", "install", "--system", "--json")))
    assert again["changed"] is False, again
    done_by(run("authsock", "uninstall", "--system"))
    same_files(before, system_places())


def main():
    print(run("systemctl", "--version").stdout.splitlines()[0], flush=True)
    failed = 0
    wanted = os.environ.get("ONLY", "")
    for name, function in CHECKS:
        if wanted not in name:
            continue
        try:
            function()
            print(f"ok    {name}", flush=True)
        except Exception as error:
            failed += 1
            print(f"FAIL  {name}\n      {type(error).__name__}: {error}", flush=True)
            if not isinstance(error, AssertionError):
                traceback.print_exc()
    print("end of the scenario", flush=True)
    return 1 if failed else 0


sys.exit(main())
