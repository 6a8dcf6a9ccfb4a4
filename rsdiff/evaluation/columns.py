"""The columns of the evaluation table: what each measures, which direction is better, and what it rewards.

Super-resolution and generation are different tasks. If many images are consistent with a condition, their mean has the
smallest error, but is blurred; an image with the texture of one of them has a larger error, but looks realistic. So
each column states what it rewards:

* blur: pixel-wise error against the truth. The mean of all plausible images wins, though it resembles none of them.
* likeness: perceptual similarity to the truth; texture in the right places helps.
* invention: whether the images, as a set, could be real. Texture counts wherever it is; it need not match the truth.
* agreement: whether the downscaled image matches its condition. Finer detail does not count.
"""

import dataclasses
from typing import Literal

Rewards = Literal['blur', 'likeness', 'invention', 'agreement']


@dataclasses.dataclass(frozen=True)
class Column:
    """A column; `digits` is the number of decimals in tables."""

    name: str
    better: Literal['higher', 'lower', 'near 1']
    rewards: Rewards
    unit: str = ''
    digits: int = 3

    @property
    def heading(self) -> str:
        """The heading in tables, such as 'psnr dB ↑'."""
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
    """Cosine of the embeddings of sample and truth, and its floor: that of sample and another sample's truth."""
    return (
        Column(f'similarity_{extractor}', 'higher', 'likeness'),
        Column(f'similarity_{extractor}_floor', 'lower', 'likeness'),
    )


def distribution(extractor: str) -> tuple[Column, ...]:
    """The columns that compare two sets of features."""
    return (
        Column(f'fd_{extractor}', 'lower', 'invention', digits=2),
        Column(f'kid_{extractor}', 'lower', 'invention', digits=5),
        Column(f'cmmd_{extractor}', 'lower', 'invention'),
        Column(f'precision_{extractor}', 'higher', 'invention'),
        Column(f'recall_{extractor}', 'higher', 'invention'),
        Column(f'density_{extractor}', 'higher', 'invention'),
        Column(f'coverage_{extractor}', 'higher', 'invention'),
    )
