"""What MMEngine raises for a typed config or --cfg-options that cannot be run, as one sentence; the traceback goes to the log."""

import contextlib
import sys
import traceback
from collections.abc import Callable, Iterator

import torch

from checkpoints import store
from checkpoints.cli import UserError, WorkError
from transfer.options import TransferOptions


def typed(options: TransferOptions) -> str:
    """The flags that change a config beyond its documented ones, as they were typed."""
    file = options.config if options.config and options.config.endswith(".py") else None
    words = [f"--config {file}"] if file else []
    return " ".join([*words, *(["--cfg-options", *options.cfg_options] if options.cfg_options else [])])


@contextlib.contextmanager
def of_changes(options: TransferOptions, while_: Callable[[], bool] = lambda: True) -> Iterator[None]:
    """Context that raises UserError for what is raised in it while a condition holds, if the config was changed."""
    try:
        yield
    except (UserError, WorkError, OSError, MemoryError, torch.cuda.OutOfMemoryError):
        raise
    except Exception as error:
        words = typed(options)
        if not words or not while_():
            raise
        traceback.print_exc(file=sys.stderr)
        what = f"{type(error).__name__}: {store.first_line(error)}"
        raise UserError(f"the config cannot be run with {words[:200]} ({what}): more is in log.txt of the run's folder") from None
