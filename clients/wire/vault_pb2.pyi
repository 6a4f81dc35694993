from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class DescribeRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class Description(_message.Message):
    __slots__ = ("domain", "protocol", "version", "program", "key", "ledger", "kinds", "private")
    DOMAIN_FIELD_NUMBER: _ClassVar[int]
    PROTOCOL_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    PROGRAM_FIELD_NUMBER: _ClassVar[int]
    KEY_FIELD_NUMBER: _ClassVar[int]
    LEDGER_FIELD_NUMBER: _ClassVar[int]
    KINDS_FIELD_NUMBER: _ClassVar[int]
    PRIVATE_FIELD_NUMBER: _ClassVar[int]
    domain: str
    protocol: int
    version: str
    program: str
    key: str
    ledger: str
    kinds: _containers.RepeatedScalarFieldContainer[str]
    private: bool
    def __init__(self, domain: _Optional[str] = ..., protocol: _Optional[int] = ..., version: _Optional[str] = ..., program: _Optional[str] = ..., key: _Optional[str] = ..., ledger: _Optional[str] = ..., kinds: _Optional[_Iterable[str]] = ..., private: _Optional[bool] = ...) -> None: ...

class Tensor(_message.Message):
    __slots__ = ("name", "shape", "values", "type")
    class Type(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        FLOAT32: _ClassVar[Tensor.Type]
        UINT16: _ClassVar[Tensor.Type]
        INT8: _ClassVar[Tensor.Type]
    FLOAT32: Tensor.Type
    UINT16: Tensor.Type
    INT8: Tensor.Type
    NAME_FIELD_NUMBER: _ClassVar[int]
    SHAPE_FIELD_NUMBER: _ClassVar[int]
    VALUES_FIELD_NUMBER: _ClassVar[int]
    TYPE_FIELD_NUMBER: _ClassVar[int]
    name: str
    shape: _containers.RepeatedScalarFieldContainer[int]
    values: bytes
    type: Tensor.Type
    def __init__(self, name: _Optional[str] = ..., shape: _Optional[_Iterable[int]] = ..., values: _Optional[bytes] = ..., type: _Optional[_Union[Tensor.Type, str]] = ...) -> None: ...

class Question(_message.Message):
    __slots__ = ("protocol", "run", "round", "recipe", "arrays", "whitening", "proximal_mu", "coordinator", "signature", "receipt", "scales", "base", "parameters", "reference")
    class ScalesEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: float
        def __init__(self, key: _Optional[str] = ..., value: _Optional[float] = ...) -> None: ...
    PROTOCOL_FIELD_NUMBER: _ClassVar[int]
    RUN_FIELD_NUMBER: _ClassVar[int]
    ROUND_FIELD_NUMBER: _ClassVar[int]
    RECIPE_FIELD_NUMBER: _ClassVar[int]
    ARRAYS_FIELD_NUMBER: _ClassVar[int]
    WHITENING_FIELD_NUMBER: _ClassVar[int]
    PROXIMAL_MU_FIELD_NUMBER: _ClassVar[int]
    COORDINATOR_FIELD_NUMBER: _ClassVar[int]
    SIGNATURE_FIELD_NUMBER: _ClassVar[int]
    RECEIPT_FIELD_NUMBER: _ClassVar[int]
    SCALES_FIELD_NUMBER: _ClassVar[int]
    BASE_FIELD_NUMBER: _ClassVar[int]
    PARAMETERS_FIELD_NUMBER: _ClassVar[int]
    REFERENCE_FIELD_NUMBER: _ClassVar[int]
    protocol: int
    run: str
    round: int
    recipe: str
    arrays: _containers.RepeatedCompositeFieldContainer[Tensor]
    whitening: _containers.RepeatedCompositeFieldContainer[Tensor]
    proximal_mu: float
    coordinator: str
    signature: str
    receipt: str
    scales: _containers.ScalarMap[str, float]
    base: str
    parameters: str
    reference: _containers.RepeatedCompositeFieldContainer[Tensor]
    def __init__(self, protocol: _Optional[int] = ..., run: _Optional[str] = ..., round: _Optional[int] = ..., recipe: _Optional[str] = ..., arrays: _Optional[_Iterable[_Union[Tensor, _Mapping]]] = ..., whitening: _Optional[_Iterable[_Union[Tensor, _Mapping]]] = ..., proximal_mu: _Optional[float] = ..., coordinator: _Optional[str] = ..., signature: _Optional[str] = ..., receipt: _Optional[str] = ..., scales: _Optional[_Mapping[str, float]] = ..., base: _Optional[str] = ..., parameters: _Optional[str] = ..., reference: _Optional[_Iterable[_Union[Tensor, _Mapping]]] = ...) -> None: ...

class Answer(_message.Message):
    __slots__ = ("domain", "run", "round", "arrays", "values", "refusal", "exhausted", "epsilon", "head")
    class ValuesEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: float
        def __init__(self, key: _Optional[str] = ..., value: _Optional[float] = ...) -> None: ...
    DOMAIN_FIELD_NUMBER: _ClassVar[int]
    RUN_FIELD_NUMBER: _ClassVar[int]
    ROUND_FIELD_NUMBER: _ClassVar[int]
    ARRAYS_FIELD_NUMBER: _ClassVar[int]
    VALUES_FIELD_NUMBER: _ClassVar[int]
    REFUSAL_FIELD_NUMBER: _ClassVar[int]
    EXHAUSTED_FIELD_NUMBER: _ClassVar[int]
    EPSILON_FIELD_NUMBER: _ClassVar[int]
    HEAD_FIELD_NUMBER: _ClassVar[int]
    domain: str
    run: str
    round: int
    arrays: _containers.RepeatedCompositeFieldContainer[Tensor]
    values: _containers.ScalarMap[str, float]
    refusal: str
    exhausted: bool
    epsilon: float
    head: str
    def __init__(self, domain: _Optional[str] = ..., run: _Optional[str] = ..., round: _Optional[int] = ..., arrays: _Optional[_Iterable[_Union[Tensor, _Mapping]]] = ..., values: _Optional[_Mapping[str, float]] = ..., refusal: _Optional[str] = ..., exhausted: _Optional[bool] = ..., epsilon: _Optional[float] = ..., head: _Optional[str] = ...) -> None: ...

class BudgetRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class BudgetAnswer(_message.Message):
    __slots__ = ("epsilon", "limit", "delta")
    EPSILON_FIELD_NUMBER: _ClassVar[int]
    LIMIT_FIELD_NUMBER: _ClassVar[int]
    DELTA_FIELD_NUMBER: _ClassVar[int]
    epsilon: float
    limit: float
    delta: float
    def __init__(self, epsilon: _Optional[float] = ..., limit: _Optional[float] = ..., delta: _Optional[float] = ...) -> None: ...
