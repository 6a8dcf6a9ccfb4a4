"""setup.cfg holds all but this: the wheel carries the checkout's `configs/` and `weights/` inside the package, as
`rsdiff/shipped/`, where `rsdiff/base/shipped.py` finds them. A name of their own in site-packages would be anyone's."""

from setuptools import find_packages, setup

setup(
    packages=[*find_packages(include=['rsdiff*']), 'rsdiff.shipped.configs', 'rsdiff.shipped.weights'],
    package_dir={'rsdiff.shipped.configs': 'configs', 'rsdiff.shipped.weights': 'weights'},
)
