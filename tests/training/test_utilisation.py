"""The rate of a device is measured once, by products of the size it says, and without touching the run's numbers."""

import time

import pytest
import torch

from mpp.model.tasks import ClassificationConfig, MaskedPatchesConfig
from mpp.model.vit import VitConfig
from mpp.training import utilisation
from mpp.training.utilisation import CPU_SIDE, find_ceiling, matrix_rate, task_flops


def test_the_rate_is_that_of_a_product_on_this_machine() -> None:
    rate = matrix_rate(torch.device("cpu"))
    numbers = torch.randn(CPU_SIDE, CPU_SIDE)
    began = time.process_time()
    _ = numbers @ numbers
    own = 2 * CPU_SIDE**3 / (time.process_time() - began)  # of one processor, whatever else runs here
    assert own / 8 < rate < 8 * torch.get_num_threads() * own


def test_it_is_measured_once_for_a_number_of_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(utilisation, "CPU_SIDE", 256)
    monkeypatch.setattr(utilisation, "_SECONDS", 0.01)
    utilisation._measured.cache_clear()
    assert matrix_rate(torch.device("cpu")) == matrix_rate(torch.device("cpu"))
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(threads + 1)
        matrix_rate(torch.device("cpu"))
    finally:
        torch.set_num_threads(threads)
    assert utilisation._measured.cache_info().misses == 2
    utilisation._measured.cache_clear()  # those of small matrices are no use to others


def test_the_random_numbers_of_the_run_stay_where_they_were(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(utilisation, "CPU_SIDE", 256)
    monkeypatch.setattr(utilisation, "_SECONDS", 0.01)
    utilisation._measured.cache_clear()
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    matrix_rate(torch.device("cpu"))
    task_flops(MaskedPatchesConfig(), VitConfig(name="vit_tiny_patch16_224", depth=1), None)
    assert torch.equal(torch.rand(4), expected)
    utilisation._measured.cache_clear()


def test_a_process_could_do_its_rate_over_the_operations_of_an_image() -> None:
    task, vit = MaskedPatchesConfig(), VitConfig(name="vit_tiny_patch16_224", depth=1)
    ceiling = find_ceiling(task, vit, None, torch.device("cpu"))
    expected = matrix_rate(torch.device("cpu")) / task_flops(task, vit, None)
    assert ceiling.images_per_second == pytest.approx(expected)


def test_a_resnet_has_its_published_operations() -> None:
    resnet = VitConfig(name="resnetv2_50x1_bit", pool="mean")
    # 4.1 billion multiplications at 224 px (He et al., Tab. 1), twice as many operations, thrice that with backward
    assert task_flops(ClassificationConfig(), resnet, 3) == pytest.approx(3 * 2 * 4.1e9, rel=0.05)


def test_the_operations_of_a_task_are_those_of_its_settings() -> None:
    shallow, deep = (VitConfig(name="vit_tiny_patch16_224", depth=depth) for depth in (1, 4))
    tokens, width = 197, 192
    layer = 3 * (24 * tokens * width**2 + 4 * tokens**2 * width)
    for task in (MaskedPatchesConfig(), ClassificationConfig()):
        # The last block may be computed in part; those before it are computed whole.
        assert task_flops(task, deep, 10) - task_flops(task, shallow, 10) == pytest.approx(3 * layer, rel=1e-6)
