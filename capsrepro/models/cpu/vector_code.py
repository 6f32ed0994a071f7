"""Loops over arrays of numbers, written in vectors as wide as the processor's, compiled when run.

What a compiler makes of a loop over numbers is its secret: of two alike, one comes out in vectors
and the other ten times slower. Here each operation is one instruction on one vector, as in an
assembler, and Python's own loops unroll: a list of `Vector` is a row of registers. llvmlite turns
it into machine code in a tenth of a second. Nothing is reordered, only a · b + c may be rounded
once: the same processor gives the same bits.
"""

from __future__ import annotations

import ctypes
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from itertools import count
from typing import Any

import torch
from llvmlite import ir

from capsrepro.models.cpu.machine_code import address_of, features

# Of the terms x^k / k! of e^x, the last that matters to |x| ≤ ln 2 / 2.
_TERMS = {torch.float32: 7, torch.float64: 13}
_LN_2 = {
    torch.float32: (0.693359375, -2.12194440e-4),
    torch.float64: (6.93147180369123816490e-01, 1.90821492927058770002e-10),
}

_INDEX = ir.IntType(64)
_LANE = ir.IntType(32)
_FUSED = ("contract",)
# Of functions: each has a name of its own.
_numbers = count()

Index = Any
"""A Python number, or one that is known when the code runs."""


def lanes_of(dtype: torch.dtype) -> int:
    """Numbers of one vector: 64 bytes of them with AVX-512, 32 elsewhere."""
    return (64 if features().get("avx512f", False) else 32) // dtype.itemsize


class Vector:
    """Numbers side by side in a register; +, - and * are one instruction each."""

    def __init__(self, builder: ir.IRBuilder, value: ir.Value) -> None:
        self.builder, self.value = builder, value

    def __add__(self, other: Vector) -> Vector:
        return Vector(self.builder, self.builder.fadd(self.value, other.value, flags=_FUSED))

    def __sub__(self, other: Vector) -> Vector:
        return Vector(self.builder, self.builder.fsub(self.value, other.value, flags=_FUSED))

    def __mul__(self, other: Vector) -> Vector:
        return Vector(self.builder, self.builder.fmul(self.value, other.value, flags=_FUSED))

    def __truediv__(self, other: Vector) -> Vector:
        return Vector(self.builder, self.builder.fdiv(self.value, other.value))


class Array:
    """A contiguous array in memory; its sizes and the indices may be known only at run time."""

    def __init__(self, code: VectorCode, pointer: ir.Value, sizes: tuple[Index, ...]) -> None:
        self.code, self.pointer, self.sizes = code, pointer, sizes

    def load(self, *index: Index) -> Vector:
        """The vector that begins there."""
        place = self.code.builder.bitcast(self._place(index), self.code.vector.as_pointer())
        return Vector(self.code.builder, self.code.builder.load(place, align=self.code.align))

    def store(self, vector: Vector, *index: Index) -> None:
        """Write the vector from there on."""
        place = self.code.builder.bitcast(self._place(index), self.code.vector.as_pointer())
        self.code.builder.store(vector.value, place, align=self.code.align)

    def spread(self, *index: Index) -> Vector:
        """One number in all lanes."""
        return self.code.spread(self.code.builder.load(self._place(index)))

    def put(self, vector: Vector, *index: Index) -> None:
        """Write the first lane as one number."""
        first = self.code.builder.extract_element(vector.value, ir.Constant(_LANE, 0))
        self.code.builder.store(first, self._place(index))

    def _place(self, index: tuple[Index, ...]) -> ir.Value:
        offset = ir.Constant(_INDEX, 0)
        for size, at in zip(self.sizes, index, strict=True):
            offset = self.code.plus(self.code.times(offset, size), at)
        return self.code.builder.gep(self.pointer, [offset])


class VectorCode:
    """One function on arrays and whole numbers, in the making.

    Args:
        dtype: float32 or float64, of every array.
        arrays: Their names, in the order in which the function takes their addresses. No two may
            overlap.
        numbers: Names of the whole numbers, which it takes after them.
    """

    def __init__(self, dtype: torch.dtype, arrays: list[str], numbers: list[str]) -> None:
        element = {torch.float32: ir.FloatType(), torch.float64: ir.DoubleType()}[dtype]
        self.dtype, self.lanes, self.align = dtype, lanes_of(dtype), dtype.itemsize
        self.vector = ir.VectorType(element, self.lanes)
        self.module = ir.Module()
        kinds = [element.as_pointer()] * len(arrays) + [_INDEX] * len(numbers)
        kind = ir.FunctionType(ir.VoidType(), kinds)
        self.function = ir.Function(self.module, kind, f"loops_{next(_numbers)}")
        for argument in self.function.args[: len(arrays)]:
            argument.add_attribute("noalias")
        self.arguments = dict(zip([*arrays, *numbers], self.function.args, strict=True))
        self.counts = len(arrays), len(numbers)
        self.builder = ir.IRBuilder(self.function.append_basic_block())

    def array(self, name: str, *sizes: Index) -> Array:
        """An array among the arguments."""
        return Array(self, self.arguments[name], sizes)

    def arrays(self, names: Iterable[str], sizes: Mapping[str, Index]) -> dict[str, Array]:
        """Those among the arguments whose axes stand after the last underscore of their names."""
        axes = {name: name.rpartition("_")[2] for name in names}
        return {name: self.array(name, *(sizes[axis] for axis in axes[name])) for name in axes}

    def plus(self, one: Index, other: Index) -> Index:
        """Sum of whole numbers."""
        return self.builder.add(_index(one), _index(other))

    def times(self, one: Index, other: Index) -> Index:
        """Product of whole numbers."""
        return self.builder.mul(_index(one), _index(other))

    def least(self, one: Index, other: Index) -> Index:
        """The smaller of two whole numbers."""
        smaller = self.builder.icmp_signed("<", _index(one), _index(other))
        return self.builder.select(smaller, _index(one), _index(other))

    @contextmanager
    def loop(self, start: Index, stop: Index, step: int = 1) -> Iterator[Index]:
        """What stands in the `with` runs for each index from `start` to below `stop`."""
        builder, before = self.builder, self.builder.block
        head, body, end = (self.function.append_basic_block() for _ in range(3))
        builder.branch(head)
        builder.position_at_end(head)
        index = builder.phi(_INDEX)
        index.add_incoming(_index(start), before)
        builder.cbranch(builder.icmp_signed("<", index, _index(stop)), body, end)
        builder.position_at_end(body)
        yield index
        index.add_incoming(self.plus(index, step), builder.block)
        builder.branch(head)
        builder.position_at_end(end)

    def constant(self, number: float) -> Vector:
        """The same number in all lanes."""
        return Vector(self.builder, ir.Constant(self.vector, [number] * self.lanes))

    def either(self, index: Index, is_zero: Vector, else_: Vector) -> Vector:
        """The first vector where the index is 0."""
        first = self.builder.icmp_signed("==", _index(index), _index(0))
        return Vector(self.builder, self.builder.select(first, is_zero.value, else_.value))

    def larger(self, one: Vector, other: Vector) -> Vector:
        """The larger number in each lane."""
        return self._where_less(one, other, other, one)

    def exp(self, vector: Vector) -> Vector:
        """e^x of numbers that are 0 or less; 0 below twice the least normal number.

        x = k ln 2 + rest: 2^k is put into the exponent's bits, e^rest is summed up.
        """
        info = torch.finfo(self.dtype)
        digits = round(-math.log2(info.eps))
        # A number so large that its last digit is 1: what is added to it is rounded to a whole.
        rounder = self.constant(1.5 * 2**digits)
        least = self.constant(math.log(2 * info.tiny))
        x = self._where_less(vector, least, least, vector)
        shifted = x * self.constant(1 / math.log(2)) + rounder
        k = shifted - rounder
        high, low = (self.constant(part) for part in _LN_2[self.dtype])
        rest = x - k * high - k * low
        terms = [self.constant(1 / math.factorial(n)) for n in range(_TERMS[self.dtype], -1, -1)]
        series = terms[0]
        for term in terms[1:]:
            series = series * rest + term
        bits = ir.VectorType(ir.IntType(8 * self.align), self.lanes)
        exponent = self.builder.shl(
            self.builder.bitcast(shifted.value, bits), ir.Constant(bits, [digits] * self.lanes)
        )
        scaled = self.builder.add(self.builder.bitcast(series.value, bits), exponent)
        power = Vector(self.builder, self.builder.bitcast(scaled, self.vector))
        return self._where_less(vector, least, self.constant(0), power)

    def _where_less(self, one: Vector, other: Vector, then: Vector, else_: Vector) -> Vector:
        less = self.builder.fcmp_ordered("<", one.value, other.value)
        return Vector(self.builder, self.builder.select(less, then.value, else_.value))

    def variable(self, start: Vector) -> Variable:
        """A vector that a loop may change."""
        return Variable(self, start)

    def spread(self, number: ir.Value) -> Vector:
        """One number in all lanes."""
        nothing = ir.Constant(self.vector, ir.Undefined)
        first = self.builder.insert_element(nothing, number, ir.Constant(_LANE, 0))
        return Vector(self.builder, self._picked(first, nothing, [0] * self.lanes))

    def total(self, vector: Vector) -> Vector:
        """The sum of all lanes, in all lanes."""
        half = self.lanes // 2
        while half:
            turned = [lane ^ half for lane in range(self.lanes)]
            vector = vector + Vector(self.builder, self._picked(vector.value, vector.value, turned))
            half //= 2
        return vector

    def totals(self, vectors: list[Vector]) -> Vector:
        """In each lane the sum of all lanes of one vector; 0 in those that are left over."""
        rows = [*vectors, *[self.constant(0)] * (self.lanes - len(vectors))]
        half = self.lanes // 2
        while half:
            # Lanes without the bit of `half` go on with one row, lanes with it with the other.
            own = [lane + self.lanes * bool(lane & half) for lane in range(self.lanes)]
            across = [lane ^ half for lane in own]
            rows = [
                Vector(self.builder, self._picked(one.value, other.value, own))
                + Vector(self.builder, self._picked(one.value, other.value, across))
                for one, other in zip(rows[:half], rows[half:], strict=True)
            ]
            half //= 2
        return rows[0]

    def _picked(self, one: ir.Value, other: ir.Value, lanes: list[int]) -> ir.Value:
        mask = ir.Constant(ir.VectorType(_LANE, self.lanes), lanes)
        return self.builder.shuffle_vector(one, other, mask)

    def compiled(self, level: int = 2) -> Callable[..., None]:
        """The function; it lets other threads of Python run.

        Args:
            level: Of what LLVM does to the code first; where there is no `Variable`, 0 makes it as
                fast and takes half of the time.
        """
        self.builder.ret_void()
        arrays, numbers = self.counts
        kinds = [ctypes.c_void_p] * arrays + [ctypes.c_int64] * numbers
        address = address_of(self.function.name, str(self.module), level)
        return ctypes.CFUNCTYPE(None, *kinds)(address)


class Variable:
    """A vector whose value changes; the compiler keeps it in a register where one is left."""

    def __init__(self, code: VectorCode, start: Vector) -> None:
        self.code = code
        with code.builder.goto_entry_block():
            self.place = code.builder.alloca(code.vector)
        self.value = start

    @property
    def value(self) -> Vector:
        """What it is now."""
        return Vector(self.code.builder, self.code.builder.load(self.place))

    @value.setter
    def value(self, vector: Vector) -> None:
        self.code.builder.store(vector.value, self.place)


def _index(number: Index) -> ir.Value:
    return ir.Constant(_INDEX, number) if isinstance(number, int) else number
