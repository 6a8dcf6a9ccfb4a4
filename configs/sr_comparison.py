"""Which methods `tools/compare_methods.py` compares, and on which data. It is not a config for train.py.

    python tools/compare_methods.py --config configs/sr_comparison.py --data ../shared/data --out runs/sr --limit 24 --curve_images 8 \
        --pages docs/sr

There are two tracks: UC Merced at 0.3 m, whose low resolution is made by degradation, and Alsat-2B, real pairs of two sensors.
In each track, every method is trained on the same images for the same optimiser time; compilation, validation and checkpoints
do not count. For a method that starts from another's weights (`after`), the time of both counts: `share` of the total is the other's.
One evaluation of a small network costs about as many multiply–accumulates for every method. Samples are compared as the networks
return them, without the projection onto the condition.
"""

import ml_collections


def get_config():
    method = lambda config, settings=None, tracks=None, after='', share=0.0: dict(
        config=config, settings=settings or {}, tracks=tracks or {}, after=after, share=share
    )
    rrdbnet = {'method': {'model': {'features': 48, 'growth': 16, 'blocks': 8}}}
    # rms of the residual over 400 training chips
    residual = {
        track: {'method': {'codec': {'scale': scale}}} for track, scale in {'ucm': 0.18, 'alsat2b': 0.42}.items()
    }
    methods = {
        'srcnn': method('srcnn', {'method': {'model': {'features': 160}}}),
        # one image of each place: there is nothing to fuse
        'highresnet_single': method('highresnet', {'method': {'model': {'features': 512, 'frames': 1}}}),
        'rrdbnet': method('rrdbnet', rrdbnet),
        'esrgan': method('esrgan', rrdbnet, after='rrdbnet', share=0.5),
        'residual': method('demo', tracks=residual),
        'faithdiff': method('faithdiff', tracks=residual),
        'sr3': method('sr3', {'method': {'sampler': {'steps': 25}}}),
        'resshift_15': method('resshift', tracks=residual),
        'resshift_4': method('resshift:4', tracks=residual),
    }
    # the four with the best LPIPS on ucm_mild
    for name in 'resshift_15', 'resshift_4', 'faithdiff', 'residual':
        for seed in 1, 2:
            methods[f'{name}_seed{seed}'] = methods[name] | {'settings': {'seed': seed}}
    notes = (
        'Each method was trained on one CPU core, on the images of its track alone. Published networks of these methods were '
        'trained for days on GPUs; the curves show which of ours were still improving.',
        'Except in published networks, one evaluation costs 150,000 to 190,000 multiply–accumulates per pixel. Published sizes of the same '
        'methods: `configs/realesrgan.py`, `configs/satlas_esrgan.py`, `configs/sr3.py:full`.',
        '`realesrgan-x4plus` and `realsr-df2k` are published networks: larger, trained for longer on other photographs, and of '
        'degradations much stronger than these.',
        '`esrgan` is `rrdbnet` after half of the time, and the other half of adversarial training.',
        'After so little time, samples of the diffusion methods are still noisy, and those of `sr3` are mostly noise.',
        '`sr3` is sampled in 25 steps; its authors take 100 and more. ResShift diffuses pixels, not latents.',
        '`residual` is the network of `weights/aerial` and `weights/earth`; `faithdiff` differs from it by its alignment block.',
        'Samples are not projected onto the condition, as `sample.py` would do by default.',
        'The images of Alsat-2B are of two sensors, and lie about one low-resolution pixel apart; PSNR and LPIPS punish what is '
        'sharp at the right place.',
        'fd_efflite0 of few images is larger than of many: compare it only within a table.',
    )
    return ml_collections.ConfigDict(
        {
            'notes': notes,
            'minutes': 6.0,
            'snapshots': (0.25, 0.5, 1.0),
            'settings': {
                'data': {'size_px': 64, 'split': 'train', 'validation_split': 'val'},
                'optimizer': {'final_fraction': 1.0},
                'ema': {'half_life_images': 2000},
                'batch_size': 8,
            },
            'tracks': {
                'ucm': {'source': 'ucm', 'degradation': 'mild'},
                'alsat2b': {'source': 'alsat2b', 'degradation': 'mild'},
            },
            'methods': methods,
            'published': ('realesrgan-x4plus', 'realsr-df2k'),
            'sets': {
                'ucm_mild': {
                    'pairs': 'ucm:test',
                    'degradation': 'mild',
                    'track': 'ucm',
                    'pictures': True,
                    'curve': True,
                },
                'ucm_bicubic': {
                    'pairs': 'ucm:test',
                    'degradation': 'bicubic',
                    'track': 'ucm',
                    'pictures': True,
                    'curve': False,
                },
                'alsat2b': {
                    'pairs': 'alsat2b:val',
                    'degradation': 'bicubic',
                    'track': 'alsat2b',
                    'pictures': False,
                    'curve': True,
                },
            },
        }
    )
