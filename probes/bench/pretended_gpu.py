"""A pretended GPU: tensors on `cuda` without content, every operation, byte, launch, wait and upload on them noted.

Real code runs on it unchanged, where there is no GPU and no build of torch for one. Tensors on `cpu` stay real. Values that the
host asks for are made up, so results mean nothing: what counts is what was done, on which device, and what was waited for. An
operation on tensors of two devices fails as it does on a GPU.
"""

import contextlib
import importlib.util
import sys
import weakref
from collections.abc import Iterator
from functools import cache, partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch
import torch._dynamo  # first: it looks at what is replaced below
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses import fake_tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

from probes.bench.kernels import Kernel, bytes_of, kernel_of, tensors

ROOT = Path(__file__).parents[2]
HERE = Path(__file__).parent
GPU = torch.device("cuda", 0)
HALF = {"linear", "matmul", "__matmul__", "__rmatmul__", "mm", "bmm", "addmm", "baddbmm", "conv2d"}
FULL = {"layer_norm", "softmax", "log_softmax", "norm", "cross_entropy", "cosine_similarity"}
"""Functions that autocast computes in 16 bits, and in 32."""
STAGED = 64 * 1024
"""Bytes of pageable memory that CUDA copies aside at once; for more of it the host stands still."""
CHOSEN = 1 / 6
"""Share of a boolean mask that is taken to be true."""
ASKING = {"_local_scalar_dense", "nonzero", "masked_select", "is_nonzero", "equal", "unique_consecutive", "_unique2",
          "unique_dim", "unique_dim_consecutive", "linalg_svdvals", "_linalg_svd", "_linalg_eigh", "linalg_eigvalsh"}  # fmt: skip
"""Operations whose result, or whose error code, the host waits for."""


class Wait(NamedTuple):
    """The host waits for the device."""

    name: str
    phase: str
    place: str


class Upload(NamedTuple):
    """A copy from host memory to the device."""

    bytes: int
    pinned: bool
    phase: str
    place: str

    @property
    def waits(self) -> bool:
        """Whether it is too large to be copied aside at once."""
        return not self.pinned and self.bytes > STAGED


class _Fakes(FakeTensorMode):
    """Tensors without content; what C++ makes like a tensor of the GPU, whose device it does not see, is on the GPU."""

    def dispatch(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return super().dispatch(func, types, args, _placed(kwargs))


def _placed(kwargs: Any) -> dict[str, Any]:
    """Keyword arguments with a device that Python sees."""
    device = (kwargs or {}).get("device")
    unseen = device is not None and torch.device(device).type == "meta"
    return {**(kwargs or {}), **({"device": GPU} if unseen else {})}


class PretendedGpu(TorchDispatchMode):
    """Computes only shapes of what is on `cuda`, and takes notes. Use `pretended()`, which enters it."""

    def __init__(self) -> None:
        super().__init__()
        self.fake = _Fakes(allow_non_fake_inputs=True)
        self.kernels: list[Kernel] = []
        self.waits: list[Wait] = []
        self.uploads: list[Upload] = []
        self.graphs = 0
        """Compiled graphs (`probes/bench/fusion.py`)."""
        self.phase = ""
        self.step = 0
        self.live = self.peak = 0
        """Bytes of the device's memory that are in use, and the most since `start`."""
        self._sizes: dict[int, int] = {}
        self._pinned: set[int] = set()
        self._quiet = self._unmade = False

    def start(self, phase: str = "") -> None:
        """Forget what was counted; the next step begins."""
        self.kernels, self.waits, self.uploads = [], [], []
        self.peak, self.phase, self.step = self.live, phase, self.step + 1

    def wait(self, name: str) -> None:
        """Note that the host waits here."""
        self.waits.append(Wait(name, self.phase, _place()))

    def tensor(self, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        """One on the device."""
        with self.fake:
            made = torch.empty(shape, dtype=dtype, device=GPU)
        self._track(made)
        return made

    def move_(self, module: nn.Module) -> None:
        """Parameters and buffers to the device, in place. `module.to` cannot: it would give real parameters content-free data."""
        made: dict[int, Tensor] = {}
        for part in module.modules():
            stores: list[dict[str, Any]] = [part._parameters, part._buffers]
            for store in stores:
                for name, value in list(store.items()):
                    if value is None:
                        continue
                    if id(value) not in made:  # parameters that are shared stay so
                        made[id(value)] = self._moved(value)
                    store[name] = made[id(value)]

    def _moved(self, value: Tensor) -> Tensor:
        with self.fake:
            there = torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device=GPU)
        self._track(there)
        return nn.Parameter(there, requires_grad=value.requires_grad) if isinstance(value, nn.Parameter) else there

    @contextlib.contextmanager
    def inside_graph(self, *, made: bool) -> Iterator[None]:
        """Operations of a compiled graph: its kernels are noted apart; results that it does not keep (`made`) take no memory."""
        before = self._quiet, self._unmade
        self._quiet, self._unmade = True, not made
        try:
            yield
        finally:
            self._quiet, self._unmade = before

    def pin(self, tensor: Tensor) -> Tensor:
        """The same, known to lie in page-locked memory."""
        storage = tensor.untyped_storage()
        self._pinned.add(storage._cdata)
        weakref.finalize(storage, self._pinned.discard, storage._cdata)
        return tensor

    def _track(self, tensor: Tensor) -> None:
        if not _on_gpu(tensor) or self._unmade:
            return
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._sizes:
            return
        self._sizes[key] = storage.nbytes()
        self.live += storage.nbytes()
        self.peak = max(self.peak, self.live)
        weakref.finalize(storage, self._free, key)

    def _free(self, key: int) -> None:
        self.live -= self._sizes.pop(key, 0)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = _placed(kwargs)
        wanted = kwargs.get("device")
        if not any(isinstance(one, FakeTensor) for one in tensors((args, kwargs))) and (
            wanted is None or torch.device(wanted).type == "cpu"
        ):
            return func(*args, **kwargs)
        name = func.overloadpacket.__name__
        answer = self._asked(name, args)
        if answer is not None:
            return answer
        if name == "copy_" and not isinstance(args[0], FakeTensor):
            return self._download(func, args, kwargs)
        self._note_copies(name, args, kwargs)
        args = self._with_numbers(name, args)
        given, named = tree_map(self._pretended, (args, kwargs))
        with self.fake:
            result = func(*given, **named)
        self._note(kernel_of(func, args, kwargs, result))
        for tensor in tensors(result):
            self._track(tensor)
        return result

    def _note(self, kernel: Kernel | None) -> None:
        if kernel is not None and not self._quiet:
            self.note(kernel)

    def note(self, kernel: Kernel) -> None:
        """Count a kernel, here and now."""
        self.kernels.append(kernel._replace(phase=self.phase, place=kernel.place or _place()))

    def _pretended(self, value: Any) -> Any:
        """A real tensor as one without content."""
        real = isinstance(value, Tensor) and not isinstance(value, FakeTensor)
        return self.fake.from_tensor(value, static_shapes=True) if real else value

    def _asked(self, name: str, args: Any) -> Any:
        """What the host gets where it asks for a value; None where it does not."""
        if name not in ASKING:
            return None
        self.wait(name)
        if name == "nonzero":
            return self._some(args[0], args[0].dim())
        if name in ("equal", "is_nonzero"):
            return True
        if name == "_local_scalar_dense":
            kind = args[0].dtype
            return True if kind == torch.bool else 0.5 if kind.is_floating_point else 1
        return None

    def _some(self, mask: Tensor, *columns: int) -> Tensor:
        with self.fake:
            return torch.zeros(int(CHOSEN * mask.numel()), *columns, dtype=torch.int64, device=GPU)

    def _download(self, func: Any, args: Any, kwargs: Any) -> Any:
        """To real host memory, where something is written in its place."""
        target = args[0]
        self._note(kernel_of(func, args, kwargs, target))
        if not (_asynchronous(args, kwargs) and target.untyped_storage()._cdata in self._pinned):
            self.wait("copy to the host")
        return target.fill_(True if target.dtype == torch.bool else 0.5)

    def _note_copies(self, name: str, args: Any, kwargs: Any) -> None:
        """Copies between host and device."""
        if name in ("index", "index_put_", "index_put", "_unsafe_index"):
            for index in tensors(args[1]):
                if not _on_gpu(index) and _on_gpu(args[0]):
                    self._upload(index, asynchronous=False)
        if name not in ("_to_copy", "copy_"):
            return
        source = args[0] if name == "_to_copy" else args[1]
        device = kwargs.get("device") if name == "_to_copy" else args[0].device
        if device is None or torch.device(device).type == source.device.type:
            return
        if torch.device(device).type == "cuda":
            self._upload(source, asynchronous=_asynchronous(args, kwargs))
        else:
            self.wait("copy to the host")

    def _upload(self, source: Tensor, *, asynchronous: bool) -> None:
        pinned = source.untyped_storage()._cdata in self._pinned
        self.uploads.append(Upload(source.numel() * source.element_size(), pinned, self.phase, _place()))
        if not asynchronous:
            self.wait("copy to the device")

    def _with_numbers(self, name: str, args: Any) -> Any:
        """A boolean index as the numbers of what it chooses, which the host waits for."""
        if name not in ("index", "index_put_", "index_put") or not any(one.dtype == torch.bool for one in tensors(args[1])):
            return args
        self.wait("index by a boolean mask")
        indices: list[Any] = []
        for one in args[1]:
            chosen = isinstance(one, Tensor) and one.dtype == torch.bool
            indices += [self._some(one) for _ in range(one.dim())] if chosen else [one]
        return (args[0], indices, *args[2:])


def _on_gpu(tensor: Tensor) -> bool:
    return isinstance(tensor, FakeTensor) and tensor.fake_device.type == "cuda"


def _asynchronous(args: Any, kwargs: Any) -> bool:
    return bool(kwargs.get("non_blocking") or (len(args) > 2 and args[2]))


def _place() -> str:
    """The nearest line of this project, the benches apart, that is being run."""
    frame = sys._getframe(1)
    while frame.f_back is not None:
        frame = frame.f_back
        if name := _own(frame.f_code.co_filename):
            return f"{name}:{frame.f_lineno}"
    return ""


@cache
def _own(file: str) -> str:
    """A file of this project, the benches apart, by its name in the project; else nothing."""
    path = Path(file)
    if not path.is_relative_to(ROOT) or path.is_relative_to(HERE) or ".venv" in path.parts:
        return ""
    return path.relative_to(ROOT).as_posix()


class _Event:
    """A CUDA event: waiting for one of an earlier step is what keeps the host from running far ahead, and is no wait."""

    def __init__(self, gpu: PretendedGpu) -> None:
        self._gpu, self._step = gpu, -1

    def record(self, stream: object = None) -> None:
        self._step = self._gpu.step

    def synchronize(self) -> None:
        if self._step == self._gpu.step:
            self._gpu.wait("event of the same step")


def _attention(
    query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, dropout_p: float = 0.0, is_causal: bool = False,
    scale: float | None = None, enable_gqa: bool = False,
) -> Tensor:  # fmt: skip
    """`F.scaled_dot_product_attention` as a GPU computes it: one kernel."""
    if query.device.type == "cpu" or attn_mask is not None:
        return _real_attention(query, key, value, attn_mask, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa)
    if torch.is_autocast_enabled("cuda"):
        query, key, value = (one.to(torch.get_autocast_dtype("cuda")) for one in (query, key, value))
    if query.dtype in (torch.bfloat16, torch.float16):
        return torch.ops.aten._scaled_dot_product_flash_attention(query, key, value, dropout_p, is_causal, False, scale=scale)[0]
    kept = torch.is_grad_enabled() and query.requires_grad
    efficient = torch.ops.aten._scaled_dot_product_efficient_attention
    return efficient(query, key, value, None, kept, dropout_p, is_causal, scale=scale)[0]


def _attend(gpu: "PretendedGpu", q: Tensor, k: Tensor, v: Tensor, where: Any) -> tuple[Tensor, ...]:
    """`fused_blocks.attend`: one kernel, of sequences whose lengths the host knows and the operator does not show."""
    made, sums = torch.empty_like(q), q.new_empty(q.shape[1], len(q), dtype=torch.float32)
    _note_attention(gpu, (q, k, v, made, sums), q, where, products=2, launches=1)
    return made, sums


def _attend_backward(
    gpu: "PretendedGpu", grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, rest: Any, where: Any
) -> tuple[Tensor, ...]:
    """`fused_blocks.attend_backward`."""
    grads = tuple(torch.empty_like(out) for _ in range(3))
    _note_attention(gpu, (grad, q, k, v, out, *rest, *grads), q, where, products=5, launches=3)
    return grads


def _of_own_blocks(gpu: "PretendedGpu") -> list[tuple[Any, str, Any]]:
    """What is replaced of this project's own blocks; nothing where Triton is missing, without which they cannot be imported."""
    if importlib.util.find_spec("triton") is None:
        return []
    from pretrain.models import fused_blocks  # noqa: PLC0415

    return [(fused_blocks, "attend", partial(_attend, gpu)), (fused_blocks, "attend_backward", partial(_attend_backward, gpu))]


def _note_attention(
    gpu: "PretendedGpu", moved: tuple[Tensor, ...], q: Tensor, where: Any, *, products: int, launches: int
) -> None:
    pairs = sum(images * tokens**2 for images, tokens in where.groups)
    flops = 2 * products * pairs * q.shape[1] * q.shape[2]
    gpu.note(Kernel("attention of variable length", "attention", flops, sum(map(bytes_of, moved)), launches, q.dtype))


_real_run_backward = torch.autograd._engine_run_backward
_real_make_subclass = torch.Tensor._make_subclass
_real_attention = F.scaled_dot_product_attention
_real_empty = torch.empty


class _Autocast(TorchFunctionMode):
    """Autocast of a GPU: torch's own looks at the C++ device, which is no GPU's here."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        if name in HALF | FULL and torch.is_autocast_enabled("cuda"):
            wanted = torch.get_autocast_dtype("cuda") if name in HALF else torch.float32
            args, kwargs = tree_map(partial(_cast, wanted=wanted), (args, kwargs))
        return func(*args, **kwargs)


def _run_backward(*args: Any, **kwargs: Any) -> Any:
    """Blocks are computed again in it, under autocast, which is off within a function that it looks at, as `backward` is."""
    with _Autocast():
        return _real_run_backward(*args, **kwargs)


def _cast(value: Any, *, wanted: torch.dtype) -> Any:
    lower = (torch.float32, torch.float16, torch.bfloat16)
    other = isinstance(value, Tensor) and value.dtype in lower and value.dtype != wanted and value.device.type != "cpu"
    return value.to(wanted) if other else value


def _make_subclass(cls: Any, data: Any, requires_grad: bool = False, **kwargs: Any) -> Any:
    """As torch's, but C++ sees no device of a GPU, so that neither guards nor autograd look for a driver. Python sees it."""
    return _real_make_subclass(cls, data, requires_grad, **{**kwargs, "dispatch_device": False})


@contextlib.contextmanager
def pretended() -> Iterator[PretendedGpu]:
    """Within: there is a GPU, `torch.device("cuda", 0)`. Yields its notes."""
    gpu = PretendedGpu()

    def empty(*shape: Any, pin_memory: bool | None = False, **kwargs: Any) -> Tensor:
        made = _real_empty(*shape, **kwargs)
        return gpu.pin(made) if pin_memory else made

    patches: list[tuple[Any, str, Any]] = [
        (torch.cuda, "is_available", lambda: True),
        (torch.cuda, "_lazy_init", lambda: None),
        (torch.cuda, "current_device", lambda: 0),
        (torch.cuda, "is_current_stream_capturing", lambda: False),
        (torch.accelerator, "current_stream", lambda device=None: SimpleNamespace(is_capturing=lambda: False)),
        (torch.cuda, "get_device_properties", lambda device=None: SimpleNamespace(name="pretended", major=9, minor=0)),
        (torch.cuda, "get_device_capability", lambda device=None: (9, 0)),
        (torch.cuda, "is_bf16_supported", lambda *args, **kwargs: True),
        (torch.cuda, "synchronize", lambda device=None: gpu.wait("synchronize")),
        (torch.cuda, "get_rng_state", lambda device=None: torch.zeros(16, dtype=torch.uint8)),
        (torch.cuda, "set_rng_state", lambda state, device=None: None),
        (torch.cuda, "Event", lambda *args, **kwargs: _Event(gpu)),
        (torch._dynamo.utils, "has_triton", lambda: False),  # asks the GPU, for a log that nobody reads
        (torch.autograd, "_engine_run_backward", _run_backward),
        (torch, "empty", empty),
        (fake_tensor, "init_gpu_context", lambda device: None),
        (Tensor, "_make_subclass", staticmethod(_make_subclass)),
        (FakeTensor, "is_cuda", property(_on_gpu)),
        (Tensor, "pin_memory", lambda tensor, device=None: gpu.pin(tensor.clone())),
        (F, "scaled_dot_product_attention", _attention),
        *_of_own_blocks(gpu),
    ]
    before = [(owner, name, getattr(owner, name)) for owner, name, _ in patches]
    rounding = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    for owner, name, value in patches:
        setattr(owner, name, value)
    try:
        # backward in this thread, where the notes are taken
        with torch.autograd.set_multithreading_enabled(False), _Autocast(), gpu:
            yield gpu
    finally:
        for owner, name, value in before:
            setattr(owner, name, value)
        torch.set_float32_matmul_precision(rounding[0])  # which Precision sets for a GPU
        torch.backends.cudnn.allow_tf32 = rounding[1]
