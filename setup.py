"""The native extension: built where a C compiler is, left out without a word where none is."""

from glob import glob

from setuptools import Extension, setup

setup(
    ext_modules=[
        Extension(
            "feedmono.native._native",
            sources=sorted(glob("feedmono/native/*.c")),
            depends=sorted(glob("feedmono/native/*.h")),
            extra_compile_args=["-std=c11", "-O2", "-Wall", "-Wextra"],
            libraries=["dl"],
            # The program is complete without it: feedmono/native/__init__.py tells the twins apart.
            optional=True,
        )
    ]
)
