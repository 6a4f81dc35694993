"""Who takes part: nodes introduce themselves before they are asked for anything that costs.

    meeting = Meeting(grid, request, heads, patience)
    meeting.gather()                 # RunError if too few are there
    meeting.roster                   # {node: domain}

A node says which domain it is, and gives the moments of its public text. A node that comes later is asked beside the
rounds, not before them, and takes part once it has answered.
"""

import logging
import time
from dataclasses import replace

import numpy as np
from flwr.app import Message, MessageType
from flwr.serverapp import Grid

from isthmus.errors import IsthmusError, Refused, RunError
from isthmus.features import TextMoments
from isthmus.privacy.requests import sign_request
from isthmus.records import Kind, RoundReply, RoundRequest
from isthmus.server.heads import HeadLog
from isthmus.server.waiting import Patience, pull, push

_LOG = logging.getLogger(__name__)


class Meeting:
    """Keeps the roster of a run.

    Args:
        grid: That reaches the nodes.
        request: For the catalogue, unsigned.
        heads: Where the domains' ledgers stood is noted there; its keys sign the request.
        patience: How long to wait for whom.

    Attributes:
        roster: Name of the domain behind each node.
        moments: Of the text of each domain that has introduced itself.
        receipts: For the head of each node's last reply.
    """

    def __init__(self, grid: Grid, request: RoundRequest, heads: HeadLog, patience: Patience) -> None:
        self.roster: dict[int, str] = {}
        self.moments: dict[str, TextMoments] = {}
        self.receipts: dict[int, str] = {}
        self._grid, self._heads, self._patience = grid, heads, patience
        signature = sign_request(request.digest(Kind.CATALOGUE), heads.keys)
        self._request = replace(request, coordinator=heads.keys.public.hex(), signature=signature)
        self._pending: dict[str, Message] = {}  # introductions that nobody has answered yet, by their ids
        self._asked: dict[int, float] = {}  # when each node was asked last, by the monotonic clock
        self._refusals: dict[int, str] = {}  # why a node that answered does not take part
        self._errors: dict[int, str] = {}  # why a node could not answer

    def gather(self) -> None:
        """Meet whoever is new, and wait until enough domains are there.

        Raises:
            RunError: If they are not after `patience.joining` seconds.
        """
        patience = self._patience
        deadline = time.monotonic() + patience.joining
        first = not self.roster
        while True:
            online = set(self._grid.get_node_ids())
            self._ask(online)
            for message in pull(self._grid, self._pending):
                self._hear(message, online)
            here = len(online & self.roster.keys())
            # At the start, whoever is connected is waited for; later, the rounds go on meanwhile.
            if here >= patience.domains and not (first and self._pending and time.monotonic() < deadline):
                return
            if time.monotonic() >= deadline:
                raise RunError(self._too_few(online))
            time.sleep(patience.poll)

    def _ask(self, online: set[int]) -> None:
        """Ask every node that has not been, and again whoever could not answer, but not whoever refused."""
        again, now = self._patience.again, time.monotonic()
        strangers = [
            node
            for node in sorted(online - self.roster.keys() - self._refusals.keys())
            if node not in self._asked or (again is not None and now - self._asked[node] > again)
        ]
        self._asked |= dict.fromkeys(strangers, now)
        ask = self._request.to_records()
        kind = f"{MessageType.QUERY}.{Kind.CATALOGUE}"
        self._pending |= push(self._grid, [Message(ask, node, kind) for node in strangers], self._patience)

    def _hear(self, message: Message, online: set[int]) -> None:
        """Put a node on the roster, or say why not."""
        node = message.metadata.src_node_id
        if message.has_error():
            self._errors[node] = f"node {node}: {message.error.reason}"
            _LOG.warning("did not join the run: %s", self._errors[node])
            return
        try:
            reply = RoundReply.from_records(message.content)
            if reply.refusal:
                raise Refused(f"{reply.domain}: {reply.refusal}")
            if any(name == reply.domain and other in online for other, name in self.roster.items()):
                raise Refused(f"two nodes say they are {reply.domain!r}")
            found = TextMoments(
                count=int(reply.values["count"]),
                mean=reply.arrays["mean"].astype(np.float64),
                second=reply.arrays["second"].astype(np.float64),
            )
            self.receipts[node] = self._heads.note(reply, domain=reply.domain)
        except IsthmusError as error:
            self._refusals[node] = str(error)
        except (KeyError, ValueError, OverflowError) as error:
            self._refusals[node] = f"node {node}: its moments cannot be read: {error!r}"
        else:
            # A unit that came back with a new key is a new node; the old one is not connected any more.
            self.roster = {other: name for other, name in self.roster.items() if name != reply.domain}
            self.roster[node] = reply.domain
            self.moments[reply.domain] = found
            _LOG.info("joined the run: %s", reply.domain)
            return
        _LOG.warning("did not join the run: %s", self._refusals[node])

    def _too_few(self, online: set[int]) -> str:
        """What is missing."""
        reasons = list(self._refusals.values())
        reasons += [f"{name} is not connected" for node, name in sorted(self.roster.items()) if node not in online]
        silent = online - self.roster.keys() - self._refusals.keys()
        reasons += [self._errors.get(node, f"node {node} has not said who it is") for node in sorted(silent)]
        said = "; ".join(reasons) or ("no node is connected" if not online else "no other node is connected")
        if not self.roster:
            return f"no domain joined the run: {said}"
        here = len(online & self.roster.keys())
        return f"{here} of the {self._patience.domains} domains that the run needs are there: {said}"
