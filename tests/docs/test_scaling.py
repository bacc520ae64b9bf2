"""Lesson 13: the fit, the prediction that was committed, the page's numbers, and a tiny run."""

import hashlib
import json
import runpy
import shutil
from types import SimpleNamespace

import numpy as np
import pytest

from tests.helpers import ROOT

COMMITTED = ROOT / "docs" / "data" / "scaling"
TINY = {"SIZES": ((1, 1, 8), (1, 1, 12), (1, 2, 16)), "LARGE": (1, 2, 32), "TOKENS": (512, 1024, 2048)}


def load_tool():
    return runpy.run_path(str(ROOT / "docs" / "tools" / "scaling.py"))
