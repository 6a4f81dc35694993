"""CPU-seconds of `isthmus verify` on a ledger of 100,000 entries.

    python benchmarks/verify/make_and_time.py                        # makes the ledger, verifies it, prints both
    python benchmarks/verify/make_and_time.py --entries 10000        # smaller
    python benchmarks/verify/make_and_time.py --profile              # and where the time goes

The ledger is a real one: each entry is charged and its release kept, as lines of their own, so 100,000 entries are
200,001 lines and as many signatures. It is written through the chain and not through `Ledger`, which would sync each
line to disk. CPU time of this process is what counts; the machine may be busy with something else.
"""

import argparse
import cProfile
import hashlib
import os
import pstats
import tempfile
import time
from pathlib import Path

import isthmus
from isthmus.privacy.accounting import encode_event, gaussian, poisson_gaussian
from isthmus.privacy.audit.verification import verify_files
from isthmus.privacy.ledger import Ledger
from isthmus.privacy.lines import Charged, Released
from isthmus.privacy.program import code_hash

ROUNDS = 100
"""Of one run; each round has an update and every tenth an evaluation."""


def make(path: Path, entries: int) -> None:
    """Write a ledger of so many entries."""
    ledger = Ledger(path, name="books")
    chain, digest = ledger.chain, hashlib.sha256(b"payload").hexdigest()
    events = {"update": encode_event(poisson_gaussian(0.001, 4.0, 1)), "metric": encode_event(gaussian(2000.0))}
    common = {
        "dataset": chain.keys.fingerprint(b"data").hex(),
        "request": "00" * 32,
        "private": True,
        "version": isthmus.__version__,
        "code": code_hash(),
        "policy": "",
        "coordinator": "11" * 32,
    }
    written = 0
    with chain.transaction():
        for number in range(entries):
            run, round_ = divmod(number, ROUNDS)
            for kind in ["update", "metric"] if round_ % 10 == 9 else ["update"]:
                if written == entries:
                    break
                fields = {**common, "run": f"run {run}", "round": round_, "kind": kind, "event": events[kind]}
                line = chain.append(Charged, fields)
                chain.append(Released, {"charge": line.seq, "payload": digest})
                written += 1
    ledger.close()


def main() -> None:
    parser = argparse.ArgumentParser(description="CPU-seconds of `isthmus verify`.")
    parser.add_argument("--entries", type=int, default=100_000)
    parser.add_argument("--profile", action="store_true")
    parser.add_argument("--ledger", type=Path, help="keep the ledger here, and use it if it is there")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        os.environ.setdefault("XDG_STATE_HOME", folder)
        path = options.ledger or Path(folder) / "ledger.db"
        if not path.exists():
            begun = time.process_time()
            make(path, options.entries)
            print(f"made {options.entries} entries in {time.process_time() - begun:.1f} CPU-seconds")
        profile = cProfile.Profile()
        begun = time.process_time()
        if options.profile:
            profile.enable()
        (verified,) = verify_files([path])
        profile.disable()
        spent = time.process_time() - begun
    rules = sorted({finding.rule for finding in verified.findings})
    print(f"verified in {spent:.1f} CPU-seconds; findings: {rules or 'none'}")
    if options.profile:
        pstats.Stats(profile).sort_stats("tottime").print_stats(25)


if __name__ == "__main__":
    main()
