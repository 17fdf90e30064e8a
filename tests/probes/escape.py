"""Tries to get out: each probe reaches for something that is not the function's, and says whether it got it.

Reads what to look for as JSON from standard input, writes {group: {probe: "reached" or why not}}. A probe asks before it hurts: it
opens without writing, signals with 0, and gives the kernel arguments that are refused only after the question of rights.
"""

import ctypes
import errno
import glob
import json
import os
import platform
import resource
import signal
import socket
import stat
import sys
import urllib.error
import urllib.request

told = json.load(sys.stdin)
DATA, URL, VICTIM = told["data"], told["url"], told["victim"]
HOME = os.environ["HOME"]
MARK = "capstan-victim"
SHM_KEY = 0x43415053
libc = ctypes.CDLL(None, use_errno=True)
X86 = platform.machine() == "x86_64"
PROBES = []


def probe(group, what):
    """Registers a probe: it reaches what it names if it comes back without an error and not with False."""

    def register(function):
        PROBES.append((group, what, function))
        return function

    return register


def simple(group, what, function):
    PROBES.append((group, what, function))


class Refused(Exception):
    pass


def call(name, *arguments):
    """A function of libc; its error is raised."""
    answer = getattr(libc, name)(*arguments)
    if answer == -1:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return answer


def syscall(x86, arm, *arguments):
    return call("syscall", x86 if X86 else arm, *arguments)


def allowed(*harmless):
    """An answer of these codes means that the kernel had nothing against us asking, and only the question was nonsense."""

    def turn(function):
        def ask():
            try:
                return function()
            except OSError as error:
                if error.errno in harmless:
                    return True
                raise

        return ask

    return turn


def read(path):
    with open(path, "rb") as file:
        return len(file.read(64)) > 0


def writable(path):
    os.close(os.open(path, os.O_WRONLY))
    return True


def may_write(path):
    return os.access(path, os.W_OK)


def processes(word):
    """Processes of others whose command line has this word."""
    found = []
    for folder in glob.glob("/proc/[0-9]*"):
        try:
            line = open(f"{folder}/cmdline", "rb").read().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        pid = int(folder.rsplit("/", 1)[1])
        if word in line and "escape.py" not in line:
            found.append(pid)
    return sorted(found)


def one(word):
    found = processes(word)
    if not found:
        raise Refused(f"no process with {word} is seen")
    return found[0]


scheduler = lambda: one("up --listen")
victim = lambda: one("victim.py")


ADMIN = []


def ask(method, path, body=None, token=None):
    token = token or (ADMIN[0] if ADMIN else None)
    headers = {"authorization": f"Bearer {token}"} if token else {}
    data = json.dumps(body).encode() if body is not None else None
    request = urllib.request.Request(URL + path, data=data, method=method, headers=headers)
    try:
        with urllib.request.urlopen(request, timeout=5) as answer:
            answered = json.loads(answer.read() or b"null")
            if path == "/v1/tokens" and method == "POST":
                # From here on the door is open to tokens only: whoever got this one goes on with it.
                ADMIN.append(answered["token"])
            return answered
    except urllib.error.HTTPError as error:
        raise Refused(f"HTTP {error.code}") from None


# Files -------------------------------------------------------------------------------------------------------------------------
simple("files", "list the data folder", lambda: "log" in os.listdir(DATA))
simple("files", "read the log of the store", lambda: read(sorted(glob.glob(f"{DATA}/log/*.log"))[0]))
simple("files", "write into the data folder", lambda: may_write(f"{DATA}/log"))
simple("files", "read the data folder through /proc/self/root", lambda: "log" in os.listdir(f"/proc/self/root{DATA}"))
simple("files", "read the data folder through process 1", lambda: "log" in os.listdir(f"/proc/1/root{DATA}"))
simple("files", "list payloads", lambda: os.listdir(f"{DATA}/blobs") is not None)
simple("files", "write a payload", lambda: may_write(f"{DATA}/blobs"))
simple("files", "read a private file of the operator", lambda: read(told["private"]))
simple("files", "list another namespace's volume", lambda: "secret" in os.listdir(f"{DATA}/volumes/theirs/kept"))
simple("files", "read another namespace's volume", lambda: read(f"{DATA}/volumes/theirs/kept/secret"))
simple("files", "write another namespace's volume", lambda: writable(f"{DATA}/volumes/theirs/kept/secret"))
simple("files", "read another's file in /tmp", lambda: read(f"/proc/{victim()}/root/tmp/{MARK}"))
simple("files", "read another's scratch through its process", lambda: read(f"/proc/{victim()}/root{VICTIM}/secret"))
simple("files", "read /etc/shadow", lambda: read("/etc/shadow"))
simple("files", "write /etc/passwd", lambda: writable("/etc/passwd"))
simple("files", "write into /usr/bin", lambda: may_write("/usr/bin"))
simple("files", "make a file in /", lambda: may_write("/"))
simple("files", "list the superuser's home", lambda: os.listdir("/root") is not None)


@probe("files", "make a device node")
def _():
    path = f"{HOME}/device"
    os.mknod(path, stat.S_IFCHR | 0o600, os.makedev(1, 3))
    os.unlink(path)


@probe("files", "give a file to another user")
def _():
    path = f"{HOME}/given"
    open(path, "w").close()
    os.chown(path, 0 if os.getuid() else 12345, -1)
    os.unlink(path)


@probe("files", "open files by their handles, past all folders")
@allowed(errno.EBADF, errno.ESTALE, errno.EINVAL)
def _():
    handle = (ctypes.c_char * 64)(*b"\x08\0\0\0\x01\0\0\0")
    return syscall(304, 265, os.open("/", os.O_RDONLY), handle, 0)


# Processes ---------------------------------------------------------------------------------------------------------------------
simple("processes", "see the scheduler's process", lambda: scheduler() > 0)
simple("processes", "see another function's process", lambda: victim() > 0)
simple("processes", "see who else runs on the machine", lambda: len(glob.glob("/proc/[0-9]*")) > 4)
simple("processes", "list the scheduler's descriptors", lambda: len(os.listdir(f"/proc/{scheduler()}/fd")) > 0)
simple("processes", "list another function's descriptors", lambda: len(os.listdir(f"/proc/{victim()}/fd")) > 0)
simple("processes", "list process 1's descriptors", lambda: len(os.listdir("/proc/1/fd")) > 0)
simple("processes", "be more important than others", lambda: os.setpriority(os.PRIO_PROCESS, 0, -5) is None)
simple(
    "processes",
    "decide where process 1 runs",
    lambda: os.sched_setaffinity(1, os.sched_getaffinity(1)) is None and len(processes("up --listen")) > 0,
)
@probe("processes", "lift its own limits")
def _():
    resource.setrlimit(resource.RLIMIT_CORE, (0, resource.RLIM_INFINITY))


# Memory ------------------------------------------------------------------------------------------------------------------------
def traced(pid):
    """PTRACE_SEIZE, by a process whose end lets go."""
    in_a_copy(lambda: call("ptrace", 0x4206, pid, 0, 0))


def remote(pid):
    """process_vm_readv of an address where nothing is: refused for want of rights, or else for the address."""

    class Piece(ctypes.Structure):
        _fields_ = [("at", ctypes.c_void_p), ("length", ctypes.c_size_t)]

    here = ctypes.create_string_buffer(8)
    ours, theirs = Piece(ctypes.addressof(here), 8), Piece(8, 8)
    return allowed(errno.EFAULT)(lambda: call("process_vm_readv", pid, ctypes.byref(ours), 1, ctypes.byref(theirs), 1, 0))()


simple("memory", "trace the scheduler", lambda: traced(scheduler()))
simple("memory", "trace another function", lambda: traced(victim()))
simple("memory", "trace process 1", lambda: traced(1))
simple("memory", "read the scheduler's memory", lambda: remote(scheduler()))
simple("memory", "read another function's memory", lambda: remote(victim()))
simple("memory", "open the scheduler's memory", lambda: os.close(os.open(f"/proc/{scheduler()}/mem", os.O_RDONLY)))
simple("memory", "open process 1's memory", lambda: os.close(os.open("/proc/1/mem", os.O_RDONLY)))
simple("memory", "see another's shared memory by name", lambda: read(f"/proc/{victim()}/root/dev/shm/{MARK}"))
simple("memory", "attach to another's shared memory by key", lambda: setns_ipc_and_find())


def setns_ipc_and_find():
    """Its own namespace first; then that of the one who made it."""
    if libc.shmget(SHM_KEY, 4096, 0) != -1:
        return True
    child = os.fork()
    if child == 0:
        try:
            ours = os.open(f"/proc/{victim()}/ns/ipc", os.O_RDONLY)
            call("setns", ours, 0)
            os._exit(0 if libc.shmget(SHM_KEY, 4096, 0) != -1 else 1)
        except BaseException:
            os._exit(1)
    if os.waitpid(child, 0)[1] != 0:
        raise Refused("no such memory is seen")


# Sockets -----------------------------------------------------------------------------------------------------------------------
def connects(path):
    with socket.socket(socket.AF_UNIX) as way:
        way.connect(path)


@probe("sockets", "connect to another function's socket")
def _():
    # A path of a socket is short.
    os.chdir(f"/proc/{victim()}/root{VICTIM}")
    try:
        connects("door")
    finally:
        os.chdir(HOME)


@probe("sockets", "send what looks like others' packets")
def _():
    socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP).close()


@probe("sockets", "hear everything on the wire")
def _():
    socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0).close()


@probe("sockets", "mark packets past the rules of the network")
def _():
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as marked:
        marked.setsockopt(socket.SOL_SOCKET, 36, 1)


@probe("sockets", "serve at a port of the system")
def _():
    with socket.socket() as server:
        server.bind(("127.0.0.1", 83))


# Environment -------------------------------------------------------------------------------------------------------------------
simple("environment", "read the operator's environment", lambda: read(f"/proc/{scheduler()}/environ"))
simple("environment", "read another function's environment", lambda: b"SECRET=theirs" in open(f"/proc/{victim()}/environ", "rb").read())
simple("environment", "read process 1's environment", lambda: os.close(os.open("/proc/1/environ", os.O_RDONLY)))
simple("environment", "see where the scheduler works", lambda: os.readlink(f"/proc/{scheduler()}/cwd") != "")


# Cgroup ------------------------------------------------------------------------------------------------------------------------
def cgroups(name):
    found = glob.glob(f"/sys/fs/cgroup/{name}") or glob.glob(f"/sys/fs/cgroup/*/{name}")
    if not found:
        raise Refused("no such file")
    return found


simple("cgroup", "leave its cgroup", lambda: any(writable(path) for path in cgroups("cgroup.procs")))
simple("cgroup", "change limits", lambda: any(writable(path) for path in cgroups("notify_on_release") + cgroups("cgroup.procs")))
simple("cgroup", "make a cgroup", lambda: any(may_write(os.path.dirname(path)) for path in cgroups("cgroup.procs")))
simple("cgroup", "see where in the machine it is", lambda: MARK not in open("/proc/self/cgroup").read() and "capstan" in open("/proc/self/cgroup").read())


# Signals -----------------------------------------------------------------------------------------------------------------------
simple("signals", "signal the scheduler", lambda: os.kill(scheduler(), 0) is None)
simple("signals", "signal another function", lambda: os.kill(victim(), 0) is None)
simple("signals", "signal another function's group", lambda: os.killpg(os.getpgid(victim()), 0) is None)
simple("signals", "signal all whom it may", lambda: os.kill(-1, 0) is None)
simple("signals", "signal by a descriptor", lambda: signal.pidfd_send_signal(os.pidfd_open(victim()), 0) is None)


# Mounts ------------------------------------------------------------------------------------------------------------------------
def in_a_copy(function):
    """In a process of its own with a copy of the mounts, where it hurts nobody."""
    child = os.fork()
    if child == 0:
        try:
            os._exit(0 if function() is not False else 2)
        except OSError as error:
            os._exit(min(error.errno, 200) + 20)
        except BaseException:
            os._exit(2)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if code > 20:
        raise OSError(code - 20, os.strerror(code - 20))
    if code:
        raise Refused("it has no effect")


NEWNS, NEWUSER = 0x20000, 0x10000000


@probe("mounts", "have mounts of its own")
def _():
    in_a_copy(lambda: call("unshare", NEWNS))


@probe("mounts", "mount a file system")
def _():
    in_a_copy(lambda: [call("unshare", NEWNS), call("mount", b"none", HOME.encode(), b"tmpfs", 0, None)][0])


@probe("mounts", "mount over the system's programs")
def _():
    in_a_copy(lambda: [call("unshare", NEWNS), call("mount", b"/tmp", b"/usr", None, 4096, None)][0])


@probe("mounts", "take away what hides the data folder")
def _():
    def take():
        libc.umount2(DATA.encode(), 2)
        return "log" in os.listdir(DATA)

    in_a_copy(take)


@probe("mounts", "take that away as superuser of a user namespace of its own")
def _():
    def take():
        uid = os.getuid()
        call("unshare", NEWUSER | NEWNS)
        open("/proc/self/setgroups", "w").write("deny")
        open("/proc/self/uid_map", "w").write(f"0 {uid} 1")
        libc.umount2(DATA.encode(), 2)
        libc.umount2(b"/proc", 2)
        return "log" in os.listdir(DATA)

    in_a_copy(take)


@probe("mounts", "join process 1's mounts")
def _():
    in_a_copy(lambda: call("setns", os.open("/proc/1/ns/mnt", os.O_RDONLY), 0))


@probe("mounts", "join the scheduler's namespaces")
def _():
    in_a_copy(lambda: call("setns", os.open(f"/proc/{scheduler()}/ns/ipc", os.O_RDONLY), 0))


@probe("mounts", "change the root")
def _():
    in_a_copy(lambda: os.chroot("/proc/1/root"))


# Kernel interfaces -------------------------------------------------------------------------------------------------------------
def superuser():
    def become():
        os.setuid(0)
        return os.getuid() == 0

    in_a_copy(become)


simple("kernel", "become the superuser", superuser)
simple("kernel", "have another group", lambda: in_a_copy(lambda: os.setgroups([0])))
simple("kernel", "have a capability", lambda: int(next(l for l in open("/proc/self/status") if l.startswith("CapEff")).split()[1], 16) != 0)
simple("kernel", "gain rights by what it executes", lambda: "NoNewPrivs:\t0" in open("/proc/self/status").read())
simple("kernel", "load a program into the kernel", allowed(errno.EINVAL, errno.EFAULT, errno.E2BIG)(lambda: os.close(syscall(321, 280, 0, (ctypes.c_uint * 18)(2, 4, 8, 1), 72))))
simple("kernel", "watch the whole processor", lambda: watch_processor())
simple("kernel", "name the machine", lambda: call("sethostname", platform.node().encode(), len(platform.node())) == 0)
simple("kernel", "stop the machine", allowed(errno.EINVAL)(lambda: syscall(169, 142, 0, 0, 0, 0)))
simple("kernel", "take away swap", allowed(errno.ENOENT, errno.EINVAL)(lambda: call("swapoff", b"/nowhere")))
simple("kernel", "tune the kernel", lambda: writable("/proc/sys/vm/overcommit_memory"))
simple("kernel", "read what the kernel says", lambda: call("klogctl", 10, None, 0) >= 0)
simple("kernel", "close the kernel's log to others", lambda: writable("/dev/kmsg"))
# A length of the clock's tick that no clock has.
simple("kernel", "set the clock", allowed(errno.EINVAL)(lambda: call("adjtimex", (ctypes.c_long * 64)(0x4000))))


def watch_processor():
    attributes = (ctypes.c_uint * 32)(1, 128)
    attributes[2] = 0
    os.close(syscall(298, 241, attributes, -1, 0, -1, 0))


@probe("sockets", "ask the door for KEDA")
def _():
    # Whoever is let in is greeted.
    with socket.create_connection(("127.0.0.1", told["keda"]), 5) as way:
        way.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0\0\0\4\0\0\0\0\0")
        return len(way.recv(9)) > 0


# The API on loopback -----------------------------------------------------------------------------------------------------------
TOKEN = os.environ.get("CAPSTAN_TOKEN")
SPEC = {"runtime": {"process": {"command": ["id"]}}, "protocol": "exec"}
simple("api", "make an admin's token", lambda: ask("POST", "/v1/tokens", {"role": "admin", "name": "probe"}))
simple("api", "list tokens", lambda: ask("GET", "/v1/tokens"))
simple("api", "read another namespace's functions", lambda: ask("GET", "/v1/namespaces/theirs/functions"))
simple("api", "read another function's environment", lambda: "theirs" in json.dumps(ask("GET", "/v1/namespaces/theirs/functions/victim")["spec"]["runtime"]))
simple("api", "deploy into another namespace", lambda: ask("PUT", "/v1/namespaces/theirs/functions/mine", SPEC))
simple("api", "deploy what is trusted", lambda: ask("PUT", "/v1/namespaces/mine/functions/mine", {**SPEC, "trusted": True}))
simple("api", "call another namespace's function", lambda: ask("POST", "/v1/namespaces/theirs/functions/victim/invoke", 1))
simple("api", "call it through /web", lambda: ask("GET", "/web/theirs/victim/"))
simple("api", "read other namespaces' calls", lambda: any(c["namespace"] == "theirs" for c in ask("GET", "/v1/calls")["calls"]))
simple("api", "see what happens everywhere", lambda: ask("GET", "/v1/workers"))
simple("api", "govern a namespace", lambda: ask("PUT", "/v1/namespaces/mine", {"weight": 1}))
simple("api", "scale all to zero", lambda: ask("PUT", "/v1/scale-to-zero", {}))

WITH_TOKEN = [
    ("make an admin's token", "POST", "/v1/tokens", {"role": "admin"}),
    ("list tokens", "GET", "/v1/tokens", None),
    ("read another namespace's functions", "GET", "/v1/namespaces/theirs/functions", None),
    ("deploy into another namespace", "PUT", "/v1/namespaces/theirs/functions/mine", SPEC),
    ("deploy into its own, with the role invoke", "PUT", "/v1/namespaces/mine/functions/mine", SPEC),
    ("call another namespace's function", "POST", "/v1/namespaces/theirs/functions/victim/invoke", 1),
]


def with_token(method, path, body):
    """What its own token opens; what is trusted needs none on an open door, and does without."""
    return ask(method, path, body, None if told["trusted"] else TOKEN)


for what, method, path, body in WITH_TOKEN:
    simple("api", f"{what}, with its token", lambda m=method, p=path, b=body: with_token(m, p, b))


def main():
    answers = {}
    for group, what, function in PROBES:
        try:
            answer = "it has no effect" if function() is False else "reached"
        except Refused as refused:
            answer = str(refused)
        except OSError as error:
            answer = errno.errorcode.get(error.errno, str(error))
        except (ValueError, IndexError, KeyError, StopIteration) as error:
            answer = f"not seen ({type(error).__name__})"
        answers.setdefault(group, {})[what] = answer
    json.dump(answers, sys.stdout)


main()
