"""What is compiled on the pretended GPU is counted as kernels, and keeps for the backward what torch's partitioner keeps."""

import torch.nn.functional as F
from torch import Tensor, nn

from probes.bench.fusion import pretend_compiled
from probes.bench.pretended_gpu import pretended


def gelu_of(x: Tensor) -> Tensor:
    return F.gelu(x * 2.0 + 1.0).square()


def product_of(layer: nn.Linear, x: Tensor) -> Tensor:
    return F.gelu(layer(x))


def test_a_chain_of_pointwise_operations_is_one_kernel_that_reads_once_and_writes_once() -> None:
    with pretended() as gpu:
        compiled, x = pretend_compiled(gelu_of, gpu), gpu.tensor(64, 64)
        gpu.start()
        made = compiled(x)
        (kernel,) = gpu.kernels
        assert kernel.launches == 1 and kernel.bytes == 4 * 2 * 64 * 64
        assert made.shape == x.shape and made.device == x.device
        assert gpu.peak == 4 * 2 * 64 * 64  # what lies between is never written
        gpu.start()
        gelu_of(x)
        assert len(gpu.kernels) == 4


def test_gradients_flow_and_products_stay_kernels_of_their_own() -> None:
    with pretended() as gpu:
        layer = nn.Linear(32, 128)
        gpu.move_(layer)
        x = gpu.tensor(1024, 32).requires_grad_()
        gpu.start()
        pretend_compiled(product_of, gpu)(layer, x).sum().backward()
    assert sum(kernel.kind == "product" for kernel in gpu.kernels) == 3
    assert layer.weight.grad is not None and layer.weight.grad.shape == (128, 32) and x.grad is not None
    assert sum(kernel.flops for kernel in gpu.kernels) == 3 * 2 * 1024 * 32 * 128
    assert len([kernel for kernel in gpu.kernels if kernel.name.startswith("fused")]) <= 6


def test_a_gradient_of_a_graph_becomes_the_parameters_without_a_copy() -> None:
    """A graph that held its results had 132 copies a step counted that no GPU makes."""
    with pretended() as gpu:
        layer = nn.Linear(32, 128)
        gpu.move_(layer)
        compiled, x = pretend_compiled(product_of, gpu), gpu.tensor(1024, 32)
        for _ in range(2):
            layer.zero_grad(set_to_none=True)
            gpu.start()
            compiled(layer, x).backward(gpu.tensor(1024, 128))
    assert layer.weight.grad is not None
    assert "copy_" not in {kernel.name for kernel in gpu.kernels}


def test_a_graph_is_made_for_each_shape_and_setting_and_shared_otherwise() -> None:
    class Scaled(nn.Linear):
        rate = 0.0

        def __init__(self, rate: float) -> None:
            super().__init__(8, 8)
            self.rate = rate

    with pretended() as gpu:
        layers = [Scaled(0.0), Scaled(0.0), Scaled(0.1)]
        for layer in layers:
            gpu.move_(layer)
        compiled = pretend_compiled(product_of, gpu)
        counts = []
        for layer, rows in ((layers[0], 4), (layers[1], 4), (layers[2], 4), (layers[0], 5)):
            compiled(layer, gpu.tensor(rows, 8))
            counts.append(gpu.graphs)
    assert counts == [1, 1, 2, 3]
