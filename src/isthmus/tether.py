"""Become another program that dies with whoever started it, so that nothing is left behind by a `kill -9`.

    python -m isthmus.tether PARENT FILES program argument ...

PARENT is the process id of who starts it; FILES is the most files and connections that the program may have open
(0 for as many as are allowed anyway). Linux only: elsewhere the program runs untethered.
"""

import ctypes
import os
import resource
import signal
import sys

_PR_SET_PDEATHSIG = 1  # prctl(2); survives execve


def main(arguments: list[str]) -> None:
    """Tie this process to its parent and become the program."""
    parent, files, *command = arguments
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != int(parent):  # it was gone before the line above
            os.kill(os.getpid(), signal.SIGKILL)
    if int(files):
        _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
        limit = int(files) if most == resource.RLIM_INFINITY else min(int(files), most)
        resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))
    os.execvp(command[0], command)  # noqa: S606 - this is what it is for


if __name__ == "__main__":
    main(sys.argv[1:])
