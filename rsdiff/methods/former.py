"""Settings of diffusion by their names from before there were other methods. Digests are still computed from these."""

from typing import Any

# former settings of the `lr` encoder, from before conditions had fields → their names today
NAMES = {'upscale': 'scale', 'rrdb_features': 'features', 'rrdb_growth': 'growth', 'rrdb_blocks': 'blocks'}
CODECS = 'identity', 'residual'  # those that a scale described


def from_former(generator: dict[str, Any]) -> dict[str, Any]:
    """The settings of a method from those of a former `generator`."""
    method = generator | {'kind': 'diffusion'}
    model = method.get('model')
    if isinstance(model, dict):
        lr = {new: model[name] for name, new in NAMES.items() if name in model}
        spatial = {'spatial': {'lr': lr}} if lr else {}
        method['model'] = {name: value for name, value in model.items() if name not in NAMES} | spatial
    if scale := method.pop('residual_scale', None):
        method['codec'] = {'kind': 'residual', 'scale': scale}
    return method


def former(method: dict[str, Any]) -> dict[str, Any]:
    """The inverse. Newer settings keep their names; those that had no counterpart are left out: the method's kind, and the
    codec's if it is one of `CODECS`. Other methods' settings are returned as they are, without the place of a teacher, which its
    student's parameters do not depend on."""
    if method['kind'] != 'diffusion':
        return {name: value for name, value in method.items() if name != 'teacher'}
    model, codec = dict(method['model']), method['codec']
    model['spatial'] = dict(model['spatial'])
    lr = dict(model['spatial'].pop('lr', {}))
    model |= {name: lr.pop(new) for name, new in NAMES.items() if new in lr}
    model['spatial'] |= {'lr': lr}
    rest = {name: value for name, value in method.items() if name not in ('model', 'codec', 'kind')}
    known = codec['kind'] in CODECS
    rest |= {'residual_scale': codec.get('scale', 0.0)} if known else {'residual_scale': 0.0, 'codec': codec}
    return rest | {'model': model}
