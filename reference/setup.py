"""Names the product's version among the dependencies. Git's tags give both, so they agree."""

from setuptools import setup
from setuptools_scm import get_version

version = get_version(
    root="..", fallback_root=".", fallback_version="0.1.dev0", relative_to=__file__
)
needs = f"neural-bridge[edge,cloud,align]=={version}"
setup(script_name="setup.py", install_requires=[needs])  # by this name it leaves itself out
