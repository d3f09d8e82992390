"""Number formats of the forward passes: float32, bf16, or fp16 with a scaled loss."""

import torch

from checkpoints.cli import UserError


class Precision:
    """`auto`: on a GPU bf16 if it is supported, else fp16; on a CPU bf16 if it has fast instructions for it, else fp32.

    `fp32` is float32 throughout; `tf32` is float32 whose products a GPU computes in TF32, as it does with float32 products under
    bf16 and fp16. Softmax, losses and centres are always float32. Raises UserError for tf32 without a GPU.
    """

    def __init__(self, wanted: str, device: torch.device) -> None:
        if wanted == "tf32" and device.type != "cuda":
            raise UserError("--precision tf32 is about a GPU's products, and there is no GPU: give --precision fp32")
        self.name = best(device) if wanted == "auto" else wanted
        self._device = device.type
        self.scaler = torch.amp.GradScaler(device.type, enabled=self.name == "fp16")
        # On CPUs torch's fused attention is slow in bf16 (docs/performance.md).
        self.fused_attention = not (device.type == "cpu" and self.name == "bf16")
        if device.type == "cuda":
            set_tf32(self.name != "fp32")

    @property
    def low(self) -> torch.dtype | None:
        """The 16-bit type of products, if they have one."""
        return {"fp16": torch.float16, "bf16": torch.bfloat16}.get(self.name)

    def autocast(self) -> torch.autocast:
        """A context for the two forward passes only."""
        return torch.autocast(self._device, self.low or torch.bfloat16, enabled=self.low is not None, cache_enabled=False)


def set_tf32(allowed: bool) -> None:
    """Whether a GPU may round the factors of float32 products and convolutions to 10 bits (torch: of convolutions only)."""
    torch.set_float32_matmul_precision("high" if allowed else "highest")
    torch.backends.cudnn.allow_tf32 = allowed


def best(device: torch.device) -> str:
    """The format of `auto` on this device."""
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
    return "bf16" if cpu_is_fast_at_bf16() else "fp32"


def cpu_is_fast_at_bf16() -> bool:
    """Whether the processor has AVX-512 or AMX instructions for bf16."""
    capability = getattr(torch.backends.cpu, "get_cpu_capability", lambda: "")()
    checks = [getattr(torch.cpu, name, None) for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported")]
    return capability != "DEFAULT" and any(check() for check in checks if check is not None)
