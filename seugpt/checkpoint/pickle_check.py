"""What a pickle would build, worked out from its opcodes without building it.

torch.load(weights_only=True) runs no code, but a small file can still hang it, crash it or fill the
memory: lists and tuples that contain each other a billion times over, or a million deep, or
bytearray(10**10). A checkpoint holds plain values and tensors, shallow and each written out once.
"""

import pickletools
from dataclasses import dataclass

MAX_DEPTH = 32  # containers in containers
MAX_SIZE = 10_000_000  # values, each counted as often as it is reached
MAX_OPCODES = 3_000_000
ALLOWED_GLOBALS = {
    "collections OrderedDict",
    "torch._utils _rebuild_tensor_v2",
    "torch._utils _rebuild_parameter",
    *(
        f"torch {dtype}Storage"
        for dtype in "Float Half BFloat16 Double Long Int Short Char Byte Bool".split()
    ),
}
VALUES = set(
    "NONE NEWTRUE NEWFALSE BININT BININT1 BININT2 LONG1 BINFLOAT BINUNICODE SHORT_BINUNICODE "
    "EMPTY_TUPLE".split()
)
CONTAINERS = {"EMPTY_LIST": "list", "EMPTY_DICT": "dict"}
TUPLE_LENGTHS = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
PUTS = ("BINPUT", "LONG_BINPUT")
GETS = ("BINGET", "LONG_BINGET")


@dataclass(slots=True)
class Node:
    """What is known of an object that a pickle would build."""

    kind: str  # value, tuple, list, dict, global, object or mark
    depth: int = 0
    size: int = 1

    def add(self, nodes):
        for node in nodes:
            self.depth = max(self.depth, node.depth + 1)
            self.size += node.size
        if self.depth > MAX_DEPTH or self.size > MAX_SIZE:
            raise ValueError("its values are nested too deeply, or too many")
        return self


VALUE = Node("value")
MARK = Node("mark")


def check_pickle(data):
    """Raise ValueError unless a pickle holds only plain values and tensors, within bounds."""
    stack = []
    memo = {}
    try:
        for count, (opcode, argument, _) in enumerate(pickletools.genops(data)):
            if count > MAX_OPCODES:
                raise ValueError("it has too many values")
            apply(opcode.name, argument, stack, memo)
    except (IndexError, KeyError) as error:  # the stack is empty, or the memo has no such entry
        raise ValueError("not a complete pickle") from error


def apply(name, argument, stack, memo):
    """Do to the stack and the memo, with Nodes for objects, what an opcode does."""
    if name in VALUES:
        stack.append(VALUE)
    elif name in CONTAINERS:
        stack.append(Node(CONTAINERS[name]))
    elif name == "MARK":
        stack.append(MARK)
    elif name in PUTS:
        memo[argument] = stack[-1]
    elif name in GETS:
        if memo[argument].kind in ("list", "dict"):
            raise ValueError("a list or dictionary is in two places")
        stack.append(memo[argument])
    elif name == "GLOBAL":
        if argument not in ALLOWED_GLOBALS:
            raise ValueError(f"it refers to {argument!r}")
        stack.append(Node("global"))
    elif name in TUPLE_LENGTHS:
        items = [stack.pop() for _ in range(TUPLE_LENGTHS[name])]
        stack.append(Node("tuple").add(items))
    elif name == "TUPLE":
        items = pop_to_mark(stack)
        stack.append(Node("tuple").add(items))
    elif name in ("APPEND", "APPENDS"):
        items = pop_to_mark(stack) if name == "APPENDS" else [stack.pop()]
        expect(stack[-1], "list").add(items)
    elif name in ("SETITEM", "SETITEMS"):
        items = pop_to_mark(stack) if name == "SETITEMS" else [stack.pop(), stack.pop()][::-1]
        for key in items[::2]:
            expect(key, "value")
        expect(stack[-1], "dict").add(items)
    elif name == "REDUCE":
        arguments = expect(stack.pop(), "tuple", "value")
        expect(stack.pop(), "global")
        # OrderedDict() is a dictionary; a tensor needs arguments.
        stack.append(Node("object" if arguments.kind == "tuple" else "dict").add([arguments]))
    elif name == "BUILD":
        state = stack.pop()
        expect(stack[-1], "dict").add([state])  # the _metadata of a state dict
    elif name == "BINPERSID":
        stack.append(Node("object").add([stack.pop()]))
    elif name not in ("PROTO", "STOP"):
        raise ValueError(f"it has the opcode {name}")


def pop_to_mark(stack):
    """The nodes above the last mark, in order; they and the mark are removed."""
    items = []
    while stack[-1].kind != "mark":
        items.append(stack.pop())
    stack.pop()
    return items[::-1]


def expect(node, *kinds):
    if node.kind not in kinds:
        raise ValueError(f"a {node.kind} stands where a {kinds[0]} belongs")
    return node
