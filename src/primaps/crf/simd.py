# mypy: disable-error-code="no-untyped-def"
# (numba infers the types of compiled functions)
"""SIMD vectors of float32 numbers in numba functions.

The compiled CRF computes all labels of a pixel or lattice point at once. For a short inner loop the
compiler checks aliasing and reloads the sum for every term; these intrinsics express the vector
operations directly. LLVM maps a vector of ``lanes`` numbers to the registers of the machine, for 32
lanes two of AVX-512, four of AVX2 or eight of NEON.
"""

from __future__ import annotations

from llvmlite import ir
from numba.core import cgutils, types
from numba.core.datamodel import PrimitiveModel
from numba.extending import intrinsic, register_model

from primaps.utils.compiled import EXP_LOWEST, EXP_SERIES, LN_2_HIGH, LN_2_LOW, LOG2_E

_F32 = ir.FloatType()
_I32 = ir.IntType(32)


class Vector(types.Type):
    """The numba type of ``lanes`` float32 numbers."""

    def __init__(self, lanes: int) -> None:
        self.lanes = lanes
        super().__init__(name=f"Vector{lanes}")


@register_model(Vector)
class _VectorModel(PrimitiveModel):
    def __init__(self, dmm, fe_type):
        super().__init__(dmm, fe_type, ir.VectorType(_F32, fe_type.lanes))


def _constant(vector: ir.VectorType, value: float | int) -> ir.Constant:
    return ir.Constant(vector, [value] * vector.count)


def _broadcast(builder, scalar, lanes):
    vector = ir.VectorType(scalar.type, lanes)
    one = builder.insert_element(ir.Constant(vector, ir.Undefined), scalar, ir.Constant(_I32, 0))
    mask = ir.Constant(ir.VectorType(_I32, lanes), [0] * lanes)
    return builder.shuffle_vector(one, ir.Constant(vector, ir.Undefined), mask)


def _call(builder, name, vector, *args):
    """Call an LLVM intrinsic that is overloaded on one vector type."""
    kind = "f32" if vector.element == _F32 else "i32"
    function = cgutils.get_or_insert_function(
        builder.module,
        ir.FunctionType(vector, [vector] * len(args)),
        f"llvm.{name}.v{vector.count}{kind}",
    )
    return builder.call(function, args)


def _pointer(context, builder, array_type, array, offset, vector):
    data = context.make_array(array_type)(context, builder, array).data
    return builder.bitcast(builder.gep(data, [offset]), vector.as_pointer())


@intrinsic
def at(typingctx, array, index):
    """Return ``array[index]`` for an index in range, without a check for negative ones."""

    def codegen(context, builder, signature, args):
        data = context.make_array(array)(context, builder, args[0]).data
        value = builder.load(builder.gep(data, [args[1]]))
        if isinstance(array.dtype, types.Integer):
            return builder.sext(value, context.get_value_type(types.intp))
        return value

    result = types.intp if isinstance(array.dtype, types.Integer) else array.dtype
    return result(array, types.intp), codegen


@intrinsic(prefer_literal=True)
def load(typingctx, array, offset, lanes):
    """Return ``array[offset : offset + lanes]`` of a float32 array."""
    count = lanes.literal_value

    def codegen(context, builder, signature, args):
        vector = ir.VectorType(_F32, count)
        return builder.load(_pointer(context, builder, array, args[0], args[1], vector), align=4)

    return Vector(count)(array, types.intp, lanes), codegen


@intrinsic
def store(typingctx, array, offset, value):
    """Assign ``array[offset : offset + lanes] = value``."""

    def codegen(context, builder, signature, args):
        vector = ir.VectorType(_F32, value.lanes)
        pointer = _pointer(context, builder, array, args[0], args[1], vector)
        builder.store(args[2], pointer, align=4)
        return context.get_dummy_value()

    return types.void(array, types.intp, value), codegen


@intrinsic(prefer_literal=True)
def fill(typingctx, scalar, lanes):
    """Return a vector with ``scalar`` in every lane."""

    def codegen(context, builder, signature, args):
        return _broadcast(builder, args[0], lanes.literal_value)

    return Vector(lanes.literal_value)(types.float32, lanes), codegen


@intrinsic
def axpy(typingctx, scale, x, y):
    """Return ``scale * x + y`` for a scalar ``scale``."""

    def codegen(context, builder, signature, args):
        vector = ir.VectorType(_F32, x.lanes)
        scales = _broadcast(builder, args[0], x.lanes)
        return _call(builder, "fmuladd", vector, scales, args[1], args[2])

    return x(types.float32, x, y), codegen


def _with_scalar(operation):
    """Return an intrinsic of a vector and a scalar that is broadcast to all lanes."""

    @intrinsic
    def function(typingctx, x, scalar):
        def codegen(context, builder, signature, args):
            return operation(builder, args[0], _broadcast(builder, args[1], x.lanes))

        return x(x, types.float32), codegen

    return function


def _elementwise(operation):
    """Return an intrinsic of two vectors."""

    @intrinsic
    def function(typingctx, x, y):
        def codegen(context, builder, signature, args):
            return operation(builder, *args)

        return x(x, y), codegen

    return function


def _reduction(operation):
    """Return an intrinsic that combines the halves of a vector repeatedly, in a fixed order."""

    @intrinsic
    def function(typingctx, x):
        def codegen(context, builder, signature, args):
            value, lanes = args[0], x.lanes
            while lanes > 1:
                lanes //= 2
                low, high = (
                    builder.shuffle_vector(
                        value, value, ir.Constant(ir.VectorType(_I32, lanes), list(half))
                    )
                    for half in (range(lanes), range(lanes, 2 * lanes))
                )
                value = operation(builder, low, high)
            return builder.extract_element(value, ir.Constant(_I32, 0))

        return types.float32(x), codegen

    return function


def _larger(builder, x, y):
    return builder.select(builder.fcmp_ordered(">", x, y), x, y)


subtract = _with_scalar(lambda builder, x, y: builder.fsub(x, y))
"""``x - scalar``."""
scaled = _with_scalar(lambda builder, x, y: builder.fmul(x, y))
"""``x * scalar``."""
plus = _elementwise(lambda builder, x, y: builder.fadd(x, y))
"""``x + y``."""
distance = _elementwise(lambda builder, x, y: _call(builder, "fabs", x.type, builder.fsub(x, y)))
"""``|x - y|``."""
maximum = _elementwise(_larger)
"""The elementwise maximum of two vectors."""
total = _reduction(lambda builder, x, y: builder.fadd(x, y))
"""The sum over the lanes."""
largest = _reduction(_larger)
"""The maximum over the lanes."""


@intrinsic
def muladd(typingctx, x, y, z):
    """Return ``x * y + z``."""

    def codegen(context, builder, signature, args):
        return _call(builder, "fmuladd", ir.VectorType(_F32, x.lanes), *args)

    return x(x, y, z), codegen


@intrinsic
def exponential(typingctx, x):
    """Return ``e^x`` for x <= 0 to about 2 units in the last place; below -87, e^-87.

    LLVM has no vector exponential; the series is that of
    :func:`primaps.utils.compiled.exponential`.
    """

    def codegen(context, builder, signature, args):
        vector = ir.VectorType(_F32, x.lanes)
        integers = ir.VectorType(_I32, x.lanes)

        def const(value):
            return _constant(vector, value)

        floor = const(EXP_LOWEST)
        value = builder.select(builder.fcmp_ordered(">", args[0], floor), args[0], floor)
        n = _call(builder, "rint", vector, builder.fmul(value, const(LOG2_E)))
        # ln 2 in two parts, the first one exact in few bits, keeps the remainder accurate.
        r = _call(builder, "fmuladd", vector, n, const(-LN_2_HIGH), value)
        r = _call(builder, "fmuladd", vector, n, const(-LN_2_LOW), r)
        result = const(EXP_SERIES[0])
        for factor in EXP_SERIES[1:]:
            result = _call(builder, "fmuladd", vector, result, r, const(factor))
        exponent = builder.add(builder.fptosi(n, integers), _constant(integers, 127))
        power = builder.bitcast(builder.shl(exponent, _constant(integers, 23)), vector)
        return builder.fmul(result, power)

    return x(x), codegen


@intrinsic
def prefetch(typingctx, array, offset):
    """Prefetch the cache line of ``array[offset]``."""

    def codegen(context, builder, signature, args):
        byte = ir.IntType(8).as_pointer()
        data = context.make_array(array)(context, builder, args[0]).data
        pointer = builder.bitcast(builder.gep(data, [args[1]]), byte)
        hint = cgutils.get_or_insert_function(
            builder.module,
            ir.FunctionType(ir.VoidType(), [byte, _I32, _I32, _I32]),
            "llvm.prefetch.p0i8",
        )
        builder.call(hint, [pointer] + [ir.Constant(_I32, v) for v in (1, 3, 1)])
        return context.get_dummy_value()

    return types.void(array, types.intp), codegen
