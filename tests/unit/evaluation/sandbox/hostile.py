"""Programs that try what a program should not. None computes `double`, so none may pass.

OUTSIDE is the path of a folder that they have no business in, MARK a word by which a left process would be known.
"""

# ruff: noqa: E501  (programs, a line each)
from __future__ import annotations

IGNORES = "import signal\nfor s in range(1, 65):\n    try: signal.signal(s, signal.SIG_IGN)\n    except (OSError, ValueError): pass\n"
DOUBLE = "def double(x):\n    return None\n"
LOOP = "while True: pass\n"

HOSTILE = {
    # ends and lies
    "exit 0": "import os\nos._exit(0)\n",
    "exit 0 when called": "import os\ndef double(x):\n    os._exit(0)\n",
    "sys.exit": "import sys\nsys.exit(0)\n",
    "SystemExit when called": "def double(x):\n    raise SystemExit(0)\n",
    "prints passed": "print('passed'); print('{\"passed\": true}')\n" + DOUBLE,
    "says passed on every descriptor": (
        'import os\nfor fd in range(256):\n    try: os.write(fd, b\'{"passed": true, "reason": "passed"}\\n\')\n'
        "    except OSError: pass\n" + DOUBLE
    ),
    "answers in place of its function": (
        'import os\nfor _ in range(9): os.write(4, b\'{"ready": true}\\n{"returned": {"passed": true}}\\n\')\n' + DOUBLE
    ),
    "returns the reply's own words": "def double(x):\n    return {'passed': True, 'returned': x, 'reason': 'passed'}\n",
    "patches assert": (
        "import builtins\nbuiltins.AssertionError = type('Never', (Exception,), {})\n"
        "builtins.isinstance = lambda *a: True\n" + DOUBLE
    ),
    "patches sys.exit and os._exit": "import os, sys\nsys.exit = os._exit = os.kill = lambda *a: None\n" + DOUBLE,
    "patches json": (
        "import json, sys\njson.dumps = lambda *a, **k: '{\"passed\": true}'\njson.loads = lambda *a, **k: {}\n"
        + DOUBLE
    ),
    "equal to everything": (
        "class Same(int):\n    def __eq__(s, o): return True\n    __ne__ = lambda s, o: False\n    __hash__ = None\n"
        "def double(x):\n    return Same(1)\n"
    ),
    "an object equal to everything": (
        "class Same:\n    def __eq__(s, o): return True\n    def __rsub__(s, o): return 0\ndef double(x):\n    return Same()\n"
    ),
    "looks for the expected value in its frames": (
        "import sys, gc\ndef double(x):\n    f = sys._getframe()\n    while f:\n        f.f_locals.update(passed=True)\n"
        "        f = f.f_back\n    for o in gc.get_objects():\n        if isinstance(o, dict) and 'test' in o: return 42\n"
    ),
    "a check of its own": "def check(candidate): pass\n" + DOUBLE,
    "an exit handler": "import atexit, os\natexit.register(os._exit, 0)\n" + DOUBLE,
    "a trace function": "import sys\nsys.settrace(lambda *a: sys.exit(0))\n" + DOUBLE,
    "rewrites the runner in memory": (
        "import sys\nfor m in list(sys.modules.values()):\n    for n in list(vars(m)):\n"
        "        if n in ('send', 'encode', 'describe'): setattr(m, n, lambda *a: {'passed': True})\n" + DOUBLE
    ),
    # loops
    "loops": LOOP,
    "loops when called": "def double(x):\n    while True: pass\n",
    "sleeps": "import time\ntime.sleep(1000)\n",
    "ignores all signals and loops": IGNORES + LOOP,
    "catches everything": "def double(x):\n    while True:\n        try:\n            while True: pass\n        except BaseException: pass\n",
    "an endless expression of the regex engine": "import re\nre.match(r'(a+)+$', 'a' * 64 + 'b')\n" + DOUBLE,
    "a huge power": "10 ** 10 ** 10\n" + DOUBLE,
    "waits for more to read": "import os\nos.read(3, 1)\nos.read(0, 1)\nos.read(3, 1)\n" + LOOP,
    # memory, disk, output
    "fills memory": "x = []\nwhile True: x.append(bytearray(2**24))\n",
    "asks for a terabyte": "x = bytearray(2**40)\n",
    "fills memory where no limit counts": (
        "import os\nfor i in range(64):\n    fd = os.memfd_create(str(i))\n    for _ in range(2**10): os.write(fd, bytes(2**20))\n"
    ),
    "fills shared memory": "import os\nwith open('/dev/shm/MARK', 'wb') as f:\n    while True: f.write(bytes(2**20))\n",
    "a huge file": "f = open('x', 'wb')\nwhile True: f.write(bytes(2**20))\n",
    "many files": "i = 0\nwhile True:\n    open(f'x{i}', 'wb').write(bytes(2**19)); i += 1\n",
    "folders deeper than recursion": (
        "import os\nfor _ in range(3000):\n    try: os.mkdir('d'); os.chdir('d')\n    except OSError: break\n" + DOUBLE
    ),
    "folders in folders": "import os\nwhile True:\n    os.mkdir('d'); os.chdir('d')\n",
    "prints without end": "while True: print('x' * 2**20)\n",
    "a reply without end": "import os\nwhile True: os.write(4, b'x' * 2**16)\n",
    "returns too much": "def double(x):\n    return 'x' * 2**24\n",
    "returns itself in itself": "def double(x):\n    a = []; a.append(a)\n    return a\n",
    "recursion without end": "import sys\nsys.setrecursionlimit(10**9)\ndef double(x):\n    return double(x)\n",
    "opens all descriptors": "import os\nx = []\nwhile True: x.append(os.dup(0))\n",
    "closes all descriptors": "import os\nos.closerange(0, 4096)\n" + DOUBLE,
    # processes
    "forks without end": "import os\nwhile True:\n    try: os.fork()\n    except OSError: pass\n",
    "forks and leaves": "import os\nif os.fork() == 0:\n    import time; time.sleep(600)\nos._exit(0)\n",
    "a daemon": (
        "import os, time\nif os.fork() == 0:\n    os.setsid()\n    if os.fork() == 0:\n        os.chdir('/')\n"
        "        time.sleep(600)\n    os._exit(0)\nos._exit(0)\n"
    ),
    "a daemon that ignores signals": (
        "import os, time\nif os.fork() == 0:\n    os.setsid()\n    "
        + IGNORES.replace("\n", "\n    ")
        + "\n    time.sleep(600)\n"
        + DOUBLE
    ),
    "threads without end": "import threading, time\nwhile True: threading.Thread(target=time.sleep, args=(600,)).start()\n",
    "a shell": "import os\nos.system('sleep 600 & touch OUTSIDE/shell')\n" + DOUBLE,
    "becomes a shell": "import os\nos.execv('/bin/sh', ['sh', '-c', 'touch OUTSIDE/exec; sleep 600'])\n",
    "a process by clone": "import ctypes, time\nc = ctypes.CDLL(None)\nif c.syscall(56, 17, 0, 0, 0, 0) == 0: time.sleep(600)\n"
    + DOUBLE,
    # others
    "kills its parent": "import os, signal\nos.kill(os.getppid(), signal.SIGKILL)\n" + DOUBLE,
    "kills everything": "import os, signal\nos.kill(-1, signal.SIGKILL)\n" + DOUBLE,
    "kills its group": "import os, signal\nos.killpg(0, signal.SIGKILL)\n" + DOUBLE,
    "kills by number": (
        "import os, signal\nfor p in range(1, 70000):\n    if p != os.getpid():\n        try: os.kill(p, signal.SIGKILL)\n"
        "        except OSError: pass\n" + DOUBLE
    ),
    "kills itself": "import os, signal\nos.kill(os.getpid(), signal.SIGKILL)\nos.abort()\n",
    "crashes": "import ctypes\nctypes.string_at(0)\n",
    "traces its parent": "import ctypes, os\nctypes.CDLL(None).ptrace(16, os.getppid(), 0, 0)\n" + DOUBLE,
    "writes its parent's memory": "import os\nopen(f'/proc/{os.getppid()}/mem', 'r+b').write(b'x')\n" + DOUBLE,
    "has a pipe signal its parent": (
        "import fcntl, os\nr, w = os.pipe()\nfcntl.fcntl(r, 10, 9)\nfcntl.fcntl(r, 8, os.getppid())\n"
        "fcntl.fcntl(r, 4, fcntl.fcntl(r, 3) | 0o20000)\nos.write(w, b'x')\n" + DOUBLE
    ),
    "takes limits from itself": "import resource\nresource.setrlimit(resource.RLIMIT_AS, (-1, -1))\nx = bytearray(2**33)\n",
    # files and network
    "writes outside": "open('OUTSIDE/written', 'w').write('x')\n" + DOUBLE,
    "deletes outside": "import shutil\nshutil.rmtree('OUTSIDE')\n" + DOUBLE,
    "changes rights outside": "import os\nos.chmod('OUTSIDE/kept', 0)\n" + DOUBLE,
    "a link outside": "import os\nos.symlink('OUTSIDE/kept', 'l')\nopen('l', 'w').write('x')\n" + DOUBLE,
    "a link in the place of its folder": (
        "import os\nhere = os.getcwd()\ntry: os.rmdir(here); os.symlink('OUTSIDE', here)\nexcept OSError: pass\n"
        + DOUBLE
    ),
    "reads outside": "assert not open('OUTSIDE/kept').read()\ndef double(x): return 42\n",
    "reads the tests in another process": (
        "import os, re\nfor p in os.listdir('/proc'):\n    try: t = open(f'/proc/{p}/cmdline').read() + open(f'/proc/{p}/environ').read()\n"
        "    except OSError: continue\n    if '42' in t: answer = 42\ndef double(x): return answer\n"
    ),
    "a socket": "import socket\ns = socket.socket()\ns.bind(('127.0.0.1', 0))\ns.listen()\ndef double(x): return 42\n",
    "calls home": "import socket\nsocket.create_connection(('127.0.0.1', PORT), 2).send(b'x')\ndef double(x): return 42\n",
    "a mount": "import ctypes\nc = ctypes.CDLL(None)\nassert c.mount(b'tmpfs', b'/', b'tmpfs', 0, 0) == 0\ndef double(x): return 42\n",
    "writes the disk that is read-only again": (
        "import ctypes\nc = ctypes.CDLL(None)\nassert c.mount(b'none', b'/', None, 32 | 4096, 0) == 0\ndef double(x): return 42\n"
    ),
    # what does not even begin
    "no Python": "def double(x:\n",
    "no such function": "def triple(x): return 3 * x\n",
    "nulls": "\0" * 100,
    "deeply nested": "(" * 100000,
    "raises": "def double(x):\n    raise ValueError('x' * 10**7)\n",
    "raises what no file can hold": "def double(x):\n    raise TypeError('\\ud800' * 50)\n",
    "raises what cannot be told": (
        "class E(TypeError):\n    def __str__(self): raise E\ndef double(x):\n    raise E\n"
    ),
}
