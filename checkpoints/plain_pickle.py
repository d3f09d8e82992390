"""Pickles read as data: a reader of its own, which imports nothing, calls nothing of the file's choosing and builds no objects.

Opcodes are taken apart by `pickletools`, which runs nothing. Lists, dicts, tuples, numbers, strings and bytes are built; a name
in the file is looked up in the caller's table of functions that check what they are given, and is refused where it is not there.
`plain` then copies the result into values that share nothing, no deeper and no larger than a file may make them.
"""

import io
import pickletools
from collections.abc import Callable
from typing import Any, NamedTuple

DEPTH = 64
"""Levels of lists and dicts; published files have fewer than ten."""
LARGEST = 1 << 27
"""Largest size of a file's values written out, in characters; a value counts VALUE, a string its length besides."""
VALUE = 64
LONGEST = 1 << 12
"""Bits of an integer."""


class NotPlain(ValueError):
    """The file holds something that is no plain data; the message says what, for a sentence that names the file."""


class Named(NamedTuple):
    """A name in the file: a function of the caller's table, until it is called."""

    name: str
    make: Callable[..., Any] | None
    """Callable of the name; None for a name that cannot be called."""


class Built:
    """A base for what stands in for a class: only its `restore` is given what the file says of an instance."""

    besides: Any = None
    """Parts in the file that `value` leaves out; they are checked too."""

    def restore(self, state: Any) -> None:
        """Take up the state. Raises NotPlain where it is not as it should be."""
        raise NotPlain(f"a {type(self).__name__.lower()} is given a state")

    def value(self) -> Any:
        """The plain value that it comes to."""
        raise NotPlain(f"it holds an unfinished {type(self).__name__.lower()}")


class Leaf(Built):
    """Numbers, or a constant: `plain` lets what `value` returns pass."""


class Ordered(Built, dict[Any, Any]):
    """Stand-in for an OrderedDict; torch adds the versions of modules to those of weights."""

    def __init__(self, items: Any = ()) -> None:
        super().__init__()
        set_items(self, [part for item in items for part in item])

    def restore(self, state: Any) -> None:
        """Checks that no attribute hides a method of the dict."""
        if type(state) is not dict or not state.keys() <= {"_metadata"}:
            raise NotPlain("it sets attributes of a dict")
        self.besides = state

    def value(self) -> dict[Any, Any]:
        """A plain dict in the same order."""
        return dict(self)


Names = Callable[[str], Any]
"""Maps a name's full path to its stand-in (Named, or a value of Built), or None."""


def read(file: io.BufferedIOBase, names: Names, stored: Callable[[Any], Any] | None = None) -> Any:
    """The first pickle of `file`, as built; `stored` resolves persistent ids. Raises NotPlain, for damage too."""
    return _Reader(names, stored).read(file)


def loads(content: bytes, names: Names) -> Any:
    """The pickle's plain values. Raises NotPlain, for damage too."""
    return plain(read(io.BytesIO(content), names))


class _Reader:
    """The machine of stack and memo that a pickle's opcodes drive."""

    def __init__(self, names: Names, stored: Callable[[Any], Any] | None) -> None:
        self.names, self.stored = names, stored
        self.stack: list[Any] = []
        self.marked: list[list[Any]] = []
        self.memo: dict[int, Any] = {}

    def read(self, file: io.BufferedIOBase) -> Any:
        try:
            for opcode, argument, _ in pickletools.genops(_NoHugeReads(file)):  # type: ignore[arg-type]
                if opcode.name == "STOP":
                    (found,) = self.stack
                    return found
                self.step(opcode.name, argument)
        except NotPlain:
            raise
        except Exception as error:  # a stack that is empty, a memo without the number, keys that are lists, ...
            raise NotPlain(f"it is damaged or cut off ({type(error).__name__})") from error
        raise NotPlain("it is damaged or cut off")

    def step(self, name: str, argument: Any) -> None:
        """One opcode."""
        if name in ("PROTO", "FRAME"):
            return
        if name in CONSTANTS:
            self.stack.append(CONSTANTS[name])
        elif name in LITERALS:
            self.stack.append(argument)
        elif name in EMPTY:
            self.stack.append(EMPTY[name]())
        elif name in ("GLOBAL", "STACK_GLOBAL", "REDUCE", "NEWOBJ", "BUILD", "BINPERSID"):
            self.object(name, argument)
        elif name in ("GET", "BINGET", "LONG_BINGET"):
            self.stack.append(self.memo[int(argument)])
        elif name in ("PUT", "BINPUT", "LONG_BINPUT"):
            self.memo[int(argument)] = self.stack[-1]
        elif name == "MEMOIZE":
            self.memo[len(self.memo)] = self.stack[-1]
        elif name == "MARK":
            self.marked.append(self.stack)
            self.stack = []
        elif name == "POP":
            self.stack.pop()
        else:
            self.container(name)

    def container(self, name: str) -> None:
        """Tuples, lists and dicts."""
        if name in ("TUPLE1", "TUPLE2", "TUPLE3"):
            count = int(name[-1])
            items = self.stack[-count:]
            if len(items) != count:
                raise IndexError
            self.stack[-count:] = [tuple(items)]
            return
        if name == "APPEND":
            items = [self.stack.pop()]
        elif name == "SETITEM":
            items = [self.stack.pop(-2), self.stack.pop()]
        elif name in ("TUPLE", "LIST", "DICT", "APPENDS", "SETITEMS", "POP_MARK"):
            items, self.stack = self.stack, self.marked.pop()
        else:
            raise NotPlain(f"it holds code or objects ({name}), which are never made")
        if name in ("TUPLE", "LIST"):
            self.stack.append(tuple(items) if name == "TUPLE" else items)
        elif name in ("APPEND", "APPENDS"):
            _of(list, self.stack[-1]).extend(items)
        elif name != "POP_MARK":
            if name == "DICT":
                self.stack.append({})
            target = self.stack[-1]
            set_items(target if isinstance(target, Ordered) else _of(dict, target), items)

    def object(self, name: str, argument: Any) -> None:
        """Executes the opcodes that name, call and fill objects: only functions of the table are called."""
        if name == "GLOBAL":
            self.stack.append(self.look_up(".".join(argument.split(" ", 1))))
        elif name == "STACK_GLOBAL":
            attribute, module = self.stack.pop(), self.stack.pop()
            self.stack.append(self.look_up(f"{_of(str, module)}.{_of(str, attribute)}"))
        elif name == "BINPERSID":
            if self.stored is None:
                raise NotPlain("it refers to something outside of it")
            self.stack.append(self.stored(self.stack.pop()))
        elif name == "BUILD":
            state = self.stack.pop()
            if not isinstance(self.stack[-1], Built):
                raise NotPlain(f"it sets attributes of a {_kind(self.stack[-1])}")
            self.stack[-1].restore(state)
        else:
            arguments, function = _of(tuple, self.stack.pop()), self.stack.pop()
            if not isinstance(function, Named) or function.make is None:
                raise NotPlain(f"it calls a {_kind(function)}")
            self.stack.append(_call(function, arguments))

    def look_up(self, full: str) -> Any:
        found = self.names(full)
        if found is None:
            raise NotPlain(f"it holds code ({full}), which is never run")
        return found


class _NoHugeReads:
    """A file of which no length in a pickle can ask for more than LARGEST at once."""

    def __init__(self, file: io.BufferedIOBase) -> None:
        self.readline, self.tell, self._read = file.readline, file.tell, file.read

    def read(self, count: int) -> bytes:
        if not 0 <= count <= LARGEST:
            raise NotPlain(f"it has a value of {count} bytes")
        return self._read(count)


CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}
EMPTY: dict[str, Callable[[], Any]] = {"EMPTY_LIST": list, "EMPTY_DICT": dict}
LITERALS = frozenset(
    "INT BININT BININT1 BININT2 LONG LONG1 LONG4 FLOAT BINFLOAT STRING BINSTRING SHORT_BINSTRING UNICODE BINUNICODE"
    " SHORT_BINUNICODE BINBYTES SHORT_BINBYTES".split()
)


def _call(function: Named, arguments: tuple[Any, ...]) -> Any:
    assert function.make is not None
    try:
        return function.make(*arguments)
    except NotPlain:
        raise
    except Exception as error:
        raise NotPlain(f"it calls {function.name} as that is not called") from error


def _of(kind: type, value: Any) -> Any:
    if type(value) is not kind:
        raise NotPlain(f"it uses a {_kind(value)} as a {kind.__name__}")
    return value


def _kind(value: Any) -> str:
    return value.name if isinstance(value, Named) else type(value).__name__


def set_items(target: dict[Any, Any], items: list[Any]) -> None:
    """Keys that cannot be made to collide, so that a small file cannot take long."""
    for key, value in zip(items[::2], items[1::2], strict=True):
        if type(key) not in (str, bytes, bool, type(None)) and not (type(key) is int and -(1 << 63) <= key < 1 << 63):
            raise NotPlain(f"it has a {_kind(key)} as a key")
        target[key] = value


def plain(value: Any, largest: int = LARGEST) -> Any:
    """A copy in lists, dicts, tuples and values that are shared nowhere.

    Raises NotPlain where it is deeper than DEPTH, comes to more than `largest` letters, or holds anything that is no data: few
    bytes of references to one list can stand for more than a memory holds.
    """
    left = largest

    def copy(one: Any, depth: int) -> Any:
        nonlocal left
        left -= VALUE + (len(one) if isinstance(one, (str, bytes)) else 0)
        if left < 0:
            raise NotPlain(f"it comes to more than {largest >> 20} MB of values")
        if depth > DEPTH:
            raise NotPlain(f"it has more than {DEPTH} levels")
        if isinstance(one, Leaf):
            number = one.value()
            left -= getattr(number, "nbytes", 0)
            return number
        if isinstance(one, Built):
            copy(one.besides, depth + 1)
            return copy(one.value(), depth + 1)
        if type(one) in (list, tuple):
            return type(one)(copy(item, depth + 1) for item in one)
        if type(one) is dict:
            return {copy(key, depth + 1): copy(item, depth + 1) for key, item in one.items()}
        if type(one) is int and one.bit_length() > LONGEST:
            raise NotPlain(f"it has an integer of {one.bit_length()} bits")
        if one is None or type(one) in (bool, int, float, str, bytes):
            return one
        raise NotPlain(f"it holds a {_kind(one)}, which is no plain value")

    return copy(value, 0)
