"""Packages of the wheel; everything else is in setup.cfg. The wheel has the checkout's `configs/` and `weights/` inside the
package, as `rsdiff/shipped/`, where `rsdiff/base/shipped.py` finds them: as top-level packages their names could clash."""

from setuptools import find_packages, setup

setup(
    packages=[*find_packages(include=['rsdiff*']), 'rsdiff.shipped.configs', 'rsdiff.shipped.weights'],
    package_dir={'rsdiff.shipped.configs': 'configs', 'rsdiff.shipped.weights': 'weights'},
)
