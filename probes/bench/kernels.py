"""What one operation costs a GPU: floating-point operations, bytes moved, kernels launched; and a roofline from named cards.

Counts of bytes and launches are those of torch's own CUDA kernels, read off their sources; times are estimates, not measurements.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

Kind = Literal["product", "attention", "other"]

FREE = {"empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided", "detach", "alias", "lift_fresh", "set_",
        "_reshape_alias", "_unsafe_view", "resize_", "is_pinned", "record_stream"}  # fmt: skip
"""Operations without a kernel, besides views."""
OVERWRITING = {"copy_", "fill_", "zero_", "normal_", "uniform_", "bernoulli_", "random_"}
"""Operations in place that do not read what was there."""
PRODUCTS = {"mm", "addmm", "bmm", "baddbmm", "_scaled_mm", "convolution", "convolution_backward", "mv", "addmv", "dot"}
LAUNCHES = {"native_layer_norm_backward": 2, "convolution": 2, "convolution_backward": 4, "index_add": 2, "slice_backward": 2,
            "select_backward": 2, "_scaled_dot_product_flash_attention_backward": 3, "sort": 6, "topk": 3, "nonzero": 4,
            "index_select_backward": 2, "cumsum": 2, "unfold_backward": 2, "linalg_svdvals": 200, "_linalg_svd": 200,
            "linalg_eigvalsh": 100, "_linalg_eigh": 100, "upsample_bicubic2d_backward": 2, "embedding_dense_backward": 6,
            "expand": 0}  # fmt: skip
"""Kernels of operations that have more than one (or none)."""
CAT_INPUTS, FOREACH_CHUNK, FOREACH_BLOCKS, FOREACH_TENSORS = 64, 65536, 320, 60
"""Tensors that one kernel of `cat` takes; values a block, blocks a kernel and tensors a kernel of the `_foreach` operations."""


class Kernel(NamedTuple):
    """One operation, or several that a compiler has made one."""

    name: str
    kind: Kind
    flops: int
    bytes: int
    """Read and written."""
    launches: int
    dtype: torch.dtype | None
    """Of the result; of a product, of its factors."""
    phase: str = ""
    place: str = ""
    """The line of this project that called it."""


class Card(NamedTuple):
    """What a GPU reaches in practice: matrix products in 16 bits, bytes of its memory, both a second."""

    name: str
    flops: float
    bandwidth: float


CARDS = {"H100": Card("H100", 600e12, 2.6e12), "H200": Card("H200", 600e12, 4.0e12)}
"""About 60 % of the peak of dense products, 80 % of the peak of the memory."""
SHORTEST, LAUNCH = 1.5e-6, 5e-6
"""Seconds of the shortest kernel, and of the host to launch one."""


def seconds(kernel: Kernel, card: Card) -> float:
    """Estimated time on the card: the longer of computing and moving, at least that of the shortest kernels."""
    rate = card.flops if kernel.dtype in (torch.bfloat16, torch.float16) else card.flops / 2
    return max(kernel.flops / rate, kernel.bytes / card.bandwidth, SHORTEST * kernel.launches)


def bytes_of(tensor: Tensor) -> int:
    """Distinct bytes that it covers: a broadcast dimension counts once."""
    sizes = [size if stride or not size else 1 for size, stride in zip(tensor.shape, tensor.stride(), strict=True)]
    return math.prod(sizes) * tensor.element_size()


def kernel_of(function: Any, args: Sequence[Any], kwargs: Mapping[str, Any], result: Any) -> Kernel | None:
    """The kernel of an ATen call; None for a view and for what computes nothing."""
    name = function.overloadpacket.__name__
    given, results = tensors((args, kwargs)), tensors(result)
    written = _written(function, args, kwargs)
    storages = {tensor.untyped_storage()._cdata for tensor in given}
    fresh = [tensor for tensor in results if tensor.untyped_storage()._cdata not in storages]
    if name in FREE or (results and not written and not fresh):
        return None
    packet = function.overloadpacket
    flops = flop_registry[packet](*args, **kwargs, out_val=result) if packet in flop_registry else 0
    moved = _moved(name, args, given, results, fresh, written)
    shown = given if kind_of(name) == "product" else results
    return Kernel(name, kind_of(name), flops, moved, _launches(name, args, kwargs), shown[-1].dtype if shown else None)


def kind_of(name: str) -> Kind:
    """Of an ATen operation."""
    if name in PRODUCTS:
        return "product"
    return "attention" if name.startswith("_scaled_dot_product") else "other"


def tensors(nested: Any) -> list[Tensor]:
    """All tensors of nested lists, tuples and dicts."""
    return [leaf for leaf in tree_leaves(nested) if isinstance(leaf, Tensor)]


def _written(function: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> list[Tensor]:
    """Arguments that the operation changes."""
    found = []
    for number, argument in enumerate(function._schema.arguments):
        if argument.alias_info is not None and argument.alias_info.is_write:
            found += tensors(args[number] if number < len(args) else kwargs.get(argument.name))
    return found


def _total(some: Iterable[Tensor]) -> int:
    return sum(map(bytes_of, some))


def _moved(
    name: str, args: Sequence[Any], given: list[Tensor], results: list[Tensor], fresh: list[Tensor], written: list[Tensor]
) -> int:
    """Bytes read and written."""
    if name.startswith("new_") or name.endswith("_like"):  # they look at the shape of what they are given
        return _total(fresh)
    if name in ("index", "index_select", "gather"):  # what is chosen, and the numbers of it
        return 2 * _total(results) + _total(given[1:])
    if name in ("index_copy_", "index_add_", "index_put_"):
        source = given[-1]
        times = 2 if name == "index_copy_" else 3
        return times * source.numel() * source.element_size() + _total(given[1:-1])
    if name == "index_add":  # a copy, then the sum
        return 2 * _total(results) + 3 * given[2].numel() * given[2].element_size() + bytes_of(given[1])
    if name in ("slice_backward", "select_backward"):  # zeros, then the part
        return 2 * bytes_of(given[0]) + _total(results)
    kept = {id(tensor) for tensor in written} if name in OVERWRITING else set()
    return sum(bytes_of(tensor) for tensor in given if id(tensor) not in kept) + _total(fresh) + _total(written)


def _launches(name: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> int:
    if name.startswith(("_foreach", "_fused_adam")):
        return _foreach_launches(args)
    if name == "cat":
        return math.ceil(len(args[0]) / CAT_INPUTS)
    if name == "index_put_" and (kwargs.get("accumulate") or (len(args) > 3 and args[3])):
        return 8  # sorted first
    return LAUNCHES.get(name, 1)


def _foreach_launches(args: Sequence[Any]) -> int:
    """Few kernels for many tensors; one for each where shapes or strides differ: the slow route."""
    lists = [value for value in args if isinstance(value, list | tuple) and value and isinstance(value[0], Tensor)]
    first = lists[0]
    for other in lists[1:]:
        if other is lists[-1] and len(lists) > 2 and not any(tensor.dim() for tensor in other):
            continue  # the optimizer's counts of steps
        if any(a.shape != b.shape or a.stride() != b.stride() for a, b in zip(first, other, strict=False)):
            return len(first)
    values = sum(tensor.numel() for tensor in first)
    return math.ceil((len(first) + values / FOREACH_CHUNK) / FOREACH_BLOCKS) + math.ceil(len(first) / FOREACH_TENSORS)
