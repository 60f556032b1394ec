#!/usr/bin/env python3
"""Shows under a real systemd what `authsock install` and `authsock uninstall` promise, where no package is.

Each check is a sentence. It runs as root inside a throwaway system (tests/systemd/run boots it) in
which the program lies in /usr/local/bin and no unit is installed; what a user does, it does as that user.
"""

import contextlib
import json
import os
import re
import socket
import stat
import subprocess
import sys

from stage import PATIENCE, check, main, run, same, until
from tester import HOME, RUNTIME, SERVICE, SOCKET, SOCKET_UNIT, TESTER, TOKEN, show, systemctl

UNITS = f"{HOME}/.config/systemd/user"
PROGRAM = "/usr/local/bin/authsock"


# --- commands -----------------------------------------------------------------------------------


def authsock(*words):
    return run("as-tester", PROGRAM, *words)


def good(*words):
    done = authsock(*words)
    assert done.returncode == 0, f"authsock {' '.join(words)}: {done.returncode}: {done.stdout}{done.stderr}"
    return done.stdout


def answered(*words):
    return json.loads(good(*words, "--json"))


# --- what is there ------------------------------------------------------------------------------


def files():
    """Everything where installing could leave something, with what tells that it was touched.
    What systemd and the bus keep for themselves is left out."""
    found = {}
    for root in (HOME, RUNTIME, "/etc/systemd", "/run/systemd/system", "/run/systemd/user", "/tmp"):
        for directory, names, others in os.walk(root):
            names[:] = [name for name in names if f"{directory}/{name}" not in (f"{RUNTIME}/systemd", f"{RUNTIME}/dbus-1")]
            for name in names + others:
                path = f"{directory}/{name}"
                with contextlib.suppress(FileNotFoundError):
                    meta = os.lstat(path)
                    touched = None if stat.S_ISDIR(meta.st_mode) else (meta.st_ino, meta.st_mtime_ns)
                    # What starts and ends with each command has nothing to do with it.
                    if not re.match("/run/systemd/system/(run-|session-|user-)", path):
                        found[path] = (stat.S_IMODE(meta.st_mode), meta.st_uid, touched)
    for path in ("/run/authsock", "/run/authsock.sock", "/etc/authsock", "/var/log/authsock.log"):
        if os.path.lexists(path):
            found[path] = "there"
    return found


def same_files(before, what):
    after = files()
    difference = [f"+ {path}" for path in sorted(after.keys() - before.keys())]
    difference += [f"- {path}" for path in sorted(before.keys() - after.keys())]
    difference += [f"! {path}" for path in sorted(before.keys() & after.keys()) if before[path] != after[path]]
    assert not difference, f"{what}: " + "; ".join(difference)


@contextlib.contextmanager
def nothing_is_left():
    """Whatever happens in between, an uninstall at its end makes it as it was before."""
    before = files()
    try:
        yield before
    finally:
        good("uninstall", "--purge")
    same_files(before, "what uninstalling left")
    for unit in (SOCKET_UNIT, SERVICE):
        same(show(unit, "LoadState"), "not-found", unit)


def retired():
    """Has a daemon that a client started end, and what it left removed."""
    authsock("call", "daemon.retire")
    until("it has ended", lambda: not os.path.exists(f"{RUNTIME}/authsock-ondemand.sock"))
    good("uninstall")


# --- as a user ----------------------------------------------------------------------------------


@check("after `authsock install` a program that starts elsewhere is a session, and nothing is left after `authsock uninstall`")
def _():
    with nothing_is_left():
        words = good("install")
        for wanted in (f"{UNITS}/{SOCKET_UNIT}", f"{UNITS}/{SERVICE}", "authsock uninstall"):
            assert wanted in words, words
        assert "enable-linger" not in words, "this user lingers already"
        same(show(SOCKET_UNIT, "ActiveState"), "active", "the socket unit")
        same(systemctl("is-enabled", SOCKET_UNIT), "enabled", "the socket unit")
        run_it = ["run", "--name", "elsewhere", "--", PROGRAM, "whoami", "--json"]
        done = run("as-tester", "systemd-run", "--user", "--wait", "--pipe", "--quiet", PROGRAM, *run_it)
        same(done.returncode, 0, f"in a unit of its own: {done.stderr.strip()}")
        same(json.loads(done.stdout)["session"]["name"], "elsewhere", "the session")
        same(answered(*run_it[:-1])["session"]["name"], "elsewhere", "in a fresh shell")
        same(answered("status")["activation"], "init", "activation")


def logged_in(script):
    """What a shell does that a login has just started: one of PAM's, with a session and a runtime directory of logind's."""
    words = ["systemd-run", "--quiet", "--wait", "--pipe", "-p", "PAMName=login", "-p", f"User={os.environ['TESTER_USER']}"]
    return run(*words, "--", "/bin/bash", "-lc", script)


@check("after the last logout the next login's first command is a session, with nothing done in between")
def _():
    good("install")
    before = answered("status")["pid"]
    try:
        # Without lingering the user's manager ends with the last session, and all of the runtime directory with it.
        same(run("loginctl", "disable-linger", str(TESTER)).returncode, 0, "loginctl disable-linger")
        until("the manager has ended", lambda: not os.path.exists(f"/proc/{before}") and not os.path.exists(RUNTIME))
        done = logged_in("echo $XDG_SESSION_ID; authsock run --name first -- authsock whoami --json; authsock status --json")
        same((done.returncode, done.stderr), (0, ""), "the first commands of a login")
        login, whoami, status = done.stdout.splitlines()
        assert login, "it was no login"
        same(json.loads(whoami)["session"]["name"], "first", "the session")
        same(json.loads(status)["activation"], "init", "activation")
        assert json.loads(status)["pid"] != before, "it is the daemon of before"
    finally:
        run("loginctl", "enable-linger", str(TESTER))
        until("the manager is there again", lambda: os.path.exists(f"{RUNTIME}/bus"))
    good("uninstall")
    same(show(SOCKET_UNIT, "LoadState"), "not-found", SOCKET_UNIT)


@check("systemd understands every line of the units that were written")
def _():
    with nothing_is_left():
        good("install")
        done = run("as-tester", "systemd-analyze", "--user", "--man=no", "verify", f"{UNITS}/{SOCKET_UNIT}", f"{UNITS}/{SERVICE}")
        same((done.stdout + done.stderr).strip(), "", "systemd-analyze verify")


@check("a second install changes no file and restarts nothing")
def _():
    with nothing_is_left():
        good("install")
        before, pid = files(), show(SERVICE, "MainPID")
        assert pid != "0", "no daemon runs"
        words = good("install")
        assert "nothing to do" in words, words
        same_files(before, "what the second install changed")
        same(show(SERVICE, "MainPID"), pid, "the daemon's process")


@check("a dry run of either verb changes nothing")
def _():
    before = files()
    words = good("install", "--dry-run")
    assert f"write {UNITS}/{SOCKET_UNIT}" in words and "enable --now" in words, words
    same_files(before, "what the dry run of install changed")
    with nothing_is_left():
        good("install")
        before = files()
        words = good("uninstall", "--dry-run")
        assert f"remove {UNITS}/{SOCKET_UNIT}" in words, words
        same_files(before, "what the dry run of uninstall changed")
        same(show(SOCKET_UNIT, "ActiveState"), "active", "the socket unit")


@check("a daemon that a client had started hands over at installation, with its token")
def _():
    with nothing_is_left():
        first = answered("status")
        same(first["activation"], "on_demand", "activation")
        with open(TOKEN, "rb") as file:
            before = file.read()
        good("install")
        second = answered("status")
        same(second["activation"], "init", "activation")
        until("the other daemon has ended", lambda: not os.path.exists(f"/proc/{first['pid']}"))
        with open(TOKEN, "rb") as file:
            assert file.read() == before, "the token is another one"


@check("ten programs that run as sessions of a daemon that a client started answer after installation, and none was restarted")
def _():
    with nothing_is_left(), contextlib.ExitStack() as stack:
        same(answered("status")["activation"], "on_demand", "activation")
        inside = f"echo $$; read -r _; {PROGRAM} whoami --json"
        programs = []
        for number in range(10):
            words = ["as-tester", PROGRAM, "run", "--name", f"live-{number}", "--", "sh", "-c", inside]
            pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
            program = stack.enter_context(subprocess.Popen(words, text=True, **pipes))
            stack.callback(program.stdin.close)
            programs.append(program)
        pids = [int(program.stdout.readline()) for program in programs]
        good("install")
        same(answered("status")["activation"], "init", "activation")
        problems = []
        for number, (program, pid) in enumerate(zip(programs, pids)):
            if not os.path.exists(f"/proc/{pid}"):
                problems.append(f"live-{number} has ended")
            out, err = program.communicate("go\n", timeout=PATIENCE)
            if program.returncode != 0:
                problems.append(f"live-{number}: {err.strip()}")
            else:
                same(json.loads(out)["session"]["name"], f"live-{number}", "the session")
        assert not problems, f"{len(problems)} of ten: {problems[0]}"


@check("uninstalling works while clients are connected: they are closed, and nothing is left")
def _():
    with nothing_is_left(), contextlib.ExitStack() as stack:
        good("install")
        with open(TOKEN, encoding="ascii") as file:
            opening = json.dumps({"type": "auth", "token": file.read()}) + "\n"
        streams = []
        os.seteuid(TESTER)
        try:
            for _number in range(10):
                stream = stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
                stream.settimeout(PATIENCE)
                stream.connect(SOCKET)
                streams.append(stream)
        finally:
            os.seteuid(0)
        for stream in streams:
            stream.sendall(opening.encode())
            assert b'"success":true' in stream.recv(4096), "refused"
        good("uninstall")
        same([stream.recv(1) for stream in streams], [b""] * len(streams), "what the clients heard")


@check("a second uninstall has nothing to do, and so has one where nothing was ever installed")
def _():
    before = files()
    for _number in range(2):
        words = good("uninstall")
        assert "nothing to do" in words, words
    same_files(before, "what uninstalling changed")


@check("the user's configuration is kept unless --purge says otherwise")
def _():
    with nothing_is_left():
        good("install")
        run("as-tester", "mkdir", "-p", f"{HOME}/.config/authsock")
        run("as-tester", "sh", "-c", f"echo '[lifecycle]' >{HOME}/.config/authsock/config.toml")
        words = good("uninstall")
        assert "--purge" in words, words
        assert os.path.exists(f"{HOME}/.config/authsock/config.toml"), "it is gone"


@check("a changed unit is written anew, and a running daemon stays unless its program has moved")
def _():
    elsewhere = f"{HOME}/bin/authsock"
    with nothing_is_left():
        run("as-tester", "install", "-D", "-m755", PROGRAM, elsewhere)
        try:
            good("install")
            pid = show(SERVICE, "MainPID")
            with open(f"{UNITS}/{SERVICE}", "a", encoding="utf-8") as file:
                file.write("# an older template\n")
            words = good("install")
            assert "daemon-reload" in words and "try-restart" not in words, words
            same(show(SERVICE, "MainPID"), pid, "the daemon's process")
            done = run("as-tester", elsewhere, "install")
            same(done.returncode, 0, f"from elsewhere: {done.stderr}")
            assert "try-restart" in done.stdout, done.stdout
            program = os.readlink(f"/proc/{show(SERVICE, 'MainPID')}/exe")
            same(program, elsewhere, "the program that runs")
            same(show(SERVICE, "NeedDaemonReload"), "no", "what systemd knows")
        finally:
            good("uninstall")
            run("as-tester", "rm", "-r", f"{HOME}/bin")


@check("a program whose path has spaces, percent signs and umlauts is started")
def _():
    place = f"{HOME}/50% für alle"
    with nothing_is_left():
        run("as-tester", "install", "-D", "-m755", PROGRAM, f"{place}/authsock")
        try:
            done = run("as-tester", f"{place}/authsock", "install")
            same(done.returncode, 0, f"install: {done.stderr}")
            program = os.readlink(f"/proc/{show(SERVICE, 'MainPID')}/exe")
            same(program, f"{place}/authsock", "the program that runs")
        finally:
            good("uninstall")
            run("as-tester", "rm", "-r", place)


@check("a unit that is not ours is named, and stays as it is")
def _():
    before_all = files()
    run("as-tester", "mkdir", "-p", UNITS)
    run("as-tester", "sh", "-c", f"printf '[Unit]\\nDescription=mine\\n' >{UNITS}/{SERVICE}")
    before = files()
    done = authsock("install")
    same(done.returncode, 1, "install")
    assert f"{UNITS}/{SERVICE}" in done.stderr and "move it away" in done.stderr, done.stderr
    good("uninstall")
    same_files(before, "what was changed")
    os.unlink(f"{UNITS}/{SERVICE}")
    run("as-tester", "rmdir", "-p", "--ignore-fail-on-non-empty", UNITS)
    same_files(before_all, "what this check left")


@check("a masked unit is named with the way out, and nothing is written")
def _():
    before_all = files()
    systemctl("mask", SERVICE)
    before = files()
    done = authsock("install")
    same(done.returncode, 1, "install")
    assert f"systemctl --user unmask {SERVICE}" in done.stderr, done.stderr
    same_files(before, "what was changed")
    systemctl("unmask", SERVICE)
    run("as-tester", "rmdir", "-p", "--ignore-fail-on-non-empty", UNITS)
    same_files(before_all, "what this check left")


@check("without a user manager nothing is half done, and the error says how to have one")
def _():
    before = files()
    done = run("as-other", PROGRAM, "install")
    same(done.returncode, 1, done.stdout)
    assert "no user manager" in done.stderr and "enable-linger" in done.stderr, done.stderr
    same_files(before, "what was changed")


@check("a manager that runs is found without XDG_RUNTIME_DIR, as after su")
def _():
    with nothing_is_left():
        untold = ["as-tester", "env", "-u", "XDG_RUNTIME_DIR", "-u", "DBUS_SESSION_BUS_ADDRESS", PROGRAM]
        done = run(*untold, "install")
        same(done.returncode, 0, f"install: {done.stdout}{done.stderr}")
        same(answered("status")["activation"], "init", "activation")
        done = run(*untold, "uninstall")
        same(done.returncode, 0, f"uninstall: {done.stdout}{done.stderr}")


@check("where systemd knows notify-reload, a reload returns when the new configuration holds")
def _():
    number = int(re.search(r"systemd (\d+)", run("systemctl", "--version").stdout).group(1))
    with nothing_is_left():
        good("install")
        same(show(SERVICE, "Type"), "notify-reload" if number >= 253 else "notify", "the type")
        run("as-tester", "mkdir", "-p", f"{HOME}/.config/authsock")
        for seconds in (100, 101, 102):
            text = f"[lifecycle]\\nidle_exit_seconds = {seconds}\\n"
            run("as-tester", "sh", "-c", f"printf '{text}' >{HOME}/.config/authsock/config.toml")
            systemctl("reload", SERVICE)
            read = lambda: answered("status")["idle_exit_seconds"]
            if number >= 253:
                same(read(), seconds, "what holds after the reload")
            else:
                until("it was read", lambda: read() == seconds)


@check("an upgrade in place is taken up by the next install, and sessions go on")
def _():
    program = "/usr/local/lib/authsock"

    def install():
        done = run("as-tester", program, "install")
        same(done.returncode, 0, f"install: {done.stdout}{done.stderr}")
        return done.stdout

    with nothing_is_left():
        run("cp", PROGRAM, program)
        install()
        with session_of_its_own() as session:
            before = session.ask()
            # As dpkg and cargo do: another file, renamed into its place.
            run("cp", PROGRAM, f"{program}.new")
            os.rename(f"{program}.new", program)
            words = install()
            assert "try-restart" in words, words
            after = session.ask()
            assert after["daemon"]["pid"] != before["daemon"]["pid"], "the old program still runs"
            same(after["session"]["id"], before["session"]["id"], "the session")
            assert "nothing to do" in install()
    os.unlink(program)


class session_of_its_own:
    """A program in a session that asks who it is whenever it is told to."""

    def __enter__(self):
        script = f"while read -r _; do {PROGRAM} whoami --json; done"
        words = ["as-tester", PROGRAM, "run", "--name", "goes-on", "--", "sh", "-c", script]
        self.program = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        return self

    def ask(self):
        self.program.stdin.write("\n")
        self.program.stdin.flush()
        return json.loads(self.program.stdout.readline())

    def __exit__(self, *_):
        self.program.stdin.close()
        self.program.wait(PATIENCE)
        self.program.stdout.close()


@check("a program in a directory where anybody may take a name that was given up is refused, and so is one that the machine's daemon would not see")
def _():
    before = files()
    for place, words in (("/tmp/authsock", ["install"]), ("/root/authsock", ["install", "--system"])):
        run("cp", PROGRAM, place)
        user = ["as-tester"] if words == ["install"] else []
        done = run(*user, place, *words)
        same(done.returncode, 1, f"{place}: {done.stdout}")
        assert "/usr/local/bin" in done.stderr, done.stderr
        os.unlink(place)
    same_files(before, "what was changed")


@check("a broken configuration is said at installation, and once mended a second install is content")
def _():
    with nothing_is_left():
        run("as-tester", "mkdir", "-p", f"{HOME}/.config/authsock")
        run("as-tester", "sh", "-c", f"echo nonsense >{HOME}/.config/authsock/config.toml")
        done = authsock("install")
        same(done.returncode, 3, f"install: {done.stdout}")
        assert "unavailable" in done.stderr, done.stderr
        run("as-tester", "sh", "-c", f": >{HOME}/.config/authsock/config.toml")
        until("it is content", lambda: authsock("install").returncode == 0)


@check("an install by a user is no business of another")
def _():
    with nothing_is_left():
        good("install")
        done = run("as-other", PROGRAM, "--socket", SOCKET, "whoami")
        assert done.returncode != 0, done.stdout


# --- as root ------------------------------------------------------------------------------------


@check("`install --system` has the machine's socket listen, twice changes nothing, and `uninstall --system` leaves nothing")
def _():
    before = files()
    done = authsock("install", "--system")
    same(done.returncode, 1, "as a user")
    assert "for root" in done.stderr, done.stderr
    try:
        done = run(PROGRAM, "install", "--system")
        same(done.returncode, 0, f"install --system: {done.stderr.strip()}")
        assert "authsock uninstall --system" in done.stdout, done.stdout
        same(run("systemctl", "is-active", SOCKET_UNIT).stdout.strip(), "active", "the socket unit")
        same(run("systemctl", "is-enabled", SOCKET_UNIT).stdout.strip(), "enabled", "the socket unit")
        same(oct(stat.S_IMODE(os.stat("/run/authsock.sock").st_mode)), "0o666", "the socket's mode")
        with open(f"/etc/systemd/system/{SERVICE}", encoding="utf-8") as file:
            assert f"\nExecStart={PROGRAM} serve --system\n" in file.read(), "another program"
        between = files()
        done = run(PROGRAM, "install", "--system")
        assert done.returncode == 0 and "nothing to do" in done.stdout, done.stdout + done.stderr
        same_files(between, "what the second install changed")
    finally:
        done = run(PROGRAM, "uninstall", "--system")
    same(done.returncode, 0, f"uninstall --system: {done.stderr.strip()}")
    same_files(before, "what uninstalling left")
    done = run(PROGRAM, "uninstall", "--system")
    assert done.returncode == 0 and "nothing to do" in done.stdout, done.stdout + done.stderr


# --- with a package -----------------------------------------------------------------------------


@check("where a package brought the units they are enabled and never copied, and uninstalling leaves them")
def _():
    packaged = "/usr/lib/systemd/user"
    good("install")
    with open(f"{UNITS}/{SERVICE}", encoding="utf-8") as file:
        service = file.read()
    with open(f"{UNITS}/{SOCKET_UNIT}", encoding="utf-8") as file:
        unit = file.read()
    good("uninstall")
    with nothing_of_a_package(packaged, {SERVICE: service, SOCKET_UNIT: unit}):
        before = files()
        words = good("install")
        assert "nothing is copied" in words and "write" not in words, words
        assert not os.path.exists(f"{UNITS}/{SERVICE}"), "it was copied"
        same(answered("status")["activation"], "init", "activation")
        good("uninstall")
        same(show(SOCKET_UNIT, "ActiveState"), "inactive", "the socket unit")
        same(systemctl("is-enabled", SOCKET_UNIT, fails=True), "disabled", "the socket unit")
        same_files(before, "what uninstalling left")


@contextlib.contextmanager
def nothing_of_a_package(directory, texts):
    """Units of a package, for a while."""
    for name, text in texts.items():
        with open(f"{directory}/{name}", "w", encoding="utf-8") as file:
            file.write(text)
    systemctl("daemon-reload")
    try:
        yield
    finally:
        for name in texts:
            os.unlink(f"{directory}/{name}")
        systemctl("daemon-reload")


def start_over(_since):
    """A check that failed leaves nothing to the next one, and has nothing of a journal to show."""
    with contextlib.suppress(Exception):
        retired()
    return ""


if __name__ == "__main__":
    sys.exit(main(after_failure=start_over))
