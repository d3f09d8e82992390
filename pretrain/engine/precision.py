"""In which numbers the forwards compute: float32, bf16, or fp16 with a scaled loss."""

import torch


class Precision:
    """`auto` is bf16 on a GPU that has it, fp16 on one that has not, bf16 on a CPU that multiplies it fast, else fp32.

    Softmax, losses and centres are float32 with all of them.
    """

    def __init__(self, wanted: str, device: torch.device) -> None:
        self.name = best(device) if wanted == "auto" else wanted
        self._device = device.type
        self.scaler = torch.amp.GradScaler(device.type, enabled=self.name == "fp16")
        # On CPUs torch's fused attention is slow in bf16 (docs/performance.md).
        self.fused_attention = not (device.type == "cpu" and self.name == "bf16")
        if device.type == "cuda":
            torch.set_float32_matmul_precision("high")  # TF32

    def autocast(self) -> torch.autocast:
        """Around the two forwards and nothing else."""
        kind = torch.float16 if self.name == "fp16" else torch.bfloat16
        return torch.autocast(self._device, kind, enabled=self.name != "fp32", cache_enabled=False)


def best(device: torch.device) -> str:
    """What is fast and safe on this device."""
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
    return "bf16" if cpu_is_fast_at_bf16() else "fp32"


def cpu_is_fast_at_bf16() -> bool:
    """Whether the processor has instructions for it."""
    capability = getattr(torch.backends.cpu, "get_cpu_capability", lambda: "")()
    checks = [getattr(torch.cpu, name, None) for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported")]
    return capability != "DEFAULT" and any(check() for check in checks if check is not None)
