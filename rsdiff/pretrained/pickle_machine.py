"""Runs the few pickle instructions that arrays need, within fixed limits.

A pickle is a program for a machine with a stack and a memo. Python's own machine trusts the program: nine bytes can
make it allocate gigabytes for a memo, and a key of nested shared tuples takes exponential time to hash. This machine
reads the instructions with `pickletools`, which reads no more than the file has, and knows no classes: a name in the
program is looked up in a table of `Word`s, and only these are called.
"""

import itertools
import pickletools
from typing import Any, BinaryIO, Callable, NamedTuple

from rsdiff.base.errors import BadInput

# A tensor takes about forty instructions; an instruction makes an object of at most a few hundred bytes.
MOST_INSTRUCTIONS = 1_000_000
# The longest integer in a genuine file is the magic number of torch.save, 80 bits.
MOST_BITS = 128
# For integer keys: beyond 61 bits, integers can be chosen that all have the same hash.
MOST_KEY_BITS = 60

CONSTANTS = {'NONE': None, 'NEWTRUE': True, 'NEWFALSE': False}
LITERALS = {
    'INT',
    'BININT',
    'BININT1',
    'BININT2',
    'LONG',
    'LONG1',
    'LONG4',
    'FLOAT',
    'BINFLOAT',
    'STRING',
    'BINSTRING',
    'SHORT_BINSTRING',
    'UNICODE',
    'BINUNICODE',
    'SHORT_BINUNICODE',
    'BINUNICODE8',
    'BINBYTES',
    'SHORT_BINBYTES',
    'BINBYTES8',
}
EMPTY = {'EMPTY_TUPLE': tuple, 'EMPTY_LIST': list, 'EMPTY_DICT': dict}
TUPLES = {'TUPLE1': 1, 'TUPLE2': 2, 'TUPLE3': 3}


class Word(NamedTuple):
    """The object that a name in a pickle refers to. `call` is None if it must not be called."""

    name: str
    call: Callable[..., Any] | None = None


def run(
    file: BinaryIO,
    words: dict[tuple[str, str], Any],
    set_state: Callable[[Any, Any], None],
    refer: Callable[[Any], Any],
) -> Any:
    """Runs the pickle at the position of `file` and returns its result; `file` is then positioned after it.

    Args:
      words: (module, name) → what a pickle may name, a `Word` or any constant.
      set_state: called with (object, state) by the instruction BUILD, which does nothing else.
      refer: persistent id → the object that it identifies.
    Raises:
      BadInput: the pickle names something else, or has more than `MOST_INSTRUCTIONS` instructions.
      ValueError, TypeError, LookupError: it is truncated or broken, or has an instruction that arrays do not need.
    """
    stack, marks, memo = [], [], {}

    def since_mark() -> list[Any]:
        start = marks.pop()
        items = stack[start:]
        del stack[start:]
        return items

    for number in itertools.count():
        if number == MOST_INSTRUCTIONS:
            raise BadInput(f'has more than {MOST_INSTRUCTIONS} instructions; it is not read')
        opcode, value = _next(file)
        name = opcode.name
        if name in ('PROTO', 'FRAME'):
            pass
        elif name == 'STOP':
            return stack.pop()
        elif name in LITERALS:
            stack.append(_literal(value))
        elif name in CONSTANTS:
            stack.append(CONSTANTS[name])
        elif name in EMPTY:
            stack.append(EMPTY[name]())
        elif name in ('PUT', 'BINPUT', 'LONG_BINPUT'):
            memo[value] = stack[-1]
        elif name == 'MEMOIZE':
            memo[len(memo)] = stack[-1]
        elif name in ('GET', 'BINGET', 'LONG_BINGET'):
            stack.append(memo[value])
        elif name == 'MARK':
            marks.append(len(stack))
        elif name == 'TUPLE':
            stack.append(tuple(since_mark()))
        elif name in TUPLES:
            stack.append(tuple(stack.pop() for _ in range(TUPLES[name]))[::-1])
        elif name == 'LIST':
            stack.append(since_mark())
        elif name == 'DICT':
            items = since_mark()
            stack.append({})
            set_items(stack[-1], items)
        elif name == 'APPEND':
            item = stack.pop()
            _of(list, stack[-1]).append(item)
        elif name == 'APPENDS':
            items = since_mark()
            _of(list, stack[-1]).extend(items)
        elif name == 'SETITEM':
            item, key = stack.pop(), stack.pop()
            set_items(stack[-1], [key, item])
        elif name == 'SETITEMS':
            items = since_mark()
            set_items(stack[-1], items)
        elif name == 'GLOBAL':
            stack.append(_word(words, *value.split(' ', 1)))
        elif name == 'STACK_GLOBAL':
            word, module = stack.pop(), stack.pop()
            stack.append(_word(words, _of(str, module), _of(str, word)))
        elif name == 'REDUCE':
            arguments, word = stack.pop(), stack.pop()
            if not isinstance(word, Word) or word.call is None:
                raise TypeError('a call of something that is not a function')
            stack.append(word.call(*_of(tuple, arguments)))
        elif name == 'BUILD':
            state = stack.pop()
            if isinstance(stack[-1], Word):
                raise TypeError(f'an attempt to change {stack[-1].name}')
            set_state(stack[-1], state)
        elif name == 'BINPERSID':
            stack.append(refer(stack.pop()))
        else:
            raise ValueError(f'the instruction {name}, which an array does not need')


def set_items(target: Any, items: list[Any]) -> None:
    """Adds [key, value, key, value, …] to a dict. TypeError: a key is not text, a short integer, a boolean or None."""
    _of(dict, target)
    for key, item in zip(items[::2], items[1::2], strict=True):
        if type(key) is int and key.bit_length() > MOST_KEY_BITS or type(key) not in (str, int, bool, type(None)):
            raise TypeError(f'a {type(key).__name__} as a key')
        target[key] = item


def items_of(pairs: Any) -> list[Any]:
    """[(key, value), …], the form in which Python 2 wrote an ordered dict → [key, value, …]."""
    return [part for pair in _of(list, pairs) for part in _pair(pair)]


def _pair(pair: Any) -> tuple[Any, Any]:
    if type(pair) not in (list, tuple) or len(pair) != 2:
        raise TypeError('an item that is not a pair')
    return pair[0], pair[1]


def _next(file: BinaryIO) -> tuple[pickletools.OpcodeInfo, Any]:
    code = file.read(1)
    opcode = pickletools.code2op.get(code.decode('latin-1'))  # pyright: ignore[reportAttributeAccessIssue]
    if opcode is None:
        raise ValueError(f'unknown instruction {code!r}' if code else 'it ends too early')
    return opcode, None if opcode.arg is None else opcode.arg.reader(file)


def _literal(value: Any) -> Any:
    if isinstance(value, str):
        value.encode('utf-8')  # raises for half of a surrogate pair, which is not text
    if isinstance(value, int) and value.bit_length() > MOST_BITS:
        raise ValueError(f'a number of {value.bit_length()} bits')
    return value


def _word(words: dict[tuple[str, str], Any], module: str, name: str) -> Any:
    if (module, name) not in words:
        shown = ascii(f'{module}.{name}'[:100])[1:-1]
        raise BadInput(f'names {shown}, which an array does not need; it is not read')
    return words[module, name]


def _of(kind: type, value: Any) -> Any:
    if not isinstance(value, kind):
        raise TypeError(f'a {type(value).__name__} where a {kind.__name__} should be')
    return value
