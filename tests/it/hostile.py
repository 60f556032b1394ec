"""A hostile program: tries to become more than its session by every way that it knows, and says of each whether it got through.

Each line of its output is the name of an attempt, a tab, and "got" or "refused". What is outside of
the session comes in variables: the owner's TOKEN, another session's OTHER token, a BYSTANDER and the LEADER (pids; the
bystander has the token open as descriptor 9, stands in its directory and has a secret in its environment), sockets that
stand for a session bus (BUS, MOVED_BUS, ABSTRACT_BUS), System V shared memory (SHARED, an id), a key in the session
keyring (KEY, a description), the user's keyring (KEYRING, a number), and a SCRATCH directory beside the runtime directory.
"""

import ctypes
import os
import re
import resource
import signal
import socket
import sys

libc = ctypes.CDLL(None, use_errno=True)
TOKEN, OTHER, SCRATCH = os.environ["TOKEN"], os.environ["OTHER"], os.environ["SCRATCH"]
RUNTIME = os.path.dirname(os.path.dirname(TOKEN))
GROUND = os.path.dirname(RUNTIME)
BYSTANDER, LEADER = int(os.environ["BYSTANDER"]), int(os.environ["LEADER"])

CLONE_NEWNS, CLONE_NEWUSER = 0x20000, 0x10000000
MS_BIND, MS_MOVE, MS_REC, MNT_DETACH = 4096, 8192, 16384, 2
AT_FDCWD, AT_RECURSIVE, OPEN_TREE_CLONE = -100, 0x8000, 1
# The same numbers on every machine of Linux (asm-generic/unistd.h, and x86's since 5.1); of the older ones by name.
PIDFD_SEND_SIGNAL, OPEN_TREE, PIDFD_OPEN, PIDFD_GETFD = 424, 428, 434, 438
PTRACE_SEIZE = 0x4206


def does(done):
    """The answer of a call into the C library; it must have succeeded."""
    if done < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return done


def text(value):
    return value.encode() if isinstance(value, str) else value


def mount(what, where, kind=None, flags=0, data=None):
    does(libc.mount(text(what), text(where), text(kind), ctypes.c_ulong(flags), text(data)))


def umount(where, flags=MNT_DETACH):
    does(libc.umount2(text(where), flags))


def token_in(path, **options):
    """Whether a token can be read there."""
    with open(path, "rb", **options) as file:
        return re.fullmatch(rb"[0-9a-f]{64}\n?", file.read(200)) is not None


def connects(address):
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as stream:
        stream.settimeout(10)
        stream.connect(address)
        return stream.recv(3) == b"bus"


def pidfd(pid):
    return does(libc.syscall(PIDFD_OPEN, pid, 0))


ATTEMPTS = []


def attempt(name, *args):
    def note(function):
        ATTEMPTS.append((name, lambda: function(*args)))
        return function

    return note


def in_a_further_namespace(function):
    """Runs an attempt as a child that has all rights in a user and mount namespace of its own."""

    def attempt_inside():
        uid, gid = os.geteuid(), os.getegid()
        child = os.fork()
        if child == 0:
            got = False
            try:
                does(libc.unshare(CLONE_NEWUSER | CLONE_NEWNS))
                for file, line in (("setgroups", "deny"), ("uid_map", f"0 {uid} 1"), ("gid_map", f"0 {gid} 1")):
                    try:
                        with open(f"/proc/self/{file}", "w") as map:
                            map.write(line)
                    except OSError:
                        pass  # root without rights has no number there, but all rights all the same
                got = function()
            except OSError as error:
                print(f"  ({function.__name__}: {error})", file=sys.stderr)
            os._exit(0 if got else 1)
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0

    return attempt_inside


attempt("the owner's token by its path", TOKEN)(token_in)
attempt("the owner's token by $XDG_RUNTIME_DIR", f"{os.environ['XDG_RUNTIME_DIR']}/authsock/token")(token_in)
attempt("another session's token", OTHER)(token_in)
attempt("the directory of what the daemon keeps")(lambda: os.listdir(f"{os.path.dirname(TOKEN)}/sessions"))

for who, pid in (("bystander", BYSTANDER), ("leader", LEADER)):
    attempt(f"{who}: its root", f"/proc/{pid}/root{TOKEN}")(token_in)
    attempt(f"{who}: its environment", pid)(lambda pid: open(f"/proc/{pid}/environ", "rb").read())
    attempt(f"{who}: its descriptors", pid)(lambda pid: os.readlink(f"/proc/{pid}/fd/1"))
    attempt(f"{who}: its program", pid)(lambda pid: os.readlink(f"/proc/{pid}/exe"))

    @attempt(f"{who}: its memory", pid)
    def memory(pid):
        with open(f"/proc/{pid}/maps") as maps, open(f"/proc/{pid}/mem", "rb", 0) as mem:
            mem.seek(int(next(maps).split("-")[0], 16))
            return mem.read(4)

    @attempt(f"{who}: its memory by process_vm_readv", pid)
    def vm_readv(pid):
        class Piece(ctypes.Structure):
            _fields_ = [("base", ctypes.c_void_p), ("length", ctypes.c_size_t)]

        room = ctypes.create_string_buffer(4)
        where = ctypes.addressof(room)
        try:
            with open(f"/proc/{pid}/maps") as maps:
                where = int(next(maps).split("-")[0], 16)
        except OSError:
            pass  # then the address is wrong, which is not what it is refused for
        ours, theirs = Piece(ctypes.addressof(room), 4), Piece(where, 4)
        return does(libc.process_vm_readv(pid, ctypes.byref(ours), 1, ctypes.byref(theirs), 1, 0))

    @attempt(f"{who}: traced", pid)
    def trace(pid):
        does(libc.ptrace(PTRACE_SEIZE, pid, None, None))
        return True

    @attempt(f"{who}: a descriptor taken out", pid)
    def take(pid):
        # Any that is not taken for granted: 9 is the bystander's, the others have fewer.
        return does(libc.syscall(PIDFD_GETFD, pidfd(pid), 9 if pid == BYSTANDER else 1, 0))

    @attempt(f"{who}: its mount namespace by /proc", pid)
    def enter(pid):
        with open(f"/proc/{pid}/ns/mnt") as namespace:
            does(libc.setns(namespace.fileno(), CLONE_NEWNS))
        return token_in(TOKEN)

    @attempt(f"{who}: its namespaces by pidfd", pid)
    def enter_by_pidfd(pid):
        does(libc.setns(pidfd(pid), CLONE_NEWUSER | CLONE_NEWNS))
        return token_in(TOKEN)

    @attempt(f"{who}: its limits changed", pid)
    def limit(pid):
        # They stay what they are; with processor time it would be its end.
        resource.prlimit(pid, resource.RLIMIT_CPU, resource.prlimit(pid, resource.RLIMIT_CPU))
        return True

    attempt(f"{who}: a signal", pid)(lambda pid: os.kill(pid, signal.SIGCONT) is None)

    @attempt(f"{who}: a signal by pidfd", pid)
    def signal_by_pidfd(pid):
        return does(libc.syscall(PIDFD_SEND_SIGNAL, pidfd(pid), signal.SIGCONT, None, 0)) == 0


attempt("bystander: its working directory", f"/proc/{BYSTANDER}/cwd/token")(token_in)
attempt("bystander: its open token", f"/proc/{BYSTANDER}/fd/9")(token_in)
attempt("a directory passed down")(lambda: token_in("token", opener=lambda path, flags: os.open(path, flags, dir_fd=5)))
attempt("an open token passed down")(lambda: token_in("/proc/self/fd/6"))
attempt("a connection to the bus passed down")(lambda: os.write(7, b"x"))
attempt("the session bus at its path", os.environ["BUS"])(connects)
attempt("the session bus at a path elsewhere", os.environ["MOVED_BUS"])(connects)
attempt("the session bus without a path", "\0" + os.environ["ABSTRACT_BUS"])(connects)


@attempt("shared memory")
def shared():
    libc.shmat.restype = ctypes.c_void_p
    place = libc.shmat(int(os.environ["SHARED"]), None, 0)
    does(-1 if place == ctypes.c_void_p(-1).value else 0)
    return ctypes.string_at(place, 6) == b"shared"


KEYCTL = {"x86_64": 250, "aarch64": 219, "riscv64": 219}[os.uname().machine]


@attempt("the user's keyring by its number")
def user_keyring():
    link, session_keyring = 8, -3
    # What can be found from there can be read.
    return does(libc.syscall(KEYCTL, link, int(os.environ["KEYRING"]), session_keyring)) == 0


@attempt("a key in the session keyring")
def session_key():
    search, read, session_keyring = 10, 11, -3
    key = does(libc.syscall(KEYCTL, search, session_keyring, b"user", text(os.environ["KEY"]), 0))
    room = ctypes.create_string_buffer(100)
    length = does(libc.syscall(KEYCTL, read, key, room, 100))
    return room.raw[:length] == b"key"


attempt("the session bus by its variable")(lambda: "DBUS_SESSION_BUS_ADDRESS" in os.environ)


@attempt("unmounting what hides")
def uncover():
    umount(RUNTIME)
    return token_in(TOKEN)


@attempt("moving the way to the directory away")
def move_away():
    os.rename(GROUND, GROUND + "-away")
    os.rename(GROUND + "-away", GROUND)
    return True


@attempt("mounting without a further namespace")
def mount_again():
    does(libc.unshare(CLONE_NEWNS))
    mount("tmpfs", SCRATCH, "tmpfs")
    return True


def further(name):
    return lambda function: attempt(f"further namespace: {name}")(in_a_further_namespace(function))


@further("unmounting what hides")
def further_uncover():
    umount(RUNTIME)
    return token_in(TOKEN)


@further("moving what hides")
def further_move():
    mount(RUNTIME, SCRATCH, flags=MS_MOVE)
    return token_in(TOKEN)


@further("showing the directory elsewhere, without what hides")
def further_bind():
    mount(GROUND, SCRATCH, flags=MS_BIND)
    return token_in(SCRATCH + TOKEN.removeprefix(GROUND))


@further("showing the directory elsewhere, with what hides")
def further_rbind():
    mount(GROUND, SCRATCH, flags=MS_BIND | MS_REC)
    try:
        umount(SCRATCH + RUNTIME.removeprefix(GROUND))
    except OSError:
        pass
    return token_in(SCRATCH + TOKEN.removeprefix(GROUND))


@further("a copy of the tree without what hides")
def further_clone():
    tree = does(libc.syscall(OPEN_TREE, AT_FDCWD, text(GROUND), OPEN_TREE_CLONE))
    return token_in(TOKEN.removeprefix(GROUND + "/"), opener=lambda path, flags: os.open(path, flags, dir_fd=tree))


@further("an overlay of the directory")
def further_overlay():
    mount("overlay", SCRATCH, "overlay", data=f"lowerdir={GROUND}:/usr")
    return token_in(SCRATCH + TOKEN.removeprefix(GROUND))


@further("a root elsewhere, and out of it")
def further_chroot():
    here = os.open("/", os.O_RDONLY)
    os.chroot(SCRATCH)
    os.fchdir(here)
    os.chroot(".")
    return token_in(TOKEN)


def change_root(root=None):
    """Makes a mount (or SCRATCH) the root of all and takes the old one away; returns what was opened of it before."""
    directory = os.open(GROUND, os.O_RDONLY)
    if root is None:
        mount(SCRATCH, SCRATCH, flags=MS_BIND)
    os.chdir(root or SCRATCH)
    numbers = {"x86_64": 155, "aarch64": 41, "riscv64": 41}
    does(libc.syscall(numbers[os.uname().machine], b".", b"old"))
    umount("/old")
    return directory


@further("another root for all, the old one taken away")
def further_pivot():
    directory, path = change_root(), TOKEN.removeprefix(GROUND + "/")
    return token_in(path, opener=lambda path, flags: os.open(path, flags, dir_fd=directory))


@further("another root for all, and what is hidden moved away")
def further_rename():
    directory, name = change_root(), os.path.basename(RUNTIME)
    os.rename(name, "moved", src_dir_fd=directory, dst_dir_fd=directory)
    try:
        path = "moved" + TOKEN.removeprefix(RUNTIME)
        return token_in(path, opener=lambda path, flags: os.open(path, flags, dir_fd=directory))
    finally:
        os.rename("moved", name, src_dir_fd=directory, dst_dir_fd=directory)


class Beside:
    """Two directories beside the ground, of which the second shows the first one's files by a mount of its own."""

    def __enter__(self):
        self.to, self.by = (f"{GROUND}-{name}-{os.getpid()}" for name in ("to", "by"))
        for path in (self.to, self.by):
            os.mkdir(path)
        return self

    def __exit__(self, *_):
        for path in (self.to, self.by):
            os.rmdir(path)


@further("the way to the directory moved to where a second mount shows it")
def further_second_mount():
    with Beside() as beside:
        mount(beside.to, beside.by, flags=MS_BIND)
        try:
            os.rename(GROUND, beside.to + "/ground")
            try:
                return token_in(beside.by + "/ground" + TOKEN.removeprefix(GROUND))
            finally:
                os.rename(beside.to + "/ground", GROUND)
        finally:
            umount(beside.by)


@further("the old root taken away, and the directory moved to where a second mount shows it")
def further_detached():
    to, name = GROUND + "/to", os.path.basename(RUNTIME)
    os.makedirs(to, exist_ok=True)
    mount("tmpfs", SCRATCH, "tmpfs")
    for path in ("by", "old"):
        os.mkdir(f"{SCRATCH}/{path}")
    mount(to, SCRATCH + "/by", flags=MS_BIND)
    directory = change_root(SCRATCH)
    os.rename(name, f"to/{name}", src_dir_fd=directory, dst_dir_fd=directory)
    try:
        return token_in(f"/by/{name}" + TOKEN.removeprefix(RUNTIME))
    finally:
        os.rename(f"to/{name}", name, src_dir_fd=directory, dst_dir_fd=directory)


@further("a process outside traced with all rights")
def further_trace():
    does(libc.ptrace(PTRACE_SEIZE, BYSTANDER, None, None))
    return True


@further("the namespace that it came from entered with all rights")
def further_back():
    with open(f"/proc/{os.getppid()}/ns/user") as namespace:
        does(libc.setns(namespace.fileno(), CLONE_NEWUSER))
    umount(RUNTIME)
    return token_in(TOKEN)


for name, function in ATTEMPTS:
    # Each in a process of its own, so that what one changes is not there for the next.
    sys.stdout.flush()
    child = os.fork()
    if child == 0:
        code = 1
        try:
            code = 0 if function() else 1
        except OSError as error:
            print(f"{name}: {error}", file=sys.stderr)
        except BaseException as error:
            print(f"{name}: broken: {error!r}", file=sys.stderr)
            code = 2
        sys.stderr.flush()
        os._exit(code)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    print(f"{name}\t{ {0: 'got', 1: 'refused'}.get(code, f'broken ({code})') }")
