"""A round of the plain loop, a round on the in-process grid, and so on in turn, in one process.

    ISTHMUS_BENCH_PEERS=../shared/bench/peers python benchmarks/overhead/alternate.py 40

What else the machine does slows both alike, so the ratio of neighbours holds on a loaded machine too, where the
CPU-seconds of two processes that ran minutes apart do not compare. The plain round is that of the peers'
`run_plain.py`, whose file has no function to call. Prints one JSON line: CPU-seconds of a round and the ratio.
"""

import json
import logging
import statistics
import sys
import time

import run_isthmus as ours
import torch
from flwr.app import ArrayRecord
from torch import Tensor

w = ours.w
_WARM_UP = 2


def main() -> None:
    """Alternate, which one goes first included; the first rounds do not count."""
    logging.getLogger("flwr").setLevel(logging.WARNING)
    model = w.make_model()
    shared = [parameter.detach().clone() for parameter in model.parameters()]
    arrays = ArrayRecord(model.state_dict())
    grid, strategy = ours.make_grid(0), ours.make_strategy()
    plain, isthmus = [], []
    for round_ in range(int(sys.argv[1]) + _WARM_UP):
        for turn in (round_, round_ + 1):
            start = time.process_time()
            if turn % 2:
                shared = plain_round(model, shared, round_)
                plain.append(time.process_time() - start)
            else:
                arrays = ours.one_round(grid, strategy, round_, arrays)
                isthmus.append(time.process_time() - start)
    model.load_state_dict(arrays.to_torch_state_dict())
    apart = max(float((a.detach() - b).abs().max()) for a, b in zip(model.parameters(), shared, strict=True))
    if apart > 1e-3:
        raise RuntimeError(f"both must train the same model; they are {apart} apart")
    plain, isthmus = plain[_WARM_UP:], isthmus[_WARM_UP:]
    found = {
        "plain": statistics.median(plain),
        "isthmus": statistics.median(isthmus),
        "ratio": statistics.median(mine / base for mine, base in zip(isthmus, plain, strict=True)),
        "rounds": len(plain),
    }
    print("BENCH_RESULT " + json.dumps(found))


@torch.no_grad()
def plain_round(model: torch.nn.Module, shared: list[Tensor], round_: int) -> list[Tensor]:
    """One model in memory, loaded in place; a running mean."""
    mean = [torch.zeros_like(tensor) for tensor in shared]
    for client_id in w.sample(round_):
        for parameter, tensor in zip(model.parameters(), shared, strict=True):
            parameter.copy_(tensor)
        with torch.enable_grad():
            w.train_client(model, client_id)
        for tensor, parameter in zip(mean, model.parameters(), strict=True):
            tensor.add_(parameter, alpha=1.0 / w.COHORT)
    return mean


if __name__ == "__main__":
    main()
