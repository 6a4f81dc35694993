"""The methods of `vault.proto` by name, for both sides of the socket.

Written by hand for six methods instead of generated: gRPC's generated stubs tie a program to one version of gRPC.
"""

from typing import NamedTuple

from google.protobuf.message import Message

from isthmus.clients.wire import vault_pb2 as pb
from isthmus.records import Kind

SERVICE = "isthmus.vault.v1.Vault"


class Method(NamedTuple):
    """What goes in and what comes out."""

    question: type[Message]
    answer: type[Message]


METHODS = {
    "Describe": Method(pb.DescribeRequest, pb.Description),
    "Catalogue": Method(pb.Question, pb.Answer),
    "Train": Method(pb.Question, pb.Answer),
    "Evaluate": Method(pb.Question, pb.Answer),
    "Receive": Method(pb.Question, pb.Answer),
    "Budget": Method(pb.BudgetRequest, pb.BudgetAnswer),
}

OF_KIND = {Kind.CATALOGUE: "Catalogue", Kind.UPDATE: "Train", Kind.METRIC: "Evaluate"}
"""Which method asks for which kind of release."""

LARGEST_MESSAGE = 64 * 2**20
"""Bytes of one question or answer."""
