"""Commands by the names that are typed."""

import importlib.util


def command_module(name: str) -> str:
    """The module that `python -m NAME` runs: `NAME.__main__` where NAME is a package."""
    found = importlib.util.find_spec(name)
    return f"{name}.__main__" if found is not None and found.submodule_search_locations is not None else name
