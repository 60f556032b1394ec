"""What every scenario stands on: checks are noted with the sentence that they show, and run one by one.

A line beginning with "ok" or "FAIL" is one check; tests/systemd/run counts them.
"""

import contextlib
import os
import random
import subprocess
import time
import traceback

# Whether every check stands on a service with the drop-in hardened.conf.
HARDENED = os.environ.get("HARDENED") == "1"
SEED = int(os.environ.get("SEED") or random.SystemRandom().randrange(1 << 32))

# How long anything may take that should take no time. No check asserts a speed.
PATIENCE = 20
# Every token that was seen, to be looked for where none may be.
secrets = set()
CHECKS = []


def check(name):
    """Makes a function a check; the name is what it shows."""

    def note(function):
        CHECKS.append((name, function))
        return function

    return note


def without_secrets(text):
    for secret in filter(str.strip, secrets):
        text = text.replace(secret, "<token>")
    return text


def until(what, probe, patience=PATIENCE):
    """Waits for a state that nothing announces, and returns what the probe found."""
    deadline = time.monotonic() + patience
    while True:
        found = probe()
        if found:
            return found
        if time.monotonic() >= deadline:
            raise AssertionError(f"{what}: still not so after {patience} s")
        time.sleep(0.02)


def same(found, wanted, what):
    assert found == wanted, f"{what}: {found!r}, not {wanted!r}"


def run(*command, **options):
    return subprocess.run(
        command, capture_output=True, text=True, errors="replace", timeout=90, stdin=subprocess.DEVNULL, **options
    )


@contextlib.contextmanager
def as_user(uid, gid=None):
    """Makes this process another user for a moment: the kernel tells a listener the effective one."""
    os.setegid(uid if gid is None else gid)
    os.seteuid(uid)
    try:
        yield
    finally:
        os.seteuid(0)
        os.setegid(0)


def main(not_hardened=None, after_failure=lambda since: ""):
    """Runs the checks and returns the exit status. `not_hardened` names those that do not hold under
    hardened.conf, each with the reason; `after_failure` gives what helps to understand one, logged since then."""
    not_hardened = not_hardened or {}
    print("      " + run("systemctl", "--version").stdout.splitlines()[0] + f", kernel {os.uname().release}, seed {SEED}")
    unknown = not_hardened.keys() - {name for name, _ in CHECKS}
    assert not unknown, f"there are no such checks: {unknown}"
    failed = 0
    for name, function in CHECKS:
        if os.environ.get("ONLY", "") not in name:
            continue
        if HARDENED and name in not_hardened:
            print(f"skip  {name}: {not_hardened[name]}")
            continue
        began, wall = time.monotonic(), int(time.time())
        try:
            function()
        except Exception as error:  # a check that fails must not hide the ones behind it
            failed += 1
            place = traceback.extract_tb(error.__traceback__)
            lines = ", ".join(f"{os.path.basename(step.filename)}:{step.lineno}" for step in place if step.filename.startswith("/opt/"))
            print(without_secrets(f"FAIL  {name}: {type(error).__name__}: {error} ({lines})"))
            print(without_secrets("".join(f"      | {line}\n" for line in after_failure(wall).splitlines())), end="")
        else:
            print(f"ok    {name} ({time.monotonic() - began:.1f} s)")
    print("end of the scenario")
    return 1 if failed else 0
