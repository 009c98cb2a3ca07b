from collections.abc import Callable
from typing import Any

from torch import Size, Tensor, dtype, layout, nn
from torch.overrides import TorchFunctionMode

from forkpoint.capture.functions import Function
from forkpoint.capture.ledger import Ledger
from forkpoint.capture.marks import Entering, Frame, Leaving, TensorRecord
from forkpoint.capture.pattern import Guards
from forkpoint.capture.sites import CallStack
from forkpoint.capture.tape import Tape

FORM: int

def connect_taps(
    resolved: dict[Any, Function],
    resolve: Callable[[Any], Function],
    kind_of: Callable[[Any], int],
    place_after: Callable[[CallStack, Any, int], CallStack],
    nowhere: CallStack,
    lasting: frozenset[type],
    tensor: type[Tensor],
    transforms: Callable[[], Any],
    transparent: dict[type, bool],
    entering: Callable[[type[nn.Module]], Entering],
    leaving: Leaving,
    /,
) -> None: ...
def connect_passages(
    size: Callable[[Tensor], Any],
    stride: Callable[[Tensor], Any],
    device: Callable[[Tensor], int],
    is_conj: Callable[[Tensor], bool],
    is_neg: Callable[[Tensor], bool],
    use_count: Callable[[Tensor], int],
    strided: layout,
    state_of: Callable[[Ledger, TensorRecord], Any],
    /,
) -> None: ...
def shorten(
    targets: tuple[Any, ...],
    is_enabled: Callable[[], bool],
    pop: Callable[[], Any],
    push: Callable[[Any], None],
    /,
) -> int: ...
def take_shortcuts(tap: TorchFunctionMode, /) -> None: ...
def leave_shortcuts(tap: TorchFunctionMode, /) -> None: ...

class Traits:
    flags: int

class Reel:
    whats: list[Function | Entering | Leaving]
    places: list[CallStack]
    args: list[tuple[Any, ...]]
    kwargs: list[dict[str, Any] | None]
    made: list[Any]
    befores: list[int]
    last: Tensor
    n_bytes: int
    room: int
    entry_bytes: int
    eager: int
    deferred: bool
    fresh: bool
    def add_entry(
        self,
        what: Function | Entering | Leaving,
        place: CallStack,
        args: tuple[Any, ...],
        kwargs: dict[str, Any] | None,
        made: Any,
        /,
    ) -> None: ...

class Tap:
    def __init__(self, tape: Tape) -> None: ...
    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = ..., kwargs: dict[str, Any] | None = ..., /
    ) -> Any: ...

class Gate:
    def __init__(
        self,
        tape: Tape,
        original: Callable[..., Any],
        other: Callable[..., Any],
        is_opaque: Callable[[nn.Module], bool],
        is_torchs: bool,
    ) -> None: ...
    def __call__(self, module: nn.Module, /, *args: Any, **kwargs: Any) -> Any: ...

class Pattern:
    def __init__(self, given: Guards) -> None: ...
    def pool(
        self,
        args: list[tuple[Any, ...]],
        kwargs: list[dict[str, Any] | None],
        made: list[Any],
        position: int,
        /,
    ) -> list[Any] | None: ...
    def rows_before(
        self, pool: list[Any], known: dict[int, TensorRecord], tape: Ledger, /
    ) -> list[int] | None: ...
    def note(
        self,
        pool: list[Any],
        known: dict[int, TensorRecord],
        first: int,
        args: list[tuple[Any, ...]],
        kwargs: list[dict[str, Any] | None],
        made: list[Any],
        position: int,
        /,
    ) -> None: ...
    def frames(
        self, made: list[Any], position: int, frames: dict[int, Frame], stack: list[Frame], below: int, /
    ) -> tuple[Frame, ...] | None: ...
    def queue(
        self, pool: list[Any], first: int, values: list[Tensor], rows: list[int], /
    ) -> tuple[Tensor, ...]: ...

class Held:
    containers: list[tuple[Any, Any]]
    tensors: list[Tensor]
    others: list[Any]
    def __init__(self, modules: list[nn.Module], tensor: type[Tensor], nothing: set[type]) -> None: ...
    def filled(self) -> list[Any]: ...
    def changed(self) -> list[tuple[dict[Any, Any], list[Any], list[Any]]]: ...

def same_weights(
    weights: list[Tensor | None],
    before: list[int | None],
    forms: list[tuple[dtype, Size, int] | None],
    size: Callable[[Tensor], Any],
    device: Callable[[Tensor], int],
    /,
) -> bool: ...
def versions(tensors: list[Tensor], /) -> list[int]: ...
def places(
    tensors: list[Tensor],
    plain: tuple[type, type],
    functions: tuple[Callable[..., object], ...],
    other: Callable[[Tensor], tuple[int, int]],
    /,
) -> tuple[bytes, bytes]: ...
def survey(model: nn.Module, /) -> tuple[list[nn.Module], list[Any], list[Tensor | None]]: ...
