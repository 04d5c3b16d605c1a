"""Names of the layouts and modes of images, in a module that imports nothing heavy."""

from typing import Literal

Layout = Literal["auto", "channels_last", "channels_first", "as_is"]
ImageMode = Literal["RGB", "L"]  # as Pillow calls them: three channels, or one of gray
