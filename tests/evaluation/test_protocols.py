"""What is wrong with labelled data is one message that says what, where and how to mend it, before anything is written."""

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
from labelled_sources import FAST, NAMES, USUAL, table, words, write

from mpp.config import resolve
from mpp.errors import ConfigError
from mpp.evaluation.protocols import LabelledData, open_labelled
from mpp.transfer import main

CLASSES = datasets.ClassLabel(names=NAMES)
