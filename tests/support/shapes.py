"""Types and shapes in the signatures of our modules are checked in tests.

jaxtyping keeps the sizes of a call's axes apart from those of other calls, which takes longer than most functions. It is left to
those that have arrays in their signatures; the types of all others are checked without it.
"""

import functools
import importlib
import inspect
import typing
from collections.abc import Callable
from typing import Any

import jaxtyping

LIBRARIES = "torch torch._dynamo torch.distributed.tensor torchvision timm matplotlib.pyplot sklearn.linear_model".split()
"""What our modules import that takes long: what is first imported under the hook is compiled anew, whatever bytecode there is."""


def check(packages: list[str]) -> None:
    """Check whatever is imported of these packages from now on."""
    for library in LIBRARIES:
        importlib.import_module(library)
    jaxtyping.install_import_hook(packages, "beartype.beartype")
    jaxtyping.jaxtyped = functools.partial(_checked, jaxtyping.jaxtyped)


def _checked(whole: Callable, function: Any = None, *, typechecker: Callable) -> Any:
    """What the hook puts around each class and function, by the name that it knows."""
    if function is None:
        return functools.partial(_checked, whole, typechecker=typechecker)
    if inspect.isfunction(function) and not any(map(has_arrays, function.__annotations__.values())):
        return typechecker(function)
    return whole(function, typechecker=typechecker)


def has_arrays(annotation: Any) -> bool:
    """Whether an annotation names an array's axes, somewhere in it. Of one that is a text it may."""
    if isinstance(annotation, (str, typing.ForwardRef)):
        return True
    if inspect.isclass(annotation) and issubclass(annotation, jaxtyping.AbstractArray):
        return True
    parts = annotation if isinstance(annotation, list) else typing.get_args(annotation)
    return any(map(has_arrays, parts))
