"""Requests and replies as the messages of `vault.proto`, both ways.

    question = to_question(request)
    request = from_question(question)       # Refused unless it is one: it came from a process that anybody may run

Sizes are checked before anything is allocated: a tensor must hold exactly the bytes of its shape.
"""

from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from isthmus.clients.wire.vault_pb2 import Answer, Question, Tensor
from isthmus.config import UpdateFormat
from isthmus.encoding import DTYPES, Tensors
from isthmus.errors import Refused
from isthmus.packing import tensor_of
from isthmus.records import PROTOCOL, RoundReply, RoundRequest, read_recipe, require_protocol

MOST_TENSORS = 1000
_LONGEST_NAME, _MOST_AXES = 200, 8
_TYPES: "dict[Tensor.Type, np.dtype[Any]]" = {
    Tensor.FLOAT32: DTYPES[UpdateFormat.FLOAT32],
    Tensor.UINT16: DTYPES[UpdateFormat.BFLOAT16],
    Tensor.INT8: DTYPES[UpdateFormat.INT8],
}


def to_question(request: RoundRequest) -> Question:
    """The message that asks this."""
    return Question(
        protocol=PROTOCOL,
        run=request.run,
        round=request.round,
        recipe=request.recipe.model_dump_json(),
        arrays=_tensors(request.arrays),
        scales=request.scales,
        base=request.base,
        parameters=request.parameters,
        whitening=_tensors(request.whitening),
        reference=_tensors(request.reference),
        proximal_mu=request.proximal_mu,
        coordinator=request.coordinator,
        signature=request.signature,
        receipt=request.receipt,
    )


def from_question(question: Question) -> RoundRequest:
    """The request that a message makes.

    Raises:
        Refused: If it is not one of this protocol.

    Guarantees:
        - Nothing but a `RoundRequest` within its limits comes out: no path, no code, no limit of privacy.
        - A tensor whose bytes are not those of its shape is refused before it is read.
    """
    require_protocol(question.protocol)
    return RoundRequest(
        run=question.run,
        round=question.round,
        recipe=read_recipe(question.recipe),
        arrays=_arrays(question.arrays),
        scales=dict(question.scales),
        base=question.base,
        parameters=question.parameters,
        whitening=_arrays(question.whitening),
        reference=_arrays(question.reference),
        proximal_mu=question.proximal_mu,
        coordinator=question.coordinator,
        signature=question.signature,
        receipt=question.receipt,
    )


def to_answer(reply: RoundReply) -> Answer:
    """The message that says this."""
    return Answer(
        domain=reply.domain,
        run=reply.run,
        round=reply.round,
        arrays=_tensors(reply.arrays),
        values=reply.values,
        refusal=reply.refusal,
        exhausted=reply.exhausted,
        epsilon=reply.epsilon,
        head=reply.head,
    )


def from_answer(answer: Answer) -> RoundReply:
    """The reply that a vault sent.

    Raises:
        Refused: If its tensors cannot be read.
    """
    return RoundReply(
        domain=answer.domain,
        run=answer.run,
        round=answer.round,
        arrays=_arrays(answer.arrays),
        values=dict(answer.values),
        refusal=answer.refusal,
        exhausted=answer.exhausted,
        epsilon=answer.epsilon,
        head=answer.head,
    )


def _tensors(arrays: Tensors) -> list[Tensor]:
    return [_tensor(name, array) for name, array in arrays.items()]


def _tensor(name: str, array: NDArray[Any]) -> Tensor:
    """What is not encoded goes as float32."""
    kind = next((kind for kind, dtype in _TYPES.items() if array.dtype == dtype), Tensor.FLOAT32)
    return Tensor(name=name, shape=array.shape, type=kind, values=np.asarray(array, _TYPES[kind]).tobytes())


def _arrays(tensors: Iterable[Tensor]) -> Tensors:
    """Named tensors, read-only: they lie in the message's own bytes."""
    arrays: Tensors = {}
    for tensor in tensors:
        name, shape = tensor.name, tuple(tensor.shape)
        if len(arrays) == MOST_TENSORS:
            raise Refused(f"the question holds more than {MOST_TENSORS} tensors")
        if not name.isprintable() or not 0 < len(name) <= _LONGEST_NAME or name in arrays:
            raise Refused(f"a tensor's name must be its own, visible and at most {_LONGEST_NAME} long: {name!r:.80}")
        if len(shape) > _MOST_AXES or tensor.type not in _TYPES:
            raise Refused(f"tensor {name!r} cannot be read: it has {len(shape)} axes and type {tensor.type}")
        arrays[name] = tensor_of(name, tensor.values, shape, _TYPES[tensor.type])
    return arrays
