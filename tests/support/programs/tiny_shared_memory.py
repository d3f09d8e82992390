"""Load eight tensors through worker processes, and print them, or why they do not come.

python -m tests.support.programs.tiny_shared_memory looks|blind SIZE      blind: the room is thought to be there
"""

import sys

from pretrain.batches import feeding
from tests.support.feeding import Deadly, eat

if __name__ == "__main__":
    if sys.argv[1] == "blind":
        feeding.free = lambda: 1 << 40
    try:
        print(eat(Deadly("", int(sys.argv[2]))))
    except feeding.Starved as error:
        print("starved:", error)
