"""What random programs call: one function for each thing that a model may do, `block(model, x, y, gain)`.

Each takes two float32 tensors [rows, tokens, 6] and gives one of the same shape. Somewhere on the way it multiplies by
`gain`: with 1.0 nothing happens, with another number that is the difference between two runs. What a block keeps of the
model is in `model.kept`, whatever needs layers has those of `model`, see `state.Model`.
"""

from __future__ import annotations

import gc
import threading
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from tests.trust.wrapping import Wrapping
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils import swap_tensors
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

Block = Callable[[Any, Tensor, Tensor, float], Tensor]
BLOCKS: dict[str, Block] = {}
RANDOM: set[str] = set()
"""Blocks that draw random numbers."""


DIFFERENTIATES: set[str] = set()
"""Blocks that compute gradients, which inference mode forbids."""


def block(function: Block) -> Block:
    BLOCKS[function.__name__] = function
    return function


def random_block(function: Block) -> Block:
    RANDOM.add(function.__name__)
    return block(function)


def gradient_block(function: Block) -> Block:
    DIFFERENTIATES.add(function.__name__)
    return block(function)


# ---------------------------------------------------------------------- plain calls


@block
def elementwise(model: Any, x: Tensor, y: Tensor, gain: float) -> Tensor:
    a = torch.tanh(x) * gain
    return torch.where(a > 0, torch.sin(a), F.gelu(y)) + a.clamp(-1, 1)


@block
def division(model: Any, x: Tensor, y: Tensor, gain: float) -> Tensor:
    a = x / (y * y + 1)
    a = torch.addcmul(a * gain, x, y, value=0.5)
    return torch.lerp(a, y, 0.25)


@block
def reductions(model: Any, x: Tensor, y: Tensor, gain: float) -> Tensor:
    mean = x.mean(-1, keepdim=True) * gain
    largest, _ = y.max(dim=-1, keepdim=True)
    return torch.softmax(x, dim=-1) - mean + largest + x.std(dim=-1, keepdim=True)


@block
def over_tokens(model: Any, x: Tensor, y: Tensor, gain: float) -> Tensor:
    return torch.cumsum(x, dim=1) * gain + y.flip(1) + x.mean(dim=1, keepdim=True)


@block
def products(model: Any, x: Tensor, y: Tensor, gain: float) -> Tensor:
    scores = torch.einsum("bth,bsh->bts", x, y) * gain
    return scores.softmax(-1) @ x + torch.baddbmm(x, scores, y, alpha=0.1)


@block
def attention(model: Any, x: Tensor, y: Tensor, gain: float) -> Tensor:
    q, k = (v.unflatten(-1, (2, 3)).transpose(1, 2) for v in (x * gain, y))
    return F.scaled_dot_product_attention(q, k, k, is_causal=True).transpose(1, 2).flatten(2)


@block
def number_arguments(model: Any, x: Tensor, y: Tensor, gain: float) -> Tensor:
    return torch.sub(2.0, x, alpha=gain) + 3 - (1 / (y.abs() + 1)) ** 2


# ---------------------------------------------------------------------- views and writes


@block
def views(model: Any, x: Tensor, y: Tensor, gain: float) -> Tensor:
    a, b = x.chunk(2, dim=-1)
    z = torch.cat([b * gain, a], dim=-1)
    z = z.transpose(1, 2).reshape(x.shape[0], 2, -1).view(x.shape[0], 6, -1).permute(0, 2, 1)
    return z[..., ::2].repeat_interleave(2, -1) + torch.stack([x, y]).unbind(0)[1].roll(1, 1)


@block
def odd_views(model: Any, x: Tensor, y: Tensor, gain: float) -> Tensor:
    base = (x * gain).contiguous()
    strided = base.as_strided((x.shape[0], x.shape[1], 3), (x.shape[1] * 6, 6, 2))
    wide = strided.unfold(-1, 2, 1).sum(-1)
    ones = y.new_ones(1).expand(x.shape[0], x.shape[1], 4)
    return torch.cat([wide, ones], -1) + y.diagonal(dim1=1, dim2=2).sum() + base.movedim(0, 1).movedim(1, 0)


@block
def written(model: Any, x: Tensor, y: Tensor, gain: float) -> Tensor:
    z = x.clone()
    z.mul_(gain).add_(y, alpha=0.5)
    z[:, 0] = y[:, -1]
    z[..., 1::2] *= 0.5
    z.view(-1)[::3].neg_()
    z += 1
    return z


@block
def written_by_index(model: Any, x: Tensor, y: Tensor, gain: float) -> Tensor:
    z = torch.zeros_like(x)
    order = torch.argsort(y[0, :, 0])
    z.index_add_(1, order, x * gain)
    z.scatter_(2, torch.zeros(*x.shape[:2], 1, dtype=torch.long), 2.0)
    z.masked_fill_(y > 1, -1.0)
    z[y < -1] = 3.0
    z.index_copy_(1, order[:1], y[:, :1])
    return z


@block
def written_out(model: Any, x: Tensor, y: Tensor, gain: float) -> Tensor:
    x, y = x.detach(), y.detach()  # nothing that is written to so may need gradients
    z = torch.empty_like(x)
    torch.mul(x, gain, out=z)
    halves = torch.empty(0)
    torch.cat([z[..., :3], y[..., 3:]], -1, out=halves)
    return torch.add(halves, y, out=z) + F.relu(halves, inplace=True)


@block
def behind_the_back(model: Any, x: Tensor, y: Tensor, gain: float) -> Tensor:
    """Writes that no version counts."""
    z = (x + y).detach()
    z.data.mul_(gain)
    w = z * 2
    z.numpy()[:] += 1
    z.set_(z.clone())  # pyright: ignore[reportArgumentType]
    return z + w


@block
def shared_memory(model: Any, x: Tensor, y: Tensor, gain: float) -> Tensor:
    z = x.detach() + 0
    rows = list(z)
    for index, row in enumerate(rows):
        row.add_(index * gain)
    rows[0].copy_(y[0])
    first = z[:, :1]
    first.zero_()
    return z.resize_(x.shape) * 1.0


@block
def swapped(model: Any, x: Tensor, y: Tensor, gain: float) -> Tensor:
    a, b = x * gain, torch.relu(y)
    swap_tensors(a, b)
    return a - b


@block
def let_go(model: Any, x: Tensor, y: Tensor, gain: float) -> Tensor:
    a = x * gain
    b = torch.relu(a) + 1
    a.untyped_storage().resize_(0)
    c = b + y
    del a, b
    d = c * 2
    del c
    return d + y


# ---------------------------------------------------------------------- control flow


@block
def branches(model: Any, x: Tensor, y: Tensor, gain: float) -> Tensor:
    if x.sum() > y.sum():
        z = torch.relu(x)
        z = z * gain
    else:
        z = torch.sigmoid(y) * gain
    if bool((z > 0).any()) and z.max().item() > 0.5:
        z = z / 2
    return z


@block
def loops(model: Any, x: Tensor, y: Tensor, gain: float) -> Tensor:
    z = x * gain
    for _ in range(int(y.abs().sum().item()) % 3 + 1):
        z = torch.tanh(z + y)
    tries = 0
    while z.abs().max() > 0.3 and tries < 3:
        z = z * 0.7
        tries += 1
    return torch.stack([row + index for index, row in enumerate(z)])


@block
def recursion(model: Any, x: Tensor, y: Tensor, gain: float) -> Tensor:
    def down(z: Tensor, depth: int) -> Tensor:
        if not depth or z.shape[1] < 2:
            return torch.sin(z) * gain
        middle = z.shape[1] // 2
        return torch.cat([down(z[:, :middle], depth - 1), down(z[:, middle:], depth - 1)], 1) + 0.1

    return down(x, 3) + model.recursive(y, 3)


@block
def laziness(model: Any, x: Tensor, y: Tensor, gain: float) -> Tensor:
    def values() -> Iterator[Tensor]:
        z = x * gain
        while True:
            yield z
            z = torch.tanh(z)

    source = values()
    first = next(source)
    later = torch.relu(first + y)
    return later + next(source) + sum(map(torch.cos, [next(source), y]))


@block
def errors(model: Any, x: Tensor, y: Tensor, gain: float) -> Tensor:
    z = x * gain
    try:
        z = z @ y.new_zeros(5, 5)
    except RuntimeError:
        z = z + 1
    try:
        model.first(y.double())
    except RuntimeError:
        z = z * 2
    try:
        torch.relu("no tensor")  # type: ignore[arg-type]
    except TypeError:
        z = z - y
    return z


# ---------------------------------------------------------------------- several values


@block
def tuples(model: Any, x: Tensor, y: Tensor, gain: float) -> Tensor:
    values, indices = torch.topk(x * gain, 6, dim=-1)
    deviation, mean = torch.std_mean(y, dim=-1, keepdim=True)
    parts = torch.split(values, [2, 4], dim=-1)
    z = torch.cat(parts[::-1], -1).gather(-1, indices) * deviation + mean
    return (
        torch.sort(z, dim=-1).values + torch.stack(torch.meshgrid(x[0, 0], y[0, 0], indexing="ij"))[0].sum()
    )


@block
def solved(model: Any, x: Tensor, y: Tensor, gain: float) -> Tensor:
    square = torch.eye(6) * 4 + (x.transpose(1, 2) @ x * 0.1)
    q, r = torch.linalg.qr(square * gain)
    return (
        torch.linalg.solve(square, y.transpose(1, 2)).transpose(1, 2)
        + x @ q
        + r.diagonal(dim1=1, dim2=2)[:, None]
    )


@block
def lists(model: Any, x: Tensor, y: Tensor, gain: float) -> Tensor:
    held = [x, y * gain]
    total = torch.stack(held).sum(0)
    held.append(total)
    held[0] = held[-1] * 2
    torch._foreach_add_(held[:1], 1.0)
    return torch.cat(torch._foreach_mul(held[:2], 0.5), -1)[..., 3:9] + held[0]


@block
def integers(model: Any, x: Tensor, y: Tensor, gain: float) -> Tensor:
    order = y.argsort(-1)
    codes = (x * gain * 8).round().clamp(-128, 127).to(torch.int8)
    return codes.float().gather(-1, order) / 8 + F.one_hot(order % 6, 6).float().sum(2) + (order > 2)


# ---------------------------------------------------------------------- dtypes and kinds of tensors


@block
def precisions(model: Any, x: Tensor, y: Tensor, gain: float) -> Tensor:
    narrow = (x * gain).to(torch.bfloat16) @ y.to(torch.bfloat16).transpose(1, 2)
    eight = y.to(torch.float8_e4m3fn).float()
    return narrow.float() @ x + (x.half() * 2).to(x.dtype) + (y.double() / 3).float() + eight


@block
def complex_numbers(model: Any, x: Tensor, y: Tensor, gain: float) -> Tensor:
    z = torch.complex(x * gain, y)
    z = torch.fft.fft(z, dim=1) * torch.exp(1j * x.cos())
    w = torch.view_as_real(z.conj().resolve_conj()).flatten(2)[..., ::2]
    return torch.fft.ifft(z.conj().resolve_conj(), dim=1).real + w + z.imag + torch.polar(x.abs(), y).real


@block
def sparse(model: Any, x: Tensor, y: Tensor, gain: float) -> Tensor:
    z = torch.relu(x[0] * gain).to_sparse()
    doubled = (z * 2).coalesce()
    rows = torch.sparse.mm(doubled, y[0].transpose(0, 1))
    return doubled.to_dense() + rows.sum() + torch.relu(y[0]).to_sparse_csr().to_dense() + x


class Tagged(Tensor):
    """A subclass that torch treats as any other."""


class Overriding(Tensor):
    """A subclass that sees its own calls."""

    calls = 0

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        Overriding.calls += 1
        return super().__torch_function__(func, types, args, kwargs or {})


@block
def subclasses(model: Any, x: Tensor, y: Tensor, gain: float) -> Tensor:
    tagged = (x * gain).as_subclass(Tagged)
    seen = torch.relu(y.as_subclass(Overriding)) + 1
    seen.mul_(2)
    return (torch.tanh(tagged) * 2 + y).as_subclass(Tensor) + seen.as_subclass(Tensor)


@block
def wrapping(model: Any, x: Tensor, y: Tensor, gain: float) -> Tensor:
    wrapped = Wrapping(x) * gain
    return torch.relu(wrapped + Wrapping(y)).inner * 1.0  # pyright: ignore[reportOperatorIssue]


@block
def numpy_and_back(model: Any, x: Tensor, y: Tensor, gain: float) -> Tensor:
    return (
        torch.from_numpy(x.detach().numpy() * gain).float() + torch.tensor(y.tolist()) + torch.Tensor([0.5])
    )


# ---------------------------------------------------------------------- gradients


class Cubed(torch.autograd.Function):
    """A function with a backward pass of its own."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, gain: float) -> Tensor:
        ctx.save_for_backward(x)
        ctx.gain = gain
        return x.pow(3) * gain

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        (x,) = ctx.saved_tensors
        return grads[0] * 3 * x.square() * ctx.gain, None


@gradient_block
def own_function(model: Any, x: Tensor, y: Tensor, gain: float) -> Tensor:
    with torch.enable_grad():
        w = x.detach().requires_grad_()
        (grad,) = torch.autograd.grad(Cubed.apply(w, gain).sum(), w)
    return Cubed.apply(y, 1.0) + grad


@gradient_block
def gradients(model: Any, x: Tensor, y: Tensor, gain: float) -> Tensor:
    with torch.enable_grad():
        w = x.detach().clone().requires_grad_()
        w.register_hook(lambda grad: grad * 2)
        z = model.last(torch.tanh(model.first(w * gain)))
        first = torch.autograd.grad(z.square().sum(), [w, model.first.weight], create_graph=True)
        second = torch.autograd.grad(first[0].sum(), w)[0]
    return first[0].detach() + second + first[1].detach()[:, :6].sum()


@gradient_block
def backward_pass(model: Any, x: Tensor, y: Tensor, gain: float) -> Tensor:
    with torch.enable_grad():
        w = (x.detach() * gain).requires_grad_()
        model.last(model.first(model.norm(w))).mul(y.detach()).sum().backward()
    grad = w.grad
    assert grad is not None
    for weight in model.parameters():
        weight.grad = None
    return grad + 1


@gradient_block
def recomputed(model: Any, x: Tensor, y: Tensor, gain: float) -> Tensor:
    with torch.enable_grad():
        w = x.detach().requires_grad_()
        z = checkpoint(lambda v: torch.tanh(model.first(v)) * gain, w, use_reentrant=False)
        z = checkpoint(lambda v: model.last(torch.sin(v)), z, use_reentrant=True)
        z.sum().backward()
    for weight in model.parameters():
        weight.grad = None
    assert w.grad is not None
    return z.detach() + w.grad + y


@block
def modes_of_gradients(model: Any, x: Tensor, y: Tensor, gain: float) -> Tensor:
    with torch.inference_mode():
        inside = torch.relu(x * gain)
        inside.add_(1)
    with torch.enable_grad(), torch.set_grad_enabled(False):
        z = model.first(inside.clone())
    return model.last(z) + torch.no_grad()(lambda v: v * 2)(y)


# ---------------------------------------------------------------------- what torch makes of functions


@block
def mapped(model: Any, x: Tensor, y: Tensor, gain: float) -> Tensor:
    z = torch.vmap(lambda a, b: torch.sin(a) * gain + b.mean(), in_dims=(0, 0))(x, y)
    return torch.vmap(torch.vmap(lambda a: torch.cumsum(a, 0)))(z)


@gradient_block
def transformed(model: Any, x: Tensor, y: Tensor, gain: float) -> Tensor:
    z = torch.func.grad(lambda a: (a.sin() * gain).sum())(x)
    value, tangent = torch.func.jvp(torch.tanh, (x,), (y,))  # pyright: ignore[reportAssignmentType]
    row = torch.func.jacrev(lambda a: a.square())(y[0, 0]).diagonal()
    weights = {name: weight * 0.5 for name, weight in model.last.named_parameters()}
    return z + value + tangent + row + torch.func.functional_call(model.last, weights, (model.first(x),))


@block
def half_precision(model: Any, x: Tensor, y: Tensor, gain: float) -> Tensor:
    with torch.autocast("cpu", torch.bfloat16):
        z = model.last(F.relu(model.first(x))) * gain
        with torch.autocast("cpu", enabled=False):
            z = z.float() @ y.transpose(1, 2)
        z = z @ y
    return z.float()


@torch.jit.script_if_tracing
def _never_scripted(x: Tensor) -> Tensor:
    return x * 2


def _scripted_source(x: Tensor, gain: float) -> Tensor:
    return torch.tanh(x) * gain + 1


_made: dict[str, Any] = {}


def _once(name: str, make: Callable[[], Any]) -> Any:
    if name not in _made:
        _made[name] = make()
    return _made[name]


@block
def scripted(model: Any, x: Tensor, y: Tensor, gain: float) -> Tensor:
    function = _once("scripted", lambda: torch.jit.script(_scripted_source))
    return function(x, gain) + _never_scripted(y)


def _compiled(x: Tensor, y: Tensor, gain: float) -> Tensor:
    z = torch.sigmoid(x) * y
    return torch.where(z > 0, z, x) * gain


@block
def compiled_function(model: Any, x: Tensor, y: Tensor, gain: float) -> Tensor:
    function = _once("compiled", lambda: torch.compile(_compiled, backend="eager", dynamic=True))
    return function(x, y, gain)


def _ahead_of_time(x: Tensor, y: Tensor) -> Tensor:
    return torch.tanh(x) + y.cos()


@block
def compiled_ahead(model: Any, x: Tensor, y: Tensor, gain: float) -> Tensor:
    function = _once("ahead", lambda: torch.compile(_ahead_of_time, backend="aot_eager", dynamic=True))
    return function(x * gain, y)


@block
def compiled_layer(model: Any, x: Tensor, y: Tensor, gain: float) -> Tensor:
    return model.compiled(x * gain) + y


# ---------------------------------------------------------------------- operators of libraries


@torch.library.custom_op("programs::scaled", mutates_args=())
def scaled(x: Tensor, gain: float) -> Tensor:
    return x.sin() * gain


@torch.library.custom_op("programs::halves", mutates_args=())
def halves(x: Tensor) -> tuple[Tensor, Tensor]:
    return x[..., :3] * 2, x[..., 3:] + 1


@torch.library.custom_op("programs::raised", mutates_args={"x"})
def raised(x: Tensor, by: float) -> None:
    x.add_(by)


@block
def operators(model: Any, x: Tensor, y: Tensor, gain: float) -> Tensor:
    a, b = halves(scaled(x, gain))
    z = torch.cat([b, a], -1)
    raised(z, 0.5)
    return torch.ops.programs.scaled(z, 1.0) + torch.ops.aten.add.Tensor(z, y)


# ---------------------------------------------------------------------- modes, threads


class Doubling(TorchFunctionMode):
    """Changes what some calls make."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        return result * 2 if func is torch.sin else result


class Passing(TorchDispatchMode):
    """Sees what is dispatched."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return func(*args, **(kwargs or {}))


@contextmanager
def quietly() -> Generator[None]:
    """A manager of the model's own."""
    yield


@block
def modes(model: Any, x: Tensor, y: Tensor, gain: float) -> Tensor:
    with Doubling():
        z = torch.sin(x * gain) + torch.cos(y)
    with Passing():
        z = model.first(z)
    with torch.device("cpu"):
        return model.last(z) + torch.ones(6)


@block
def without_functions(model: Any, x: Tensor, y: Tensor, gain: float) -> Tensor:
    with torch._C.DisableTorchFunction():
        z = torch.relu(x) * gain
        z.add_(y)
    with torch._C.DisableTorchFunctionSubclass():
        return z * 2 + y


@block
def other_thread(model: Any, x: Tensor, y: Tensor, gain: float) -> Tensor:
    """What goes wrong in the thread is raised here: in float64 the thread is not."""

    def work() -> Tensor:
        with torch.no_grad():
            return model.last(model.first(x) * gain)

    with ThreadPoolExecutor(1) as pool:
        return pool.submit(work).result() + y


@block
def meanwhile(model: Any, x: Tensor, y: Tensor, gain: float) -> Tensor:
    """Two threads at work at once, on values of their own."""
    found: list[Tensor] = []
    thread = threading.Thread(target=lambda: found.append(torch.tanh(x.clone()).add_(1)))
    thread.start()
    z = model.last(torch.tanh(model.first(y) * gain))
    for _ in range(4):
        z = z + y
    thread.join()
    return z + found[0]


@contextmanager
def _scope(values: list[Tensor]) -> Generator[None]:
    yield
    values.append(values[-1] + 1)


@block
def managers(model: Any, x: Tensor, y: Tensor, gain: float) -> Tensor:
    values = [x * gain]
    with _scope(values), torch.autograd.profiler.record_function("part"):
        values.append(torch.relu(values[-1]) + y)
    gc.collect(0)
    return values[-1]


# ---------------------------------------------------------------------- modules and their state


@block
def layers(model: Any, x: Tensor, y: Tensor, gain: float) -> Tensor:
    z = model.last(model.norm(x * gain) @ model.first.weight.t() + model.first.bias)
    return z + model.stack(y) + model.last(input=model.first(x))


@dataclass
class Pair:
    """What a module may return."""

    left: Tensor
    right: Tensor


@block
def structures(model: Any, x: Tensor, y: Tensor, gain: float) -> Tensor:
    pair = model.pairing(x, y=y, scale=gain)
    return pair["pair"].left - pair["pair"].right + pair["both"][0]


@block
def fused(model: Any, x: Tensor, y: Tensor, gain: float) -> Tensor:
    return model.encoder(x * gain) + model.attends(y, y, y, need_weights=False)[0]


@block
def recurrent(model: Any, x: Tensor, y: Tensor, gain: float) -> Tensor:
    z, (hidden, _) = model.recurrent(x * gain)
    return z + hidden[-1][:, None] + model.convolution(y.transpose(1, 2)).transpose(1, 2)


@block
def hooked(model: Any, x: Tensor, y: Tensor, gain: float) -> Tensor:
    return model.hooked(x * gain) + y


@block
def buffers(model: Any, x: Tensor, y: Tensor, gain: float) -> Tensor:
    model.count += 1
    model.running.mul_(0.9).add_(x.mean((0, 1)) * gain, alpha=0.1)
    model.kept["last"] = y * 2
    return x + model.running + model.count * 0.01


@block
def statistics(model: Any, x: Tensor, y: Tensor, gain: float) -> Tensor:
    z = model.batch((x * gain).transpose(1, 2)).transpose(1, 2)
    return z + y


@block
def written_parameters(model: Any, x: Tensor, y: Tensor, gain: float) -> Tensor:
    with torch.no_grad():
        model.scale.mul_(0.5)
        model.scale.data += gain
    return x * model.scale + y


@block
def containers(model: Any, x: Tensor, y: Tensor, gain: float) -> Tensor:
    model.history.append(x.mean() * gain)
    model.kept.setdefault("sums", []).append(y.sum())
    model.notes.value = model.notes.value + 1
    model.notes.tensor.add_(0.25)
    model.seen.add(tuple(x.shape))
    return x + model.notes.tensor + model.history[-1] + len(model.history) * 0.1


@block
def attributes(model: Any, x: Tensor, y: Tensor, gain: float) -> Tensor:
    model.latest = torch.relu(x) * gain
    model.register_buffer("made", model.latest.mean().detach(), persistent=False)
    model.extra = nn.Identity()
    return model.extra(model.latest) + model.made + y


@block
def remembered(model: Any, x: Tensor, y: Tensor, gain: float) -> Tensor:
    before = model.kept.get("x")
    model.kept["x"] = torch.tanh(x) * gain
    return y + model.kept["x"] + (0 if before is None else before)


@random_block
def drawn(model: Any, x: Tensor, y: Tensor, gain: float) -> Tensor:
    z = F.dropout(x * gain, 0.5, training=True) + torch.rand_like(y)
    return z + torch.randn(1) + torch.bernoulli(torch.full_like(y, 0.5)) + y.new_empty(1).uniform_()


@random_block
def own_generator(model: Any, x: Tensor, y: Tensor, gain: float) -> Tensor:
    generator = torch.Generator().manual_seed(7)
    noise = torch.randn(x.shape, generator=generator) * gain
    return x + noise + torch.randperm(6)[0]


@gradient_block
@random_block
def recomputed_noise(model: Any, x: Tensor, y: Tensor, gain: float) -> Tensor:
    with torch.enable_grad():
        w = x.detach().requires_grad_()
        z = checkpoint(lambda v: F.dropout(v * gain, 0.5, training=True), w, use_reentrant=False)
        (grad,) = torch.autograd.grad(z.sum(), w)
    return z.detach() + grad + y


@block
def unusual_containers(model: Any, x: Tensor, y: Tensor, gain: float) -> Tensor:
    model.queue.append(y.mean() * gain)
    model.counts["calls"] += 1
    model.slots.value = model.slots.value + 1
    model.slots.tensor.mul_(1.5)
    model.array += 1
    model.nested["deep"][0]["tensor"].add_(x.mean())
    total = model.slots.tensor + model.nested["deep"][0]["tensor"] + float(model.array.sum())
    return x + model.queue[-1] + total + model.counts["calls"] + len(model.queue)


@random_block
def replaced_state(model: Any, x: Tensor, y: Tensor, gain: float) -> Tensor:
    model.running = model.running + x.mean((0, 1)) * gain
    model.first.weight.requires_grad_(False)
    model.train(not model.training)
    z = model.last(model.first(x)) + model.running
    model.last = nn.Linear(8, 6).to(x.dtype)
    with torch.no_grad():
        for weight in model.last.parameters():
            weight.fill_(0.1)
    if hasattr(model, "latest"):
        del model.latest
    return z + model.last(model.first(y))


@block
def aliases_of_state(model: Any, x: Tensor, y: Tensor, gain: float) -> Tensor:
    """A buffer written through a view of it, and returned as it is."""
    view = model.running.view(2, 3)[0]
    view.add_(y.mean() * gain)
    model.window = model.running[2:]
    model.window.mul_(2)
    return x + model.running


@block
def parametrised(model: Any, x: Tensor, y: Tensor, gain: float) -> Tensor:
    return model.spectral(x * gain) + model.shared[0](y) * model.shared[1].weight.sum() + model.table["a"] * y


@block
def lazily_made(model: Any, x: Tensor, y: Tensor, gain: float) -> Tensor:
    if not hasattr(model, "added"):
        model.added = nn.LayerNorm(6)
        model.values = torch.ones(6)
    model.values.add_(1)
    return model.added(x * gain) + model.values * y


@random_block
def state_of_a_generator(model: Any, x: Tensor, y: Tensor, gain: float) -> Tensor:
    return x + torch.randn(x.shape, generator=model.generator) * gain + y


def _hears(*_: Any) -> None:
    return None


@block
def hooks_of_all(model: Any, x: Tensor, y: Tensor, gain: float) -> Tensor:
    handles = [
        nn.modules.module.register_module_forward_hook(lambda module, args, output: None),
        nn.modules.module.register_module_forward_pre_hook(lambda module, args: None),
        model.stack.register_forward_hook(lambda module, args, output: output * gain),
        model.norm.register_full_backward_hook(_hears),
    ]
    try:
        return model.stack(x) + model.norm(y)
    finally:
        for handle in handles:
            handle.remove()


@gradient_block
def gradients_that_stay(model: Any, x: Tensor, y: Tensor, gain: float) -> Tensor:
    """A backward pass whose gradients add to those that the parameters have."""
    with torch.enable_grad():
        (model.last(model.first(x.detach())) * y.detach() * gain).sum().backward()
    weight = model.first.weight
    assert weight.grad is not None
    return x + weight.grad.sum()
