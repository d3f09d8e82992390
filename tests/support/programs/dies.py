"""A command that dies of an error with these words.

python -m tests.support.programs.dies WORDS
"""

from collections.abc import Sequence

from checkpoints.cli import run_command


def main(words: Sequence[str]) -> None:
    raise RuntimeError(words[0])


if __name__ == "__main__":
    run_command(main)
