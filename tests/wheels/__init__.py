"""Wheels: a check of any (`check.py`), and one for macOS built on Linux (`macos.py`)."""
