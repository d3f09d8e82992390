"""Signs of life are their formulas, and alarms sound once."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close

from pretrain.method import ibot
from pretrain.run.diagnostics import Alarms, diagnostics_of, effective_rank, prototype_usage
from tests.support.networks import batch, student_and_teacher


def test_diagnostics_are_their_formulas() -> None:
    student, teacher = student_and_teacher()
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.add_(0.01 * torch.randn_like(parameter))
    given = batch()
    answer, logits = teacher(given.crops, given.masks), student(given.crops, given.masks, given.local_crops)
    targets = ibot.center_and_sharpen(answer, teacher.centres, 0.04, 0.07)
    losses = ibot.losses(logits, targets, given.masks, 0.5, 1.0)
    measured = diagnostics_of(student, teacher, losses, logits, answer, targets, 0.5)
    p = targets.cls.flatten(0, 1)
    assert_close(measured.target_entropy, -(p * p.clamp(min=1e-30).log()).sum(1).mean())
    assert_close(measured.mean_target_entropy, torch.distributions.Categorical(p.mean(0)).entropy())
    pairs = [(q, v) for q in range(2) for v in range(5) if q != v]
    log_student = F.log_softmax(logits.cls.detach() / 0.1, dim=-1)
    divergence = [F.kl_div(log_student[v], targets.cls[q], reduction="batchmean") for q, v in pairs]
    assert_close(measured.kl_divergence, torch.stack(divergence).mean(), rtol=1e-4, atol=1e-5)
    assert_close(measured.student_entropy, torch.distributions.Categorical(logits=log_student).entropy().mean())
    teacher_weights = torch.cat([w.flatten() for w in teacher.parameters()])
    student_weights = torch.cat([dict(student.named_parameters())[n].flatten() for n, _ in teacher.named_parameters()])
    assert_close(measured.teacher_distance, ((student_weights - teacher_weights).norm() / teacher_weights.norm()).detach())
    assert_close(measured.effective_rank, effective_rank(teacher.backbone(given.crops.flatten(0, 1))[:, 0].detach()))


def test_rank_and_use_count_what_is_there() -> None:
    assert_close(effective_rank(torch.eye(6)[:, :4]), torch.tensor(4.0))
    assert_close(effective_rank(torch.ones(6, 4)), torch.tensor(1.0))
    assert math.isnan(effective_rank(torch.full((2, 2), math.nan)))
    assert_close(prototype_usage(torch.eye(8)[[0, 0, 3, 5]]), torch.tensor(3 / 8))


def test_rank_is_that_of_the_singular_values_for_more_and_for_fewer_images_than_dimensions() -> None:
    """46c01a2 took `svdvals`, which waits for a GPU twice and raises an error for NaN there."""
    for rows, columns in ((40, 12), (12, 40), (30, 30)):
        features = torch.randn(rows, columns, generator=torch.Generator().manual_seed(rows)) @ torch.diag(
            torch.logspace(0, -4, columns)
        )
        p = torch.linalg.svdvals(features.double())
        p = p / p.sum()
        assert_close(effective_rank(features), (-(p * p.log()).sum()).exp().float(), rtol=1e-5, atol=0)
    assert math.isnan(effective_rank(torch.full((2, 2), math.inf)))


def test_the_rank_is_left_to_the_main_process(monkeypatch: pytest.MonkeyPatch) -> None:
    student, teacher = student_and_teacher()
    given = batch()
    answer, logits = teacher(given.crops, given.masks), student(given.crops, given.masks, given.local_crops)
    targets = ibot.center_and_sharpen(answer, teacher.centres, 0.04, 0.07)
    losses = ibot.losses(logits, targets, given.masks, 1.0, 1.0)
    monkeypatch.setattr("pretrain.engine.distributed.is_main", lambda: False)
    monkeypatch.setattr("pretrain.run.diagnostics.effective_rank", lambda features: pytest.fail("computed"))
    assert math.isnan(diagnostics_of(student, teacher, losses, logits, answer, targets, 1.0).effective_rank)


def test_alarms_sound_once_in_words_and_again_after_recovery() -> None:
    well = {"target_entropy": 2.0, "mean_target_entropy": 4.0, "effective_rank": 30.0}
    for sick, word in (
        ({"target_entropy": 5.54}, "are uniform"),
        ({"target_entropy": 0.001}, "single prototypes"),
        ({"mean_target_entropy": 0.3}, "share a few prototypes"),
        ({"effective_rank": 1.2}, "point the same way"),
    ):
        alarms = Alarms(256, patience=2)
        assert [alarms.check({**well, **sick}) for _ in range(2)] == [[], []]  # every run begins uniform
        (said,) = alarms.check({**well, **sick})
        assert word in said
        assert alarms.check({**well, **sick}) == [] == alarms.check(well)
        assert len(alarms.check({**well, **sick})) == 1
