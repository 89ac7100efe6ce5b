"""The packages of the wheel. In the repository the recipes lie beside the package, in a wheel inside the package."""

from setuptools import find_packages, setup

setup(
    packages=[*find_packages(include=["seresnext*"]), "seresnext.recipes", "seresnext.recipes._base"],
    package_dir={"seresnext.recipes": "recipes"},
)
