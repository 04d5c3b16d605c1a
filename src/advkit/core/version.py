"""Version of advkit."""

VERSION = "0.1.0"
