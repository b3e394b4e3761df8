"""The networks on a GPU: the numbers of the CPU, of timm, and the ways to compute that the documentation names."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

import dla
from support.oracle import differences, randomise, relative, timm

pytestmark = pytest.mark.gpu
NAMES = ("dla34", "dla46x_c", "dla60_res2net")  # a block of each kind


@pytest.fixture(autouse=True)
def _exact() -> Iterator[None]:
    """float32 is float32, and gradients repeat themselves."""
    cudnn = torch.backends.cudnn
    before = cudnn.allow_tf32, cudnn.deterministic
    cudnn.allow_tf32, cudnn.deterministic = False, True
    yield
    cudnn.allow_tf32, cudnn.deterministic = before


def network(name: str = "dla46_c", **options: object) -> nn.Module:
    torch.manual_seed(0)
    net = dla.create_model(name, **options)
    randomise(net)
    return net


def images(n: int = 2, h: int = 65, w: int = 97) -> Tensor:
    return torch.randn(n, 3, h, w, generator=torch.Generator().manual_seed(1))


def step(net: nn.Module, x_N3HW: Tensor, bf16: bool = False) -> dict[str, Tensor]:
    """Gradients and statistics of one training step."""
    net.train().zero_grad()
    with torch.autocast(x_N3HW.device.type, torch.bfloat16, enabled=bf16):
        logits_NK = net(x_N3HW)
    F.cross_entropy(logits_NK.double(), torch.arange(len(x_N3HW), device=x_N3HW.device)).backward()
    tensors = {name: p.grad for name, p in net.named_parameters()} | dict(net.named_buffers())
    return {name: t.detach().clone() for name, t in tensors.items() if t is not None and t.is_floating_point()}


def furthest(one: dict[str, Tensor], other: dict[str, Tensor]) -> float:
    assert one.keys() == other.keys()
    return max(relative(one[name].cpu(), other[name].cpu()) for name in one)


@pytest.mark.parametrize("name", NAMES)
def test_the_numbers_of_the_cpu(name: str) -> None:
    on_cpu = network(name).double().eval()
    on_gpu = copy.deepcopy(on_cpu).cuda()
    x = images().double()
    with torch.no_grad():
        assert relative(on_gpu(x.cuda()).cpu(), on_cpu(x)) < 1e-10
        assert relative(on_gpu.float()(x.cuda().float()).cpu(), on_cpu.float()(x.float())) < 1e-4
    on_cpu.double(), on_gpu.double()
    assert furthest(step(on_gpu, x.cuda()), step(on_cpu, x)) < 1e-7


@pytest.mark.parametrize("name", NAMES)
def test_the_numbers_of_timm(name: str) -> None:
    theirs = timm.create_model(name, pretrained=False)
    randomise(theirs)
    ours = dla.create_model(name)
    ours.load_state_dict(theirs.state_dict(), strict=True)
    found = differences(ours.cuda().double(), theirs.cuda().double(), images(2, 64, 96).cuda().double())
    assert max(found.values()) < 1e-9


@pytest.mark.parametrize("name", NAMES)
def test_channels_last_changes_the_last_digits_alone(name: str) -> None:
    plain = network(name).cuda().eval()
    last = copy.deepcopy(plain).to(memory_format=torch.channels_last)
    x = images().cuda()
    with torch.no_grad():
        assert relative(last(x.to(memory_format=torch.channels_last)), plain(x)) < 1e-4
        features = last.forward_features(x.to(memory_format=torch.channels_last))
    assert features.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_is_near(dtype: torch.dtype) -> None:
    net, x = network().cuda().eval(), images().cuda()
    with torch.no_grad():
        expected = net(x)
        with torch.autocast("cuda", dtype):
            found = net(x)
        whole = net.to(dtype)(x.to(dtype))
    assert found.dtype == whole.dtype == dtype
    assert 0 < relative(found.float(), expected) < 0.05
    assert 0 < relative(whole.float(), expected) < 0.05


@pytest.mark.parametrize("name", NAMES)
def test_a_step_in_bf16_is_that_of_timm(name: str) -> None:
    theirs = timm.create_model(name, pretrained=False)
    randomise(theirs)
    ours = dla.create_model(name)
    ours.load_state_dict(theirs.state_dict(), strict=True)
    x = images(8, 64, 64).cuda()
    assert furthest(step(ours.cuda(), x, bf16=True), step(theirs.cuda(), x, bf16=True)) < 1e-6


def test_checkpointing_gives_the_same_gradients_with_less_memory() -> None:
    peaks, found = [], []
    for saving in (False, True):
        net = network("dla34").cuda()
        net.set_grad_checkpointing(saving)
        x = images(64, 224, 224).cuda()  # activations outweigh what cuDNN works with
        torch.cuda.reset_peak_memory_stats()
        floor = torch.cuda.memory_allocated()
        found.append(step(net, x))
        peaks.append(torch.cuda.max_memory_allocated() - floor)
    assert furthest(*found) < 1e-3
    assert peaks[1] < 0.6 * peaks[0]


def test_ten_steps_learn_a_batch() -> None:
    torch.manual_seed(0)
    net = dla.create_model("dla46_c", num_classes=4).cuda().train()
    x, y = images(8, 64, 64).cuda(), torch.arange(8).cuda() % 4
    optimizer = torch.optim.AdamW(net.parameters(), lr=0.003, fused=True)
    losses = []
    for _ in range(10):
        optimizer.zero_grad()
        loss = F.cross_entropy(net(x), y)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]


@pytest.fixture
def _one_rank(tmp_path: Path) -> Iterator[None]:
    dist.init_process_group("nccl", init_method=f"file://{tmp_path}/store", rank=0, world_size=1,
                            device_id=torch.device("cuda", 0))  # fmt: skip
    yield
    dist.destroy_process_group()


@pytest.mark.usefixtures("_one_rank")
@pytest.mark.parametrize("synchronised", [False, True])
def test_one_rank_of_nccl_changes_nothing(synchronised: bool) -> None:
    plain, x = network().cuda(), images(4).cuda()
    other = nn.SyncBatchNorm.convert_sync_batchnorm(network()) if synchronised else network()
    parallel = DistributedDataParallel(other.cuda())
    found = {name.removeprefix("module."): value for name, value in step(parallel, x).items()}
    assert furthest(found, step(plain, x)) < 1e-3
