"""Names of the layouts of images, in a module of its own that imports nothing heavy."""

from typing import Literal

Layout = Literal["auto", "channels_last", "channels_first", "as_is"]
