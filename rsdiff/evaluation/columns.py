"""The columns of the evaluation table: what each measures, which way is better, and what it rewards.

Super-resolution and generation are different questions. Where many images explain a condition, the mean of them all has
the least error, and is blurred; an image with the texture of one of them is further from the truth, and looks right. So a
column says what it can be won by:

* blur: error against the truth, pixel by pixel. The mean of all plausible images wins, none of which it resembles.
* likeness: nearness to the truth as a network sees it, which texture in the right places helps.
* invention: whether the images, as a set, could be real ones. Texture counts, wherever it lies; the truth of each image
  does not enter.
* agreement: whether the image averages to its condition. Says nothing about what is finer.
"""

import dataclasses
from typing import Literal

Rewards = Literal['blur', 'likeness', 'invention', 'agreement']


@dataclasses.dataclass(frozen=True)
class Column:
    """`digits` are those after the point that a table shows."""

    name: str
    better: Literal['higher', 'lower', 'near 1']
    rewards: Rewards
    unit: str = ''
    digits: int = 3

    @property
    def heading(self) -> str:
        """'psnr dB ↑'."""
        arrow = {'higher': '↑', 'lower': '↓', 'near 1': '→1'}[self.better]
        return ' '.join(filter(None, (self.name, self.unit, arrow)))


PAIRED = (
    Column('psnr', 'higher', 'blur', 'dB', 2),
    Column('ssim', 'higher', 'blur'),
    Column('cpsnr', 'higher', 'blur', 'dB', 2),
    Column('improvement', 'higher', 'likeness'),
    Column('omission', 'lower', 'likeness'),
    Column('hallucination', 'lower', 'blur'),
    Column('lpips_vgg16', 'lower', 'likeness'),
    Column('lpips_alexnet', 'lower', 'likeness'),
    Column('detail_ratio', 'near 1', 'invention'),
    Column('lr_consistency', 'higher', 'agreement', 'dB', 2),
)


def similarity(extractor: str) -> tuple[Column, Column]:
    """Cosine of the embeddings of sample and truth, and of sample and another's truth: what likeness begins from."""
    return (
        Column(f'similarity_{extractor}', 'higher', 'likeness'),
        Column(f'similarity_{extractor}_floor', 'lower', 'likeness'),
    )


def distribution(extractor: str) -> tuple[Column, ...]:
    """Those of two sets of features."""
    return (
        Column(f'fd_{extractor}', 'lower', 'invention', digits=2),
        Column(f'kid_{extractor}', 'lower', 'invention', digits=5),
        Column(f'cmmd_{extractor}', 'lower', 'invention'),
        Column(f'precision_{extractor}', 'higher', 'invention'),
        Column(f'recall_{extractor}', 'higher', 'invention'),
        Column(f'density_{extractor}', 'higher', 'invention'),
        Column(f'coverage_{extractor}', 'higher', 'invention'),
    )
