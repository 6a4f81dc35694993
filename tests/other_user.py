"""Run this interpreter as another user, wherever it is installed: for tests of what permissions forbid.

    subprocess.run([*as_user(65534), sys.executable, "script.py"], ...)

An interpreter or a checkout below a closed home folder cannot be run by anybody else. There, the command gets mounts of
its own, in which that folder holds the interpreter, the environment and the checkout, open, and nothing else.
"""

import os
import shutil
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

needs_root = pytest.mark.skipif(
    os.geteuid() != 0 or shutil.which("unshare") is None or shutil.which("setpriv") is None,
    reason="only root can run a process as another user",
)

_OPEN_UP = """
set -e
closed=$1; user=$2; groups=$3; shift 3
spare=$(mktemp -d)
number=0
for kept in $KEPT; do
  mkdir "$spare/$number"; mount --bind "$kept" "$spare/$number"; number=$((number + 1))
done
if [ "$closed" != none ]; then
  mount -t tmpfs -o mode=755 none "$closed"
  number=0
  for kept in $KEPT; do
    mkdir -p "$kept"; mount --bind "$spare/$number" "$kept"; number=$((number + 1))
  done
fi
exec setpriv --reuid "$user" --regid "$user" --groups "$groups" --no-new-privs -- "$@"
"""


def as_user(user: int, *, group: int | None = None) -> list[str]:
    """The words that go before a command.

    Args:
        user: Id of the user, and of its own group.
        group: Id of the one other group that it is in.
    """
    kept = sorted({Path(path).resolve() for path in (sys.base_prefix, sys.prefix, ROOT)})
    closed = {ancestor for path in kept for ancestor in path.parents if not ancestor.stat().st_mode & 0o001}
    top = min(closed, key=lambda path: len(path.parts)) if closed else None
    inside = [str(path) for path in kept if top is not None and top in path.parents]
    return [
        *("env", f"KEPT={' '.join(inside)}", "unshare", "--mount", "--propagation", "private"),
        *("sh", "-c", _OPEN_UP, "sh", str(top or "none"), str(user), str(user if group is None else group)),
    ]
