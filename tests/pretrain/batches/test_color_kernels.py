"""The kernels that change colours on a GPU, without one: interpreted on a CPU, compiled for an H100, and what they are told."""

import subprocess

import numpy as np
import pytest
import torch
import triton

from pretrain.batches import augment, color_ops, color_table, loader
from tests.support.commands import program


def test_interpreted_kernels_change_colours_as_the_plain_operations_do() -> None:
    """Each line: share of values that differ, largest difference in levels of 255. Only where a sum falls on a half."""
    done = subprocess.run(**program("interpreted_kernels", TRITON_INTERPRET="1"), check=False, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    lines = [line.rpartition(": ") for line in done.stdout.splitlines()]
    assert [name for name, _, _ in lines] == ["as drawn", "nothing", "everything", "jittered", "grey", "blurred"]
    for name, _, numbers in lines:
        share, most = map(float, numbers.split())
        assert share < 1e-3 and most < 1.01, done.stdout
        assert name != "nothing" or most < 0.01


def test_the_kernels_compile_for_a_gpu_that_is_not_here() -> None:
    """To machine code, by Triton's own assembler."""
    from triton.backends.compiler import GPUTarget  # noqa: PLC0415
    from triton.compiler import ASTSource  # noqa: PLC0415

    from pretrain.batches import color_kernels  # noqa: PLC0415

    kernels = {
        color_kernels.jitter_kernel: "crops *u8, table *fp32, made *u8, pixels i32",
        color_kernels.blur_x_kernel: "crops *u8, table *fp32, made *fp32, values i32, width i32",
        color_kernels.blur_y_kernel: "crops *u8, blurred *fp32, table *fp32, made *fp32, values i32, width i32, height i32, "
        + ", ".join(f"{name} fp32" for name in ("f0", "f1", "f2", "s0", "s1", "s2")),
    }
    for kernel, words in kernels.items():
        signature = dict(word.split() for word in words.split(", ")) | {"BLOCK": "constexpr"}
        source = ASTSource(fn=kernel, signature=signature, constexprs={"BLOCK": color_kernels.BLOCK})
        made = triton.compile(source, target=GPUTarget("cuda", 90, 32), options=color_kernels.OPTIONS)
        assert made.asm["cubin"] and "fma" not in made.asm["ptx"], kernel


def test_the_table_has_each_crops_draws_in_its_row() -> None:
    view = augment.View(96, (0.05, 0.4), 0.5, 0.2)
    draws = augment.flat(augment.draw(np.random.default_rng(0), view, 2, 50))
    table = color_table.table(draws).numpy()
    assert table.shape == (100, color_table.COLUMNS) and table.dtype == np.float32
    for row, jittered, order, factors, sigma in zip(table, draws.jittered, draws.order, draws.factors, draws.sigma, strict=True):
        kinds = row[color_table.KINDS : color_table.KINDS + 4]
        assert kinds.tolist() == (order.tolist() if jittered else [color_table.NOTHING] * 4)
        turn = row[color_table.CONTRAST_TURN]
        assert kinds[int(turn)] == color_table.CONTRAST if jittered else turn == color_table.NEVER
        for kind in range(3):
            place = color_table.AMOUNTS + int(np.flatnonzero(order == kind)[0])
            assert np.isclose(row[place], factors[kind])
        radius = int(row[color_table.RADIUS])
        taps = row[color_table.TAPS :]
        assert (radius > 0) == (sigma > 0) and np.isclose(taps.sum(), sigma > 0) and not taps[2 * radius + 1 :].any()
        if sigma:
            alone = color_ops.blur_kernel(np.array([sigma]))[0]
            assert np.allclose(taps[: 2 * radius + 1], alone, atol=1e-7)
    assert np.array_equal(table[:, color_table.GREY], draws.grey)
    assert np.array_equal(table[:, color_table.SOLARIZE], draws.solarize)
    none = color_table.table(draws._replace(sigma=np.zeros(100)))
    assert not none[:, color_table.RADIUS :].any() and torch.isfinite(none).all()


class Plain:
    """Stands for the kernels: the plain operations, the hue of some crops turned elsewhere."""

    def __init__(self, draws: augment.Draws, turned: int) -> None:
        factors = draws.factors.copy()
        factors[:turned, color_table.HUE] += 0.2
        self.draws = draws._replace(factors=factors)

    def __call__(self, crops: torch.Tensor, table: torch.Tensor, mean: list[float], std: list[float]) -> torch.Tensor:
        return augment.change(crops, self.draws, mean, std)


@pytest.mark.parametrize("turned", [0, 3, 24])
def test_the_trial_on_a_gpu_finds_kernels_that_are_wrong(turned: int, monkeypatch: pytest.MonkeyPatch) -> None:
    from pretrain.batches import color_kernels  # noqa: PLC0415

    real = color_table.table

    def table(draws: augment.Draws) -> torch.Tensor:
        monkeypatch.setattr(color_kernels, "change", Plain(draws, turned))
        return real(draws)

    monkeypatch.setattr(color_table, "table", table)
    if not turned:
        return color_kernels.trial(torch.device("cpu"))
    with pytest.raises(RuntimeError, match="levels of 255 away"):
        color_kernels.trial(torch.device("cpu"))


def test_kernels_that_cannot_be_used_are_named_and_left(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from pretrain.batches import color_kernels  # noqa: PLC0415

    tried: list[torch.device] = []
    monkeypatch.setattr(color_kernels, "trial", tried.append)
    assert loader.color_change(torch.device("cuda")) is color_kernels.change and tried == [torch.device("cuda")]
    assert loader.color_change(torch.device("cpu")) is None and len(tried) == 1 and not capsys.readouterr().err

    def fails(device: torch.device) -> None:
        raise RuntimeError("Failed to find C compiler\nand more")

    monkeypatch.setattr(color_kernels, "trial", fails)
    assert loader.color_change(torch.device("cuda")) is None
    said = capsys.readouterr().err
    assert "Failed to find C compiler)" in said and "without them" in said and "and more" not in said
