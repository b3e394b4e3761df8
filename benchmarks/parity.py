"""Measure the largest differences of all twelve networks from timm 1.0.31, in float64 and float32.

    python benchmarks/parity.py

Same random weights and statistics, same images (2 of 64x96): logits, the six levels' maps, outputs in training,
batch-norm statistics after that step, all gradients. Each figure is the largest difference in a tensor over that
tensor's largest value; the worst tensor counts. Needs the extra `dev` for timm; takes about a minute.
"""

import copy
import sys
from pathlib import Path

import torch

from dla.models.build import build
from dla.models.registry import TABLE

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
from support.oracle import differences, randomise, timm


def main() -> None:
    print(f"torch {torch.__version__}, timm {timm.__version__}")
    columns = ("logits", "maps", "train outputs", "statistics", "gradients")
    print(f"{'network':<16}{'dtype':<9}" + "".join(f"{c:>15}" for c in columns))
    for name in (name for name, row in TABLE.items() if row.tag):
        torch.manual_seed(0)
        ours, theirs = build(name), timm.create_model(name, pretrained=False)
        randomise(theirs)
        ours.load_state_dict(theirs.state_dict(), strict=True)
        for dtype in (torch.float64, torch.float32):
            pair = (copy.deepcopy(net).to(dtype).eval() for net in (ours, theirs))
            found = differences(*pair, torch.randn(2, 3, 64, 96, dtype=dtype))
            print(f"{name:<16}{str(dtype)[6:]:<9}" + "".join(f"{found[c]:15.1e}" for c in columns), flush=True)


if __name__ == "__main__":
    main()
