"""mmcv's operations without its compiled part, against the compiled part's numbers and by hand."""

import sys
from pathlib import Path

import pytest
import torch
from torch.testing import assert_close

from tests.support.parity import Read, assert_near

pytest.importorskip("mmdet", reason="the extra `transfer` is not installed: tools/setup.sh transfer")

from transfer import ops

ops.register()

import mmcv.ops  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore")  # the toolboxes remark on many things


def test_parity_nms_of_every_kind(parity: Read) -> None:
    given = parity("mmcv_ops").tensors
    boxes, scores = given["boxes"], given["scores"]
    for threshold in (0.3, 0.7):
        dets, keep = mmcv.ops.nms(boxes, scores, threshold)
        assert torch.equal(keep, given[f"nms.{threshold}.keep"]) and torch.equal(dets, given[f"nms.{threshold}.dets"])
        settings = {"type": "nms", "iou_threshold": threshold}
        dets, keep = mmcv.ops.batched_nms(boxes, scores, given["ids"], settings)
        assert torch.equal(keep, given[f"batched_nms.{threshold}.keep"])
        assert torch.equal(dets, given[f"batched_nms.{threshold}.dets"])
    _, keep = mmcv.ops.nms(boxes, scores, 0.5, score_threshold=0.3, max_num=20)
    assert torch.equal(keep, given["nms.limited.keep"])
    dets, keep = mmcv.ops.soft_nms(boxes, scores, iou_threshold=0.3, min_score=1e-3, method="linear")
    assert torch.equal(keep, given["soft_nms.keep"]) and torch.equal(dets, given["soft_nms.dets"])


@pytest.mark.parametrize("name, sampling, aligned", [("det", 0, True), ("fixed", 2, True), ("unaligned", 2, False)])
def test_parity_roi_align_forward_and_backward(parity: Read, name: str, sampling: int, aligned: bool) -> None:
    given = parity("mmcv_ops").tensors
    features, expected = given["roi.features"].requires_grad_(), given[f"roi.{name}.out"]
    found = mmcv.ops.roi_align(features, given["roi.rois"], expected.shape[2:], 0.25, sampling, "avg", aligned)
    found.backward(given[f"roi.{name}.grad_out"])
    assert_near(found, expected)
    assert features.grad is not None
    assert_near(features.grad, given[f"roi.{name}.grad_in"])


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16])
def test_operations_take_half_precision(kind: torch.dtype) -> None:
    torch.manual_seed(0)
    boxes = torch.rand(30, 4) * 20
    boxes[:, 2:] += boxes[:, :2] + 5
    _, keep = mmcv.ops.nms(boxes.to(kind), torch.linspace(0, 1, 30).to(kind), 0.5)
    assert 0 < len(keep) < 30
    features, rois = torch.randn(1, 3, 16, 16), torch.tensor([[0.0, 2, 2, 10, 12]])
    half = features.to(kind).requires_grad_()
    found = mmcv.ops.roi_align(half, rois.to(kind), (4, 4), 1.0, 2)
    found.sum().backward()
    assert found.dtype == kind and half.grad is not None and half.grad.dtype == kind
    assert_close(found.float(), mmcv.ops.roi_align(features, rois, (4, 4), 1.0, 2), rtol=0.02, atol=0.02)


def test_offset_one_counts_both_edge_pixels_and_soft_nms_is_its_formula() -> None:
    """Two boxes of 10 pixels that share 5: IoU 1/3 with edges counted from 0, 6/16 = 0.375 with both counted."""
    boxes, scores = torch.tensor([[0.0, 0, 10, 10], [5.0, 0, 15, 10]]), torch.tensor([0.9, 0.8])
    assert len(ops.nms(boxes, scores, 0.35, 0)) == 2 and len(ops.nms(boxes, scores, 0.35, 1)) == 1
    dets = torch.empty(2, 5)
    ops.softnms(boxes, scores, dets, 0.3, 0.5, 0.0, 2, 0)
    assert_close(dets[1, 4], torch.tensor(0.8) * torch.exp(torch.tensor(-((1 / 3) ** 2) / 0.5)))
    ops.softnms(boxes, scores, dets, 0.3, 0.5, 0.0, 1, 0)
    assert_close(dets[1, 4], torch.tensor(0.8 * 2 / 3))
    assert len(ops.softnms(boxes, scores, dets, 0.3, 0.5, 0.01, 0, 0)) == 1
    assert ops.nms_match(torch.cat([boxes, scores[:, None]], dim=1), 0.3) == [[0, 1]]


def test_an_operation_that_is_not_covered_is_named_when_it_is_called() -> None:
    with pytest.raises(NotImplementedError, match="the operation roi_pool_forward of mmcv needs mmcv's compiled part"):
        mmcv.ops.roi_pool(torch.randn(1, 1, 4, 4), torch.tensor([[0.0, 0, 0, 3, 3]]), 2)


def test_a_compiled_mmcv_is_left_in_place(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "mmcv").mkdir()
    (tmp_path / "mmcv" / "__init__.py").touch()
    suffix = ops.importlib.machinery.EXTENSION_SUFFIXES[0]
    (tmp_path / "mmcv" / f"_ext{suffix}").touch()
    for name in [name for name in sys.modules if name == "mmcv" or name.startswith("mmcv.")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.syspath_prepend(str(tmp_path))
    assert ops.compiled() and not ops.register() and ops.NAME not in sys.modules


def test_too_late_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    """The toolbox has then kept a stub that fails in the first step of a detector."""
    monkeypatch.delitem(sys.modules, ops.NAME)
    monkeypatch.setitem(sys.modules, ops.LATE, ops)
    with pytest.raises(ImportError, match="imported before transfer"):
        ops.register()
