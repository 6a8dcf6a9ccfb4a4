"""Candidates for the next aerial generator, for `tools/search.py`. It is not a config for train.py.

    python tools/search.py --config configs/aerial_search.py --data data/aerial --pairs UCM:val --out runs/search --pages docs --jobs 2

The base is `configs/aerial.py`. Candidates differ in the network (folding, depth, convolutions at full size, the encoder of
the condition, the size of training images), in the error that is made small, and in losses of the predicted images. All are trained
from scratch. `few` has no teacher; `one_pass` is no diffusion.
"""

import ml_collections


def get_config():
    # as the plan `fast` samples
    method = lambda **changes: {'method': {'sampler': {'solver': 'dpm++2m', 'steps': 12}, **changes}}
    network = lambda **changes: method(model=changes)
    # the first three of a classifier's five stages
    perceptual = {'perceptual_weight': 0.02, 'perceptual_layers': (0.1, 0.1, 1.0, 0.0, 0.0)}
    gan = {'gan_weight': 0.02, 'discriminator': {'features': 16}}
    discriminator = {'discriminator': {'learning_rate': 5e-4, 'warmup_images': 0, 'weight_decay': 0.0}}
    return ml_collections.ConfigDict(
        {
            'base': 'aerial',
            'minutes': (15.0, 30.0, 60.0),
            'settings': {'ema': {'half_life_images': 5000}},
            'candidates': {
                'base': method(),
                'refined': network(refine=16),
                'deep': network(blocks=2, width=80),
                'patch2': network(patch=2, width=48, multipliers=(1, 2, 4), attention_levels=(2,), head_width=16),
                'encoder': network(width=80, head_width=16, spatial={'lr': {'blocks': 3}}),
                'crop128': method() | {'data': {'size_px': 128}, 'batch_size': 2},
                'unweighted': method(objective={'p2_gamma': 0.0}),
                'perceptual': method(image_loss=perceptual, model={'refine': 16}),
                'perceptual_gan': method(image_loss=perceptual | gan, model={'refine': 16})
                | {'optimizers': discriminator},
                'few': {
                    'base': 'few',
                    'method': {
                        'teacher_weight': 0.0,
                        'image_loss': perceptual | gan | {'l1_weight': 4.0},
                        'model': {'refine': 16},
                    },
                    'optimizer': {'learning_rate': 5e-4},
                    'optimizers': discriminator,
                },
                'one_pass': {
                    'base': 'esrgan',
                    'method': {
                        'model': {'features': 48, 'growth': 16, 'blocks': 8},
                        'codec': {'kind': 'residual', 'scale': 0.16},
                        **perceptual,
                        **gan,
                        'l1_weight': 4.0,
                        'usm': False,
                    },
                    'optimizer': {'learning_rate': 5e-4, 'warmup_images': 800, 'weight_decay': 0.01, 'clip_norm': 1.0},
                    'optimizers': discriminator,
                    'batch_size': 8,
                },
            },
            'degradation': 'bicubic',
            'images': 42,
        }
    )
