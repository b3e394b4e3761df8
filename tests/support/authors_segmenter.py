"""The authors' segmentation network, written from what is known of their code, to load their files into."""

from __future__ import annotations

from torch import Tensor, nn

from support.centernet import WIDTHS, ConcatDLAUp, Levels


class AuthorsSegmenter(nn.Module):
    """The authors' dla34up: six maps, the decoder over those from stride `ratio` on, classifier, fixed upsampling."""

    def __init__(self, classes: int, ratio: int) -> None:
        super().__init__()
        self.first = ratio.bit_length() - 1
        self.base = Levels(fc=True)
        self.dla_up = ConcatDLAUp(WIDTHS[self.first :])
        self.fc = nn.Sequential(nn.Conv2d(WIDTHS[self.first], classes, 1))
        self.up = nn.ConvTranspose2d(classes, classes, 2 * ratio, ratio, ratio // 2, groups=classes, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.up(self.fc(self.dla_up(self.base(x)[self.first :])))
