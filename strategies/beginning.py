"""FedAvg that remembers where a round began: what several strategies measure updates from."""

from collections.abc import Iterable

from flwr.app import ArrayRecord, ConfigRecord, Message
from flwr.serverapp import Grid
from flwr.serverapp.strategy import FedAvg

from isthmus.encoding import Arrays
from isthmus.packing import from_array_record


class FromBeginning(FedAvg):
    """FedAvg, to be continued.

    Attributes:
        beginning: Shared parameters that the latest updates were asked for.
    """

    beginning: Arrays

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """As FedAvg's."""
        self.beginning = from_array_record(arrays)
        return super().configure_train(server_round, arrays, config, grid)
