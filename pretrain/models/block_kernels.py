"""What stands between the products of a transformer block on a GPU, in few passes over memory (Triton).

`add_norm`: residual sum and layer norm. `gelu`: bias and GELU. `stack`: gradients of queries, keys and values side by side. Their
backwards compute cheap inputs of products again in place of reading them, and sum the gradients of biases and norms as they go.
`pretrain/models/fused_blocks.py` puts blocks together from them; its plain counterpart is `packed_blocks.run`.

n tokens, d width, m hidden width, p parts whose sum is a gradient.
"""

import math
from collections.abc import Callable
from typing import Any, no_type_check

import torch
import triton
import triton.language as tl
from torch import Tensor

PARTS = 528
"""Programs of a kernel that sums over tokens: four for each multiprocessor of an H100. Each leaves one part of the sum."""
ELEMENTS = 4096
"""Values that a program holds at once."""
COLUMNS = 128
"""Columns of a program that sums over tokens without reducing rows."""
OPTIONS: dict[str, Any] = {"enable_fp_fusion": True}
HALF_SQRT = tl.constexpr(math.sqrt(0.5))
DENSITY = tl.constexpr(1 / math.sqrt(2 * math.pi))


@triton.jit
@no_type_check
def add_norm_kernel(
    x, y, factor, bias, weight, shift, made, normed, mean, scale, n, d, epsilon,
    ADDED: tl.constexpr, SCALED: tl.constexpr, ROWS: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """x + factor * (y + bias) -> made, its layer norm -> normed, a tile of tokens a program."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    column = tl.arange(0, WIDTH)
    there, inside = row < n, column < d
    mask = there[:, None] & inside[None, :]
    at = row.to(tl.int64)[:, None] * d + column[None, :]
    value = tl.load(x + at, mask=mask, other=0.0).to(tl.float32)
    if ADDED:
        added = tl.load(y + at, mask=mask, other=0.0).to(tl.float32)
        added += tl.load(bias + column, mask=inside, other=0.0)[None, :]
        if SCALED:
            added *= tl.load(factor + row, mask=there, other=0.0)[:, None]
        value = (value + added).to(made.dtype.element_ty)
        tl.store(made + at, value, mask=mask)
        value = value.to(tl.float32)
    average = tl.sum(value, axis=1) / d
    centred = tl.where(inside[None, :], value - average[:, None], 0.0)
    inverse = 1.0 / tl.sqrt(tl.sum(centred * centred, axis=1) / d + epsilon)
    tl.store(mean + row, average, mask=there)
    tl.store(scale + row, inverse, mask=there)
    result = centred * inverse[:, None] * tl.load(weight + column, mask=inside, other=0.0)[None, :]
    result += tl.load(shift + column, mask=inside, other=0.0)[None, :]
    tl.store(normed + at, result.to(normed.dtype.element_ty), mask=mask)


@triton.jit
@no_type_check
def add_norm_backward_kernel(
    grad, above, x, mean, scale, factor, weight, shift, grad_x, grad_y, normed, parts, n, d, tiles,
    PASSED: tl.constexpr, ADDED: tl.constexpr, SCALED: tl.constexpr, ROWS: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """Gradients of the norm and of what comes from `above` -> grad_x, times factor -> grad_y; the norm's output again."""
    column = tl.arange(0, WIDTH)
    inside = column < d
    gain = tl.load(weight + column, mask=inside, other=0.0)[None, :]
    offset = tl.load(shift + column, mask=inside, other=0.0)[None, :]
    of_weight, of_shift, of_bias = tl.zeros([WIDTH], tl.float32), tl.zeros([WIDTH], tl.float32), tl.zeros([WIDTH], tl.float32)
    for tile in range(tl.program_id(0), tiles, tl.num_programs(0)):
        row = tile * ROWS + tl.arange(0, ROWS)
        there = row < n
        mask = there[:, None] & inside[None, :]
        at = row.to(tl.int64)[:, None] * d + column[None, :]
        inverse = tl.load(scale + row, mask=there, other=0.0)[:, None]
        centred = tl.load(x + at, mask=mask, other=0.0).to(tl.float32) - tl.load(mean + row, mask=there, other=0.0)[:, None]
        unit = tl.where(inside[None, :], centred * inverse, 0.0)
        tl.store(normed + at, (unit * gain + offset).to(normed.dtype.element_ty), mask=mask)
        given = tl.load(grad + at, mask=mask, other=0.0).to(tl.float32)
        of_weight += tl.sum(given * unit, axis=0)
        of_shift += tl.sum(given, axis=0)
        wanted = given * gain
        along = tl.sum(wanted * unit, axis=1) / d
        level = tl.sum(wanted, axis=1) / d
        result = (wanted - level[:, None] - unit * along[:, None]) * inverse
        if PASSED:
            result += tl.load(above + at, mask=mask, other=0.0).to(tl.float32)
        tl.store(grad_x + at, result.to(grad_x.dtype.element_ty), mask=mask)
        if ADDED:
            if SCALED:
                result *= tl.load(factor + row, mask=there, other=0.0)[:, None]
            result = tl.where(mask, result, 0.0)
            of_bias += tl.sum(result, axis=0)
            tl.store(grad_y + at, result.to(grad_y.dtype.element_ty), mask=mask)
    place = parts + tl.program_id(0) * 3 * d + column
    tl.store(place, of_weight, mask=inside)
    tl.store(place + d, of_shift, mask=inside)
    tl.store(place + 2 * d, of_bias, mask=inside)


@triton.jit
@no_type_check
def _gelu(value):
    """The normal distribution's share below a value."""
    return 0.5 * (1.0 + tl.erf(value * HALF_SQRT))


@triton.jit
@no_type_check
def gelu_kernel(hidden, bias, made, values, m, BLOCK: tl.constexpr):
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = at < values
    value = tl.load(hidden + at, mask=mask, other=0.0).to(tl.float32) + tl.load(bias + at % m, mask=mask, other=0.0)
    tl.store(made + at, (value * _gelu(value)).to(made.dtype.element_ty), mask=mask)


@triton.jit
@no_type_check
def gelu_backward_kernel(
    grad, hidden, bias, grad_hidden, made, parts, n, m, tiles, ROWS: tl.constexpr, WIDTH: tl.constexpr
):  # fmt: skip
    """The gradient of the hidden layer, the activation again, and parts of the bias's gradient: columns of one program."""
    column = tl.program_id(1) * WIDTH + tl.arange(0, WIDTH)
    inside = column < m
    offset = tl.load(bias + column, mask=inside, other=0.0)[None, :]
    of_bias = tl.zeros([WIDTH], tl.float32)
    for tile in range(tl.program_id(0), tiles, tl.num_programs(0)):
        row = tile * ROWS + tl.arange(0, ROWS)
        mask = (row < n)[:, None] & inside[None, :]
        at = row.to(tl.int64)[:, None] * m + column[None, :]
        value = tl.load(hidden + at, mask=mask, other=0.0).to(tl.float32) + offset
        share = _gelu(value)
        tl.store(made + at, (value * share).to(made.dtype.element_ty), mask=mask)
        slope = share + value * DENSITY * tl.exp(-0.5 * value * value)
        result = tl.load(grad + at, mask=mask, other=0.0).to(tl.float32) * slope
        of_bias += tl.sum(result, axis=0)
        tl.store(grad_hidden + at, result.to(grad_hidden.dtype.element_ty), mask=mask)
    tl.store(parts + tl.program_id(0) * m + column, of_bias, mask=inside)


@triton.jit
@no_type_check
def stack_kernel(q, k, v, made, parts, n, d, tiles, ROWS: tl.constexpr, WIDTH: tl.constexpr):
    """[n, d] three times -> [n, 3 d], and parts of its sum over tokens; columns of one program belong to one of the three."""
    each = tl.cdiv(d, WIDTH)
    which = tl.program_id(1) // each
    column = (tl.program_id(1) % each) * WIDTH + tl.arange(0, WIDTH)
    inside = column < d
    of_bias = tl.zeros([WIDTH], tl.float32)
    for tile in range(tl.program_id(0), tiles, tl.num_programs(0)):
        row = tile * ROWS + tl.arange(0, ROWS)
        mask = (row < n)[:, None] & inside[None, :]
        at = row.to(tl.int64)[:, None] * d + column[None, :]
        if which == 0:
            value = tl.load(q + at, mask=mask, other=0.0)
        elif which == 1:
            value = tl.load(k + at, mask=mask, other=0.0)
        else:
            value = tl.load(v + at, mask=mask, other=0.0)
        of_bias += tl.sum(value.to(tl.float32), axis=0)
        place = row.to(tl.int64)[:, None] * (3 * d) + which * d + column[None, :]
        tl.store(made + place, value, mask=mask)
    tl.store(parts + tl.program_id(0) * 3 * d + which * d + column, of_bias, mask=inside)


def _tile(width: int) -> tuple[int, int]:
    """Tokens and columns of a tile that holds whole tokens."""
    columns = triton.next_power_of_2(width)
    return max(1, ELEMENTS // columns), columns


def launch_add_norm(
    x: Tensor, y: Tensor | None, factor: Tensor | None, bias: Tensor | None, weight: Tensor, shift: Tensor, epsilon: float,
    kind: torch.dtype,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    made, normed, mean, scale = add_norm_as(x, y, factor, bias, weight, shift, epsilon, kind)
    n, d = x.shape
    rows, columns = _tile(d)
    given = (x if one is None else one for one in (y, factor, bias))
    add_norm_kernel[(triton.cdiv(n, rows),)](
        x, *given, weight, shift, made, normed, mean, scale, n, d, epsilon, ADDED=y is not None, SCALED=factor is not None,
        ROWS=rows, WIDTH=columns, **OPTIONS,
    )  # fmt: skip
    return made, normed, mean, scale


def add_norm_as(
    x: Tensor, y: Tensor | None, factor: Tensor | None, bias: Tensor | None, weight: Tensor, shift: Tensor, epsilon: float,
    kind: torch.dtype,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    made = torch.empty_like(x) if y is not None else x.new_empty(0)
    each = x.new_empty(len(x), dtype=torch.float32), x.new_empty(len(x), dtype=torch.float32)
    return made, torch.empty_like(x, dtype=kind), *each


def launch_add_norm_backward(
    grad: Tensor, above: Tensor | None, x: Tensor, mean: Tensor, scale: Tensor, factor: Tensor | None, weight: Tensor,
    shift: Tensor, added: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    made = add_norm_backward_as(grad, above, x, mean, scale, factor, weight, shift, added)
    n, d = x.shape
    rows, columns = _tile(d)
    tiles = triton.cdiv(n, rows)
    add_norm_backward_kernel[(len(made[3]),)](
        grad, x if above is None else above, x, mean, scale, x if factor is None else factor, weight, shift, *made, n, d, tiles,
        PASSED=above is not None, ADDED=added, SCALED=factor is not None, ROWS=rows, WIDTH=columns, **OPTIONS,
    )  # fmt: skip
    return made


def add_norm_backward_as(
    grad: Tensor, above: Tensor | None, x: Tensor, mean: Tensor, scale: Tensor, factor: Tensor | None, weight: Tensor,
    shift: Tensor, added: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    of_added = torch.empty_like(grad) if added else grad.new_empty(0)
    return torch.empty_like(x), of_added, torch.empty_like(grad), x.new_empty(PARTS, 3, x.shape[1], dtype=torch.float32)


def launch_gelu(hidden: Tensor, bias: Tensor) -> Tensor:
    made = torch.empty_like(hidden)
    blocks = triton.cdiv(hidden.numel(), ELEMENTS)
    gelu_kernel[(blocks,)](hidden, bias, made, hidden.numel(), hidden.shape[1], BLOCK=ELEMENTS, num_warps=8, **OPTIONS)
    return made


def gelu_as(hidden: Tensor, bias: Tensor) -> Tensor:
    return torch.empty_like(hidden)


def launch_gelu_backward(grad: Tensor, hidden: Tensor, bias: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    made = gelu_backward_as(grad, hidden, bias)
    n, m = hidden.shape
    rows = ELEMENTS // COLUMNS
    gelu_backward_kernel[(len(made[2]), triton.cdiv(m, COLUMNS))](
        grad, hidden, bias, *made, n, m, triton.cdiv(n, rows), ROWS=rows, WIDTH=COLUMNS, **OPTIONS
    )
    return made


def gelu_backward_as(grad: Tensor, hidden: Tensor, bias: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    parts = _parts(hidden.shape[1])
    return torch.empty_like(hidden), torch.empty_like(hidden), hidden.new_empty(parts, hidden.shape[1], dtype=torch.float32)


def _parts(columns: int) -> int:
    """Programs for each strip of columns."""
    return max(1, 2 * PARTS // max(columns // COLUMNS, 1))


def launch_stack(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    made, parts = stack_as(q, k, v)
    n, d = q.shape
    rows = ELEMENTS // COLUMNS
    stack_kernel[(len(parts), 3 * triton.cdiv(d, COLUMNS))](
        q, k, v, made, parts, n, d, triton.cdiv(n, rows), ROWS=rows, WIDTH=COLUMNS, **OPTIONS
    )
    return made, parts


def stack_as(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    n, d = q.shape
    return q.new_empty(n, 3 * d), q.new_empty(_parts(3 * d), 3 * d, dtype=torch.float32)


def _operator(launch: Callable[..., Any], made_as: Callable[..., Any], name: str, schema: str) -> Any:
    """The launch as an operator of torch, which tools that watch or pretend a device can see; on a GPU only."""
    operator = torch.library.custom_op(f"ibot::{name}", launch, mutates_args=(), device_types="cuda", schema=schema)
    operator.register_fake(made_as)
    return operator


add_norm = _operator(
    launch_add_norm,
    add_norm_as,
    "add_norm",
    "(Tensor x, Tensor? y, Tensor? factor, Tensor? bias, Tensor weight, Tensor shift, float epsilon, ScalarType kind)"
    " -> (Tensor, Tensor, Tensor, Tensor)",
)
add_norm_backward = _operator(
    launch_add_norm_backward,
    add_norm_backward_as,
    "add_norm_backward",
    "(Tensor grad, Tensor? above, Tensor x, Tensor mean, Tensor scale, Tensor? factor, Tensor weight, Tensor shift, bool added)"
    " -> (Tensor, Tensor, Tensor, Tensor)",
)
gelu = _operator(launch_gelu, gelu_as, "gelu", "(Tensor hidden, Tensor bias) -> Tensor")
gelu_backward = _operator(
    launch_gelu_backward, gelu_backward_as, "gelu_backward",
    "(Tensor grad, Tensor hidden, Tensor bias) -> (Tensor, Tensor, Tensor)",
)  # fmt: skip
stack = _operator(launch_stack, stack_as, "stack", "(Tensor q, Tensor k, Tensor v) -> (Tensor, Tensor)")
