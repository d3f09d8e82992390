"""What a compiler makes of a function on the pretended GPU: graphs for forward and backward, operations joined into kernels.

torch's own tracer and partitioner decide what is kept for the backward, as with `torch.compile`. Kernels are estimated by the
rules of its compiler (compared with the kernels that it makes of a block, docs/performance.md): everything between matrix
products and attention that hangs together is one kernel, which reads its inputs once and writes what others need; what is
computed from few inputs is computed again by each kernel that needs it; sums over rows (gradients of biases and of norms) read
their inputs once more, unless a kernel that reduces each row of the same reads them anyway.
"""

import contextlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from functorch.compile import aot_function, min_cut_rematerialization_partition
from torch import Tensor, fx, nn
from torch._inductor import config as inductor
from torch._inductor.decomposition import select_decomp_table
from torch.nn.utils.stateless import _reparametrize_module
from torch.utils._python_dispatch import _disable_current_modes
from torch.utils._pytree import TreeSpec, tree_flatten, tree_unflatten

from probes.bench.kernels import FREE, Kernel, bytes_of, kernel_of, kind_of, tensors
from probes.bench.pretended_gpu import PretendedGpu

APART = {"sort", "topk", "index_put", "index_put_", "_unsafe_index_put", "index_add", "scatter_add", "scatter", "nonzero",
         "cumsum", "upsample_bicubic2d", "upsample_bicubic2d_backward"}  # fmt: skip
"""Operations that stay kernels of their own, besides products and attention."""
REDUCTIONS = {"sum", "mean", "amax", "amin", "var_mean", "var", "prod"}
ONE_PASS = 1024
"""Values of a row that one block holds: a longer row is read a second time after its reduction."""
UNREAD = {"drop_prob"}
"""Settings that no compiled block reads: stochastic depth comes as a tensor."""
INLINED = 4
"""Tensors from which a value may be computed in each kernel that needs it, in place of being written once."""
MIXED = bool(getattr(inductor.triton, "mix_order_reduction", False))
"""Whether this version of torch makes one kernel of sums over rows and reductions of each row."""
FEWER = 64
"""A sum over rows has a result so many times smaller than its input."""


def pretend_compiled(function: Callable[..., Any], gpu: PretendedGpu) -> Callable[..., Any]:
    """Called as `function` is: what `torch.compile(function, fullgraph=True, dynamic=False)` makes of it.

    There is another graph for other shapes, other settings of a module, another mode of gradients or of autocast: `gpu.graphs`
    counts them.
    """
    graphs: dict[Any, Callable[..., Any]] = {}

    def compiled(*args: Any, **kwargs: Any) -> Any:
        leaves, structure = tree_flatten((args, kwargs))
        inputs = [value for leaf in leaves for value in _inputs(leaf)]
        mode = torch.is_grad_enabled(), torch.is_autocast_enabled("cuda"), torch.get_autocast_dtype("cuda")
        key = (str(structure), mode, tuple(map(_fixed, leaves)))
        if key not in graphs:
            graphs[key] = _traced(function, leaves, structure, gpu)
            gpu.graphs += 1
            counted = len(gpu.kernels)
            with _disable_current_modes():  # the first call traces; what it computes is not counted
                graphs[key](*inputs)
            del gpu.kernels[counted:]
        return graphs[key](*inputs)

    return compiled


def _inputs(leaf: Any) -> list[Tensor]:
    """Tensors that the graph is given for an argument."""
    if isinstance(leaf, nn.Module):
        return [*leaf.parameters(), *leaf.buffers()]
    return [leaf] if isinstance(leaf, Tensor) else []


def _fixed(leaf: Any) -> Any:
    """What a graph is made for: an argument without the values of its tensors."""
    if isinstance(leaf, Tensor):
        return tuple(leaf.shape), leaf.stride(), leaf.dtype, leaf.device.type, leaf.requires_grad
    if isinstance(leaf, nn.Module):
        settings = [(name, type(part), *_settings(part)) for name, part in leaf.named_modules()]
        return tuple(settings), tuple(map(_fixed, _inputs(leaf)))
    return leaf


def _settings(module: nn.Module) -> list[Any]:
    """Numbers, flags and words that the module holds, by which its code may go another way."""
    own = ((name, value) for name, value in vars(module).items() if name not in UNREAD)
    return [(name, value) for name, value in own if isinstance(value, bool | int | float | str)]


def _traced(function: Callable[..., Any], leaves: Sequence[Any], structure: TreeSpec, gpu: PretendedGpu) -> Callable[..., Any]:
    """The function of the tensors alone."""

    def of_tensors(*inputs: Tensor) -> Any:
        rest = iter(inputs)
        with contextlib.ExitStack() as stack:
            given = []
            for leaf in leaves:
                if isinstance(leaf, nn.Module):
                    names = [name for name, _ in (*leaf.named_parameters(), *leaf.named_buffers())]
                    stack.enter_context(_reparametrize_module(leaf, {name: next(rest) for name in names}))
                given.append(next(rest) if isinstance(leaf, Tensor) else leaf)
            args, kwargs = tree_unflatten(given, structure)
            return function(*args, **kwargs)

    def compiler(graph: fx.GraphModule, inputs: Any) -> Any:
        return _Graph(graph, gpu)

    return aot_function(
        of_tensors,
        fw_compiler=compiler,
        bw_compiler=compiler,
        partition_fn=min_cut_rematerialization_partition,
        decompositions=select_decomp_table(),
    )


class _Graph(fx.Interpreter):
    """Runs a graph, takes the memory that the compiled one would take, and notes its kernels."""

    _boxed_call = True  # called with a list, which it empties: so inputs are freed after their last use

    def __init__(self, graph: fx.GraphModule, gpu: PretendedGpu) -> None:
        super().__init__(graph)
        self._gpu, (self._kernels, self._kept) = gpu, fused(graph)

    def __call__(self, args: list[Any]) -> Any:
        for kernel in self._kernels:
            self._gpu.note(kernel)
        try:
            return self.boxed_run(args)
        finally:
            self.env = {}  # a result that is held here would be copied into a parameter's gradient, and its memory not freed

    def run_node(self, n: fx.Node) -> Any:
        with self._gpu.inside_graph(made=n in self._kept):
            return super().run_node(n)


class _Value(NamedTuple):
    """A tensor that a node makes: the node itself, or one of its several results."""

    maker: fx.Node
    node: fx.Node


class _Made(NamedTuple):
    """A kernel, the nodes in it, and the tensors that it reads and writes."""

    kernel: Kernel
    members: list[fx.Node]
    seen: set[fx.Node]


def fused(graph: fx.GraphModule) -> tuple[list[Kernel], set[fx.Node]]:
    """The kernels of a graph of ATen operations, and the nodes whose results are written to memory."""
    return _Fusion(graph).result()


class _Fusion:
    """Joins nodes: those of one level that hang together, a level being the products and attentions before."""

    def __init__(self, graph: fx.GraphModule) -> None:
        self.nodes = [node for node in graph.graph.nodes if node.op == "call_function" and not _is_view(node)]
        self.values: dict[fx.Node, _Value] = {}
        self.level: dict[fx.Node, int] = {}
        self.group: dict[fx.Node, fx.Node] = {}
        self.users: dict[fx.Node, set[fx.Node]] = {}
        real = {*self.nodes, *(node for node in graph.graph.nodes if node.op == "output")}
        for node in graph.graph.nodes:
            self.values[node] = self._value(node)
            for source in self._sources(node) if node in real else ():
                self.users.setdefault(source.node, set()).add(node)
        for node in self.nodes:
            self._place(node)

    def _value(self, node: fx.Node) -> _Value:
        """What a node stands for: a view for the tensor that it shows."""
        if node.op == "call_function" and _is_view(node):
            source = self.values[node.all_input_nodes[0]]
            several = isinstance(source.node.meta.get("val"), tuple | list) and source.node is source.maker
            return _Value(source.maker, node) if several else source
        return _Value(node, node)

    def _sources(self, node: fx.Node) -> list[_Value]:
        return [self.values[given] for given in node.all_input_nodes]

    def _root(self, node: fx.Node) -> fx.Node:
        while self.group[node] is not node:
            node = self.group[node]
        return node

    def _place(self, node: fx.Node) -> None:
        makers = [source.maker for source in self._sources(node)]
        level = max((self.level.get(maker, 0) for maker in makers), default=0)
        self.group[node] = node
        self.level[node] = level + 1 if _alone(node) or _over_rows(node) else level
        if _alone(node):
            return
        for maker in makers:
            if maker in self.group and self.level[maker] == level and not _alone(maker) and _over_rows(maker) == _over_rows(node):
                self.group[self._root(maker)] = self._root(node)

    def result(self) -> tuple[list[Kernel], set[fx.Node]]:
        every: dict[fx.Node, list[fx.Node]] = {}
        for node in self.nodes:
            every.setdefault(self._root(node), []).append(node)
        groups = list(every.values())
        written = {value.node for members in groups for value in self._written(members)}
        for members in groups:
            if self._is_inlined(members, written):
                written -= {value.node for value in self._written(members)}
        groups = [members for members in groups if not written.isdisjoint(value.node for value in self._written(members))]
        kernels = [self._kernel(members, written) for members in self._shared(groups, written)]
        if MIXED:
            kernels = self._mixed(kernels)
        kept = written | {self.values[node].maker for node in written}
        return [kernel for kernel, _, _ in kernels if kernel.bytes or kernel.flops], kept

    def _is_inlined(self, members: list[fx.Node], written: set[fx.Node]) -> bool:
        """Whether what a group computes is computed inside the kernels that need it: it reduces nothing, and reads little."""
        if any(_alone(node) or _over_rows(node) or _row_length(node) for node in members):
            return False
        inside = set(members)
        users = {user for value in self._written(members) for user in self.users.get(value.node, set()) - inside}
        if any(user.op != "call_function" or _alone(user) for user in users):
            return False
        return len(users) == 1 or len(self._reads(members, written)) <= INLINED

    def _shared(self, groups: list[list[fx.Node]], written: set[fx.Node]) -> list[list[fx.Node]]:
        """The same, with sums over rows of one level that read the same joined."""
        found: list[list[fx.Node]] = []
        sums: list[tuple[int, set[fx.Node], list[fx.Node]]] = []
        for members in groups:
            first = members[0]
            if not _over_rows(first):
                found.append(members)
                continue
            reads, level = set(self._reads(members, written)), self.level[first]
            like = next((one for one in sums if one[0] == level and one[1] & reads), None)
            if like is None:
                sums.append((level, reads, members))
                found.append(members)
            else:
                like[1].update(reads)
                like[2].extend(members)
        return found

    def _written(self, members: list[fx.Node]) -> list[_Value]:
        """Results that others need; a sum over rows computes again what it sums."""
        inside, again = set(members), not _alone(members[0])
        values = (value for value in dict.fromkeys(self.values.values()) if value.maker in inside)
        return [value for value in values if any(self._needs(user, again) for user in self.users.get(value.node, set()) - inside)]

    @staticmethod
    def _needs(user: fx.Node, again: bool) -> bool:
        return not (again and user.op == "call_function" and _over_rows(user))

    def _kernel(self, members: list[fx.Node], written: set[fx.Node]) -> "_Made":
        first = members[0]
        if len(members) == 1 and _alone(first):
            return _Made(_own_kernel(first), members, set())
        reads = self._reads(members, written)
        wide = any(_row_length(node) > ONE_PASS for node in members)
        outputs = [value for value in self._written(members) if value.node in written]
        moved = sum(reads.values()) * (2 if wide else 1) + sum(map(_size, (value.node for value in outputs)))
        name = "fused " + " ".join(sorted({_name(node) for node in members}))
        made = Kernel(name, "other", 0, moved, 2 if _over_rows(first) else 1, None)
        return _Made(made, members, {*reads, *(value.node for value in outputs)})

    @staticmethod
    def _mixed(kernels: list["_Made"]) -> list["_Made"]:
        """The same, with sums over rows taken by kernels that go through these rows anyway; their parts are added up after."""
        through = [made for made in kernels if any(_row_length(node) for node in made.members)]
        found = []
        for one in kernels:
            made = one
            large = {node for node in made.seen if _size(node) > 2**20}
            if _over_rows(made.members[0]) and any(large <= other.seen for other in through):
                results = sum(_size(node) for node in made.members)
                made = made._replace(kernel=made.kernel._replace(bytes=min(made.kernel.bytes, results), launches=1))
            found.append(made)
        return found

    def _reads(self, members: list[fx.Node], written: set[fx.Node]) -> dict[fx.Node, int]:
        """Bytes that a kernel reads of each tensor."""
        reads: dict[fx.Node, int] = {}
        for node in members:
            self._read(node, set(members), written, reads)
        return reads

    def _read(self, node: fx.Node, inside: set[fx.Node], written: set[fx.Node], reads: dict[fx.Node, int]) -> None:
        """Add what a member reads from memory; what is not written there is computed again from its own inputs."""
        for given in node.all_input_nodes:
            source = self.values[given]
            if source.maker in inside:
                continue
            unwritten = source.node not in written and source.maker in self.group and not _alone(source.maker)
            if unwritten:
                self._read(source.maker, inside, written, reads)
                continue
            whole = _size(source.node)
            reads[source.node] = min(whole, max(reads.get(source.node, 0), _size(given)))


def _name(node: fx.Node) -> str:
    packet = getattr(node.target, "overloadpacket", None)
    return packet.__name__ if packet is not None else getattr(node.target, "__name__", str(node.target))


def _is_view(node: fx.Node) -> bool:
    if _name(node) == "getitem" or _name(node) in FREE:
        return True
    schema = getattr(node.target, "_schema", None)
    return schema is not None and any(one.alias_info is not None and not one.alias_info.is_write for one in schema.returns)


def _alone(node: fx.Node) -> bool:
    return kind_of(_name(node)) != "other" or _name(node) in APART


def _over_rows(node: fx.Node) -> bool:
    """Whether it sums many rows to one: not the direction in which everything else is computed."""
    if _name(node) not in ("sum", "mean") or len(node.args) < 2 or not node.all_input_nodes:
        return False
    given, dims = node.all_input_nodes[0].meta["val"], node.args[1]
    first = isinstance(dims, list | tuple) and any(dim in (0, -given.dim()) for dim in dims)
    return first and given.numel() >= FEWER * max(node.meta["val"].numel(), 1) and given.shape[0] >= FEWER


def _row_length(node: fx.Node) -> int:
    """Values that a reduction along the last dimension takes together; 0 for anything else."""
    if _name(node) not in REDUCTIONS or _over_rows(node) or not node.all_input_nodes:
        return 0
    return int(node.all_input_nodes[0].meta["val"].shape[-1]) if node.all_input_nodes[0].meta["val"].dim() else 0


def _size(node: fx.Node) -> int:
    return sum(map(bytes_of, tensors(node.meta.get("val"))))


def _own_kernel(node: fx.Node) -> Kernel:
    """As the same operation has it when it is called by itself."""
    args, kwargs = fx.map_arg((node.args, node.kwargs), lambda one: one.meta["val"])
    kernel = kernel_of(node.target, args, kwargs, node.meta["val"])
    assert kernel is not None, node
    return kernel
